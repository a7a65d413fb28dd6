"""Benchmarks: correctness first, then ratios of medians over interleaved repetitions.

python -m bench.measure all        measure, and append records to bench/records/
python -m bench.report             bench/RESULTS.md and bench/heads.png from the latest records
pytest bench -m long --benchmark-enable
"""

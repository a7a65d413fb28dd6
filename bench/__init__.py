"""Benchmarks: correctness first, then ratios of medians over interleaved repetitions.

python -m bench.measure all        measure, and append records to bench/records/
python -m bench.report             bench/RESULTS.md and the plots from the latest records
python -m bench.profile_gpu        which kernels run, and how near the device's ceilings
python -m bench.power              power, clocks and energy of training steps
bench/gpu.sh                       all that a GPU machine should run, tests first
pytest bench -m long --benchmark-enable
"""

"""Benchmarks: correctness first, then ratios of medians over interleaved repetitions.

The programs are:

    python -m bench.measure all        measure, and append records to bench/records/
    python -m bench.report             bench/RESULTS.md and the plots from the latest records
    python -m bench.jobs               whole jobs: train, train_supervised, Word2Vec
    python -m bench.memory_safety      captured steps while other code frees and takes a GPU's memory
    python -m bench.profile_gpu        which kernels run, and how close they are to the device's limits
    bench/gpu.sh                       everything that a GPU machine should run, in 350 seconds, most informative first
    pytest bench -m long --benchmark-enable
"""

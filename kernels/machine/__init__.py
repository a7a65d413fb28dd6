"""What kernels of every op are made with: vectors, GEMMs, compilation, threads, launches; and who computes."""

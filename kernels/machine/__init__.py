"""Building blocks of all kernels: vectors, GEMMs, compilation, threads, launches; and the choice of a backend."""

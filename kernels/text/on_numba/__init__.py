"""On a CPU, compiled by Numba: bytes are read where they are."""

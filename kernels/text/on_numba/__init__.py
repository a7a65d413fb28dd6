"""CPU backend, compiled by Numba: bytes are read in place."""

"""On a CPU, compiled by Numba."""

from ...machine.registry import KERNEL_DTYPES, Backend

BACKEND = Backend("numba", package="numba", devices=("cpu",), dtypes=KERNEL_DTYPES)

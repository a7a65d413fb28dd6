"""CPU backend, compiled by Numba."""

import torch

from ...machine.registry import NO_NUMBA, Backend

BACKEND = Backend("numba", package="numba", devices=("cpu",), dtypes=(torch.float32,), stopped_by=NO_NUMBA)

"""CPU backend, compiled by Numba."""

import torch

from ...machine.registry import Backend

BACKEND = Backend("numba", package="numba", devices=("cpu",), dtypes=(torch.float32,))

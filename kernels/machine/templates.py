"""Tensors that others are made like, so that neither torch's default dtype nor its default device counts.

They are made while the package is imported. Modules of kernels are first imported by the first call, and if that call
is traced by torch.compile, a tensor made at the top of such a module would be a fake one, for good.
"""

import torch

FLOATS = torch.empty(0, dtype=torch.float32, device="cpu")
INTEGERS = torch.empty(0, dtype=torch.int64, device="cpu")
ONE = torch.ones((), dtype=torch.float32, device="cpu")

"""The kernels: fused multi-task loss on a CPU (Numba) and a GPU (Triton), and their oracle.

Imports nothing from the rest of the package.
"""

from .choice import BACKENDS, PLANS, Choice, choose_backend, choose_plan
from .layout import HeadLayout, HeadSpec, Kind
from .op import MultitaskLoss, multitask_loss, warm_up

__all__ = [
    "BACKENDS",
    "PLANS",
    "Choice",
    "HeadLayout",
    "HeadSpec",
    "Kind",
    "MultitaskLoss",
    "choose_backend",
    "choose_plan",
    "multitask_loss",
    "warm_up",
]

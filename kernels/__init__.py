"""The kernels: fused multi-task loss on a CPU (Numba) and a GPU (Triton), and their oracle.

Imports nothing from the rest of the package.
"""

from .choice import BACKENDS, PLANS, RULES, Choice, Shape, choose_backend, choose_plan, table_path
from .layout import HeadLayout, HeadSpec, Kind
from .op import MultitaskLoss, multitask_loss, warm_up

__all__ = [
    "BACKENDS",
    "PLANS",
    "RULES",
    "Choice",
    "HeadLayout",
    "HeadSpec",
    "Kind",
    "MultitaskLoss",
    "Shape",
    "choose_backend",
    "choose_plan",
    "multitask_loss",
    "table_path",
    "warm_up",
]

"""The kernels: fused multi-task loss on a CPU (Numba) and a GPU (Triton), and their oracle.

Imports nothing from the rest of the package.
"""

from .choice import BACKENDS, PLANS, RULES, Choice, Shape, choose_backend, choose_plan, table_path
from .context import (
    ContextBatch,
    ContextGradients,
    ContextOptions,
    ContextTraining,
    context_gradients,
    draw_batch,
    word_sampler,
)
from .layout import HeadLayout, HeadSpec, Kind
from .op import MultitaskLoss, multitask_loss, warm_up

__all__ = [
    "BACKENDS",
    "PLANS",
    "RULES",
    "Choice",
    "ContextBatch",
    "ContextGradients",
    "ContextOptions",
    "ContextTraining",
    "HeadLayout",
    "HeadSpec",
    "Kind",
    "MultitaskLoss",
    "Shape",
    "choose_backend",
    "choose_plan",
    "context_gradients",
    "draw_batch",
    "multitask_loss",
    "table_path",
    "warm_up",
    "word_sampler",
]

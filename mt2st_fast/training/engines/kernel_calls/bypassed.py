"""What a kernel call would bypass: code that is put around, or in the place of, that of a model and its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

from mt2st_fast.kernels import ACTIVATIONS
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads

_HOOKS_OF_MODULES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOKS_OF_PARAMETERS = (attrgetter("_backward_hooks"), attrgetter("_post_accumulate_grad_hooks"))
# Those of all optimizers; each of these objects stays the same.
_OF_ALL_OPTIMIZERS = (
    torch_optimizer._global_optimizer_pre_hooks,
    torch_optimizer._global_optimizer_post_hooks,
)
_KNOWN = ("torch.", "mt2st_fast.")  # where the optimizers come from whose rules kernels know


def hooks_of(modules: Iterable[nn.Module]) -> list[dict[int, Any]]:
    """Return the dictionaries to which torch adds the hooks of these modules and of the modules in them."""
    parts = [part for module in modules for part in module.modules()]
    return [getattr(part, name) for part in parts for name in _HOOKS_OF_MODULES]


def hook_obstacle(
    of_modules: Sequence[dict[int, Any]],
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> str | None:
    """Return whose hooks a kernel call would not run, or None; of_modules: see `hooks_of`.

    Hooks on the steps of the optimizer are asked for by `step_obstacle`.
    """
    if any(of_modules) or torch_module._has_any_global_hook():
        return "a module has hooks"
    for hooks in _HOOKS_OF_PARAMETERS:
        if any(map(hooks, parameters)):
            return "a parameter has hooks"
    return step_obstacle(optimizer)


def step_obstacle(optimizer: torch.optim.Optimizer) -> str | None:
    """Return what the optimizer's step does besides its rule, or None."""
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks or any(_OF_ALL_OPTIMIZERS):
        return "the optimizer has hooks"
    step: Any = optimizer.step
    # torch wraps the steps of every class, and a scheduler those of its optimizer.
    while step is not None:
        function = getattr(step, "__func__", step)
        if not getattr(function, "__globals__", {}).get("__name__", "").startswith(_KNOWN):
            return f"the step method of {type(optimizer).__name__} was replaced"
        step = getattr(function, "__wrapped__", None)
    return None


def replaced_obstacle(modules: Iterable[nn.Module]) -> str | None:
    """Return which method of these modules, or of a module in them, was replaced in the object itself, or None."""
    for part in (part for module in modules for part in module.modules()):
        for name in vars(part):
            # Replacing what is not computed here, such as `train`, does no harm.
            if name == "forward" or (
                callable(getattr(type(part), name, None)) and not hasattr(nn.Module, name)
            ):
                return f"the {name} method of a {type(part).__name__} was replaced"
    return None


# By class of module, the options that kernels were told of, and that may be set at any time.
_OPTIONS: dict[type[nn.Module], Callable[[Any], Any]] = {
    **{each.module: attrgetter(*each.watched) for each in ACTIVATIONS if each.watched},
    nn.LayerNorm: attrgetter("normalized_shape", "eps"),
    nn.RMSNorm: attrgetter("normalized_shape", "eps"),
    nn.BatchNorm1d: attrgetter("num_features", "eps", "momentum", "track_running_stats", "training"),
    nn.Flatten: attrgetter("start_dim", "end_dim"),
    nn.Embedding: attrgetter("padding_idx", "max_norm", "scale_grad_by_freq", "sparse"),
    nn.EmbeddingBag: attrgetter(
        "mode", "padding_idx", "max_norm", "scale_grad_by_freq", "sparse", "include_last_offset"
    ),
    BagEncoder: attrgetter("mode", "sparse", "backend", "num_types"),
    WindowEncoder: attrgetter("width", "sparse", "backend", "num_types"),
    MultiTaskHeads: attrgetter("backend", "plan"),
}  # fmt: skip


class Watched:
    """Modules of which kernels were told: what they are, and their options. Parameters are not looked at."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._parts = [part for module in modules for part in module.modules()]
        self._own = [vars(part) for part in self._parts]
        self._asked = [(part, _OPTIONS[type(part)]) for part in self._parts if type(part) in _OPTIONS]
        self._before = self._now()

    def _now(self) -> list[Any]:
        # Their number tells of a method that is set in the object itself.
        kinds, own = list(map(type, self._parts)), list(map(len, self._own))
        return [kinds, own, [ask(part) for part, ask in self._asked]]

    def have_changed(self) -> bool:
        """Return whether one of them has another class or option, or methods of its own."""
        return self._now() != self._before

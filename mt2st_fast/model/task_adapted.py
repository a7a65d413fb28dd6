"""TAPS (Wallingford et al. 2022): layers of a shared encoder that become a task's own where that pays.

The weight of a layer for task k is W + 1[s_k >= threshold] D_k: W is shared; D_k and the score s_k belong to the task.
All are trained together, with a penalty on the scores that draws layers back to being shared.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from mt2st_fast.errors import InputError
from mt2st_fast.model.head_bank import HeadBank
from mt2st_fast.model.module_names import check_module_names, module_name
from mt2st_fast.model.task_features import TaskFeatures
from mt2st_fast.numbers import check_not_negative, check_positive_in_float32

THRESHOLD = 0.1  # as in the paper
_WITH_WEIGHT = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip


class _AtOrAbove(torch.autograd.Function):
    """1 if a score is at the threshold or above, else 0; the gradient goes straight through to the score."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, threshold: float) -> Tensor:  # type: ignore[override]
        del ctx
        return (score >= threshold).to(score.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        del ctx
        return gradient, None


class _AskedFor:
    """The task whose weights a forward pass reads (None: the shared ones), and whether the shared ones were read."""

    task: str | None = None
    shared_was_read = False


class _Residual(nn.Module):
    """The step from a layer's shared weight to the weight that it computes with."""

    def __init__(self, weight: Tensor, tasks: Iterable[str], asked: _AskedFor, threshold: float) -> None:
        super().__init__()
        names = [module_name(task) for task in tasks]
        self.difference = nn.ParameterDict({name: nn.Parameter(torch.zeros_like(weight)) for name in names})
        # Starts as the task's own: otherwise the first step would not move the difference.
        start = torch.full((1,), 2 * threshold, dtype=weight.dtype, device=weight.device)
        self.score = nn.ParameterDict({name: nn.Parameter(start.clone()) for name in names})
        self._asked, self._threshold = asked, threshold

    def forward(self, weight: Tensor) -> Tensor:
        if self._asked.task is None:
            # Anything recomputed in a backward pass no longer knows for which task it was.
            if torch._C._current_graph_task_id() != -1:
                raise RuntimeError(
                    "activation checkpointing (torch.utils.checkpoint) within a TaskAdaptedEncoder would compute "
                    "with the shared weights in the backward pass; switch it off, or leave out these layers "
                    "(layers=)"
                )
            self._asked.shared_was_read = True
            return weight
        name = module_name(self._asked.task)
        return weight + _AtOrAbove.apply(self.score[name], self._threshold) * self.difference[name]

    def own(self, task: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return the difference and the score of one task."""
        name = module_name(task)
        return self.difference[name], self.score[name]


class TaskAdaptedEncoder(nn.Module):
    """An encoder whose layers each task may make its own: `MultiTaskHeads` takes its output like any other encoder's.

        encoder = TaskAdaptedEncoder(encoder, heads.names)
        Trainer(encoder, heads, schedule=Switch(at=0.6))        # or heads(encoder(inputs), targets) in any loop

    "Task Adaptive Parameter Sharing for Multi-Task Learning" (TAPS, CVPR 2022, arXiv 2203.16708), its joint variant:
    the weight of a layer l is W_l + 1[s_kl >= threshold] D_kl for task k, the gradient goes straight through the
    indicator to the score s_kl, and penalty / L times the sum of |s_kl| over the L layers is added to the loss of every
    task that is trained (`Trainer` does this; in your own loop add `penalty(tasks)`). D begins at 0 and s at twice the
    threshold.

    The encoder is taken over, with its parameters. layers: names of its linear and convolutional layers and of its
    attention (in_proj), "" if that is the encoder itself; all by default. Biases, word tables, recurrent layers
    and norms stay shared. The output is `TaskFeatures`: the features of a task are computed when a head asks for them,
    so a retired task costs nothing, and each other task costs a pass through the encoder. If the encoder has methods
    `shared_part(inputs)` and `adapted_part(shared)`, and its own forward pass is one after the other, the first runs
    only once. `folded(task)` returns a plain encoder again, with the weights of one task.

    Raises ValueError for an encoder without such layers or with BatchNorm, whose statistics would mix all tasks; for
    an unknown layer; for numbers out of range; and for tasks whose names modules cannot have.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tasks: Iterable[str],
        *,
        layers: Iterable[str] | None = None,
        threshold: float = THRESHOLD,
        penalty: float = 0.01,
    ) -> None:
        super().__init__()
        check_positive_in_float32(threshold=threshold)
        check_not_negative(penalty=penalty)
        self.tasks = _names("tasks", tasks)
        check_module_names(self.tasks)
        self.layers = _layers_of(encoder) if layers is None else _names("layers", layers)
        _check_layers(encoder, self.layers)
        self.threshold, self.penalty_weight = threshold, penalty
        self.encoder, self._asked = encoder, _AskedFor()
        for name in self.layers:
            layer, weight = encoder.get_submodule(name), _weight_name(encoder.get_submodule(name))
            assert weight is not None
            residual = _Residual(getattr(layer, weight), self.tasks, self._asked, threshold)
            parametrize.register_parametrization(layer, weight, residual, unsafe=True)
        self._frozen_by_retirement: set[str] = set()

    @property
    def out_features(self) -> int:
        """The width of the features, if the encoder has it."""
        return self.encoder.out_features  # type: ignore[return-value]

    @property
    def pool(self) -> Callable[[Tensor], Tensor]:
        """The encoder's `pool`, for tasks on words: its table is shared."""
        return self.encoder.pool  # type: ignore[return-value]

    @property
    def vectors(self) -> Callable[[], Tensor]:
        """The encoder's `vectors` of words, which are shared."""
        return self.encoder.vectors  # type: ignore[return-value]

    @property
    def settings(self) -> str:
        """What must not change between a checkpoint and its resumption, as text."""
        return (
            f"threshold {self.threshold:g}, penalty {self.penalty_weight:g}, layers {', '.join(self.layers)}"
        )

    # --- forward ----------------------------------------------------------------------------------------

    def forward(self, inputs: Any) -> TaskFeatures:
        """Return the features of every task, computed on demand."""
        encoder: Any = self.encoder
        compute, given = encoder, inputs
        if _is_split(encoder):
            self._asked.shared_was_read = False
            shared = encoder.shared_part(inputs)
            # If it contains an adapted layer, tasks do not share it.
            if not self._asked.shared_was_read:
                compute, given = encoder.adapted_part, shared
        device = next(self.parameters()).device
        return TaskFeatures(self.tasks, lambda task: self._with_weights_of(task, compute, given), device)

    def _with_weights_of(self, task: str, compute: Callable[[Any], Any], inputs: Any) -> Any:
        with self._asking_for(task):
            return compute(inputs)

    @contextmanager
    def _asking_for(self, task: str) -> Iterator[None]:
        before, self._asked.task = self._asked.task, task
        try:
            yield
        finally:
            self._asked.task = before

    # --- which tasks share what -------------------------------------------------------------------------

    def penalty(self, tasks: Collection[str]) -> Tensor | None:
        """() the penalty to add to the loss of these tasks, which draws their layers back to being shared."""
        named = {tasks} if isinstance(tasks, str) else set(tasks)
        scores: list[Tensor] = [
            r.own(task)[1] for task in self.tasks if task in named for r in self._residuals().values()
        ]
        if not scores or not self.penalty_weight:
            return None
        return self.penalty_weight / len(self.layers) * torch.cat(scores).abs().sum()

    @torch.no_grad()
    def own_layers(self) -> dict[str, tuple[str, ...]]:
        """Return, by task, the layers that it has made its own: with a high enough score, and changed by training."""
        return {
            task: tuple(
                name
                for name, residual in self._residuals().items()
                if float(residual.own(task)[1]) >= self.threshold and bool(residual.own(task)[0].any())
            )
            for task in self.tasks
        }

    def sharing(self) -> tuple[str, ...]:
        """Describe which tasks share each layer and which own it, one line per layer."""
        own = self.own_layers()
        lines = []
        for layer in self.layers:
            sharers = [task for task in self.tasks if layer not in own[task]]
            owners = [task for task in self.tasks if layer in own[task]]
            said = [
                f"{what} {', '.join(tasks)}"
                for what, tasks in (("shared by", sharers), ("its own for", owners))
                if tasks
            ]
            lines.append(f"{layer or 'the encoder'}: {'; '.join(said)}")
        return tuple(lines)

    def folded(self, task: str) -> nn.Module:
        """Return a copy of the original encoder with the weights of one task.

        A weight that was tied to another parameter no longer is. Raises ValueError for an unknown task.
        """
        if task not in self.tasks:
            raise ValueError(f"no task {task}; available: {', '.join(self.tasks)}")
        copied = copy.deepcopy(self)
        with copied._asking_for(task):
            for name in copied.layers:
                _fold(copied.encoder.get_submodule(name))
        return copied.encoder

    # --- phases -----------------------------------------------------------------------------------------

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that belong to one task each."""
        for residual in self._residuals().values():
            yield from residual.difference.values()
            yield from residual.score.values()

    def set_active(self, tasks: Collection[str]) -> None:
        """Freeze what belongs only to the other tasks, and unfreeze what an earlier call froze for these."""
        for task in self.tasks:
            for layer, residual in self._residuals().items():
                for part, parameter in zip(("difference", "score"), residual.own(task), strict=True):
                    self._set_trained(f"{task}/{layer}/{part}", parameter, trains=task in tasks)

    def _set_trained(self, name: str, parameter: nn.Parameter, *, trains: bool) -> None:
        if trains and name in self._frozen_by_retirement:
            parameter.requires_grad_(True)
            self._frozen_by_retirement.discard(name)
        elif not trains and parameter.requires_grad:
            parameter.requires_grad_(False)
            parameter.grad = None
            self._frozen_by_retirement.add(name)

    def _residuals(self) -> dict[str, _Residual]:
        return {name: _residual_of(self.encoder.get_submodule(name)) for name in self.layers}

    def configuration(self) -> NoReturn:
        """Raises InputError: a saved model has one encoder."""
        raise InputError(
            "a TaskAdaptedEncoder holds one encoder per task, but a model has one; save encoder.folded(task) with "
            "that task's head"
        )


def adapted_in(*modules: nn.Module) -> list[TaskAdaptedEncoder]:
    """Return the TaskAdaptedEncoders that these modules are or contain, each once."""
    found = [part for module in modules for part in module.modules() if isinstance(part, TaskAdaptedEncoder)]
    return list(dict.fromkeys(found))


def _is_split(encoder: nn.Module) -> bool:
    """Return whether an encoder's forward pass is `adapted_part` after `shared_part`.

    It is not if another forward pass, or hooks, were put around it.
    """
    owners = {
        next((each for each in type(encoder).__mro__ if name in vars(each)), None)
        for name in ("forward", "shared_part", "adapted_part")
    }
    around = (
        encoder._forward_hooks, encoder._forward_pre_hooks, encoder._backward_hooks, encoder._backward_pre_hooks,
        encoder._compiled_call_impl, "forward" in vars(encoder),
    )  # fmt: skip
    return len(owners) == 1 and None not in owners and not any(around)


def _weight_name(layer: nn.Module) -> str | None:
    """Return the name of the parameter of a layer that is adapted; None for other layers."""
    if isinstance(layer, nn.MultiheadAttention):
        return None if layer.in_proj_weight is None else "in_proj_weight"
    return "weight" if isinstance(layer, _WITH_WEIGHT) else None


def _names(what: str, given: Iterable[str]) -> tuple[str, ...]:
    names = () if isinstance(given, str) else tuple(given)
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"{what} must be distinct names, not {given if isinstance(given, str) else list(names)!r}"
        )
    return names


def _layers_of(encoder: nn.Module) -> tuple[str, ...]:
    heads = {
        id(part) for module in encoder.modules() if isinstance(module, HeadBank) for part in module.modules()
    }
    found = tuple(
        name
        for name, part in encoder.named_modules()
        if id(part) not in heads and _weight_name(part) is not None
    )
    if not found:
        raise ValueError(f"{type(encoder).__name__} has no linear or convolutional layer to adapt to tasks")
    return found


def _check_layers(encoder: nn.Module, names: Sequence[str]) -> None:
    modules = dict(encoder.named_modules())
    for name in names:
        if name not in modules or _weight_name(modules[name]) is None:
            there = ", ".join(_layers_of(encoder))
            raise ValueError(
                f"{name!r} is not a linear or convolutional layer of the encoder; available: {there}"
            )
        if parametrize.is_parametrized(modules[name]):
            raise ValueError(f"the layer {name!r} already has a parametrization; pass the encoder without it")
        weight = modules[name]._parameters.get(_weight_name(modules[name]) or "")
        if weight is None or isinstance(weight, nn.UninitializedParameter):
            raise ValueError(
                f"the weight of the layer {name!r} is uninitialized or computed by normalization or pruning; call a "
                "lazy layer once, remove the computation, or leave out the layer (layers=)"
            )
    for name, part in modules.items():
        if isinstance(part, _BatchNorm):
            raise ValueError(
                f"encoder has a {type(part).__name__} ({name or 'itself'}), whose statistics would mix the passes of "
                "all tasks; use LayerNorm or GroupNorm"
            )


def _residual_of(layer: nn.Module) -> _Residual:
    (chain,) = layer.parametrizations.values()  # type: ignore[operator,union-attr]
    (residual,) = chain
    return residual  # type: ignore[no-any-return]


def _fold(layer: nn.Module) -> None:
    """Turn a layer with a parametrized weight into one of its original class, with the current weight.

    By hand: torch's remove_parametrizations removes the weight from the layer's class, which a copy shares with its
    original.
    """
    (name,) = layer.parametrizations  # type: ignore[misc,union-attr]
    weight = nn.Parameter(getattr(layer, name).detach().clone())
    weight.requires_grad_(layer.parametrizations[name].original.requires_grad)  # type: ignore[index,union-attr]
    others = dict(layer.named_parameters(recurse=False))
    layer.__class__ = parametrize.type_before_parametrizations(layer)  # type: ignore[assignment]
    del layer.parametrizations
    for other in others:
        delattr(layer, other)
    for own, parameter in {name: weight, **others}.items():  # in the order of the original layer
        layer.register_parameter(own, parameter)

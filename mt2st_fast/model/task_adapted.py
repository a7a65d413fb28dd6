"""TAPS (Wallingford et al. 2022): layers of a shared encoder that become a task's own where that pays.

A layer's weight for task k is W + 1[s_k >= threshold] D_k: W is shared, D_k and the score s_k are the task's. All are
trained together (section 3, the joint variant); a penalty on the scores draws layers back to being shared.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mt2st_fast.errors import InputError
from mt2st_fast.model.module_names import check_module_names, module_name
from mt2st_fast.numbers import check_not_negative, check_positive

THRESHOLD = 0.1  # of the paper
_ADAPTED = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d


class TaskFeatures(Mapping[str, Tensor]):
    """The features of every task, (N, D) or (N, T, D); those of a task are computed when they are first asked for."""

    def __init__(self, tasks: Sequence[str], compute: Callable[[str], Any]) -> None:
        self._tasks, self._compute = tuple(tasks), compute
        self._with_gradient = (
            torch.is_grad_enabled()
        )  # where the encoder was called, and not where they are read
        self._found: dict[str, tuple[Tensor, Tensor | None]] = {}

    def __getitem__(self, task: str) -> Tensor:
        return self.with_mask(task)[0]

    def with_mask(self, task: str) -> tuple[Tensor, Tensor | None]:
        """Features, and the mask of what is real in them if the encoder returns it."""
        if task not in self._tasks:
            raise KeyError(task)
        if task not in self._found:
            with torch.set_grad_enabled(self._with_gradient):
                found = self._compute(task)
            self._found[task] = found if isinstance(found, tuple) else (found, None)
        return self._found[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)


def features_of(
    features: Tensor | TaskFeatures, task: str, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Those of one task, and the mask of what is real in them: `mask`, or what the encoder says where it is None."""
    if not isinstance(features, TaskFeatures):
        return features, mask
    own, own_mask = features.with_mask(task)
    return own, own_mask if mask is None else mask


class _AtOrAbove(torch.autograd.Function):
    """1 where a score is at the threshold or above, else 0; the gradient goes straight through to the score."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, threshold: float) -> Tensor:  # type: ignore[override]
        del ctx
        return (score >= threshold).to(score.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        del ctx
        return gradient, None


class _AskedFor:
    """The task whose weights a forward pass reads; None: the shared ones."""

    task: str | None = None


class _Residual(nn.Module):
    """What stands between a layer's shared weight and the one that it computes with."""

    def __init__(self, weight: Tensor, tasks: Iterable[str], asked: _AskedFor, threshold: float) -> None:
        super().__init__()
        names = [module_name(task) for task in tasks]
        self.difference = nn.ParameterDict({name: nn.Parameter(torch.zeros_like(weight)) for name in names})
        # Begins as the task's own: only then does a first step move the difference.
        start = torch.full((1,), 2 * threshold, dtype=weight.dtype, device=weight.device)
        self.score = nn.ParameterDict({name: nn.Parameter(start.clone()) for name in names})
        self._asked, self._threshold = asked, threshold

    def forward(self, weight: Tensor) -> Tensor:
        if self._asked.task is None:
            return weight
        name = module_name(self._asked.task)
        return weight + _AtOrAbove.apply(self.score[name], self._threshold) * self.difference[name]

    def own(self, task: str) -> list[nn.Parameter]:
        name = module_name(task)
        return [self.difference[name], self.score[name]]


class TaskAdaptedEncoder(nn.Module):
    """An encoder whose layers each task may make its own: `MultiTaskHeads` takes its output as any other's.

        encoder = TaskAdaptedEncoder(encoder, heads.names)
        Trainer(encoder, heads, schedule=Switch(at=0.6))        # or heads(encoder(inputs), targets) in any loop

    "Task Adaptive Parameter Sharing for Multi-Task Learning" (TAPS, CVPR 2022, arXiv 2203.16708), equations 2 to 4 with
    all tasks and the shared weights trained together: the weight of a layer l is W_l + 1[s_kl >= threshold] D_kl for
    task k, the gradient goes straight through the indicator to the score s_kl, and penalty / L times the sum of |s_kl|
    over the L layers is added to the loss of every task that is trained (`Trainer` does; in a loop of one's own add
    `penalty(tasks)`). D begins at 0 and s at twice the threshold, which is this package's choice.

    The encoder is taken over, with its parameters. layers: names of its linear and convolutional layers ("" is the
    encoder itself), all by default; tables of words stay shared. The output is `TaskFeatures`: a task is computed when
    a head asks for it, so that one that has retired costs nothing, and each task costs a pass through the encoder. Of
    an encoder with methods `shared_part(inputs)` and `adapted_part(shared)`, whose forward pass is one after the other,
    the first runs once. `folded(task)` is a plain encoder again, with the weights of one task.

    Raises ValueError for an encoder without such layers, a layer that it does not have, numbers out of range, and tasks
    whose names no modules can have.
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
        check_positive(threshold=threshold)
        check_not_negative(penalty=penalty)
        self.tasks = tuple(tasks)
        check_module_names(self.tasks)
        self.layers = _layers_of(encoder) if layers is None else tuple(layers)
        _check_layers(encoder, self.layers)
        self.threshold, self.penalty_weight = threshold, penalty
        self.encoder, self._asked = encoder, _AskedFor()
        for name in self.layers:
            layer = encoder.get_submodule(name)
            residual = _Residual(layer.weight, self.tasks, self._asked, threshold)  # type: ignore[arg-type]
            parametrize.register_parametrization(layer, "weight", residual, unsafe=True)
        self._frozen_by_retirement: set[str] = set()

    @property
    def out_features(self) -> int:
        """The width of the features, where the encoder says it."""
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
    def evidence(self) -> tuple[str, ...]:
        """Who shares a layer and who does not, a line a layer: what a report says of it."""
        own = self.own_layers()
        return tuple(
            f"{layer or 'the encoder'}: "
            + "; ".join(
                f"{said} {', '.join(tasks)}"
                for said, tasks in (
                    ("shared by", [task for task in self.tasks if layer not in own[task]]),
                    ("its own for", [task for task in self.tasks if layer in own[task]]),
                )
                if tasks
            )
            for layer in self.layers
        )

    def forward(self, inputs: Any) -> TaskFeatures:
        """The features of every task, when they are asked for."""
        shared_part = getattr(self.encoder, "shared_part", None)
        if not callable(shared_part):
            return TaskFeatures(self.tasks, lambda task: self._with_weights_of(task, self.encoder, inputs))
        shared, adapted_part = shared_part(inputs), self.encoder.adapted_part
        return TaskFeatures(self.tasks, lambda task: self._with_weights_of(task, adapted_part, shared))

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

    def _residuals(self) -> dict[str, _Residual]:
        found = {}
        for name in self.layers:
            (residual,) = self.encoder.get_submodule(name).parametrizations.weight  # type: ignore[union-attr]
            found[name] = residual
        return found

    def penalty(self, present: Collection[str]) -> Tensor | None:
        """() what is added to the loss of these tasks, by which their layers are drawn back to being shared."""
        scores = [
            r.own(task)[1] for task in self.tasks if task in present for r in self._residuals().values()
        ]
        if not scores or not self.penalty_weight:
            return None
        return self.penalty_weight / len(self.layers) * torch.cat(scores).abs().sum()

    @torch.no_grad()
    def own_layers(self) -> dict[str, tuple[str, ...]]:
        """By task the layers that it has made its own; it shares the others."""
        residuals = self._residuals()
        return {
            task: tuple(n for n, r in residuals.items() if float(r.own(task)[1]) >= self.threshold)
            for task in self.tasks
        }

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """What belongs to one task each."""
        for residual in self._residuals().values():
            yield from residual.difference.values()
            yield from residual.score.values()

    def set_active(self, tasks: Collection[str]) -> None:
        """Freeze what belongs to the other tasks alone, and let go on what was frozen so before."""
        for task in self.tasks:
            for number, residual in enumerate(self._residuals().values()):
                for part, parameter in zip(("difference", "score"), residual.own(task), strict=True):
                    self._set_trained(f"{task}/{number}/{part}", parameter, trains=task in tasks)

    def _set_trained(self, name: str, parameter: nn.Parameter, *, trains: bool) -> None:
        if trains and name in self._frozen_by_retirement:
            parameter.requires_grad_(True)
            self._frozen_by_retirement.discard(name)
        elif not trains and parameter.requires_grad:
            parameter.requires_grad_(False)
            parameter.grad = None
            self._frozen_by_retirement.add(name)

    def folded(self, task: str) -> nn.Module:
        """A copy of the encoder as it was given, with the weights of one task. Raises ValueError for an unknown one."""
        if task not in self.tasks:
            raise ValueError(f"there is no task {task}; there are {', '.join(self.tasks)}")
        copied = copy.deepcopy(self)
        with copied._asking_for(task):
            for name in copied.layers:
                _fold(copied.encoder.get_submodule(name))
        return copied.encoder

    def configuration(self) -> NoReturn:
        """Raises InputError: a model in a folder has one encoder."""
        raise InputError(
            "a TaskAdaptedEncoder is an encoder a task, and a model has one: keep encoder.folded(task) with that "
            "task's head"
        )


def _fold(layer: nn.Module) -> None:
    """Make a layer with a parametrized weight one of its own class again, of the weight as it is.

    By hand: torch's remove_parametrizations takes the weight from the layer's class, which a copy shares with what it
    is a copy of.
    """
    weight, others = layer.weight.detach().clone(), dict(layer.named_parameters(recurse=False))
    layer.__class__ = parametrize.type_before_parametrizations(layer)  # type: ignore[assignment]
    del layer.parametrizations
    for name in others:
        delattr(layer, name)
    for name, parameter in {"weight": nn.Parameter(weight), **others}.items():  # in the order of such a layer
        layer.register_parameter(name, parameter)


def _layers_of(encoder: nn.Module) -> tuple[str, ...]:
    found = tuple(name for name, module in encoder.named_modules() if isinstance(module, _ADAPTED))
    if not found:
        raise ValueError(
            f"a {type(encoder).__name__} has no linear or convolutional layer that a task could make its own"
        )
    return found


def _check_layers(encoder: nn.Module, names: Sequence[str]) -> None:
    modules = dict(encoder.named_modules())
    for name in names:
        if not isinstance(modules.get(name), _ADAPTED):
            there = ", ".join(_layers_of(encoder))
            raise ValueError(
                f"{name!r} is no linear or convolutional layer of the encoder; there are {there}"
            )
        if parametrize.is_parametrized(modules[name], "weight"):
            raise ValueError(
                f"the weight of {name} has a parametrization already: give the encoder without it"
            )

"""The heads of all tasks, computed together; a retired head takes no part in anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt2st_fast.kernels import HeadLayout, HeadSpec, MultitaskLoss, lay_adjacent, multitask_loss
from mt2st_fast.model.module_names import check_module_names, module_name
from mt2st_fast.model.open_tasks import OpenTask
from mt2st_fast.model.tasks import Task
from mt2st_fast.model.word_tasks import VectorsOf, WordTask


class HeadBatch(NamedTuple):
    """A batch's targets as the kernels read them, of the active tasks that have one."""

    layout: HeadLayout  # of these K' tasks, with their names
    targets: list[Tensor]  # (N,) or (N, C)
    weights: Tensor  # (K',)
    places: list[int] | None  # theirs among the active tasks; None: they are all of them


class MultiTaskHeads(nn.Module):
    """One linear head a task over shared features (..., D), trained by the fused loss.

    Every head is a torch.nn.Linear of its own under `linears`, so an optimizer, DDP and a state
    dict can name its parameters. All tasks are active at first; `set_active` retires the others. A WordTask has no
    head: it is a module of its own under `word_tasks`, with a loss on the encoder's table (`word_loss`). Nor has an
    OpenTask: it is a module under `open_tasks`, with a loss of its own on the same features.

    Raises ValueError for a main task that is not among `tasks`, or is a WordTask.
    """

    def __init__(
        self,
        in_features: int,
        tasks: Mapping[str, Task | OpenTask | WordTask],
        main: str,
        *,
        bias: bool = True,
        backend: str = "auto",
        plan: str = "auto",
    ) -> None:
        super().__init__()
        if main not in tasks:
            raise ValueError(f"main task {main} is not among the tasks: {', '.join(tasks)}")
        self.main = main
        if isinstance(tasks[main], WordTask):
            raise ValueError(f"the main task {main} needs features; {type(tasks[main]).__name__} is on words")
        # What kinds of tasks there are, in one order: the main task first.
        ordered = {main: tasks[main], **{name: task for name, task in tasks.items() if name != main}}
        self.tasks: dict[str, Task] = {
            n: task for n, task in ordered.items() if not isinstance(task, WordTask | OpenTask)
        }
        self.backend, self.plan = backend, plan
        self._takes_layers = False  # whether somebody else may hold views of the parameters' memory
        check_module_names(ordered)
        self.word_tasks = nn.ModuleDict(
            {module_name(name): task for name, task in ordered.items() if isinstance(task, WordTask)}
        )
        self.open_tasks = nn.ModuleDict(
            {module_name(name): task for name, task in ordered.items() if isinstance(task, OpenTask)}
        )
        self.names = tuple(ordered)
        # Asked in every step.
        self._on_words = frozenset(n for n, task in ordered.items() if isinstance(task, WordTask))
        self._open = frozenset(n for n, task in ordered.items() if isinstance(task, OpenTask))
        self.linears = nn.ModuleDict(
            {
                module_name(name): nn.Linear(in_features, task.head.size, bias=bias)
                for name, task in self.tasks.items()
            }
        )
        self._active = self.names
        self._frozen_by_retirement: dict[str, list[nn.Parameter]] = {}
        self._layouts: dict[tuple[str, ...], HeadLayout] = {}
        if self.tasks:
            self._layout(tuple(self.tasks))
        self.lay_adjacent()

    @classmethod
    def from_modules(
        cls,
        modules: nn.ModuleDict | Mapping[str, nn.Linear],
        tasks: Mapping[str, Task],
        main: str,
        **options: str,
    ) -> MultiTaskHeads:
        """Heads that take over (and share) the parameters of existing linear layers, one a task.

        Raises ValueError where layers and tasks do not match in name, outputs, features or bias.
        """
        task_of = {module_name(name): name for name in tasks}
        linears: dict[str, nn.Linear] = {
            task_of.get(module_name(name), name): linear  # type: ignore[misc]
            for name, linear in modules.items()
        }
        if set(linears) != set(tasks):
            raise ValueError(f"modules are {', '.join(linears)}; tasks are {', '.join(tasks)}")
        for name, linear in linears.items():
            if not isinstance(linear, nn.Linear):
                raise TypeError(f"module {name} must be torch.nn.Linear, not {type(linear).__name__}")
            if linear.out_features != tasks[name].head.size:
                raise ValueError(
                    f"module {name} has {linear.out_features} outputs, its task {tasks[name].head.size}"
                )
        if len({(linear.in_features, linear.bias is None) for linear in linears.values()}) != 1:
            raise ValueError("modules must agree in in_features and in having a bias")
        first = next(iter(linears.values()))
        heads = cls(first.in_features, tasks, main, bias=first.bias is not None, **options)
        heads._takes_layers = True
        heads.linears = nn.ModuleDict({module_name(name): linears[name] for name in heads.tasks})
        return heads

    def to_modules(self) -> nn.ModuleDict:
        """The heads as plain linear layers by task, sharing their parameters.

        A name that no module may have is spelled as in the state dict: feats.Number as feats__Number.
        """
        return nn.ModuleDict(dict(self.linears.items()))

    def linear(self, task: str) -> nn.Linear:
        """The layer of one task. Raises ValueError for an unknown one, or one without a head."""
        self._check_known([task])
        if task not in self.tasks:
            raise ValueError(
                f"task {task} has no head: {type(self._module(task)).__name__} is a loss of its own"
            )
        return self.linears[module_name(task)]  # type: ignore[return-value]

    def open_task(self, task: str) -> OpenTask:
        """The module of a task that is a loss of its own. Raises ValueError for another."""
        if not self.is_open_task(task):
            raise ValueError(f"task {task} is no OpenTask; there are {', '.join(self.open_tasks) or 'none'}")
        return self.open_tasks[module_name(task)]  # type: ignore[return-value]

    @property
    def active(self) -> tuple[str, ...]:
        """The tasks that are being trained, main task first."""
        return self._active

    def label_count(self, task: str, target: Any) -> Tensor | float:
        """How many labels of a batch the loss of a task without a head is a mean of; see `OpenTask.count`."""
        return self._module(task).count(target)  # type: ignore[operator,no-any-return]

    def set_active(self, tasks: Iterable[str]) -> None:
        """Train these tasks only: the others' parameters need no gradient any more and lose the one they have.

        Raises ValueError for an unknown task or without the main task.
        """
        wanted = set(tasks)
        self._check_known(wanted)
        if self.main not in wanted:
            raise ValueError(f"the main task {self.main} cannot retire")
        for name in self.names:
            if name in wanted and name not in self._active:
                for parameter in self._frozen_by_retirement.pop(name):
                    parameter.requires_grad_(True)
            elif name not in wanted and name in self._active:
                # What the user has frozen stays frozen when the task comes back.
                trained = [p for p in self._module(name).parameters() if p.requires_grad]
                self._frozen_by_retirement[name] = trained
                for parameter in trained:
                    parameter.requires_grad_(False)
                    parameter.grad = None
        self._active = tuple(name for name in self.names if name in wanted)
        if with_heads := tuple(name for name in self._active if name in self.tasks):
            self._layout(with_heads)
        self.lay_adjacent()

    def lay_adjacent(self) -> None:
        """Move the active heads' parameters to one piece of memory, as torch's recurrent layers do with theirs.

        A step then reads them as one weight, without a copy; what cannot be moved, and layers that were taken over from
        somebody else, are copied in every step.
        """
        if self._takes_layers:
            return
        linears = [self.linear(name) for name in self._active if name in self.tasks]
        lay_adjacent([linear.weight for linear in linears])
        lay_adjacent([linear.bias for linear in linears if linear.bias is not None])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # What moves to a device or to another dtype is moved one by one.
        super()._apply(fn, recurse)
        self.lay_adjacent()
        return self

    def forward(
        self,
        features: Tensor,
        targets: Mapping[str, Tensor],
        weights: Tensor | Mapping[str, float] | None = None,
        *,
        mask: Tensor | None = None,
    ) -> MultitaskLoss:
        """Weighted loss of the active tasks that have a target here.

        features are (N, D) or (N, T, D); targets of a classification (N,) or (N, T), of the others with a
        last axis C (which may be left out where C = 1). weights are (K,) over `active`, or by name (1 where
        a name is missing). The result's `losses` and `correct` are (K,) over `active`: 0 for a task that is
        missing from this batch. mask, (N,) or (N, T), says to an OpenTask what is real in the features.
        Raises ValueError for a target of an unknown task, for targets of a task on words beside others, and what
        `multitask_loss` raises.
        """
        if not self._open:
            return self._fused_loss(features, targets, weights)
        open_present = [name for name in self._active if name in self._open and name in targets]
        if not open_present:
            return self._fused_loss(features, targets, weights)
        # The fused heads look at what they get; a batch of open tasks alone never comes to them.
        self._check_known(targets)
        self.check_together(name for name in self._active if name in targets)
        weights_k = self._weights(weights, features.device)
        parts = [self._open_loss(name, features, targets[name], mask, weights_k) for name in open_present]
        row_wise = {name: target for name, target in targets.items() if name not in open_present}
        if any(name in self.tasks for name in row_wise if name in self._active):
            parts.insert(0, self._fused_loss(features, row_wise, weights_k))
        return MultitaskLoss(*(torch.stack(same).sum(0) for same in zip(*parts, strict=True)))

    def _fused_loss(
        self,
        features: Tensor,
        targets: Mapping[str, Tensor],
        weights: Tensor | Mapping[str, float] | None,
    ) -> MultitaskLoss:
        """Of the tasks with a head."""
        batch = self.batch(targets, features.shape[:-1], weights, features.device)
        linears = [self.linear(name) for name in batch.layout.names]
        out = multitask_loss(
            features.flatten(0, -2) if features.dim() > 2 else features,
            [linear.weight for linear in linears],
            [linear.bias for linear in linears] if linears[0].bias is not None else None,
            batch.targets,
            batch.weights,
            batch.layout,
            backend=self.backend,
            plan=self.plan,
        )
        return out if batch.places is None else _spread(out, batch.places, len(self._active))

    def _open_loss(
        self, name: str, features: Tensor, target: Any, mask: Tensor | None, weights_k: Tensor
    ) -> MultitaskLoss:
        """Weighted loss of one active OpenTask, the result that of `forward` with every other task missing."""
        k, K = self._active.index(name), len(self._active)
        loss = self._module(name).loss(features, target, mask)  # type: ignore[operator]
        if loss.dim() != 0:
            raise ValueError(f"the loss of {name} must be a number (), not {tuple(loss.shape)}")
        correct = torch.zeros(1, dtype=torch.int64, device=loss.device)
        weighted = weights_k[k] * loss.float()
        return _spread(MultitaskLoss(weighted, loss.detach().float().reshape(1), correct), [k], K)

    def batch(
        self,
        targets: Mapping[str, Tensor],
        rows: torch.Size,
        weights: Tensor | Mapping[str, float] | None,
        device: torch.device,
    ) -> HeadBatch:
        """What `forward` hands to the kernels beside features of shape (*rows, D) and parameters; raises as it does."""
        self._check_known(targets)
        self.check_together(name for name in self._active if name in targets)
        present = tuple(name for name in self._active if name in targets and name in self.tasks)
        if not present:
            raise ValueError(f"targets holds none of the active tasks {', '.join(self._active)}")
        weights_k = self._weights(weights, device)
        layout = self._layout(present)
        flat_targets = [
            _flat_target(name, targets[name], head, rows)
            for name, head in zip(present, layout.heads, strict=True)
        ]
        if len(present) == len(self._active):
            return HeadBatch(layout, flat_targets, weights_k, None)
        places = [self._active.index(name) for name in present]
        # Indexing with a list would copy it to the device, which a CUDA graph cannot capture.
        return HeadBatch(layout, flat_targets, torch.stack([weights_k[k] for k in places]), places)

    def check_together(self, names: Iterable[str]) -> None:
        """Raises ValueError where one batch holds the targets of a task on words and of another task."""
        if not self._on_words:
            return
        present = list(names)
        words = next((name for name in present if self.is_word_task(name)), None)
        if words is not None and len(present) > 1:
            other = next(name for name in present if name != words)
            raise ValueError(
                f"one batch has targets of {words} and of {other}: a task on words reads inputs of its own; give each "
                f"its loader, as in {{{other!r}: ..., {words!r}: ...}}"
            )

    def over_active(self, values: Tensor, batch: HeadBatch) -> Tensor:
        """(K,) values over the active tasks from those of the tasks in a batch; 0 for a task that is not."""
        return values if batch.places is None else _spread_values(values, batch.places, len(self._active))

    def is_word_task(self, name: str) -> bool:
        """Whether a task's loss comes from word vectors, and not from features."""
        return name in self._on_words

    def is_open_task(self, name: str) -> bool:
        """Whether a task is a loss of its own on the features, and has no fused head."""
        return name in self._open

    def word_loss(
        self,
        name: str,
        vectors_of: VectorsOf,
        inputs: Any,
        target: Tensor,
        weights: Tensor | Mapping[str, float] | None = None,
    ) -> MultitaskLoss:
        """Weighted loss of one active WordTask; vectors_of gives the vectors of word types.

        The result is that of `forward` with every other task missing. Raises ValueError for a task that is no
        active WordTask.
        """
        if not self.is_word_task(name) or name not in self._active:
            raise ValueError(f"{name} is no active task on words; active are {', '.join(self._active)}")
        k, K = self._active.index(name), len(self._active)
        weight = self._weights(weights, target.device)[k]
        loss = self._module(name)(vectors_of, inputs, target)
        correct = torch.zeros(1, dtype=torch.int64, device=loss.device)
        return _spread(MultitaskLoss(weight * loss, loss.detach().reshape(1), correct), [k], K)

    def logits(self, features: Tensor, task: str) -> Tensor:
        """(..., C) outputs of one task, active or retired."""
        linear = self.linear(task)
        return F.linear(features, linear.weight, linear.bias)

    def _module(self, name: str) -> nn.Module:
        """What holds a task's parameters."""
        place = module_name(name)
        if place in self.word_tasks:
            return self.word_tasks[place]
        return self.open_tasks[place] if place in self.open_tasks else self.linear(name)

    def _layout(self, names: tuple[str, ...]) -> HeadLayout:
        # A dict, not lru_cache: torch.compile traces what is found here and cannot make a layout.
        if names not in self._layouts:
            self._layouts[names] = HeadLayout(tuple(self.tasks[name].head for name in names), names)
        return self._layouts[names]

    def _weights(self, weights: Tensor | Mapping[str, float] | None, device: torch.device) -> Tensor:
        if isinstance(weights, Tensor):
            if weights.shape != (len(self._active),):
                raise ValueError(
                    f"weights must be ({len(self._active)},), one for each active task "
                    f"({', '.join(self._active)}), not {tuple(weights.shape)}"
                )
            return weights
        by_name = weights or {}
        self._check_known(by_name)
        return torch.tensor(
            [float(by_name.get(name, 1.0)) for name in self._active], dtype=torch.float32, device=device
        )

    def _check_known(self, names: Iterable[str]) -> None:
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise ValueError(f"unknown task {unknown[0]}; there are {', '.join(self.names)}")


def _flat_target(name: str, target: Tensor, head: HeadSpec, rows: torch.Size) -> Tensor:
    wanted = rows if head.kind.takes_classes else (*rows, head.size)
    if wanted == (*rows, 1) and target.shape == rows:
        target = target.unsqueeze(-1)
    # Checked before flattening: (T, N) would pass for (N, T).
    if target.shape != wanted:
        raise ValueError(f"targets of {name} must be {tuple(wanted)}, not {tuple(target.shape)}")
    return target.flatten(0, len(rows) - 1) if len(rows) > 1 else target


def _spread(out: MultitaskLoss, places: list[int], K: int) -> MultitaskLoss:
    """Values of the tasks that are present, zeros for the absent ones."""
    return MultitaskLoss(
        out.total, _spread_values(out.losses, places, K), _spread_values(out.correct, places, K)
    )


def _spread_values(values: Tensor, places: list[int], K: int) -> Tensor:
    of_task = [values.new_zeros(())] * K
    for place, value in zip(places, values.unbind(), strict=True):
        of_task[place] = value
    return torch.stack(of_task)

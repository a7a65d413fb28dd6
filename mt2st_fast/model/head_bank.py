"""Which heads there are and which of them train: modules by task, retirement, and what a state dict says of both."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from mt2st_fast.kernels import POOLINGS, HeadLayout, Pooling, lay_adjacent
from mt2st_fast.model.called_heads import reason_to_call
from mt2st_fast.model.module_names import check_module_names, module_name
from mt2st_fast.model.open_tasks import OpenTask
from mt2st_fast.model.pooling import pooling_of
from mt2st_fast.model.tasks import Task
from mt2st_fast.model.word_tasks import WordTask


class HeadBank(nn.Module):
    """A head a task, by name, and the tasks that are active; `MultiTaskHeads` says what it is for a user."""

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
        self._specs = {name: task.head for name, task in self.tasks.items()}
        self._poolings = {
            name: how for name, task in self.tasks.items() if (how := pooling_of(task)) != "none"
        }
        self._on_words = frozenset(n for n, task in ordered.items() if isinstance(task, WordTask))
        self._open = frozenset(n for n, task in ordered.items() if isinstance(task, OpenTask))
        self.linears = nn.ModuleDict(
            {
                module_name(name): nn.Linear(in_features, task.head.size, bias=bias)
                for name, task in self.tasks.items()
            }
        )
        self._active = self.names
        self._default_weights: dict[str, float] | None = None  # where a call gives none
        self._frozen_by_retirement: dict[str, list[str]] = {}  # names of a task's parameters
        self._layouts: dict[tuple[str, ...], HeadLayout] = {}
        self._make_layouts()
        self.lay_adjacent()

    @classmethod
    def from_modules(
        cls,
        modules: nn.ModuleDict | Mapping[str, nn.Linear],
        tasks: Mapping[str, Task],
        main: str,
        **options: str,
    ) -> Self:
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

    def task(self, name: str) -> Task | OpenTask | WordTask:
        """What a task is. Raises ValueError for an unknown one."""
        self._check_known([name])
        return self.tasks[name] if name in self.tasks else self._module(name)  # type: ignore[return-value]

    def open_task(self, task: str) -> OpenTask:
        """The module of a task that is a loss of its own. Raises ValueError for another."""
        if not self.is_open_task(task):
            raise ValueError(f"task {task} is no OpenTask; there are {', '.join(self.open_tasks) or 'none'}")
        return self.open_tasks[module_name(task)]  # type: ignore[return-value]

    @property
    def active(self) -> tuple[str, ...]:
        """The tasks that are being trained, main task first."""
        return self._active

    def set_active(self, tasks: Iterable[str]) -> None:
        """Train these tasks only: the others' parameters need no gradient any more and lose the one they have.

        Raises ValueError for an unknown task or without the main task.
        """
        if isinstance(tasks, str):
            raise TypeError(f"tasks are a list of names, not the text {tasks!r}: give [{tasks!r}]")
        wanted = set(tasks)
        self._check_known(wanted)
        if self.main not in wanted:
            raise ValueError(f"the main task {self.main} cannot retire")
        self._begin_training(wanted)
        for name in self.names:
            if name not in wanted and name not in self._frozen_by_retirement:
                # What the user has frozen stays frozen when the task comes back.
                named = self._module(name).named_parameters()
                self._frozen_by_retirement[name] = [own for own, p in named if p.requires_grad]
                for parameter in self._parameters_of(name, self._frozen_by_retirement[name]):
                    parameter.requires_grad_(False)
        self._activate(wanted)

    def _begin_training(self, tasks: Iterable[str]) -> None:
        """Train the parameters of tasks that had retired."""
        for name in tasks:
            for parameter in self._parameters_of(name, self._frozen_by_retirement.pop(name, ())):
                parameter.requires_grad_(True)

    def _activate(self, wanted: Collection[str]) -> None:
        """Compute these tasks, and no others, from now on."""
        self._active = tuple(name for name in self.names if name in wanted)
        for name in self.names:
            if name not in wanted:
                for parameter in self._module(name).parameters():
                    parameter.grad = None
        self._make_layouts()
        self.lay_adjacent()

    def _parameters_of(self, task: str, names: Iterable[str]) -> list[nn.Parameter]:
        # By name: whoever shards, loads or wraps a layer may put other parameters into it.
        found = dict(self._module(task).named_parameters())
        return [found[name] for name in names if name in found]

    def get_extra_state(self) -> Tensor:
        """Which tasks are active, as bytes: what a state dict holds beside parameters, in a tensor as all else.

        A byte a task, 1 where it is active, then the names in JSON. Its length does not depend on what is active, so
        that a file can be read into it.
        """
        flags = [int(name in self._active) for name in self.names]
        return torch.tensor([*flags, *json.dumps(self.names).encode()], dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Compute the tasks that were active; those that were not there at all stay as they are, and so does main.

        The others are not frozen: many loops make their optimizer, only now, of what is trainable, and load its state
        into that. They have no gradient, and the next `set_active` or step of a PhaseController freezes them.
        """
        content = bytes(state.to("cpu", torch.uint8).tolist())
        text = content.lstrip(b"\x00\x01")
        flags = content[: len(content) - len(text)]
        try:
            was_active = dict(zip(json.loads(text), flags, strict=True))
        except (ValueError, TypeError):
            raise ValueError(
                "_extra_state of the heads does not say which tasks are active: it is damaged, or of another module"
            ) from None
        wanted = {name for name in self.names if was_active.get(name, name in self._active)} | {self.main}
        self._begin_training(wanted)
        self._activate(wanted)

    def state_dict(self, *args: Any, prefix: str = "", keep_vars: bool = False, **others: Any) -> Any:
        """As of any module, with memory of its own for every tensor; keep_vars gives the parameters themselves.

        safetensors, and so accelerate, takes tensors in one piece of memory for one, and leaves out the others.
        """
        found = super().state_dict(*args, prefix=prefix, keep_vars=keep_vars, **others)
        for name, _ in self.named_parameters():
            held = found.get(prefix + name)
            if not keep_vars and type(held) is Tensor and held.untyped_storage().nbytes() > held.nbytes:
                found[prefix + name] = held.clone()
        return found

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *others: Any,
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *others)
        # Weights of somebody's linear layers say nothing of what is active: all stays as it is.
        own = f"{prefix}_extra_state"
        if own in missing_keys:
            missing_keys.remove(own)

    def lay_adjacent(self) -> None:
        """Move the active heads' parameters to one piece of memory, as torch's recurrent layers do with theirs.

        A step then reads them as one weight, without a copy; what cannot be moved, and layers that were taken over from
        somebody else, are copied in every step.
        """
        if self._takes_layers:
            return
        layers = [self.linear(name) for name in self._active if name in self.tasks]
        linears = [layer for layer in layers if type(layer) is nn.Linear]
        lay_adjacent([linear.weight for linear in linears])
        lay_adjacent([linear.bias for linear in linears if linear.bias is not None])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # What moves to a device or to another dtype is moved one by one.
        super()._apply(fn, recurse)
        self.lay_adjacent()
        return self

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

    def reasons_to_call(self) -> dict[str, str]:
        """Why heads of active tasks cannot be computed from weight and bias alone, by task; none in plain heads."""
        reasons = {}
        for name in self._active:
            if name in self.tasks and (reason := reason_to_call(self.linears[module_name(name)])) is not None:
                reasons[name] = reason
        return reasons

    def pooling(self, task: str) -> Pooling:
        """What a task takes of a sequence's features."""
        return self._poolings.get(task, "none")

    def is_word_task(self, name: str) -> bool:
        """Whether a task's loss comes from word vectors, and not from features."""
        return name in self._on_words

    def is_open_task(self, name: str) -> bool:
        """Whether a task is a loss of its own on the features, and has no fused head."""
        return name in self._open

    def _module(self, name: str) -> nn.Module:
        """What holds a task's parameters."""
        place = module_name(name)
        if place in self.word_tasks:
            return self.word_tasks[place]
        return self.open_tasks[place] if place in self.open_tasks else self.linear(name)

    def _make_layouts(self) -> None:
        """Those that calls without a missing task need: of all active heads, of those that pool alike, of each."""
        with_heads = tuple(name for name in self._active if name in self.tasks)
        alike = {how: tuple(n for n in with_heads if self.pooling(n) == how) for how in POOLINGS}
        for names in {with_heads, *alike.values(), *((name,) for name in with_heads)} - {()}:
            self._layout(names)

    def _layout(self, names: tuple[str, ...]) -> HeadLayout:
        # A dict, not lru_cache: torch.compile traces what is found here and cannot make a layout.
        if names not in self._layouts:
            self._layouts[names] = HeadLayout(tuple(self._specs[name] for name in names), names)
        return self._layouts[names]

    def _check_known(self, names: Iterable[str]) -> None:
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise ValueError(f"unknown task {unknown[0]}; there are {', '.join(self.names)}")

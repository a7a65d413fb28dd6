"""Which heads exist and which of them train: modules by task, retirement, and their state dict."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from mt2st_fast.kernels import POOLINGS, HeadLayout, HeadSpec, Pooling, lay_adjacent
from mt2st_fast.model.called_heads import are_plain, reason_to_call
from mt2st_fast.model.fixed_tasks import FIXED, FixedTasks, refuse_change
from mt2st_fast.model.module_names import check_module_names, module_name
from mt2st_fast.model.open_tasks import OpenTask
from mt2st_fast.model.pooling import pooling_of
from mt2st_fast.model.tasks import Task
from mt2st_fast.model.word_tasks import WordTask


class HeadBank(nn.Module):
    """One head per task, by name, and the active tasks; `MultiTaskHeads` is the class for users."""

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
            raise ValueError(
                f"the main task {main} needs features, but {type(tasks[main]).__name__} works on words; choose "
                "another main task"
            )
        # All tasks in one order: the main task first.
        ordered = {main: tasks[main], **{name: task for name, task in tasks.items() if name != main}}
        on_words = {name: task for name, task in ordered.items() if isinstance(task, WordTask)}
        of_their_own = {name: task for name, task in ordered.items() if isinstance(task, OpenTask)}
        self.tasks: dict[str, Task] = FixedTasks(
            {name: task for name, task in ordered.items() if not isinstance(task, WordTask | OpenTask)}
        )
        self.names = tuple(ordered)
        self.backend, self.plan = backend, plan
        self._takes_layers = False  # whether other modules may hold views of the parameters' memory
        check_module_names(ordered)
        self.word_tasks = nn.ModuleDict({module_name(name): task for name, task in on_words.items()})
        self.open_tasks = nn.ModuleDict({module_name(name): task for name, task in of_their_own.items()})
        # Needed in every step.
        self._places = {name: module_name(name) for name in self.tasks}  # of heads, among the modules
        self._on_words, self._open = frozenset(on_words), frozenset(of_their_own)
        self._specs = {name: task.head for name, task in self.tasks.items()}
        self._poolings = {
            name: how for name, task in self.tasks.items() if (how := pooling_of(task)) != "none"
        }
        self._uncounted = frozenset(n for n, spec in self._specs.items() if spec.options.has_uncounted_losses)
        self.linears = nn.ModuleDict(
            {
                module_name(name): nn.Linear(in_features, task.head.size, bias=bias)
                for name, task in self.tasks.items()
            }
        )
        self._active = self.names
        self._default_weights: dict[str, float] | None = None  # for calls without weights
        self._frozen_by_retirement: dict[str, list[str]] = {}  # names of a task's parameters
        # Parameters that are used elsewhere too: task, name within it.
        self._shared: set[tuple[str, str]] = set()
        self._layouts: dict[tuple[str, ...], HeadLayout] = {}
        self._make_layouts()
        self.lay_adjacent()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FIXED and name in self.__dict__:
            if value != self.__dict__[name]:
                refuse_change()
            return  # as a subclass may repeat its arguments
        super().__setattr__(name, value)

    @classmethod
    def from_modules(
        cls,
        modules: nn.ModuleDict | Mapping[str, nn.Linear],
        tasks: Mapping[str, Task],
        main: str,
        **options: str,
    ) -> Self:
        """Build heads that take over (and share) the parameters of existing linear layers, one per task.

        Raises ValueError if layers and tasks do not match in name, outputs, features or bias.
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
                    f"module {name} has {linear.out_features} outputs, but its task needs {tasks[name].head.size}"
                )
        if len({(linear.in_features, linear.bias is None) for linear in linears.values()}) != 1:
            raise ValueError("all modules must have the same in_features, and either all or none a bias")
        first = next(iter(linears.values()))
        heads = cls(first.in_features, tasks, main, bias=first.bias is not None, **options)
        heads._takes_layers = True
        heads.linears = nn.ModuleDict({module_name(name): linears[name] for name in heads.tasks})
        return heads

    def to_modules(self) -> nn.ModuleDict:
        """Return the heads as plain linear layers by task, sharing their parameters.

        A name that a module cannot have is spelled as in the state dict: feats.Number as feats__Number.
        """
        return nn.ModuleDict(dict(self.linears.items()))

    def linear(self, task: str) -> nn.Linear:
        """Return the layer of one task. Raises ValueError for an unknown task, or a task without a head."""
        self._check_known([task])
        if task not in self.tasks:
            raise ValueError(
                f"task {task} has no head: {type(self._module(task)).__name__} computes its own loss"
            )
        return self.linears[module_name(task)]  # type: ignore[return-value]

    def task(self, name: str) -> Task | OpenTask | WordTask:
        """Return a task's definition. Raises ValueError for an unknown one."""
        self._check_known([name])
        return self.tasks[name] if name in self.tasks else self._module(name)  # type: ignore[return-value]

    def open_task(self, task: str) -> OpenTask:
        """Return the module of an OpenTask. Raises ValueError for any other task."""
        if not self.is_open_task(task):
            raise ValueError(
                f"task {task} is not an OpenTask; available: {', '.join(self.open_tasks) or 'none'}"
            )
        return self.open_tasks[module_name(task)]  # type: ignore[return-value]

    def spec(self, name: str) -> HeadSpec | None:
        """Return the head of a task as kernels see it; None for a task without one."""
        return self._specs.get(name)

    @property
    def active(self) -> tuple[str, ...]:
        """The tasks that are being trained, main task first."""
        return self._active

    def set_active(self, tasks: Iterable[str], shared: Iterable[Tensor] = ()) -> None:
        """Train these tasks only: the parameters of the others no longer need a gradient and lose the one they have.

        A parameter that an active task has, too, trains on. shared: parameters that train on because something else
        than a head uses them, such as an embedding that is also the weight of a head.

        Raises ValueError for an unknown task, or if the main task is missing.
        """
        if isinstance(tasks, str):
            raise TypeError(f"tasks must be a list of names, not the string {tasks!r}; pass [{tasks!r}]")
        wanted = set(tasks)
        self._check_known(wanted)
        if self.main not in wanted:
            raise ValueError(f"the main task {self.main} cannot retire")
        elsewhere = {id(parameter) for parameter in shared}
        self._shared = {
            (name, own)
            for name in self.names
            for own, parameter in self._module(name).named_parameters()
            if id(parameter) in elsewhere
        }
        in_use = self._in_use(wanted) | elsewhere
        self._thaw(wanted, in_use)
        for name in self.names:
            if name not in wanted and name not in self._frozen_by_retirement:
                # What the user has frozen is not recorded, and so stays frozen when the task comes back.
                unused = {
                    own: parameter
                    for own, parameter in self._module(name).named_parameters()
                    if parameter.requires_grad and id(parameter) not in in_use
                }
                self._frozen_by_retirement[name] = list(unused)
                for parameter in unused.values():
                    parameter.requires_grad_(False)
        self._activate(wanted, in_use, self.names)

    def set_weights(self, weights: Mapping[str, float] | None) -> None:
        """Set the weights for calls that give none, as a PhaseController does; None: 1 each.

        Raises ValueError for an unknown task.
        """
        self._check_known(weights or ())
        self._default_weights = None if weights is None else dict(weights)

    @property
    def default_weights(self) -> dict[str, float] | None:
        """What `set_weights` was given, of retired tasks, too."""
        given = self._default_weights
        return None if given is None else {name: float(weight) for name, weight in given.items()}

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the active tasks in calls that give none."""
        return {name: float((self._default_weights or {}).get(name, 1.0)) for name in self._active}

    def _in_use(self, tasks: Iterable[str]) -> set[int]:
        """Return the id() of every parameter of these tasks."""
        return {id(parameter) for name in tasks for parameter in self._module(name).parameters()}

    def _thaw(self, wanted: Collection[str], in_use: Collection[int]) -> None:
        """Train what a retirement has frozen and is used again, also where a task that stays retired held it."""
        for name, frozen in list(self._frozen_by_retirement.items()):
            # By name: sharding, loading or wrapping a layer may replace its parameters.
            found = dict(self._module(name).named_parameters())
            used = [own for own in frozen if own in found and id(found[own]) in in_use]
            for own in used:
                found[own].requires_grad_(True)
            self._frozen_by_retirement[name] = [own for own in frozen if own not in used]
            if name in wanted:
                del self._frozen_by_retirement[name]

    def _activate(self, wanted: Collection[str], in_use: Collection[int], among: Iterable[str]) -> None:
        """Compute these tasks, and no others, from now on; `among` these, drop gradients that are not in use."""
        self._active = tuple(name for name in self.names if name in wanted)
        for name in among:
            for parameter in self._module(name).parameters():
                if id(parameter) not in in_use:
                    parameter.grad = None
        self._make_layouts()
        self.lay_adjacent()

    def get_extra_state(self) -> Tensor:
        """Return which tasks are active, as bytes in a tensor, since everything else in a state dict is a tensor.

        One byte per task, 1 if it is active, then the names in JSON. The length does not depend on what is active, so
        that a file can be read into it.
        """
        flags = [int(name in self._active) for name in self.names]
        return torch.tensor([*flags, *json.dumps(self.names).encode()], dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Activate the tasks that were active; tasks that the state does not know, and the main task, stay as they are.

        The others are not frozen yet: many loops only now make their optimizer from the trainable parameters, and load
        its state into that. Those that retire here lose their gradient, except for what the last `set_active` was told
        to be shared, and the next `set_active` or step of a PhaseController freezes them.
        """
        content = bytes(state.to("cpu", torch.uint8).tolist())
        text = content.lstrip(b"\x00\x01")
        flags = content[: len(content) - len(text)]
        try:
            was_active = dict(zip(json.loads(text), flags, strict=True))
        except (ValueError, TypeError):
            raise ValueError(
                "_extra_state of the heads does not list the active tasks; it is damaged, or belongs to another module"
            ) from None
        wanted = {name for name in self.names if was_active.get(name, name in self._active)} | {self.main}
        # What retired earlier has no gradient, or one from elsewhere, as the weight of a tied embedding has.
        retiring = [name for name in self._active if name not in wanted]
        shared = [dict(self._module(name).named_parameters()).get(own) for name, own in self._shared]
        in_use = self._in_use(wanted) | {id(parameter) for parameter in shared}
        self._thaw(wanted, in_use)
        self._activate(wanted, in_use, retiring)

    def state_dict(self, *args: Any, prefix: str = "", keep_vars: bool = False, **others: Any) -> Any:
        """As for any module, but every tensor has its own memory; keep_vars gives the parameters themselves.

        safetensors, and therefore accelerate, takes tensors in one piece of memory for a single one, and drops the
        others.
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
        # Weights of plain linear layers do not say what is active: everything stays as it is.
        own = f"{prefix}_extra_state"
        if own in missing_keys:
            missing_keys.remove(own)

    def lay_adjacent(self) -> None:
        """Move the active heads' parameters to one piece of memory, as torch's recurrent layers do with theirs.

        A step then reads them as one weight, without a copy. Parameters that cannot be moved, and layers taken over
        from existing modules, are copied in every step.
        """
        if self._takes_layers:
            return
        layers = [self.linear(name) for name in self._active if name in self.tasks]
        linears = [layer for layer in layers if type(layer) is nn.Linear]
        lay_adjacent([linear.weight for linear in linears])
        lay_adjacent([linear.bias for linear in linears if linear.bias is not None])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Moving to a device or another dtype moves the parameters one by one.
        super()._apply(fn, recurse)
        self.lay_adjacent()
        return self

    def check_together(self, names: Iterable[str]) -> None:
        """Raises ValueError if one batch holds targets of a task on words and of another task."""
        if not self._on_words:
            return
        present = list(names)
        words = next((name for name in present if self.is_word_task(name)), None)
        if words is not None and len(present) > 1:
            other = next(name for name in present if name != words)
            raise ValueError(
                f"one batch has targets of {words} and of {other}, but a task on words reads its own inputs; pass "
                f"one loader for each, as in {{{other!r}: ..., {words!r}: ...}}"
            )

    def _layers(self) -> dict[str, nn.Linear]:
        """Return the layers of all heads by their place (`_places`): `linear` without its checks, for every step."""
        return self._modules["linears"]._modules  # type: ignore[union-attr,return-value]

    def reasons_to_call(self) -> dict[str, str]:
        """Return, by task, why active heads cannot be computed from weight and bias alone; empty for plain heads."""
        reasons: dict[str, str] = {}
        with_bias, without = False, []
        layers, places = self._layers(), self._places
        if are_plain([layers[places[name]] for name in self._active if name in places]):  # nearly always
            return reasons
        for name in self._active:
            if name not in places:
                continue
            layer = layers[places[name]]
            if (reason := reason_to_call(layer)) is not None:
                reasons[name] = reason
            elif layer._parameters["bias"] is None:
                without.append(name)
            else:
                with_bias = True
        if with_bias and without:  # the kernels add a bias to all heads or to none
            reasons |= dict.fromkeys(without, "has no bias, but other heads do")
        return reasons

    @property
    def uncounted(self) -> frozenset[str]:
        """Active tasks with losses that count 0: a sum of means, each times its count, would not be the sum of all."""
        return self._uncounted & frozenset(self._active)

    def pooling(self, task: str) -> Pooling:
        """Return how a task pools the features of a sequence."""
        return self._poolings.get(task, "none")

    def is_word_task(self, name: str) -> bool:
        """Return whether a task's loss comes from word vectors instead of features."""
        return name in self._on_words

    def is_open_task(self, name: str) -> bool:
        """Return whether a task has its own loss on the features, and no fused head."""
        return name in self._open

    def _module(self, name: str) -> nn.Module:
        """Return the module that holds a task's parameters."""
        place = module_name(name)
        if place in self.word_tasks:
            return self.word_tasks[place]
        return self.open_tasks[place] if place in self.open_tasks else self.linear(name)

    def _make_layouts(self) -> None:
        """Make the layouts for calls without a missing task: of all active heads, of those that pool alike, of each."""
        with_heads = tuple(name for name in self._active if name in self.tasks)
        alike = {how: tuple(n for n in with_heads if self.pooling(n) == how) for how in POOLINGS}
        for names in {with_heads, *alike.values(), *((name,) for name in with_heads)} - {()}:
            self._layout(names)

    def _layout(self, names: tuple[str, ...]) -> HeadLayout:
        # A dict, not lru_cache, which torch.compile cannot trace.
        if names not in self._layouts:
            self._layouts[names] = HeadLayout(tuple(self._specs[name] for name in names), names)
        return self._layouts[names]

    def _check_known(self, names: Iterable[str]) -> None:
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise ValueError(f"unknown task {unknown[0]}; available: {', '.join(self.names)}")

"""Where a step's batches come from: one loader for all tasks, or one loader per task.

A source yields, for a step, a list of (inputs, {task: target}); it knows its position in the data, so
that a resumed run continues with exactly the next batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.data.resident import ResidentBatch
from mt2st_fast.errors import InputError
from mt2st_fast.training.inputs.batch import Batch, copies_of, have_same_tensors
from mt2st_fast.training.inputs.digest import content_of, known_again, remembered
from mt2st_fast.training.inputs.shapes import WANTED, Paired, length_of, paired, shape_of
from mt2st_fast.training.random_states import python_states, set_python_states, states_to_json

logger = logging.getLogger(__name__)


class _Loader:
    """An endless stream over a loader that can be iterated again and again.

    A loader with `state_dict` and `load_state_dict` is asked for its position. Any other is restarted from the random
    states that its epoch began with (Python's, numpy's, and torch's or that of the loader's own `generator`), and the
    batches already used are skipped. A loader that knows its position also knows its data, and refuses other data
    itself, as those of mt2st_fast.data do.

    Resumed data must be the same data. If all rows can be read without asking the loader for a batch (see
    `content_of`), they are compared as a whole. For another loader, the first batch of its epoch is compared. If it has
    other rows, the earlier rows are looked for in a whole pass, since an order drawn by something other than
    torch, Python and numpy may differ. A loader whose rows do not reappear even in this process (they
    are drawn with replacement, or augmented) is accepted: its data cannot be compared, and the log says so.
    """

    def __init__(self, loader: Any, name: str, tasks: Sequence[str], *, may_be_stream: bool) -> None:
        self.length = length_of(loader)
        if not hasattr(loader, "__iter__") or (self.length is None and not may_be_stream):
            raise TypeError(
                f"{name} must be an iterable of batches with a length, not {type(loader).__name__}; for a stream "
                "without an end, pass the number of steps: fit(stream, steps=10_000)"
            )
        if self.length == 0:
            raise ValueError(f"{name} has no batches")
        self.loader: Any = loader
        self.name, self.tasks = name, tasks
        self.stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
        self.iterator: Iterator[Batch] | None = None
        self.device: torch.device | None = None  # the device where the loader's whole data may lie
        self.used = self.passes = 0  # batches of this pass, and passes begun
        own = getattr(loader, "generator", None)
        self.generator = own if isinstance(own, torch.Generator) else torch.default_generator
        self.random_states = self._states()
        self.watched = False  # whether the state will be needed
        self._content: str | None = None
        self._ignored: set[str] = set()  # targets that no task has, of which the log has told
        # The rows of this epoch's first batch, where they are needed to know the data again.
        self.first: list[int] = []

    def watch(self) -> None:
        """Record from now on what a checkpoint needs to know about the data."""
        self.watched, self._content = True, content_of(self.loader)

    def next(self) -> Batch:
        if self.iterator is None:
            self._start()
        assert self.iterator is not None
        batch = next(self.iterator, None)
        if batch is None:
            self._start()
            batch = next(self.iterator, None)
            if batch is None:
                raise ValueError(
                    f"{self.name} has no batches in this epoch; it must be iterable once per epoch"
                )
        self.used += 1
        if not isinstance(batch, ResidentBatch):
            batch = paired(batch, self.tasks)
            self._check(batch)
            if self.used == 1 and self.watched and not self.stateful and self._content is None:
                self.first = remembered(batch)
        return batch

    def _check(self, batch: Any) -> None:
        """Raises TypeError, showing the required shape, for a batch of another shape."""
        if not (isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Mapping)):
            raise TypeError(f"a batch of {self.name} must be {WANTED}, not {shape_of(batch)}")
        for task, target in batch[1].items():
            if task not in self.tasks and task not in self._ignored:
                self._ignored.add(task)
                logger.warning(
                    "%s has targets of %s, which is not a task, and nothing trains on them; available: %s",
                    self.name, task, ", ".join(self.tasks),
                )  # fmt: skip
            if isinstance(target, np.ndarray):
                raise TypeError(
                    f"targets of {task} in {self.name} must be tensors, not numpy's: torch.from_numpy(target)"
                )

    def _start(self) -> None:
        self.random_states = self._states()
        # As torch's DistributedSampler and streams of Hugging Face need it: otherwise every pass has the same order.
        for counts in (self.loader, *(getattr(self.loader, name, None) for name in ("sampler", "dataset"))):
            if (set_epoch := getattr(counts, "set_epoch", None)) is not None:
                set_epoch(self.passes)
        self.passes += 1
        resident = None if self.device is None else self.loader.resident_on(self.device)
        self.iterator = iter(self.loader) if resident is None else resident
        self.used = 0

    def state(self) -> dict[str, Any]:
        known = {"content": self._content, "first": self.first}
        if self.stateful:
            return {"loader": self.loader.state_dict(), "pass": self.passes, **known}
        return {"used": self.used, "pass": self.passes, "random": self._states_to_json(), **known}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the position. Raises InputError if the data is not the same as when `state` was taken."""
        if None not in (state["content"], self._content) and state["content"] != self._content:
            raise self._changed(f"had {state['content']}, and has {self._content}")
        self.passes = max(0, state.get("pass", 0) - 1)  # the current pass begins again
        if self.stateful:
            self.loader.load_state_dict(state["loader"])
            return
        self._set_states(state["random"])
        if not state["used"]:
            return
        self._start()
        self.next()
        if state["first"] and self.first and state["first"] != self.first:
            self._look_for(state["first"])
            self._set_states(state["random"])
            self.passes -= 1
            self._start()
            self.next()
        for _ in range(state["used"] - 1):
            self.next()

    def _look_for(self, then: list[int]) -> None:
        """Raises InputError if the earlier rows are no longer in the data."""
        known = known_again(then, self.first, Paired(self.loader, self.tasks))
        if known is False:
            raise self._changed("some of its rows are missing")
        logger.warning(
            "%s yields its batches in a different order than before the checkpoint; this pass continues in the new "
            "order%s",
            self.name,
            "" if known else "; its rows differ in every pass, so its data cannot be compared",
        )

    def _changed(self, how: str) -> InputError:
        return InputError(
            f"{self.name} has changed since the checkpoint ({how}); pass the original inputs and labels, or start a "
            "new run without resume"
        )

    def _states(self) -> tuple[Tensor, Any]:
        return self.generator.get_state(), python_states()

    def _states_to_json(self) -> dict[str, Any]:
        of_torch, others = self.random_states
        return {"torch": of_torch.tolist(), **states_to_json(others)}

    def _set_states(self, states: dict[str, Any]) -> None:
        self.generator.set_state(torch.tensor(states["torch"], dtype=torch.uint8, device="cpu"))
        set_python_states(states)

    def close(self) -> None:
        """Close for good, including the loader (files, workers, memory) if it can be closed."""
        self.iterator = None
        if hasattr(self.loader, "close"):
            self.loader.close()

    def enter_phase(self, active: tuple[str, ...]) -> None:
        if hasattr(self.loader, "enter_phase"):
            self.loader.enter_phase(active)


class Source:
    """The training batches of a run, from one loader for all tasks or a mapping of loaders by task.

    Steps per epoch are the main task's batches over `accumulate`. For a stream without a length, which needs `steps`,
    these steps are one pass. taken: how each loader is divided among several processes (see processes/data.py). Raises
    TypeError or ValueError, naming the unusable loader.
    """

    def __init__(
        self,
        train: Any,
        main: str,
        tasks: Sequence[str],
        accumulate: int = 1,
        steps: int | None = None,
        taken: Mapping[str, str] | None = None,
    ) -> None:
        by_task = dict(train) if isinstance(train, Mapping) else {}
        unknown = [name for name in by_task if name not in tasks]
        if unknown:
            raise ValueError(
                f"train has a loader for {unknown[0]}, which is not a task; available: {', '.join(tasks)}"
            )
        if by_task and main not in by_task:
            raise ValueError(f"train has no loader for the main task {main}")
        self.by_task = bool(by_task)
        named = {name: (f"train[{name}]", loader) for name, loader in by_task.items()}
        self.loaders = {
            name: _Loader(loader, shown, tasks, may_be_stream=steps is not None)
            for name, (shown, loader) in (named or {main: ("train", train)}).items()
        }
        self.main, self.accumulate, self._steps = main, accumulate, steps
        self.taken = taken or {}
        self._is_known_to_keep = False  # whether batches stay as they are until their step
        self.resting: Collection[str] = ()  # loaders that are skipped while their task has weight 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the main task's loader."""
        batches = self.loaders[self.main].length
        if batches is None:
            assert self._steps is not None
            return self._steps
        return -(-batches // self.accumulate)

    @property
    def settings(self) -> dict[str, str]:
        """What loaders declare (`data_settings`) that must not change between a checkpoint and its resumption."""
        declared = [getattr(loader.loader, "data_settings", {}) for loader in self.loaders.values()]
        found: dict[str, list[str]] = {}
        for name, value in (item for settings in declared for item in settings.items()):
            if value not in found.setdefault(name, []):
                found[name].append(value)
        return {name: " and ".join(values) for name, values in found.items()}

    @property
    def is_stream(self) -> bool:
        """Whether the length of a pass over the main task's loader is unknown."""
        return self.loaders[self.main].length is None

    @property
    def fixed_batches(self) -> bool:
        """Whether the same tensors are the same batch throughout a phase, as the loaders declare."""
        return all(getattr(loader.loader, "fixed_batches", False) for loader in self.loaders.values())

    def next_step(self, step: int) -> list[list[Batch]]:
        """Return the batches of an optimizer step, counted from 0: `accumulate` micro-steps, one batch per loader each.

        The last step of a pass over the main task's loader has the remaining batches.
        """
        loaders = [loader for name, loader in self.loaders.items() if name not in self.resting]
        if self.accumulate == 1:
            return [[loader.next() for loader in loaders]]
        batches, before = self.loaders[self.main].length, step % self.steps_per_epoch * self.accumulate
        left = self.accumulate if batches is None else batches - before
        micro_steps: list[list[Batch]] = []
        first: list[Batch] | None = None  # a copy
        for _ in range(min(self.accumulate, left)):
            micro_steps.append([loader.next() for loader in loaders])
            if not self._is_known_to_keep and len(micro_steps) == 1:
                first = copies_of(micro_steps[0])
        if first is not None:
            self._check_kept(first, micro_steps[0], loaders)
        return micro_steps

    def _check_kept(self, before: list[Batch], now: list[Batch], loaders: list[_Loader]) -> None:
        """Raises InputError if a loader has written over a batch while it gave the others of the first step."""
        self._is_known_to_keep = True
        for loader, one, other in zip(loaders, before, now, strict=True):
            if not have_same_tensors(one, other):
                raise InputError(
                    f"{loader.name} gives every batch in the memory of the one before, but a step needs "
                    f"{self.accumulate} of them at once (accumulate={self.accumulate}): give copies (tensor.clone()), "
                    "or leave accumulate at 1"
                )

    def enter_phase(self, active: tuple[str, ...]) -> None:
        """Release the loaders of retired tasks, and tell the others which tasks are active."""
        if self.by_task:
            for name, loader in self.loaders.items():
                if name not in active:
                    loader.close()
            self.loaders = {name: loader for name, loader in self.loaders.items() if name in active}
        for name, loader in self.loaders.items():
            # A loader may serve several tasks, but never those that have their own loader.
            loader.enter_phase(tuple(task for task in active if task == name or task not in self.loaders))

    @property
    def self_training(self) -> bool:
        """Whether the main task's loader also draws rows without a label, once the model has labelled them itself."""
        return bool(getattr(self.loaders[self.main].loader, "self_training", False))

    def own_labels(self, logits_of: Callable[[Any], Tensor], steps: int) -> str:
        """Return the model's labels of rows for the next `steps` steps, JSON-able.

        logits_of: from inputs to the logits (B, C) of the main task.
        """
        labels: str = self.loaders[self.main].loader.own_labels(logits_of, steps * self.accumulate)
        return labels

    @property
    def labelled_by(self) -> tuple[str, ...]:
        """The tasks by whose labels, beside the model, rows are labelled in self-training."""
        return tuple(getattr(self.loaders[self.main].loader, "labelled_by", ()))

    def take_own_labels(self, labels: str) -> int:
        """Draw these rows as well in the main task's phase; return how many there are."""
        n_rows: int = self.loaders[self.main].loader.take_own_labels(labels)
        return n_rows

    def reside_on(self, device: torch.device) -> None:
        """From now on take batches as rows of data on the device, from loaders that offer it (`resident_on`)."""
        for loader in self.loaders.values():
            if hasattr(loader.loader, "resident_on") and loader.stateful:
                loader.device, loader.iterator = device, None

    def end(self) -> None:
        """Let go of passes that have begun, whose worker processes would otherwise live as long as the run is held."""
        for loader in self.loaders.values():
            loader.iterator = None

    def watch(self) -> None:
        """Record from now on what a checkpoint needs to know about the data; call it before the first step."""
        for loader in self.loaders.values():
            loader.watch()

    def state(self) -> dict[str, Any]:
        """Return the position of every loader, JSON-able."""
        return {name: loader.state() for name, loader in self.loaders.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the position from `state`; loaders that had retired by then are released.

        Raises InputError if a loader's data has changed since then.
        """
        self.loaders = {name: loader for name, loader in self.loaders.items() if name in state}
        for name, loader in self.loaders.items():
            loader.restore(cast("dict[str, Any]", state[name]))

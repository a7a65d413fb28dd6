"""Batches (inputs, {task: targets}) as torch tensors, made by array operations only."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.data.corpus import Corpus, check_main
from mt2st_fast.data.label_model import LabelModel, telling_tasks
from mt2st_fast.data.own_labels import labels_from, packed, unpacked
from mt2st_fast.data.resident import DeviceTargets, DeviceWindows, ResidentStream, memory_budget
from mt2st_fast.data.sampler import FixedSampler, RowsAhead, Sampler, check_active
from mt2st_fast.data.target_rows import TargetRows
from mt2st_fast.errors import InputError
from mt2st_fast.kernels import take_bags

OUTSIDE = -1  # the "type id" of a window position beyond the sentence

# Rows and logits of a batch whose rows the model labels itself.
MOST_LABELLED_AT_ONCE, MOST_LOGITS = 8192, 2**22

STEPS_A_PASS = 96  # minimum steps of a pass, within the limits of batch_size_for
MOST_ROWS = 512

Targets = dict[str, Tensor]
Batch = tuple[Tensor | tuple[Tensor, Tensor], Targets]


def batch_size_for(n_rows: int, least: int) -> int:
    """Return the batch size for a corpus of n_rows: a power of two from `least` to 512, so that a pass is some 100
    steps.

    Large batches are cheaper, but would end a pass over a small corpus after a few steps.
    """
    size = least
    while 2 * size <= min(MOST_ROWS, n_rows // STEPS_A_PASS):
        size *= 2
    return size


def batch_size_where_main_is_rare(usual: int, share: float) -> int:
    """Return the batch size that leaves room for half of `usual` rows beside the share that has a main label."""
    return min(usual, max(1, round(usual / 2 / (1 - share)))) if share < 1 else usual


class WindowInputs:
    """Windows of type ids around tokens.

    Sentences are laid out with `window` outside marks between them, so that every window is one contiguous slice and
    sentence borders need no test.
    """

    def __init__(self, corpus: Corpus, window: int) -> None:
        if corpus.level != "token":
            raise InputError(
                "windows need a label per token, but this corpus has labels per document; use BagBatches"
            )
        if window < 0:
            raise InputError(f"window {window} is negative; use 0 or more words on each side")
        # The window of token t begins `window` places before the token, and there are `window` marks
        # before each sentence: the two cancel out, except for the marks of the earlier sentences.
        self._begin_of_row = np.arange(len(corpus.tokens)) + window * corpus.unit_of_token
        laid_out = np.full(len(corpus.tokens) + window * (corpus.n_units + 1), OUTSIDE, dtype=np.int32)
        laid_out[self._begin_of_row + window] = corpus.tokens
        # Only a corpus without tokens is too short, and it has no rows.
        laid_out = (
            laid_out if len(laid_out) > 2 * window else np.full(2 * window + 1, OUTSIDE, dtype=np.int32)
        )
        self._laid_out, self._places = laid_out, np.arange(2 * window + 1)

    def __call__(self, rows: np.ndarray) -> Tensor:
        """Return type ids, int32 (B, 2 * window + 1); OUTSIDE beyond the sentence."""
        return torch.from_numpy(self._laid_out.take(self._begin_of_row.take(rows)[:, None] + self._places))

    def n_bytes(self) -> int:
        """The bytes that `on_device` takes on the device."""
        return len(self._begin_of_row) * len(self._places) * self._laid_out.itemsize

    def on_device(self, device: torch.device) -> DeviceWindows:
        """Return the windows of all rows, on a device."""
        laid_out = torch.from_numpy(self._laid_out).to(device)
        windows_nw = laid_out.unfold(0, len(self._places), 1)
        return DeviceWindows(windows_nw.index_select(0, torch.from_numpy(self._begin_of_row).to(device)))


class BagInputs:
    """All type ids of documents, one document after the other."""

    def __init__(self, corpus: Corpus) -> None:
        if corpus.level != "document":
            raise InputError(
                "bags need a label per document, but this corpus has labels per token; use TokenBatches"
            )
        self._tokens, self._bounds = corpus.tokens, corpus.bounds

    def __call__(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return type ids, int32 (total,), and the offsets of the documents in them, int64 (B + 1,)."""
        return take_bags(self._tokens, self._bounds, rows)


Inputs = WindowInputs | BagInputs


class TrainingBatches:
    """Endless, resumable training batches in epochs of a fixed length.

    Iterating yields the rest of the current epoch (or all of it at its start), each batch as (inputs, {task: targets})
    with the *active* tasks only: int64 (B,) for classes, float32 (B, C) for the other kinds; -100 or NaN where a row
    has no label.

    With `fixed_batches` the batches of a phase are composed once and kept: every epoch has the same tensors in another
    order, so that a training loop can cache what it derives from a batch.

    With `self_training` a single-task phase also draws rows without a main label, seven to each row with one, by the
    label that the model itself gave them when the phase began. `Trainer` does that by `own_labels` and
    `take_own_labels`. Where the labels of other tasks tell the main task's, these rows are labelled by them as well
    (`labelled_by` names these tasks). Raises InputError where every row has a main label, and for fixed batches.

    data_settings: what was done to the data, by name, and must be the same when a run is resumed.
    """

    def __init__(
        self,
        corpus: Corpus,
        inputs: Inputs,
        batch_size: int,
        main: str,
        tasks: Sequence[str] | None,
        share: float,
        seed: int,
        fixed_batches: bool = False,
        self_training: bool = False,
    ) -> None:
        check_main(corpus, main)
        self.main = main
        self.tasks = (
            tuple(tasks) if tasks is not None else (main, *(task for task in corpus.targets if task != main))
        )
        self._corpus = corpus
        self._inputs = inputs
        self.fixed_batches = fixed_batches
        if self.tasks == (main,):
            share = 1.0  # no row is drawn for another task
        self.data_settings: dict[str, str] = {}
        make = FixedSampler if fixed_batches else Sampler
        labelled = corpus.column(main).labelled()
        self.sampler = make(labelled, batch_size, share, seed)
        self.self_training = self_training
        # The tasks by whose labels rows are labelled in self-training, beside the model.
        self.labelled_by = telling_tasks(corpus, main, self.tasks) if self_training else ()
        self._own_labels: str | None = None
        if self_training:
            self._check_can_self_train(bool(labelled.all()))
            self.data_settings["self-training"] = "on"
        self.ahead = RowsAhead(self.sampler)
        self.enter_phase(self.tasks)

    def _check_can_self_train(self, all_labelled: bool) -> None:
        if all_labelled:
            raise InputError(
                f"self_training is not possible: every row has a label of {self.main}; leave it out"
            )
        if self.fixed_batches:
            raise InputError(
                "self_training is not possible: fixed batches are composed before the run; leave it out"
            )

    @property
    def batch_size(self) -> int:
        """B, the rows of a multi-task batch and the maximum of any batch."""
        return self.sampler.batch_size

    def rows_a_batch(self, active: Sequence[str], own_labels: bool = False) -> int:
        """Return the rows of a batch while these tasks are active; for fixed batches, the maximum.

        own_labels: whether a single-task phase has the model's own labels.
        """
        alone = tuple(active) == (self.main,)
        return self.sampler.rows_a_batch(single_task=alone, own_labels=own_labels)

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches of an epoch, the same in every phase."""
        return self.sampler.steps_per_epoch

    def __len__(self) -> int:
        return self.sampler.steps_per_epoch

    def take_part(self, rank: int, count: int) -> None:
        """From the next batch on, return only part number `rank` of `count` parts of its rows; (0, 1) is all of them.

        For several processes, each with its own batches of the same corpus and seed. `state_dict` returns the same in
        all of them, and can be loaded for any count.
        """
        self.ahead.put_back()
        self.sampler.part = (rank, count)
        self._kept.clear()

    def enter_phase(self, active: Sequence[str]) -> None:
        """From the next batch on, deliver the targets of these tasks; labels of retired tasks are released.

        With the main task alone (a single-task phase) only rows with a main label are drawn; where those are rare, a
        batch then has only as many rows as a multi-task batch has of them. Raises InputError for an unknown task or if
        the main task is not among them.
        """
        self.ahead.put_back()
        self.active = check_active(active, self.tasks, self.main)
        self.sampler.single_task = self.active == (self.main,)
        self._own_labels = None
        self.sampler.draw_own(0)
        self._use({task: self._corpus.column(task).values for task in self.active})

    def _use(self, columns: dict[str, np.ndarray]) -> None:
        self._columns = columns
        self._targets = TargetRows(columns)
        self._kept: dict[int, Batch] = {}

    def own_labels(self, logits_of: Callable[[Any], Tensor], batches: int) -> str:
        """Return the labels that a model gives to random rows without a main label, as text for `take_own_labels`.

        To as many rows as so many batches of a single-task phase can draw.

        logits_of: from inputs, as batches have them, to the logits (B, C) of the main task.
        """
        column = self._corpus.column(self.main)
        rows = self.sampler.rows_to_label(self.sampler.n_to_label(batches))
        at_once = max(1, min(MOST_LABELLED_AT_ONCE, MOST_LOGITS // column.size))
        blocks = np.split(rows, range(at_once, len(rows), at_once))

        def logits(of_rows: np.ndarray) -> Tensor:
            return logits_of(self._inputs(of_rows))

        if not self.labelled_by:
            return packed(np.concatenate([labels_from(logits(block), column.kind) for block in blocks]))
        told = LabelModel(self._corpus, self.main, self.labelled_by)
        return packed(np.concatenate([told.classes(block, logits) for block in blocks]))

    def take_own_labels(self, labels: str) -> int:
        """From the next batch of this single-task phase on, also draw rows with these labels; return how many there
        are.
        """
        self.ahead.put_back()
        values = self._corpus.column(self.main).values.copy()
        own = unpacked(labels, values)
        values[self.sampler.rows_to_label(len(own))] = own
        self._own_labels = labels
        self.sampler.draw_own(len(own))
        self._use({self.main: values})
        return len(own)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            batch = self._next_batch()
            # Checked before the batch is yielded: the caller may then load another position.
            ends_epoch = self.sampler.position == 0
            yield batch
            if ends_epoch:
                return

    def resident_on(self, device: torch.device) -> ResidentStream | None:
        """Return the following batches as an endless stream of rows of a corpus on the device; None where that does not
        fit.

        `enter_phase`, `state_dict` and `load_state_dict` have the same effect on it.
        """
        columns = [self._corpus.column(task).values for task in self.tasks]
        if not _fits(self._inputs, columns, device):
            return None
        return ResidentStream(self, self._inputs.on_device(device), device)

    def active_columns(self) -> dict[str, np.ndarray]:
        """Return the targets of all rows, by active task."""
        return self._columns

    def _next_batch(self) -> Batch:
        self.ahead.put_back()
        if not isinstance(self.sampler, FixedSampler):
            return self._batch(self.sampler.next_rows())
        number = self.sampler.next_number()
        if number not in self._kept:
            self._kept[number] = self._batch(self.sampler.rows_of(number))
        inputs, targets = self._kept[number]
        return inputs, dict(targets)

    def _batch(self, rows: np.ndarray) -> Batch:
        return self._inputs(rows), self._targets(rows)

    def close(self) -> None:
        """Release the batches that are kept."""
        self._kept = {}

    @cached_property
    def _digest(self) -> str:
        """Return a checksum of all training data, which must be the same when a run is resumed."""
        return self._corpus.digest(self.tasks)

    def state_dict(self) -> dict[str, Any]:
        """Return phase and positions after the last batch that was yielded, in JSON's types."""
        self.ahead.put_back()
        return {
            "active": list(self.active),
            "sampler": self.sampler.state_dict(),
            "own_labels": self._own_labels,
            "data": self._digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with exactly the batches that would have followed.

        Raises InputError for other data or settings.
        """
        self.sampler.check_is_of_these(state["sampler"])
        if state["data"] != self._digest:
            raise InputError(
                "the training data has changed since the checkpoint (words, labels or class names differ); pass the "
                "original data, or start a new run"
            )
        self.enter_phase(state["active"])
        if (labels := state.get("own_labels")) is not None:
            self.take_own_labels(labels)
        self.sampler.load_state_dict(state["sampler"])


class TokenBatches(TrainingBatches):
    """Training batches of tokens.

    Inputs are windows of word type ids, int32 (B, 2 * window + 1), -1 outside the sentence. `tasks` limits
    the tasks (all of the corpus by default); `share` is the Sampler's. Raises InputError where the corpus
    has no label of the main task.
    """

    def __init__(
        self,
        corpus: Corpus,
        batch_size: int,
        window: int,
        main: str,
        share: float = 0.5,
        seed: int = 1,
        tasks: Sequence[str] | None = None,
        self_training: bool = False,
    ) -> None:
        inputs = WindowInputs(corpus, window)
        super().__init__(corpus, inputs, batch_size, main, tasks, share, seed, self_training=self_training)


class BagBatches(TrainingBatches):
    """Training batches of documents: inputs are (type ids int32 (total,), offsets int64 (B + 1,)).

    `tasks` limits the tasks (all of the corpus by default); `share` is the Sampler's. `fixed_batches` need about five
    times the memory of the rows in a pass and make a fused step a third cheaper. Raises InputError where the corpus has
    no label of the main task.
    """

    def __init__(
        self,
        corpus: Corpus,
        batch_size: int,
        main: str,
        share: float = 0.5,
        seed: int = 1,
        tasks: Sequence[str] | None = None,
        fixed_batches: bool = False,
        self_training: bool = False,
    ) -> None:
        super().__init__(
            corpus, BagInputs(corpus), batch_size, main, tasks, share, seed, fixed_batches, self_training
        )


class EvaluationBatches:
    """All rows of a corpus in order, with the targets of the requested tasks; can be iterated repeatedly."""

    def __init__(self, corpus: Corpus, batch_size: int, inputs: Inputs, tasks: Sequence[str]) -> None:
        if batch_size < 1:
            raise InputError(f"batch size must be positive, not {batch_size}")
        self._corpus, self._tasks = corpus, tuple(tasks)
        self._n_rows = corpus.n_rows
        self._batch_size = batch_size
        self._inputs = inputs
        values = {task: corpus.column(task).values for task in tasks}
        self._columns = {task: _tensor(column) for task, column in values.items()}
        self._values = values
        self._resident: tuple[torch.device, DeviceWindows, DeviceTargets] | None = None

    def __len__(self) -> int:
        return -(-self._n_rows // self._batch_size)

    def digest(self) -> str:
        """Return a checksum by which processes compare whether they have the same batches."""
        return f"{self._batch_size} {self._corpus.digest(self._tasks)}"

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, self._n_rows, self._batch_size):
            rows = np.arange(first, min(first + self._batch_size, self._n_rows))
            targets = {task: column[first : first + len(rows)] for task, column in self._columns.items()}
            yield self._inputs(rows), targets

    def resident_on(self, device: torch.device) -> Iterator[Batch] | None:
        """Return the same batches as views of a corpus that stays on the device; None where it does not fit."""
        if self._resident is None or self._resident[0] != device:
            if not _fits(self._inputs, [*self._values.values()], device):
                return None
            inputs, targets = self._inputs.on_device(device), DeviceTargets(self._values, device)
            self._resident = device, inputs, targets
        _, inputs, targets = self._resident
        n_rows, size = self._n_rows, self._batch_size
        bounds = [(first, min(first + size, n_rows)) for first in range(0, n_rows, size)]
        return ((inputs.between(*part), targets.between(*part)) for part in bounds)


def _fits(inputs: Inputs, columns: Sequence[np.ndarray], device: torch.device) -> TypeGuard[WindowInputs]:
    """Whether the inputs have a form for devices, and fit on this one together with the targets."""
    if not isinstance(inputs, WindowInputs):
        return False
    return inputs.n_bytes() + sum(column.nbytes for column in columns) <= memory_budget(device)


def evaluation_batches(
    corpus: Corpus, batch_size: int, window: int | None = None, tasks: Sequence[str] | None = None
) -> EvaluationBatches:
    """Return sequential batches over all rows; tasks: all of the corpus by default. window: for token level only.

    The last batch may be shorter. Targets are views of the corpus: do not write to them.
    """
    tasks = tuple(corpus.targets) if tasks is None else tasks
    if corpus.level == "document":
        return EvaluationBatches(corpus, batch_size, BagInputs(corpus), tasks)
    if window is None:
        raise InputError("evaluation batches of tokens need a window; pass window=")
    return EvaluationBatches(corpus, batch_size, WindowInputs(corpus, window), tasks)


def _tensor(values: np.ndarray) -> Tensor:
    """Return a tensor over the same memory; copies only what torch cannot share (read-only or strided arrays)."""
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))

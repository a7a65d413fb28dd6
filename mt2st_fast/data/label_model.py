"""What the labels of other tasks say about a row's main label: a label model for self-training.

Where few rows have a main label, the others still have labels of other tasks, and these often tell it: a part of speech
nearly tells the chunk. The encoder cannot see them, as they are not there when it predicts; but the labels that it is
trained with may be chosen by them (privileged information: Vapnik and Vashist, Neural Networks 2009; a teacher that
sees more than its student: Lopez-Paz et al., "Unifying distillation and privileged information", ICLR 2016,
arXiv 1511.03643).

The label model is log-linear in clues: the row's word (of tokens), and the labels of other tasks at the row and its
neighbours. It is fitted to the rows that have a main label. Clues and inputs are taken as independent, given the main
label, so their evidence adds up (a product of experts, Hinton 1999), without counting the frequency of classes twice:

    log p(c | inputs, clues) = MODEL_SHARE * (log p(c | inputs) - log p(c)) + log p(c | clues) + constant

The model's evidence counts half. It has memorized the labelled rows, so it is surer of the others than it should be. Of
rows whose class the clues alone leave in no doubt (LOG_SURE), the model is not asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mt2st_fast.data.corpus import MISSING, Corpus, Splits, TargetColumn
from mt2st_fast.errors import InputError
from mt2st_fast.kernels import fit_log_linear
from mt2st_fast.spelling import counted, listed

MODEL_SHARE = 0.5
LOG_SURE = math.log(0.99)
NEIGHBOURS = (-1, 1)
RATE, PASSES = 0.2, 5
MOST_NUMBERS = 25_000_000  # that a pass moves; with more, fewer rows are read
MOST_HELD_OUT = 5_000_000  # logits; with more, fewer rows are held out
ROWS_AT_ONCE = 8192
# Whether tasks tell something: every HELD_OUT-th unit is kept from the fit, and there the clues of each must lower the
# loss by LEAST_TOLD, and all together by LEAST_TOGETHER, and by this many standard errors.
HELD_OUT, LEAST_TOLD, LEAST_TOGETHER, ERRORS = 5, 0.1, 1 / 3, 2.0

# By corpus, main task and other tasks: a configuration asks, and then its batches.
_TOLD: WeakKeyDictionary[Corpus, dict[tuple[str, ...], tuple[str, ...]]] = WeakKeyDictionary()


def telling_tasks(corpus: Corpus, main: str, tasks: Sequence[str]) -> tuple[str, ...]:
    """Return those of `tasks` whose labels tell the main task's on held-out units, beyond a row's word and whether
    it begins or ends its unit.

    Only tasks of classes can, and only for a main task of classes.
    """
    known = _TOLD.setdefault(corpus, {})
    key = (main, *tasks)
    if key not in known:
        known[key] = _telling_tasks(corpus, main, tasks)
    return known[key]


def _telling_tasks(corpus: Corpus, main: str, tasks: Sequence[str]) -> tuple[str, ...]:
    column = corpus.column(main)
    candidates = [task for task in tasks if task != main and corpus.column(task).kind == "classes"]
    if column.kind != "classes" or not candidates:
        return ()
    rows = np.flatnonzero(column.labelled())
    _, unit = np.unique(corpus.unit_of_row[rows], return_inverse=True)
    held_out = rows[unit % HELD_OUT == HELD_OUT - 1]
    held_out = held_out[:: max(1, -(-len(held_out) * column.size // MOST_HELD_OUT))]
    fitted = rows[unit % HELD_OUT != HELD_OUT - 1]
    # Of one class, a model with more clues is merely surer.
    if any(len(np.unique(column.values[some])) < 2 for some in (held_out, fitted)):
        return ()
    given = torch.from_numpy(column.values[held_out])

    def losses(*with_tasks: str) -> np.ndarray:
        told = LabelModel(corpus, main, with_tasks, fitted).log_probabilities(held_out)
        return functional.nll_loss(told, given, reduction="none").numpy()

    without = losses()
    telling = [task for task in candidates if _are_lower(losses(task), without, LEAST_TOLD)]
    return tuple(telling) if _are_lower(losses(*telling), without, LEAST_TOGETHER) else ()


def _are_lower(losses: np.ndarray, without: np.ndarray, share: float) -> bool:
    """Return whether losses (N,) are below those without the tasks by a share, and not by chance."""
    gains = without - losses
    error = gains.std() / np.sqrt(len(gains))
    return bool(gains.mean() >= max(share * without.mean(), ERRORS * error))


def complete_labels(splits: Splits) -> Splits:
    """Return splits whose training rows without a main label have the one that the labels of other tasks tell.

    So the other tasks teach the main one by their labels alone, without being trained: what is left for multi-task
    training to add. Raises InputError where every row has a main label, where no task tells it, and without a main
    task.
    """
    if splits.main is None:
        raise InputError(f"{splits.name} has no labels that could be completed")
    main, train = splits.main, splits.train
    column = train.column(main)
    rows = np.flatnonzero(~column.labelled())
    if not len(rows):
        raise InputError(f"every training row has a label of {main}, so there is nothing to complete")
    telling = telling_tasks(train, main, splits.tasks)
    if not telling:
        raise InputError(
            f"the labels of {listed(splits.auxiliary)} do not tell those of {main}, so they cannot complete them; "
            "name other auxiliary tasks"
        )
    values, model = column.values.copy(), LabelModel(train, main, telling)
    for block in np.split(rows, range(ROWS_AT_ONCE, len(rows), ROWS_AT_ONCE)):
        values[block] = model.log_probabilities(block).argmax(1).numpy()
    targets = {**train.targets, main: replace(column, values=values)}
    note = f"{counted(len(rows), 'training row')} got the label for {main!r} that the labels of {listed(telling)} tell"
    return replace(splits, train=replace(train, targets=targets), notes=(*splits.notes, note))


class LabelModel:
    """A log-linear model of the main task's class by the labels of other tasks and by the word.

    rows: those to fit it to, int64; all that have a main label by default.
    """

    def __init__(
        self, corpus: Corpus, main: str, tasks: Sequence[str], rows: np.ndarray | None = None
    ) -> None:
        column = corpus.column(main)
        rows = np.flatnonzero(column.labelled()) if rows is None else rows
        self._clues = _Clues(corpus, tasks)
        per_row = column.size * self._clues.n_columns
        rows = rows[:: -(-len(rows) * per_row // MOST_NUMBERS)]
        ids_nk, classes_n = self._clues.of(rows), column.values[rows]
        # Only clues that these rows have get weights; 0 stands for all others, and its weights stay 0.
        seen = np.unique(ids_nk)
        self._place_of = np.zeros(self._clues.n_ids, np.int64)
        self._place_of[seen] = np.arange(1, len(seen) + 1)
        self._weights_vc = torch.from_numpy(
            fit_log_linear(
                self._place_of[ids_nk], classes_n, len(seen) + 1, column.size, rate=RATE, passes=PASSES
            )
        )
        counts_c = np.bincount(classes_n, minlength=column.size) + 1
        self._log_prior_c = torch.from_numpy(np.log(counts_c / counts_c.sum()).astype(np.float32))

    def log_probabilities(self, rows: np.ndarray) -> Tensor:
        """Return log p(c | clues) of rows, float32 (B, C)."""
        ids_bk = torch.from_numpy(self._place_of[self._clues.of(rows)])
        return functional.embedding_bag(ids_bk, self._weights_vc, mode="sum").log_softmax(1)

    def classes(self, rows: np.ndarray, logits_of: Callable[[np.ndarray], Tensor]) -> np.ndarray:
        """Return the likeliest class of rows by inputs and clues, int64 (B,).

        logits_of: from those rows that the clues leave in doubt to what a model says of their inputs, (rows, C).
        """
        evidence = self.log_probabilities(rows)
        doubtful = (evidence.amax(1) < LOG_SURE).nonzero()[:, 0]
        if len(doubtful):
            of_inputs = logits_of(rows[doubtful.numpy()]).to("cpu", torch.float32) - self._log_prior_c
            evidence[doubtful] += MODEL_SHARE * of_inputs
        return evidence.argmax(1).numpy()


class _Clues:
    """The clues of rows, as numbers in [0, n_ids).

    Every row has one that all rows have. A token has its word, and whether there are tokens before and after it in its
    unit. Then come the labels of tasks: at the row itself, and of tokens also at those two.
    """

    def __init__(self, corpus: Corpus, tasks: Sequence[str]) -> None:
        self._corpus = corpus
        columns = [corpus.column(task) for task in tasks]
        of_tokens = corpus.level == "token"
        self._neighbours = NEIGHBOURS if of_tokens else ()
        sizes = [1]
        if of_tokens:
            sizes += [int(corpus.tokens.max(initial=-1)) + 1, *(2 for _ in self._neighbours)]
        # Two more than the classes: no label, and no such neighbour.
        sizes += [column.size + 2 for column in columns for _ in (0, *self._neighbours)]
        self._labels = [_with_no_row(column) for column in columns]
        *self._begins, self.n_ids = np.cumsum([0, *sizes]).tolist()
        self.n_columns = len(sizes)

    @cached_property
    def _unit_of_row(self) -> np.ndarray:
        return self._corpus.unit_of_row

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Return the clues of rows, int64 (B, n_columns)."""
        is_there = {offset: self._is_there(rows, offset) for offset in self._neighbours}
        found = [np.zeros(len(rows), np.int64)]
        if self._neighbours:
            found += [self._corpus.tokens[rows], *is_there.values()]
        for labels in self._labels:
            found.append(labels[rows])
            found += [labels[np.where(there, rows + o, -1)] for o, there in is_there.items()]
        return np.stack([ids + begin for ids, begin in zip(found, self._begins, strict=True)], axis=1)

    def _is_there(self, rows: np.ndarray, offset: int) -> np.ndarray:
        """Return whether rows + offset are rows of the same unit, bool (B,)."""
        at = np.clip(rows + offset, 0, self._corpus.n_rows - 1)
        return (at == rows + offset) & (self._unit_of_row[at] == self._unit_of_row[rows])


def _with_no_row(column: TargetColumn) -> np.ndarray:
    """Return the labels of all rows and of no row, int64 (N + 1,): C for no label, C + 1 for no row."""
    return np.append(np.where(column.values == MISSING, column.size, column.values), column.size + 1)

"""Turns of auxiliary tasks on a table: what a weight is, what a turn is, and that a retired task is let go."""

from __future__ import annotations

import numpy as np
import pytest

from mt2st_fast import InputError
from mt2st_fast.data import Vocabulary
from mt2st_fast.words.table_tasks import LEAST_STEPS, TableTasks


def table_tasks(pairs):
    words = ["sea0", "sky0", "sea1", "sea2"]
    rows = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    return TableTasks(
        {"similarity": pairs}, Vocabulary(words, np.ones(4, np.int64)), rows, None, seed=1
    ), rows


def test_a_weight_is_a_factor_of_the_rate(pairs):
    tables = []
    for weight, rate in ((1.0, 0.02), (0.5, 0.04), (0.5, 0.02)):
        tasks, rows = table_tasks(pairs)
        tasks.take_turn({"similarity": weight}, rate, 10)
        tables.append(rows)
    assert np.array_equal(tables[0], tables[1])
    assert not np.allclose(tables[0], tables[2])


def test_a_turn_has_the_mean_of_its_steps(pairs, monkeypatch):
    tasks, _ = table_tasks(pairs)
    losses = iter(range(100))
    monkeypatch.setattr(TableTasks, "_step", lambda self, name: float(next(losses)))
    assert tasks.take_turn({"similarity": 1.0}, 0.02, 10) == {"similarity": (LEAST_STEPS - 1) / 2}
    assert next(losses) == LEAST_STEPS


def test_a_task_that_retires_closes_its_file(pairs, monkeypatch):
    closed = []
    monkeypatch.setattr(
        "mt2st_fast.data.word_batches.WordBatches.close", lambda self: closed.append(self.task)
    )
    tasks, rows = table_tasks(pairs)
    tasks.retire_but({"context", "similarity"})
    assert tasks.take_turn({"similarity": 1.0}, 0.02, 10).keys() == {"similarity"}
    assert (tasks.active, closed) == (("similarity",), [])
    before = rows.copy()
    tasks.retire_but({"context"})
    assert tasks.take_turn({}, 0.02, 10) == {}
    assert (tasks.names, tasks.active, closed) == (("similarity",), (), ["similarity"])
    assert np.array_equal(rows, before)


def test_a_kind_that_there_is_not_is_named(pairs):
    with pytest.raises(InputError, match="tasks: 'syntax' is unknown; available: similarity, analogy"):
        TableTasks(
            {"syntax": pairs}, Vocabulary(["a"], np.ones(1, np.int64)), np.ones((1, 2), np.float32), None, 1
        )

"""Runs whose parts take turns, of models that are frozen in part: every engine moves the same."""

from __future__ import annotations

import pytest
import torch

from mt2st_fast import AdaTask, LazyAdam, MultiTaskHeads, Trainer, WindowEncoder
from mt2st_fast.errors import InputError
from mt2st_fast.training.schedules import Alternate, AlternateSteps
from tests.training.graphs_on_cpu import EagerOnCpu, GraphedOnCpu
from tests.training.turn_runs import OPTIMIZERS, TASKS, V, batches, parameters_of, trainer_of

ENGINES = {"one kernel call": "auto", "eager": "autograd"}
SOME_ROWS = torch.arange(V) % 3 > 0


def run_of(kind, optimizer, engine, frozen, rows=False):
    """Parameters before and after a run in which these are frozen, and as an option some rows of the table."""
    trainer = trainer_of(kind, OPTIMIZERS[optimizer], schedule=AlternateSteps(1, 2), backward=ENGINES[engine])
    before = parameters_of(trainer)
    for name in frozen:
        part, _, path = name.partition("/")
        getattr(trainer, part).get_parameter(path).requires_grad_(False)
    run = trainer.begin(batches(kind), epochs=3)
    if rows:
        run.optimizer.freeze_rows(trainer.encoder.table, SOME_ROWS)
    while run.steps_done < run.total_steps:
        run.step()
    run.record()
    assert [phase.engine for phase in run.history.phases] == [engine]
    run.close()
    return before, parameters_of(trainer)


@pytest.mark.parametrize(
    ("kind", "optimizer", "frozen", "rows"),
    [
        ("window", "adam", ("encoder/table",), False),
        ("window", "adagrad", ("encoder/hidden.weight", "heads/linears.wide.weight"), False),
        ("window", "sgd", ("heads/linears.main.bias",), True),
        ("bag", "adagrad", (), True),
    ],
)
def test_turns_move_what_is_not_frozen(kind, optimizer, frozen, rows):
    ends = []
    for engine in ENGINES:
        before, after = run_of(kind, optimizer, engine, frozen, rows)
        assert {name for name in before if torch.equal(before[name], after[name])} == set(frozen)
        still = (before["encoder/table"] == after["encoder/table"]).all(1)
        assert bool(still[SOME_ROWS].all()) == (rows or "encoder/table" in frozen)
        ends.append(after)
    ours, theirs = ends
    for name, wanted in theirs.items():
        torch.testing.assert_close(ours[name], wanted, rtol=1e-4, atol=1e-5, msg=name)


def test_graphs_replay_the_turns_of_a_model_that_is_frozen_in_part(toy):
    ends = []
    for kind in (EagerOnCpu, GraphedOnCpu):
        torch.manual_seed(3)
        trainer = kind(
            toy.encoder(dropout=0.1), toy.heads(), schedule=Alternate(1, 1), log_every=4,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        )  # fmt: skip
        frozen = next(trainer.encoder.parameters())
        frozen.requires_grad_(False)
        before = parameters_of(trainer)
        trainer.fit(toy.batches(5), epochs=8)
        ends.append(parameters_of(trainer))
        still = [name for name in before if torch.equal(before[name], ends[-1][name])]
        assert still == [
            n for n, p in [("encoder/" + n, p) for n, p in trainer.encoder.named_parameters()] if p is frozen
        ]
    assert trainer.capturer.captured == 2
    for name, wanted in ends[0].items():
        assert torch.equal(ends[1][name], wanted), name


@pytest.mark.parametrize("engine", ENGINES)
def test_a_side_of_which_nothing_trains_cannot_have_a_turn(engine):
    names = [f"encoder/{name}" for name, _ in WindowEncoder(V, 12, window=2, hidden=20).named_parameters()]
    with pytest.raises(
        InputError, match="trains the shared parameters from step 0 on, and none of the encoder"
    ):
        run_of("window", "adam", engine, names)


def test_rows_stay_frozen_where_each_task_has_moments_of_its_own():
    torch.manual_seed(0)
    encoder = WindowEncoder(V, 12, window=2, hidden=20, sparse=True)
    trainer = Trainer(
        encoder, MultiTaskHeads(20, TASKS, "main"), schedule=AdaTask(), device="cpu",
        optimizer=lambda p: LazyAdam(p, lr=0.02, weight_decay=0.0),
    )  # fmt: skip
    run = trainer.begin(batches("window"), epochs=2)
    run.optimizer.freeze_rows(encoder.table, SOME_ROWS)
    before = encoder.table.detach().clone()
    for _ in range(4):
        run.step()
    moved = (before != encoder.table).any(1)
    assert moved.any()
    assert not moved[SOME_ROWS].any()
    assert torch.equal(run.optimizer.frozen_rows(encoder.table), SOME_ROWS)
    run.close()

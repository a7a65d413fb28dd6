"""Gradients of a window encoder by one kernel call a batch: those of autograd, in every step that wants gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mt2st_fast import Callback, Classification, MultiTask, MultiTaskHeads, Switch, Trainer
from mt2st_fast.kernels import Dropout, Updates, text_gradients, text_step
from mt2st_fast.training.engines.kernel_calls.held_parameters import MOVES
from mt2st_fast.training.engines.kernel_calls.text_gradients import TextGradients
from mt2st_fast.training.engines.kernel_calls.text_training import TextTraining
from mt2st_fast.training.optimizers.row_sparse import ROW_STATE, SGD, LazyAdam
from tests.training.engines.kernel_calls.test_text_training import KINDS, TASKS, batch, model, parameters
from tests.training.small_runs import Stop

WEIGHTS = torch.tensor([1.0, 0.5, 0.25])
NAME = "gradients in one kernel call"


def autograd(encoder, heads, batches, share=1.0):
    for types, targets in batches:
        windows = encoder.pool(types).flatten(1)
        (share * heads(torch.relu(encoder.hidden(windows)), targets, WEIGHTS).total).backward()


def gradients_of(encoder, heads):
    named = [*encoder.named_parameters(), *heads.named_parameters()]
    return {name: None if p.grad is None else p.grad.to_dense() for name, p in named}


def assert_alike(found, wanted):
    assert {n for n, g in found.items() if g is not None} == {n for n, g in wanted.items() if g is not None}
    for name, gradient in found.items():
        if gradient is not None:
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("n_batches", [1, 3])
@pytest.mark.parametrize("shape", [{}, {"subwords": False}, {"dim": 5, "hidden": 9}], ids=str)
@pytest.mark.parametrize("tasks", [TASKS, KINDS], ids=["classes", "kinds"])
def test_they_are_those_of_autograd(n_batches, shape, tasks):
    batches = [batch(150, tasks, seed) for seed in range(n_batches)]
    encoder, heads = model(tasks, **shape)
    autograd(encoder, heads, batches)
    wanted = gradients_of(encoder, heads)
    encoder, heads = model(tasks, **shape)
    before = parameters(encoder, heads)
    made = TextGradients(encoder, heads, SGD([*encoder.parameters(), *heads.parameters()], lr=1.0))
    for _ in range(2):  # the second time from nothing, too
        made.begin()
        for types, targets in batches:
            made(types, targets, WEIGHTS)
        made.hand_out()
    assert_alike(gradients_of(encoder, heads), wanted)
    assert all(map(torch.equal, parameters(encoder, heads), before))
    rows = encoder.table.grad._indices()[0]
    assert n_batches > 1 or bool((rows[1:] > rows[:-1]).all())


@pytest.mark.parametrize("lacking", [0, 1])
def test_those_of_rows_go_where_there_is_room(lacking):
    encoder, heads = model()
    made = TextGradients(encoder, heads, SGD([*encoder.parameters(), *heads.parameters()], lr=1.0))
    made(*batch(), WEIGHTS)
    rows, wanted = (each.copy() for each in made.rows_so_far())
    made.begin()
    memory = np.full(wanted.size + 8, np.nan, np.float32)
    room = memory[: wanted.size - lacking]
    made(*batch(), WEIGHTS, room=room)
    found, d_rows = made.rows_so_far()
    assert np.array_equal(found, rows)
    assert np.array_equal(d_rows, wanted)
    assert np.shares_memory(d_rows, room) == (not lacking)
    assert np.isnan(memory[0 if lacking else wanted.size :]).all()
    made.let_go_of_rows()
    assert not made.present()[0]


@pytest.mark.parametrize("frozen", ["table", "hidden", "head"])
def test_of_what_is_frozen_there_are_none(frozen):
    def freeze(encoder, heads):
        part = {"hidden": encoder.hidden, "head": heads.linear("wide")}.get(frozen)
        for p in [encoder.table] if part is None else part.parameters():
            p.requires_grad_(False)

    encoder, heads = model()
    freeze(encoder, heads)
    autograd(encoder, heads, [batch()])
    wanted = gradients_of(encoder, heads)
    encoder, heads = model()
    freeze(encoder, heads)
    made = TextGradients(encoder, heads, SGD([*encoder.parameters(), *heads.parameters()], lr=1.0))
    made(*batch(), WEIGHTS)
    made.hand_out()
    assert_alike(gradients_of(encoder, heads), wanted)


@pytest.mark.parametrize("part", ["shared", "tasks"])
def test_of_a_turn_there_are_those_of_its_part(part):
    encoder, heads = model()
    made = TextGradients(encoder, heads, SGD([*encoder.parameters(), *heads.parameters()], lr=1.0))
    made(*batch(), WEIGHTS, MOVES[part])
    made.hand_out()
    has = [p.grad is not None for p in encoder.parameters()], [p.grad is not None for p in heads.parameters()]
    assert (all(has[0]), any(has[1])) == ((True, False) if part == "shared" else (False, True))


def test_heads_without_a_target_in_the_batches_have_none():
    encoder, heads = model()
    types, targets = batch()
    del targets["wide"]
    made = TextGradients(encoder, heads, SGD([*encoder.parameters(), *heads.parameters()], lr=1.0))
    losses = made(types, targets, WEIGHTS)
    made.hand_out()
    assert heads.linear("wide").weight.grad is None
    assert heads.linear("main").weight.grad is not None
    assert losses[2] == 0


def with_amsgrad(parameters):
    """Of dense parameters alone: rows have none."""
    table, *dense = parameters
    return LazyAdam([{"params": [table]}, {"params": dense, "amsgrad": True}], lr=0.01)


OPTIONS = {
    "clipped": {"clip_norm": 0.05},
    "several batches": {"accumulate": 3},
    "both": {"clip_norm": 0.05, "accumulate": 2},
    "a rule of torch's own": {"optimizer": with_amsgrad},
}


def fit(options, schedule, backward):
    encoder, heads = model()
    options = {"optimizer": lambda p: LazyAdam(p, lr=0.01, weight_decay=0.05)} | options
    trainer = Trainer(
        encoder, heads, schedule=schedule, device="cpu", backward=backward, log_every=1, **options
    )
    history = trainer.fit([batch(96, seed=s) for s in range(9)], val=[batch(96, seed=9)], epochs=2)
    return history, parameters(encoder, heads)


@pytest.mark.parametrize("schedule", [MultiTask(), Switch(at=0.5)], ids=["mtl", "switch"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_runs_that_need_gradients_are_those_of_autograd(options, schedule):
    history, found = fit(options, schedule, "auto")
    expected, wanted = fit(options, schedule, "autograd")
    assert {phase.engine for phase in expected.phases} == {"eager"}
    for phase in history.phases:
        assert phase.engine == (NAME if "optimizer" in options else "one kernel call")
        # Its steps go to the next engine, which takes several batches.
        assert ("one kernel call" in phase.passed_over) == (options != {"clip_norm": 0.05})
        assert NAME not in phase.passed_over
    for a, b in zip(history.steps, expected.steps, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-4, abs=1e-5)
    assert history.evaluations[-1].metrics == pytest.approx(expected.evaluations[-1].metrics, abs=0.011)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_dropout_is_drawn_anew_and_a_run_resumes_bit_for_bit(tmp_path):
    def trainer(*callbacks):
        encoder, heads = model(dropout=0.3)
        return Trainer(
            encoder, heads, device="cpu", clip_norm=0.1, optimizer=with_amsgrad, callbacks=callbacks
        )

    batches = [batch(96, seed=s) for s in range(9)]
    whole = trainer()
    history = whole.fit(batches, epochs=2)
    assert history.phases[0].engine == NAME
    path = tmp_path / "checkpoint"
    trainer(Stop(7)).fit(batches, epochs=2, checkpoint=path)
    resumed = trainer()
    assert resumed.fit(batches, epochs=2, checkpoint=path, resume=True).steps == history.steps
    for a, b in zip(
        parameters(resumed.encoder, resumed.heads), parameters(whole.encoder, whole.heads), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_frozen_rows_are_no_part_of_the_norm(accumulate):
    def trained(backward):
        encoder, heads = model()
        frozen = torch.zeros(len(encoder.table), dtype=torch.bool)
        frozen[::2] = True
        trainer = Trainer(
            encoder, heads, device="cpu", clip_norm=0.01, optimizer=lambda p: SGD(p, lr=0.5),
            backward=backward, callbacks=[FreezeRows(frozen)], accumulate=accumulate,
        )  # fmt: skip
        trainer.fit([batch(96, seed=s) for s in range(4)], epochs=1)
        return parameters(encoder, heads)

    for a, b in zip(trained("auto"), trained("autograd"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class FreezeRows(Callback):
    def __init__(self, frozen):
        self.frozen = frozen

    def on_fit_start(self, trainer):
        trainer.run.optimizer.freeze_rows(trainer.encoder.table, self.frozen)


def test_a_parameter_that_is_held_twice_is_an_obstacle():
    encoder, _ = model()
    linear = nn.Linear(40, 7)
    heads = MultiTaskHeads.from_modules(
        {"a": linear, "b": linear}, dict.fromkeys("ab", Classification(7)), main="a"
    )
    optimizer = SGD([*encoder.parameters(), *heads.parameters()], lr=1.0)
    for calls in (TextGradients, TextTraining):
        assert calls.obstacle(encoder, heads, optimizer) == "a parameter occurs twice"


def test_a_hook_that_is_set_in_the_middle_of_a_run_is_called():
    class SetHook(Callback):
        calls = 0

        def on_step(self, trainer):
            if trainer.step == 3:
                trainer.encoder.hidden.register_forward_hook(
                    lambda *_: setattr(self, "calls", self.calls + 1)
                )

    hook = SetHook()
    encoder, heads = model()
    trainer = Trainer(encoder, heads, device="cpu", optimizer=with_amsgrad, callbacks=[hook])
    history = trainer.fit([batch(32, seed=s) for s in range(6)], epochs=1)
    assert hook.calls == 3
    assert history.phases[0].passed_over[NAME] == "in some steps: a module has hooks"


def test_the_state_of_rows_is_made_with_the_phase():
    """Else the first step would make it, and be timed with it: it may be as large as two tables."""
    encoder, heads = model()
    trainer = Trainer(encoder, heads, schedule=MultiTask(), device="cpu", optimizer=with_amsgrad)
    run = trainer.begin([batch(32)], epochs=1)
    run._enter_phase_if_due()
    assert run.history.phases[0].engine == NAME
    assert any(name.startswith(ROW_STATE) for name in run.optimizer.state[encoder.table])
    run.close()


def test_types_of_64_bits_and_columns_of_a_wider_batch_are_taken():
    encoder, heads = model()
    types, targets = batch()
    wide = torch.full((len(types), 9), -1, dtype=torch.int64)
    wide[:, 2:7] = types
    made = TextGradients(encoder, heads, SGD([*encoder.parameters(), *heads.parameters()], lr=1.0))
    found = []
    for inputs in (types, wide[:, 2:7]):
        made.begin()
        made(inputs, targets, WEIGHTS)
        made.hand_out()
        found.append([g.clone() for g in gradients_of(encoder, heads).values() if g is not None])
    assert all(map(torch.equal, *found))


def test_each_kind_of_model_is_refused_by_the_call_for_the_other():
    encoder, heads = model()
    optimizer = SGD([*encoder.parameters(), *heads.parameters()], lr=1.0)
    types, targets = batch()
    models = []
    for calls in (TextGradients(encoder, heads, optimizer), TextTraining(encoder, heads, optimizer)):
        calls(types, targets, WEIGHTS)
        models += calls._models
    gradients, moves = models
    given = (types, [targets[name] for name in TASKS], WEIGHTS, Dropout(0.0, 0))
    with pytest.raises(ValueError, match="a gradient_model is not stepped"):
        text_step(gradients, Updates([], []), *given)
    with pytest.raises(ValueError, match="text_gradients requires a gradient_model"):
        text_gradients(moves, *given)

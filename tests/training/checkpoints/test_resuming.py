"""What may change between a checkpoint and its resumption, and what is refused by name."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from mt2st_fast import (
    FAMO,
    Callback,
    Classification,
    Diminish,
    InputError,
    MultiTask,
    MultiTaskHeads,
    NonFiniteLossError,
    SingleTask,
    Switch,
    Trainer,
)
from mt2st_fast.model.encoders import BagEncoder
from mt2st_fast.training.optimizers.row_sparse import LazyAdam, RowwiseAdagrad
from tests.training.small_runs import Stop, X, Y, assert_same, batches, parameters_of, trainer_of


class Unfreeze(Callback):
    """At the end of the first epoch; `added`: a layer that the encoder did not have, too."""

    def __init__(self, encoder, added=False):
        self.encoder, self.added = encoder, added

    def on_epoch_end(self, trainer):
        if trainer.epoch == 1:
            self.encoder[0].requires_grad_(True)
            self.encoder[2].requires_grad_(False)
            if self.added:
                self.encoder.append(nn.Linear(4, 4))


def encoder_of(layers=3):
    torch.manual_seed(4)
    encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 4))[:layers]
    encoder[0].requires_grad_(False)
    return encoder


# --- what callbacks have done to the model ---------------------------------------------------------------------


@pytest.mark.parametrize("step", [8, 9, 20])
def test_what_a_callback_has_unfrozen_and_frozen_stays_so(tmp_path, step):
    def go(stop, **options):
        encoder = encoder_of()
        trainer = trainer_of(encoder, callbacks=[Unfreeze(encoder), *([Stop(stop)] if stop else [])])
        trainer.fit(batches(), epochs=3, **options)
        return trainer

    straight = go(None)
    path = tmp_path / "c"
    go(step, checkpoint=path)
    resumed = go(None, checkpoint=path, resume=True)
    assert_same(straight, resumed)
    assert resumed.history == straight.history
    assert resumed.encoder[0].weight.requires_grad
    assert not resumed.encoder[2].weight.requires_grad


def test_a_trainer_that_goes_on_with_its_own_model_needs_no_fix(tmp_path):
    encoder = encoder_of()
    trainer = trainer_of(encoder, callbacks=[Unfreeze(encoder), Stop(12)])
    trainer.fit(batches(), epochs=3, checkpoint=tmp_path / "c")
    trainer.callbacks.pop()
    trainer.fit(batches(), epochs=3, checkpoint=tmp_path / "c", resume=True)
    assert trainer.step == 24


def test_a_layer_that_a_callback_has_added_must_be_there(tmp_path):
    encoder = encoder_of()
    trainer = trainer_of(encoder, callbacks=[Unfreeze(encoder, added=True), Stop(12)])
    trainer.fit(batches(), epochs=3, checkpoint=tmp_path / "c")
    with pytest.raises(
        InputError, match=r"pass the original encoder, including anything a callback added"
    ) as refused:
        trainer_of(encoder_of()).fit(batches(), epochs=3, checkpoint=tmp_path / "c", resume=True)
    assert "\n" not in str(refused.value)
    whole = encoder_of(4)
    whole[0].requires_grad_(True)
    whole[2].requires_grad_(False)
    resumed = trainer_of(whole)
    resumed.fit(batches(), epochs=3, checkpoint=tmp_path / "c", resume=True)
    assert resumed.step == 24


def test_other_frozen_layers_are_refused_by_name(tmp_path):
    trainer_of(encoder_of(), callbacks=[Stop(4)]).fit(batches(), epochs=1, checkpoint=tmp_path / "c")
    encoder = encoder_of().requires_grad_(True)
    with pytest.raises(
        InputError, match=r"encoder/0\.bias is trained in this run, and was frozen .*_\(False\)"
    ):
        trainer_of(encoder).fit(batches(), epochs=1, checkpoint=tmp_path / "c", resume=True)
    encoder.requires_grad_(False)
    with pytest.raises(
        InputError, match=r"encoder/2\.bias is frozen in this run, and was trained .*_\(True\)"
    ):
        trainer_of(encoder).fit(batches(), epochs=1, checkpoint=tmp_path / "c", resume=True)


def test_groups_of_a_retired_task_are_compared_by_name(tmp_path):
    def of_rates(parameters):
        return torch.optim.SGD([{"params": [p], "lr": 0.1 * p.numel()} for p in parameters], lr=0.1)

    data = [(x, {**y, "b": y["a"]}) for x, y in batches()]
    for step in (None, 6):
        trainer = trainer_of(
            optimizer=of_rates, schedule=Switch(at_step=4), callbacks=[Stop(step)] if step else []
        )
        trainer.fit(data, epochs=1, checkpoint=tmp_path / str(step))
    resumed = trainer_of(optimizer=of_rates, schedule=Switch(at_step=4))
    resumed.fit(data, epochs=1, checkpoint=tmp_path / "6", resume=True)
    assert resumed.step == 8


# --- more epochs, and weights alone ----------------------------------------------------------------------------


def test_a_finished_run_goes_on_as_if_it_had_been_longer(tmp_path, caplog):
    straight = trainer_of()
    straight.fit(batches(), epochs=4)
    trainer_of().fit(batches(), epochs=2, checkpoint=tmp_path / "c")
    longer = trainer_of()
    with caplog.at_level(logging.WARNING, "mt2st_fast"):
        longer.fit(batches(), epochs=4, checkpoint=tmp_path / "c", resume=True)
    assert_same(straight, longer)
    (record,) = caplog.records
    assert "continues from step 16 to 32 (4 epochs) instead of 16" in record.getMessage()


def test_a_falling_rate_is_taken_over_the_new_end_and_that_is_said(tmp_path, caplog):
    trainer_of(lr_decay="linear").fit(batches(), epochs=2, checkpoint=tmp_path / "c")
    longer = trainer_of(lr_decay="linear", log_every=1)
    longer.fit(batches(), epochs=4, checkpoint=tmp_path / "c", resume=True)
    assert longer.history.steps[-16].learning_rate == pytest.approx(0.05 * (1 - 16 / 32))
    assert "continues at 50% of its initial value instead of 0%" in caplog.text


def test_tasks_that_have_retired_stay_so_in_a_longer_run(tmp_path):
    data = [(x, {**y, "b": y["a"]}) for x, y in batches()]
    trainer_of(schedule=Switch(at=0.5)).fit(data, epochs=2, checkpoint=tmp_path / "c")
    longer = trainer_of(schedule=Switch(at=0.5))
    history = longer.fit(data, epochs=6, checkpoint=tmp_path / "c", resume=True)
    assert [(phase.first_step, phase.active) for phase in history.phases] == [(0, ("a", "b")), (8, ("a",))]


class Stream:
    """Batches without an end."""

    def __iter__(self):
        while True:
            yield from batches()


def test_an_end_that_is_past_names_the_epochs_to_give(tmp_path):
    trainer_of().fit(batches(), epochs=3, checkpoint=tmp_path / "c")
    with pytest.raises(InputError, match=r"is at epoch 3, but this run ends at 2; use epochs=3 or more"):
        trainer_of().fit(batches(), epochs=2, checkpoint=tmp_path / "c", resume=True)


def test_a_stream_that_would_end_before_its_checkpoint_names_the_steps_to_give(tmp_path):
    trainer_of().fit(Stream(), steps=6, checkpoint=tmp_path / "c")
    with pytest.raises(
        InputError, match=r"is at step 6, but this run ends at 4; use steps=6 or more, or start"
    ):
        trainer_of().fit(Stream(), steps=4, checkpoint=tmp_path / "c", resume=True)


def test_weights_that_fit_are_taken_and_the_others_named(tmp_path):
    trainer_of().fit(batches(), epochs=1, checkpoint=tmp_path / "c")
    stored = trainer_of()
    stored.load(tmp_path / "c")
    heads = MultiTaskHeads(4, {"a": Classification(3), "new": Classification(2), "b": Classification(5)}, "a")
    other = Trainer(nn.Linear(3, 4), heads, device="cpu")
    before = {name: value.clone() for name, value in parameters_of(other).items()}
    with pytest.raises(
        InputError, match=r"does not match: .* load what matches with partial=True"
    ) as refused:
        other.load(tmp_path / "c")
    assert "\n" not in str(refused.value)
    assert all(torch.equal(value, before[name]) for name, value in parameters_of(other).items())
    found = other.load(tmp_path / "c", partial=True)
    assert set(found.taken) == {
        "encoder/weight", "encoder/bias", "heads/linears.a.weight", "heads/linears.a.bias"
    }  # fmt: skip
    assert found.skipped["heads/linears.b.weight"] == "has shape (3, 4) in the checkpoint and (5, 4) here"
    assert found.skipped["heads/linears.new.bias"] == "is not in the checkpoint and keeps its value"
    assert str(found).startswith(
        "4 of 8 tensors taken; left out: heads/linears.new.weight (is not in the checkpoint and keeps"
    )
    assert torch.equal(other.encoder.weight, stored.encoder.weight)
    assert torch.equal(other.heads.linear("b").weight, before["linears.b.weight"])
    with pytest.raises(InputError, match="nothing in the checkpoint matches"):
        Trainer(nn.Linear(5, 6), MultiTaskHeads(6, {"z": Classification(2)}, "z"), device="cpu").load(
            tmp_path / "c", partial=True
        )


# --- by the clock, decay, divergence ---------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "saved"), [(1e-9, 8), (None, 1), (600.0, 1)])
def test_checkpoints_come_by_the_clock_too(tmp_path, monkeypatch, seconds, saved):
    from mt2st_fast.training.run import Run

    steps, save = [], Run.save
    monkeypatch.setattr(Run, "save", lambda run, path: steps.append(run.steps_done) or save(run, path))
    trainer_of().fit(batches(), epochs=1, checkpoint=tmp_path / "c", checkpoint_seconds=seconds)
    assert len(steps) == saved
    assert steps[-1] == 8


def test_a_checkpoint_within_an_epoch_is_gone_on_from(tmp_path):
    class Break(Callback):
        def on_step(self, trainer):
            if trainer.step == 5:
                raise KeyboardInterrupt

    straight = trainer_of()
    straight.fit(batches(), epochs=2)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(callbacks=[Break()]).fit(
            batches(), epochs=2, checkpoint=tmp_path / "c", checkpoint_seconds=1e-9
        )
    resumed = trainer_of()
    resumed.fit(batches(), epochs=2, checkpoint=tmp_path / "c", resume=True)
    assert_same(straight, resumed)
    assert resumed.history == straight.history


@pytest.mark.parametrize("optimizer", [LazyAdam, RowwiseAdagrad])
def test_a_run_in_float64_goes_on_with_the_same_bits_between_two_records(tmp_path, optimizer):
    words = torch.arange(24) % 9
    bags = [((words, torch.tensor([0, 5, 11, 24])), {"a": torch.arange(3), "b": torch.arange(3) % 2})] * 6

    def go(**options):
        torch.manual_seed(1)
        encoder = BagEncoder(9, 4, sparse=True).double()
        heads = MultiTaskHeads(4, {"a": Classification(3), "b": Classification(2)}, "a").double()
        return Trainer(
            encoder, heads, optimizer=lambda p: optimizer(p, lr=0.1), device="cpu", log_every=4, **options
        )

    straight = go()
    straight.fit(bags, epochs=1)
    go(callbacks=[Stop(2)]).fit(bags, epochs=1, checkpoint=tmp_path / "c")
    resumed = go()
    resumed.fit(bags, epochs=1, checkpoint=tmp_path / "c", resume=True)
    assert_same(straight, resumed)
    assert resumed.history == straight.history


@pytest.mark.parametrize("own", [True, False])
def test_decay_that_does_not_reach_rows_is_said_once(caplog, own):
    heads = MultiTaskHeads(4, {"a": Classification(3)}, "a")
    options = (
        {"weight_decay": 0.25} if own else {"optimizer": lambda p: LazyAdam(p, lr=0.1, weight_decay=0.25)}
    )
    data = [((torch.arange(8), torch.tensor([0, 4, 8])), {"a": torch.tensor([0, 1])})]
    for sparse, expected in ((True, 1), (False, 0)):
        caplog.clear()
        trainer = Trainer(
            BagEncoder(9, 4, sparse=sparse), heads, schedule=SingleTask(), device="cpu", **options
        )
        trainer.fit(data, epochs=1)
        assert sum("weight_decay=0.25 acts on dense" in r.getMessage() for r in caplog.records) == expected


@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_weights_that_the_last_step_loses_are_not_kept(tmp_path, with_checkpoint):
    path = tmp_path / "c" if with_checkpoint else None
    trainer = trainer_of(optimizer=lambda p: torch.optim.SGD(p, lr=1e38))
    with pytest.raises(
        NonFiniteLossError, match=r"trained on a at step 0: in epoch 0\.00 at a rate of 1e\+38; "
    ):
        trainer.fit([(1e30 * X, {"a": Y})], epochs=1, checkpoint=path)
    assert not (tmp_path / "c").exists()


def test_a_schedule_of_another_kind_names_the_fix(tmp_path):
    trainer_of(callbacks=[Stop(3)]).fit(batches(), epochs=1, checkpoint=tmp_path / "c")
    for schedule in (MultiTask(), Diminish(eta=1.0)):
        with pytest.raises(InputError, match=r"use schedule SingleTask\(\) again, or start a new run"):
            trainer_of(schedule=schedule).fit(batches(), epochs=1, checkpoint=tmp_path / "c", resume=True)


@pytest.mark.parametrize(
    ("then", "now", "line"),
    [
        ({"smoothing": 0.1}, {}, "the task a Classification.*label_smoothing=0.1.*, this run has"),
        ({"metric": "macro_f1"}, {}, "the task a Classification.*metric='macro_f1'.*, this run has"),
        ({"dropout": 0.5}, {}, r"the encoder's 1 p=0\.5, .*, this run has p=0\.0"),
        ({"rate": 1.0}, {}, r"schedule FAMO\(rate=1, decay=0\.01\), this run has FAMO\(rate=0\.025"),
    ],
)
def test_other_options_of_tasks_encoder_and_schedule_are_refused(then, now, line, tmp_path):
    def trainer(dropout=0.0, smoothing=0.0, rate=0.025, metric="accuracy", **options):
        encoder = nn.Sequential(nn.Linear(3, 4), nn.Dropout(dropout))
        tasks = {"a": Classification(3, label_smoothing=smoothing, metric=metric), "b": Classification(3)}
        return Trainer(encoder, MultiTaskHeads(4, tasks, "a"), schedule=FAMO(rate), device="cpu", **options)

    trainer(**then, callbacks=[Stop(4)]).fit(batches(), epochs=1, checkpoint=tmp_path / "c")
    with pytest.raises(InputError, match=line):
        trainer(**now).fit(batches(), epochs=1, checkpoint=tmp_path / "c", resume=True)
    trainer(**then).fit(batches(), epochs=1, checkpoint=tmp_path / "c", resume=True)


def test_other_held_out_rows_are_refused(tmp_path):
    def fit(val, **options):
        trainer_of(**options).fit(batches(), val=val, epochs=2, checkpoint=tmp_path / "c", resume=not options)

    fit(batches(), callbacks=[Stop(4)])
    with pytest.raises(InputError, match="pass the original held-out batches"):
        fit(batches(y=(Y + 1) % 3))
    fit(batches()[::-1])  # their order says nothing
    fit(None)


def test_a_run_may_be_saved_to_a_path_in_text(tmp_path):
    run = trainer_of(encoder_of()).begin(batches(), epochs=3)
    run.step()
    run.save(str(tmp_path / "c"))
    resumed = trainer_of(encoder_of()).begin(batches(), epochs=3, checkpoint=str(tmp_path / "c"), resume=True)
    assert resumed.steps_done == 1

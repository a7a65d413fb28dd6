"""What the history says of turns, the schedules that make them, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mt2st_fast import Moment, MultiTask, Switch
from mt2st_fast.errors import InputError
from mt2st_fast.training.history import History
from mt2st_fast.training.schedules import Alternate, AlternateSteps, Diminish, RunFacts, find_strategy
from tests.training.turn_runs import OPTIMIZERS, batches, trainer_of

# --- what the history says ------------------------------------------------------------------------------


def test_the_history_says_which_part_trained():
    trainer = trainer_of("window", OPTIMIZERS["adam"], schedule=Alternate(1, 1))
    history = trainer.fit(batches("window"), epochs=4)
    assert [(r.step, r.trained) for r in history.steps] == [
        (3, {"shared": 3}), (4, {"shared": 1}), (6, {"tasks": 2}), (8, {"tasks": 2}), (9, {"shared": 1}),
        (12, {"shared": 3}), (15, {"tasks": 3}), (16, {"tasks": 1}),
    ]  # fmt: skip
    (phase,) = history.phases
    assert phase.turns == "shared and task parameters in turns of 1 and 1 epochs"
    told = [replace(r, step_ms=5.0 if "shared" in r.trained else 2.0) for r in history.steps]
    told = History("main", told, [], history.phases)
    assert (told.step_ms_median(phase, "shared"), told.step_ms_median(phase, "tasks")) == (5.0, 2.0)
    assert History.from_json(history.to_json()) == history


def test_steps_in_turns_are_counted_and_ordinary_schedules_say_nothing():
    trainer = trainer_of("bag", OPTIMIZERS["sgd"], schedule=AlternateSteps(2, 1))
    history = trainer.fit(batches("bag"), epochs=2)
    assert [(r.step, r.trained) for r in history.steps] == [
        (3, {"shared": 2, "tasks": 1}), (4, {"shared": 1}), (6, {"shared": 1, "tasks": 1}), (8, {"shared": 2}),
    ]  # fmt: skip
    assert history.step_ms_median(history.phases[0], "tasks") is None, "no record is of such steps alone"
    plain = trainer_of("bag", OPTIMIZERS["sgd"], schedule=Switch()).fit(batches("bag"), epochs=2)
    assert all(record.trained == {} for record in plain.steps)
    assert all(phase.turns == "" for phase in plain.phases)


# --- the schedules, and what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "parts"),
    [
        (Alternate(), "ssttsstt"),
        (Alternate(2, 1), "ssssttss"),
        (Alternate(1, 2), "ssttttss"),
        (AlternateSteps(), "stststst"),
        (AlternateSteps(1, 3), "stttsttt"),
    ],
    ids=repr,
)
def test_parts_take_turns(schedule, parts):
    found = [schedule.part(Moment(step, 2, 8)) for step in range(8)]
    assert "".join(part[0] for part in found) == parts
    assert schedule.task_weights(Moment(0, 2, 8), "main", ("aux",)) == {"main": 1.0, "aux": 1.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Alternate(0, 1), "shared_epochs must be a whole number of at least 1, not 0"),
        (lambda: Alternate(1, 1.5), "task_epochs must be a whole number"),
        (lambda: AlternateSteps(True, 1), "shared_steps must be a whole number"),
        (lambda: AlternateSteps(1, -1), "task_steps must be a whole number"),
        (lambda: Alternate(weights=-1.0), "weights must be"),
        (
            lambda: Alternate(weights={"c": 1.0}).task_weights(Moment(0, 2, 8), "m", ("a",)),
            "weights names c, which is not an auxiliary task",
        ),
        (
            lambda: find_strategy("alternate").make({"shared_epochs": 1.5}, RunFacts(9.0)),
            "--shared-epochs must be a finite number, whole and at least 1, not 1.5",
        ),
        (lambda: find_strategy("alternate-steps").make({"eta": 1.5}, RunFacts(9.0)), "takes no --eta"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_run_without_a_turn_of_the_heads_is_refused():
    trainer = trainer_of("bag", OPTIMIZERS["sgd"], schedule=Alternate(2, 1))
    with pytest.raises(
        InputError, match=r"trains no head before epoch 3, and the run ends after 2; use more"
    ):
        trainer.fit(batches("bag"), epochs=2)
    trainer = trainer_of("bag", OPTIMIZERS["sgd"], schedule=AlternateSteps(99, 1))
    with pytest.raises(InputError, match=r"trains no head before step 100, and the run ends after 8"):
        trainer.fit(batches("bag"), epochs=2)


def test_a_turn_of_what_does_not_train_is_refused():
    trainer = trainer_of("window", OPTIMIZERS["adam"], schedule=Alternate(1, 1))
    trainer.encoder.requires_grad_(False)
    with pytest.raises(
        InputError, match=r"the shared parameters from step 0 on, and none of the encoder is trainable"
    ):
        trainer.fit(batches("window"), epochs=2)


def test_a_part_that_there_is_not_is_named():
    class Other(MultiTask):
        def part(self, moment):
            return "encoder"

    trainer = trainer_of("window", OPTIMIZERS["adam"], schedule=Other())
    with pytest.raises(ValueError, match=r"Other.part must return all, shared, tasks, not 'encoder'"):
        trainer.fit(batches("window"), epochs=1)


def test_strategies_make_the_schedules():
    facts = RunFacts(9.0)
    made = find_strategy("alternate").make({"shared_epochs": 2.0, "aux_weight": 0.5}, facts)
    assert made == Alternate(2, 1, 0.5)
    assert find_strategy("alternate-steps").make({"task_steps": 3.0}, facts) == AlternateSteps(1, 3)
    assert find_strategy("diminish").make({"eta": 1.5}, facts) == Diminish(eta=1.5)

"""What schedules can do, and that every place refuses what it cannot do for them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from mt2st_fast import (
    FAMO,
    AdaptiveSwitch,
    AdaptiveTaskSelector,
    AdaTask,
    Alternate,
    AlternateSteps,
    Classification,
    Diminish,
    DiminishThenSwitch,
    DynamicWeightAverage,
    InputError,
    MultiTask,
    MultiTaskHeads,
    PhaseController,
    SingleTask,
    SquaringDecay,
    Switch,
    Uncertainty,
)
from mt2st_fast.training import schedules
from mt2st_fast.training.processes.checks import WITH_ONE_EXCHANGE, WITH_SHARDED
from mt2st_fast.training.run_parts import WITH_OWN_FEATURES
from mt2st_fast.training.schedules.abilities import NONE, OBSERVING, Ability, abilities_of, check_allowed

OBSERVES = {Ability.OBSERVES_LOSSES, Ability.OBSERVES_HELD_OUT}
HELD_OUT = {Ability.OBSERVES_HELD_OUT, Ability.SEES_HELD_OUT_GRADIENTS}
KNOWN = [
    (SingleTask(), set()),
    (MultiTask(), set()),
    (Switch(), set()),
    (Diminish(eta=1.0), set()),
    (SquaringDecay(), set()),
    (DiminishThenSwitch(diminish=Diminish(eta=1.0), switch=Switch()), set()),
    (Alternate(), {Ability.TAKES_TURNS}),
    (AlternateSteps(), {Ability.TAKES_TURNS}),
    (AdaTask(), {Ability.MOMENTS_PER_TASK}),
    (Uncertainty(), {Ability.LEARNS_WEIGHTS}),
    (FAMO(), {Ability.LEARNS_WEIGHTS, Ability.WEIGHS_BY_LOSSES, Ability.OBSERVES_LOSSES}),
    (DynamicWeightAverage(), {Ability.OBSERVES_LOSSES}),
    (AdaptiveSwitch(), HELD_OUT),
    (AdaptiveTaskSelector(), {Ability.SELECTS_PARTS} | OBSERVES),
    (AdaptiveTaskSelector(schedule=AdaptiveSwitch()), {Ability.SELECTS_PARTS} | OBSERVES | HELD_OUT),
]


class Weighing:
    def task_weights(self, moment, main, auxiliary):
        return dict.fromkeys((main, *auxiliary), 1.0)


class Learning(Weighing, nn.Module):
    def weights(self, active):
        return torch.ones(len(active))


class ByLosses(Weighing):
    def weigh(self, active, losses):
        return torch.ones_like(losses)

    def learn(self, active, before, after): ...


class InTurns(Weighing):
    def part(self, moment):
        return "all"


class WithMoments(Weighing):
    moments_per_task = True


class Selects(Weighing):
    measure = "fisher"

    def select(self, found):
        return []


class Gradients(Weighing):
    wants_gradients = True


class HeldOutGradients(Weighing):
    wants_held_out_gradients = True


class SeesEvaluations(Weighing):
    def observe_held_out(self, seen): ...


class SeesLosses(Weighing):
    def observe(self, observation): ...


WITH_ONE = {
    Ability.LEARNS_WEIGHTS: Learning,
    Ability.WEIGHS_BY_LOSSES: ByLosses,
    Ability.TAKES_TURNS: InTurns,
    Ability.MOMENTS_PER_TASK: WithMoments,
    Ability.SELECTS_PARTS: Selects,
    Ability.SEES_GRADIENTS: Gradients,
    Ability.SEES_HELD_OUT_GRADIENTS: HeldOutGradients,
    Ability.OBSERVES_HELD_OUT: SeesEvaluations,
    Ability.OBSERVES_LOSSES: SeesLosses,
}
PLACES = {
    "nothing": NONE,
    "a wrapper": OBSERVING,
    "own features": WITH_OWN_FEATURES,
    "one exchange": WITH_ONE_EXCHANGE,
    "sharded": WITH_SHARDED,
}


@pytest.mark.parametrize(("schedule", "abilities"), KNOWN, ids=[repr(schedule) for schedule, _ in KNOWN])
def test_what_the_schedules_of_this_package_can_do(schedule, abilities):
    assert abilities_of(schedule) == abilities


def test_no_schedule_of_this_package_is_left_out():
    named = {getattr(schedules, name) for name in schedules.__all__}
    classes = {each for each in named if isinstance(each, type) and hasattr(each, "task_weights")}
    assert {type(schedule) for schedule, _ in KNOWN} == classes - {schedules.Schedule}


def test_every_ability_is_found_by_itself():
    assert set(WITH_ONE) == set(Ability)
    for ability, schedule in WITH_ONE.items():
        assert abilities_of(schedule()) == {ability}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("ability", Ability)
def test_a_place_takes_what_it_names_and_nothing_else(place, ability):
    schedule = WITH_ONE[ability]()
    if ability in PLACES[place]:
        check_allowed(schedule, PLACES[place], why_not="which does not happen")
        return
    with pytest.raises(InputError) as refused:
        check_allowed(schedule, PLACES[place], why_not="and this cannot: use another")
    name = type(schedule).__name__
    assert str(refused.value) == f"the schedule {name} {ability.value}, and this cannot: use another"


@pytest.mark.parametrize("ability", Ability)
def test_a_loop_of_ones_own_refuses_every_ability(ability):
    heads = MultiTaskHeads(4, {"a": Classification(2), "b": Classification(2)}, "a")
    with pytest.raises(InputError, match=f"{WITH_ONE[ability].__name__} {ability.value}, .*; use Trainer"):
        PhaseController(heads, WITH_ONE[ability]())
    assert PhaseController(heads, Weighing()).step(0, 4, 2) is not None


@pytest.mark.parametrize(
    ("place", "allowed"),
    [
        ("PhaseController", NONE),
        ("several processes", WITH_ONE_EXCHANGE),
        ("TaskAdaptedEncoder", WITH_OWN_FEATURES),
        ("AdaptiveTaskSelector(schedule=)", OBSERVING),
    ],
)
def test_the_docs_table_lists_what_is_refused(place, allowed):
    docs = Path(__file__).parents[3] / "docs" / "schedules.md"
    rows = docs.read_text("utf-8").split("## Where a schedule cannot be used")[1].splitlines()
    row = next(row for row in rows if re.match(rf"\| [`\[]{re.escape(place)}[`\]]", row))
    named = set(re.findall(r"`(\w+)`", row.split("|")[2])) - {"TaskAdaptedEncoder"}
    assert named == {type(schedule).__name__ for schedule, abilities in KNOWN if abilities - allowed}

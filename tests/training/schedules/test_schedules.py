"""Schedules against numbers computed by hand, and what holds for all of them along a run."""

from __future__ import annotations

import math

import pytest

from mt2st_fast import (
    Diminish,
    DiminishThenSwitch,
    Moment,
    MultiTask,
    SingleTask,
    SquaringDecay,
    Switch,
)
from mt2st_fast.errors import InputError
from mt2st_fast.training.schedules import (
    RunFacts,
    Strategy,
    StrategyOption,
    find_strategy,
    strategies,
    strategy_options,
)
from mt2st_fast.training.schedules.strategy import by_name

AUX = ("a", "b")


def weights(schedule, step, *, per_epoch=10, total=100, aux=AUX):
    return schedule.task_weights(Moment(step, per_epoch, total), "main", aux)


def test_single_task_has_no_auxiliary_task():
    assert weights(SingleTask(), 0) == weights(SingleTask(), 99) == {"main": 1.0}


def test_multi_task_is_constant():
    assert weights(MultiTask(), 0) == weights(MultiTask(), 99) == {"main": 1.0, "a": 1.0, "b": 1.0}
    assert weights(MultiTask({"a": 0.25}), 50) == {"main": 1.0, "a": 0.25, "b": 1.0}
    assert weights(MultiTask(0.0), 50) == {"main": 1.0, "a": 0.0, "b": 0.0}  # weightless, not retired


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        # t = step / 10 epochs
        (Diminish(eta=2.0), 0, 1.0),
        (Diminish(eta=2.0), 5, 0.36787944117),  # exp(-2 * 0.5)
        (Diminish(eta=2.0), 25, 0.00673794700),  # exp(-5)
        (Diminish(eta=2.0, gamma=3.0, nu=2.0), 0, 3.0),
        (Diminish(eta=2.0, gamma=3.0, nu=2.0), 5, 1.81959197914),  # 3 exp(-2 * 0.25)
        (Diminish(eta=2.0, gamma=3.0, nu=2.0), 15, 0.03332698961),  # 3 exp(-2 * 2.25)
        (Diminish(eta=0.02, unit="step"), 0, 1.0),
        (Diminish(eta=0.02, unit="step"), 5, 0.90483741804),  # exp(-0.1)
        (Diminish(eta=1.0, nu=0.5), 4, 0.53128560893),  # exp(-sqrt 0.4)
        (Diminish(eta=0.0), 99, 1.0),
        (SquaringDecay(), 0, 0.95),
        (SquaringDecay(), 10, 0.9025),  # 0.95^2
        (SquaringDecay(), 5, 0.93002884928),  # 0.95^sqrt 2
        (SquaringDecay(), 30, 0.66342043128),  # 0.95^8
        (SquaringDecay(alpha=0.5, unit="step"), 2, 0.0625),  # 0.5^4
        (SquaringDecay(alpha=1.0), 99, 1.0),
        (SquaringDecay(alpha=1.0, unit="step"), 5000, 1.0),  # 2^5000 is no float
    ],
)
def test_weight_formulas(schedule, step, expected):
    assert weights(schedule, step)["a"] == pytest.approx(expected, rel=1e-9)
    assert weights(schedule, step)["main"] == 1.0


@pytest.mark.parametrize(
    ("schedule", "last_step"),
    [
        (Diminish(eta=math.log(2), floor=0.25), 20),  # exactly the floor at t = 2
        (Diminish(eta=2.0), 34),  # ln(1000) / 2 = 3.45 epochs
        (Diminish(eta=2.0, gamma=0.5), 31),  # ln(500) / 2 = 3.107
        (Diminish(eta=1.0, unit="step"), 6),  # ln(1000) = 6.9 steps
        (SquaringDecay(alpha=0.5, floor=0.25), 10),  # exactly the floor at t = 1
        (SquaringDecay(alpha=0.5, floor=1e-3), 33),  # log2(log2(1000)) = 3.317
        (Switch(), 59),
        (Switch(at=0.25), 24),
        (Switch(at_epoch=1.5), 14),
        (Switch(at_step=7), 6),
        (Switch(at=1.0), 99),
        (DiminishThenSwitch(diminish=Diminish(eta=2.0), switch=Switch(at=0.2)), 19),
        (DiminishThenSwitch(diminish=Diminish(eta=2.0), switch=Switch(at=0.9)), 34),
    ],
)
def test_last_step_of_an_auxiliary_task(schedule, last_step):
    active = [step for step in range(100) if "a" in weights(schedule, step)]
    assert active == list(range(last_step + 1))


def test_a_switch_at_the_start_never_trains_an_auxiliary_task():
    assert weights(Switch(at=0.0), 0) == weights(Switch(at_step=0), 0) == {"main": 1.0}


def test_a_floor_of_zero_keeps_a_task_for_ever():
    assert weights(Diminish(eta=50.0, floor=0.0), 99)["a"] < 1e-200


def test_switch_weights_are_constant_until_the_switch():
    schedule = Switch(at=0.5, weights={"a": 0.3})
    assert weights(schedule, 0) == weights(schedule, 49) == {"main": 1.0, "a": 0.3, "b": 1.0}


def test_diminish_then_switch_decays_first():
    schedule = DiminishThenSwitch(diminish=Diminish(eta=2.0), switch=Switch(at=0.2))
    assert weights(schedule, 5)["a"] == pytest.approx(math.exp(-1))


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        (Diminish(eta={"a": 2.0}), 10, {"a": math.exp(-2), "b": 1.0}),
        (Diminish(eta=1.0, nu={"b": 2.0}), 20, {"a": math.exp(-2), "b": math.exp(-4)}),
        (Diminish(eta=1.0, gamma={"a": 4.0}), 10, {"a": 4 * math.exp(-1), "b": math.exp(-1)}),
        (Diminish(eta=1.0, floor={"a": 0.5}), 10, {"b": math.exp(-1)}),
        (SquaringDecay(alpha={"a": 0.5}), 10, {"a": 0.25, "b": 0.95**2}),
        (SquaringDecay(alpha=0.5, floor={"b": 0.3}), 10, {"a": 0.25}),
        (Switch(at={"a": 0.1}), 10, {"b": 1.0}),
        (Switch(at_epoch={"a": 1, "b": 3}), 29, {"b": 1.0}),
        (Switch(at_step={"b": 5}), 5, {"a": 1.0}),
    ],
)
def test_values_per_task(schedule, step, expected):
    result = weights(schedule, step)
    assert list(result) == ["main", *expected]
    assert {name: result[name] for name in expected} == pytest.approx(expected)


SCHEDULES = [
    SingleTask(),
    MultiTask(),
    Diminish(eta=1.3, nu=0.7),
    Diminish(eta={"a": 0.1, "b": 3.0}, nu=2.0, unit="step"),
    SquaringDecay(),
    SquaringDecay(alpha=0.7, unit="step"),
    Switch(),
    Switch(at={"a": 0.07}),
    DiminishThenSwitch(diminish=Diminish(eta=0.5), switch=Switch(at_epoch=3)),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_task_that_has_retired_stays_away_and_main_comes_first(schedule):
    before = None
    for step in range(400):
        now = weights(schedule, step, total=400)
        assert next(iter(now)) == "main"
        assert before is None or set(now) <= set(before)
        assert all(weight >= 0 for weight in now.values())
        before = now


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiTask(-1.0), "weights must be"),
        (lambda: MultiTask({"a": math.nan}), "weights must be"),
        (lambda: Diminish(eta=-1.0), "eta must be"),
        (lambda: Diminish(eta=math.inf), "eta must be"),
        (lambda: Diminish(eta=1.0, gamma=-1.0), "gamma must be"),
        (lambda: Diminish(eta=1.0, nu={"a": -1.0}), "nu must be"),
        (lambda: Diminish(eta=1.0, floor=-1e-9), "floor must be"),
        (lambda: Diminish(eta=1.0, unit="hour"), "unit must be epoch or step, not hour"),
        (lambda: SquaringDecay(alpha=1.1), "alpha must be"),
        (lambda: SquaringDecay(floor=-1.0), "floor must be"),
        (lambda: SquaringDecay(unit="hour"), "unit must be"),
        (lambda: Switch(at=1.5), "at must be"),
        (lambda: Switch(at={"a": -0.5}), "at must be"),
        (lambda: Switch(at_epoch=-1), "at_epoch must be"),
        (lambda: Switch(at_step=-1), "at_step must be a whole number"),
        (lambda: Switch(weights=-1.0), "weights must be"),
        (lambda: Switch(at=0.5, at_step=3), "takes one of at, at_epoch and at_step, not at and at_step"),
    ],
)
def test_values_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "schedule",
    [
        MultiTask({"c": 1.0}),
        Diminish(eta={"a": 1.0, "c": 1.0}),
        Switch(at={"main": 0.5}),
        DiminishThenSwitch(diminish=Diminish(eta=1.0), switch=Switch(at_step={"c": 1})),
    ],
    ids=repr,
)
def test_a_value_for_a_task_that_is_not_there_is_named(schedule):
    with pytest.raises(ValueError, match=r"which is not an auxiliary task; available: a, b"):
        weights(schedule, 0)


# --- strategies: schedules as the command line finds them --------------------------------------------------


def test_strategies_are_found_by_their_files():
    assert set(strategies()) == {
        "stl",
        "mtl",
        "diminish",
        "switch",
        "diminish-switch",
        "squaring",
        "adaptive",
        "adatask",
        "alternate",
        "alternate-steps",
        "dwa",
        "famo",
        "selector",
        "taps",
        "uncertainty",
    }
    for name, strategy in strategies().items():
        assert strategy.name == name
        assert strategy.help


@pytest.mark.parametrize("name", strategies())
def test_defaults_make_a_schedule_that_starts_with_the_main_task(name):
    assert weights(find_strategy(name).make({}, RunFacts(epochs=10.0)), 0)["main"] == 1.0


def test_options_reach_the_schedule():
    made = {name: strategies()[name] for name in ("diminish", "switch", "squaring")}
    facts = RunFacts(epochs=10.0)
    assert made["switch"].make({"switch_at": 0.25, "aux_weight": 2.0}, facts) == Switch(at=0.25, weights=2.0)
    assert made["squaring"].make({"alpha": 0.5}, facts) == SquaringDecay(alpha=0.5)
    assert made["diminish"].make({"eta": 3.0, "nu": 2.0}, facts) == Diminish(eta=3.0, nu=2.0)
    # Without eta the weight is at the floor after half of ten epochs.
    found = made["diminish"].make({"switch_at": 0.5, "floor": 0.01}, facts)
    assert found.eta == pytest.approx(math.log(100) / 5)


def test_an_option_that_a_strategy_does_not_take_is_refused():
    with pytest.raises(InputError, match=r"stl takes no --switch-at; it takes no option"):
        find_strategy("stl").make({"switch_at": 0.5}, RunFacts(1.0))
    with pytest.raises(InputError, match=r"unknown strategy magic; available: .*switch"):
        find_strategy("magic")


def test_two_files_must_not_claim_one_name_or_option():
    def strategy(name, *options):
        return Strategy(name, "", lambda values, facts: SingleTask(), options)

    with pytest.raises(ValueError, match="two schedules are named x"):
        by_name([strategy("x"), strategy("x")])
    half, third = StrategyOption("at", "", 1 / 2), StrategyOption("at", "", 1 / 3)
    with pytest.raises(ValueError, match="y declares --at otherwise"):
        by_name([strategy("x", half), strategy("y", third)])
    assert set(by_name([strategy("x", half), strategy("y", half)])) == {"x", "y"}


def test_every_option_knows_who_takes_it():
    found = strategy_options()
    assert found["alpha"][1] == ("squaring",)
    assert set(found["aux_weight"][1]) == {
        "mtl",
        "diminish",
        "switch",
        "diminish-switch",
        "adaptive",
        "alternate",
        "alternate-steps",
        "selector",
        "taps",
    }

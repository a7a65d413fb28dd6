"""Trials: the same number for every strategy, the given values first, spread over their ranges, and one is chosen."""

from __future__ import annotations

import pytest

from mt2st_fast.errors import InputError
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.tuning import chosen, ranges_of, trial_result, trials_of, tuning_record, with_values
from mt2st_fast.training.schedules import strategies

CONFIG = Config(epochs=2.0, lr=0.01, strategy_options={"aux_weight": 0.5})


@pytest.mark.parametrize("strategy", strategies())
@pytest.mark.parametrize("n", [2, 5])
def test_every_strategy_has_as_many_trials_of_what_it_takes(strategy, n):
    trials = trials_of(CONFIG, strategy, n, ())
    taken = {option.name for option in strategies()[strategy].options} & {"switch_at", "aux_weight"}
    assert len(trials) == n
    assert trials == trials_of(CONFIG, strategy, n, ())
    assert [trial["lr"] for trial in trials] == [trial["lr"] for trial in trials_of(CONFIG, "stl", n, ())]
    assert trials[0]["lr"] == 0.01
    for trial in trials:
        of_run = {"switch_at"} if trial is trials[0] else set()  # its default depends on the data
        assert set(trial) == (taken | {"lr"}) - of_run
        with_values(CONFIG.for_strategy(strategy), trial).schedule()
    if "aux_weight" in taken:
        assert trials[0]["aux_weight"] == 0.5


def test_each_part_of_a_range_is_tried_once():
    trials = trials_of(CONFIG, "switch", 9, ())
    for name, found in ranges_of(CONFIG, ()).items():
        values = sorted(trial[name] for trial in trials[1:])
        borders = [found.at(i / 8) for i in range(9)]
        assert (borders[0], borders[-1]) == (found.low, found.high)
        for value, low, high in zip(values, borders, borders[1:], strict=False):
            assert low <= value <= high
            assert value != trials[0].get(name)
    assert trials[1:] != sorted(trials[1:], key=lambda trial: trial["lr"])  # not all rising together


def test_what_the_user_has_given_is_left_alone():
    trials = trials_of(CONFIG, "switch", 4, ("lr", "aux_weight"))
    assert [tuple(trial) for trial in trials] == [(), *[("switch_at",)] * 3]
    given = Config(epochs=2.0, strategy_options={"switch_at": 0.25})
    assert trials_of(given, "switch", 4, ())[0]["switch_at"] == 0.25
    assert trials_of(CONFIG, "stl", 4, ("lr",)) == []


def test_one_trial_is_no_choice():
    with pytest.raises(InputError, match="--tune 1 leaves nothing to choose from"):
        trials_of(CONFIG, "stl", 1, ())


def trial(best, step, error=None):
    return {"values": {"lr": 0.1}, "best": best, "step": step, "error": error}


def test_the_best_is_chosen_and_of_equals_the_one_that_is_there_first():
    assert chosen("stl", [trial(0.5, 9), trial(0.7, 5), trial(0.7, 4), trial(0.7, 4)]) == 2
    assert chosen("stl", [trial(None, None, "inf"), trial(-3.0, 1)]) == 1
    with pytest.raises(InputError, match="none of the 2 trials of stl finished: inf"):
        chosen("stl", [trial(None, None, "inf")] * 2)


def test_what_is_kept_of_a_trial():
    curve = [{"step": 2, "quality": 0.4}, {"step": 4, "quality": 0.6}, {"step": 6, "quality": 0.6}]
    assert trial_result({"lr": 0.1}, {"best": 0.6, "curve": curve}, None) == trial(0.6, 4)
    assert trial_result({"lr": 0.1}, None, "diverged") == trial(None, None, "diverged")
    record = tuning_record(CONFIG, ["lr"], 7, {"stl": [trial(0.5, 9), trial(0.7, 5)]})
    assert (record["trials"], record["seed"], record["fixed"]) == (2, 7, ["lr"])
    assert record["strategies"]["stl"]["chosen"] == 1
    assert set(record["ranges"]) == {"switch_at", "aux_weight"}

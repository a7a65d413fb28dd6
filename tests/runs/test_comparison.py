"""What a comparison says of its runs: times to targets, differences, and what can be concluded."""

from __future__ import annotations

import json

import pytest

from mt2st_fast.errors import InputError
from mt2st_fast.files import json_text
from mt2st_fast.runs.comparison import summarise_seed
from mt2st_fast.runs.conclusions import sentence
from mt2st_fast.training.history import Evaluation, History, PhaseRecord, StepRecord
from tests.runs.made_up_runs import compared, run_of


def arm(n_seeds, *qualities, **options):
    return [run_of(seed, *qualities, **options) for seed in range(1, n_seeds + 1)]


def clear_cut(n_seeds):
    """Switch is twice as fast as STL to STL's best and ends above it; MTL comes nowhere near."""
    return {
        "stl": arm(n_seeds, 0.2, 0.4, 0.6, 0.8, 0.8, test=0.7),
        "mtl": arm(n_seeds, 0.1, 0.2, 0.3, 0.3, test=0.6),
        "switch": arm(n_seeds, 0.3, 0.85, 0.85, test=0.75),
    }


def verdict_of(comparison, own, base):
    (found,) = [v for v in comparison["verdicts"] if (v["own"], v["base"]) == (own, base)]
    return found


def test_times_steps_and_examples_to_every_target():
    comparison = compared(clear_cut(6))
    to = comparison["strategies"]["switch"]["to"]
    assert to["stl_best"]["steps"] == {"q1": 2, "median": 2, "q3": 2}
    assert to["stl_best"]["seconds"]["median"] == 2.0
    assert to["stl_best"]["examples"]["median"] == 16
    assert to["stl_best"]["joules"]["median"] is None
    assert to["plateau"]["steps"]["median"] == 2
    assert to["plateau"]["quality"]["median"] == 0.85
    assert comparison["strategies"]["mtl"]["to"]["stl_best"]["reached"] == 0
    found = comparison["differences"]["switch"]["stl"]
    # Runs of 3 and 5 evaluations.
    assert (
        found["whole"]["seconds"] == found["whole"]["examples"] == {"value": -0.4, "low": -0.4, "high": -0.4}
    )
    assert found["to"]["stl_best"]["seconds"] == {"value": -0.5, "low": -0.5, "high": -0.5}
    assert found["test"]["value"] == pytest.approx(0.05)
    assert comparison["differences"]["stl"]["stl"] is None
    assert comparison["target"] == 0.3
    assert comparison["reductions"]["switch"] == pytest.approx(
        {"vs_stl": 0.5, "vs_mtl": 2 / 3, "steps_vs_stl": 0.5, "steps_vs_mtl": 2 / 3}
    )
    json.loads(json_text(comparison))


def test_energy_is_told_where_it_was_measured():
    runs = {"stl": arm(3, 0.4, 0.8, joules=5.0), "switch": arm(3, 0.8, 0.8, joules=2.0)}
    comparison = compared(runs)
    assert comparison["strategies"]["stl"]["joules_median"] == 10.0
    assert comparison["strategies"]["stl"]["to"]["stl_best"]["joules"]["median"] == 10.0
    assert comparison["differences"]["switch"]["stl"]["to"]["stl_best"]["joules"]["value"] == -0.8


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_of_two_seeds_nothing_is_concluded(n_seeds):
    comparison = compared(clear_cut(n_seeds))
    assert "nothing can be concluded" in comparison["conclusions"][0]
    assert verdict_of(comparison, "switch", "stl")["time"] == "to STL's best: nothing can be concluded"


def test_of_few_seeds_there_are_hints():
    comparison = compared(clear_cut(5))
    assert "p = 0.062 in a sign test" in comparison["conclusions"][0]
    assert "less time (hint: -50 % [-50, -50])" in verdict_of(comparison, "switch", "stl")["time"]


def test_of_enough_seeds_there_are_answers():
    comparison = compared(clear_cut(6))
    assert "sign test" not in comparison["conclusions"][0]
    found = verdict_of(comparison, "switch", "stl")
    assert found["time"] == "to STL's best: less time (-50 % [-50, -50])"
    assert found["plateau"] == "less time (-50 % [-50, -50])"
    assert found["quality"] == "accuracy on test rows, in points: higher (+5.00 [+5.00, +5.00])"
    assert sentence(found).startswith("switch against stl: to STL's best: less time")


def test_an_interval_with_0_in_it_shows_no_difference():
    stl = [run_of(seed, *[0.1] * seed, 0.8, 0.8) for seed in range(1, 7)]
    switch = [run_of(seed, *[0.1] * (7 - seed), 0.8, 0.8) for seed in range(1, 7)]
    found = verdict_of(compared({"stl": stl, "switch": switch}), "switch", "stl")
    assert "no difference shown (+0 % [" in found["time"]


def test_a_target_that_some_seeds_miss_is_told_with_its_counts():
    runs = clear_cut(6)
    runs["switch"][3:] = [run_of(seed, 0.3, 0.4) for seed in (4, 5, 6)]
    comparison = compared(runs)
    found = verdict_of(comparison, "switch", "stl")
    assert found["time"] == ("to STL's best: switch reached it for 3 of 6 seeds, so times are not compared")
    assert comparison["differences"]["switch"]["stl"]["to"]["stl_best"]["seconds"]["low"] is None
    assert comparison["strategies"]["switch"]["to"]["stl_best"]["seconds"]["median"] is None


def test_stl_is_not_held_against_mtl_twice():
    pairs = [(v["own"], v["base"]) for v in compared(clear_cut(3))["verdicts"]]
    assert pairs == [("mtl", "stl"), ("switch", "stl"), ("switch", "mtl")]


def test_a_given_target_is_what_verdicts_are_about():
    found = verdict_of(compared(clear_cut(6), target=0.25), "switch", "mtl")
    assert found["time"] == "to 0.25 (given): less time (-67 % [-67, -67])"


def test_algorithm_and_engine_stand_apart():
    runs = clear_cut(6)
    runs |= {f"{name} (torch)": [run_of(r["seed"], *(p["quality"] for p in r["curve"]), seconds=4.0) for r in of_arm]
             for name, of_arm in runs.items()}  # fmt: skip
    comparison = compared(runs, engines=("fused", "torch"))
    # The same algorithm saves the same share on each engine, and the engine the same for each algorithm.
    for name in ("switch", "switch (torch)"):
        assert comparison["differences"][name]["stl"]["to"]["stl_best"]["seconds"]["value"] == -0.5
    engine = comparison["engine_differences"]
    assert list(engine) == ["stl (torch)", "mtl (torch)", "switch (torch)"]
    assert engine["switch (torch)"]["to"]["stl_best"]["seconds"]["value"] == -0.75
    assert engine["switch (torch)"]["to"]["stl_best"]["steps"]["value"] == 0.0
    joint = comparison["joint_differences"]
    assert {base: list(of_arms) for base, of_arms in joint.items()} == {
        "stl (torch)": ["stl", "mtl", "switch"],
        "mtl (torch)": ["stl", "mtl", "switch"],
    }
    assert joint["stl (torch)"]["switch"]["to"]["stl_best"]["seconds"]["value"] == 1 / 8 - 1
    assert "less time (-75 %" in verdict_of(comparison, "mtl", "mtl (torch)")["time"]
    assert comparison["strategies"]["mtl (torch)"]["engine"] == "torch"


def test_a_busy_machine_is_named():
    said = " ".join(compared(clear_cut(3), load=9.0)["conclusions"])
    assert "load 9.0 on 4 CPUs" in said
    assert "busy" not in " ".join(compared(clear_cut(3), load=1.0)["conclusions"])


def history_of(quality):
    steps = [StepRecord(5, 1.0, 0.0, {}, {}, 1e-3, 1.0, 2.5)]
    return History(
        "tag",
        steps,
        [Evaluation(5, 1.0, {"tag": quality}, 2.5)],
        [
            PhaseRecord(0, ("tag", "other")),
            PhaseRecord(3, ("tag",)),
            PhaseRecord(9, ("tag",), turns="never begun"),
        ],
        stopped="why",
        joules=[(5, 7.0)],
    )


def rows_read(step):
    return 100 * step


def test_a_run_is_summed_up():
    summary = summarise_seed(history_of(0.5), float("nan"), rows_read=rows_read)
    assert summary["test"] is None  # no test row has a label
    assert (summary["examples"], summary["joules"], summary["stopped"]) == (500, 7.0, "why")
    assert summary["curve"] == [{"step": 5, "seconds": 2.5, "examples": 500, "joules": 7.0, "quality": 0.5}]


def test_runs_without_a_value_cannot_be_compared():
    with pytest.raises(InputError, match="no evaluation has a value for tag"):
        summarise_seed(history_of(float("nan")), 0.5, rows_read=rows_read)


def test_what_a_schedule_let_go_is_kept_with_its_step_and_reason():
    history = history_of(0.5)
    history.phases = [
        PhaseRecord(0, ("a", "b", "c")),
        PhaseRecord(20, ("a", "b"), reasons={"c": "it is not aligned"}),
        PhaseRecord(50, ("a",), reasons={"b": "nothing rises"}),
    ]
    assert summarise_seed(history, 0.5, rows_read=rows_read)["retired"] == {
        "c": {"step": 20, "why": "it is not aligned"},
        "b": {"step": 50, "why": "nothing rises"},
    }

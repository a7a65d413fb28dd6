"""compare.md, report.html and compare.png of runs that are made up: nobody comes to a target, or energy is known."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest

from mt2st_fast.files import json_text
from mt2st_fast.runs.comparison_plots import plot_comparison
from mt2st_fast.runs.comparison_tables import render, sections_of, table_of
from mt2st_fast.runs.formatting import in_percent, in_points
from mt2st_fast.runs.pages import comparison_page
from mt2st_fast.runs.plots import svg
from tests.runs.made_up_runs import compared, run_of

READ = {"name": "toy", "files": [], "rows": {"train": 9}, "tokens": {"train": 9}, "columns": [], "labels": [],
        "understood": {}, "notes": []}  # fmt: skip
TUNING = {
    "trials": 2,
    "seed": 9,
    "fixed": [],
    "ranges": {"lr": [0.002, 0.05], "switch_at": [0.1, 0.9]},
    "strategies": {
        "stl": {
            "chosen": 0,
            "trials": [
                {"values": {"lr": 0.01}, "best": 0.8, "step": 3, "error": None},
                {
                    "values": {"lr": 0.05},
                    "best": None,
                    "step": None,
                    "error": "the loss is nan at step 3: so",
                },
            ],
        }
    },
}
FACTS = {
    "main": "$tag$ <b>",
    "data": "toy",
    "read": READ,
    "config": {"patience": 2, "min_delta": 0.0, "lr": 0.01},
    "energy": "energy is made up",
    "environment": {"processor": "abacus", "threads": 1, "cores": 4},
    "tuning": TUNING,
}


def runs_of(*seeds, factor=1.0, joules=None):
    return {
        "stl": [
            run_of(s, 0.2, 0.4 + s / 100, 0.8 + s / 100, 0.8, seconds=factor, joules=joules) for s in seeds
        ],
        "mtl": [run_of(s, 0.3, 0.7 + s / 100, 0.7, seconds=factor, joules=joules) for s in seeds],
        "switch": [run_of(s, 0.3, 0.7 + s / 100, 0.825, seconds=factor, joules=joules) for s in seeds],
    }


def both_engines(*seeds, factor):
    slow = {f"{name} (torch)": runs for name, runs in runs_of(*seeds, factor=factor).items()}
    return compared({**runs_of(*seeds), **slow}, engines=("fused", "torch"), **FACTS)


COMPARISONS = {
    "one seed": lambda: compared(runs_of(1), **FACTS),
    "three seeds": lambda: compared(runs_of(1, 2, 3), **FACTS),
    "out of reach": lambda: compared(runs_of(1, 2, 3), target=0.99, **FACTS),
    "joules": lambda: compared(runs_of(1, 2, 3, joules=3.0), **FACTS),
    "engines": lambda: both_engines(1, 2, 3, 4, 5, 6, factor=2.0),
    "not measured": lambda: compared(
        {"stl": [run_of(s, float("nan"), 0.4, 0.8) for s in (1, 2, 3)]}, **FACTS
    ),
    "one arm": lambda: compared({"switch": runs_of(1, 2)["switch"]}, **FACTS | {"tuning": None}),
}


@cache
def comparison_of(name):
    return COMPARISONS[name]()


@cache
def page_of(name):
    """Drawing its pictures takes a second."""
    return comparison_page(comparison_of(name))


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_report_is_whole(name):
    comparison = comparison_of(name)
    text, page = render(comparison), page_of(name).decode()
    for title in (section.title for section in sections_of(comparison)):
        assert f"## {title}" in text
        assert title.replace("'", "&#39;") in page
    for shown in (text, re.sub(r"base64,[^\"]*", "", page)):
        assert not re.search(r"\bNone\b|\bnan\b(?! at step)|\binf\b", shown)
    assert "<b>" not in page
    arm = "switch" if "switch" in comparison["strategies"] else "stl"
    rows = [line for line in text.splitlines() if line.startswith(f"| {arm} |")]
    assert len(rows) >= 3


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_report_is_the_same_from_the_file(name):
    """compare.json has no NaN and no tuples; `mt2st-fast report` reads that, and so does `compare`."""
    again = json.loads(json_text(comparison_of(name)))
    assert render(again) == render(comparison_of(name))
    assert comparison_page(again) == page_of(name)


def part(comparison, title):
    (found,) = [section for section in sections_of(comparison) if section.title == title]
    return [dict(zip(columns, row, strict=True)) for columns, rows in found.tables for row in rows]


def test_what_nobody_reaches_is_a_dash_with_its_count():
    (_, mtl, _) = part(comparison_of("out of reach"), "To the target: 0.99 (given)")
    assert (mtl["reached by:"], mtl["seconds:"], mtl["steps:"], mtl["time vs stl:"]) == (
        "0 of 3",
        "–",
        "–",
        "–",
    )


def test_medians_quartiles_and_intervals():
    (stl, mtl, switch) = part(comparison_of("three seeds"), "To the target: STL's best")
    assert (stl["seconds:"], stl["steps:"], stl["examples:"]) == ("3 (3–3)", "3 (3–3)", "24")
    assert mtl["reached by:"] == "0 of 3"
    assert switch["reached by:"] == "2 of 3"  # seed 3 has a higher one
    found = part(comparison_of("three seeds"), "To the target: MTL's best minus 0.2 points")[2]
    assert (found["time vs mtl:"], found["steps vs stl:"]) == ("+0 % [+0, +0]", "-33 % [-33, -33]")
    assert not any("joules:" in row for row in part(comparison_of("three seeds"), "To the plateau"))
    energy = part(comparison_of("joules"), "To the target: STL's best")[0]["joules:"]
    assert energy == "9 (9–9)"


def test_whole_runs_have_a_table():
    (stl, _, switch) = part(comparison_of("three seeds"), "The whole run")
    runs = comparison_of("three seeds")["strategies"]
    assert stl["seconds:"].startswith(f"{runs['stl']['seconds_median']:g} (")
    expected = runs["switch"]["examples_median"] / runs["stl"]["examples_median"] - 1
    assert switch["examples vs stl:"].startswith(f"{100 * expected:+.0f} % [")
    assert switch["time vs stl:"] == switch["examples vs stl:"]  # made up so
    assert stl["time vs stl:"] == "–"


def test_of_too_few_seeds_no_verdicts_are_shown():
    assert part(comparison_of("one seed"), "What can be concluded") == []
    assert len(part(comparison_of("three seeds"), "What can be concluded")) == 3


def test_tuning_shows_every_trial():
    first, second = part(comparison_of("three seeds"), "Tuning")
    assert list(first.values()) == ["stl", "1 chosen", "0.01", "–", "0.8000", "3"]
    assert list(second.values()) == ["stl", "2", "0.05", "–", "the loss is nan at step 3", "–"]
    assert "Tuning" not in [section.title for section in sections_of(comparison_of("one arm"))]


def test_what_a_strategy_retired_is_shown_with_steps_and_reasons():
    aligned = "its gradient is not aligned with the main task's"
    found = [
        {"pos": {"step": 60, "why": f"{aligned} (cosine 0.001, standard error 0.004) at step 40"}},
        {"pos": {"step": 90, "why": f"{aligned} (cosine 0.002, standard error 0.005) at step 70"}},
        {
            "pos": {
                "step": 1200,
                "why": "the main task has not risen by 0.001 in 6 evaluations (to 0.8 in the mean)",
            }
        },
        {},
    ]
    runs = [run_of(seed, 0.2, 0.4, retired=retired) for seed, retired in enumerate(found)]
    comparison = compared({"adaptive": runs}, **FACTS)
    (table,) = next(s.tables for s in sections_of(comparison) if "retired tasks" in s.title)
    because = f"{aligned} (2); the main task has not risen by 0.001 in 6 evaluations (1)"
    assert table.rows == [["adaptive", "pos", "3 of 4", "60–1,200", because]]
    assert "60–1,200" in render(comparison)


def test_engines_have_a_table_of_their_own():
    rows = part(comparison_of("engines"), "What the engine saves")
    assert [row["strategy"] for row in rows] == [
        f"{n}, fused against torch" for n in ("stl", "mtl", "switch")
    ]
    assert rows[0]["time to STL's best:"] == "-50 % [-50, -50]"
    joint = part(comparison_of("engines"), "What algorithm and engine save together")
    assert [(row["strategy"], row["against"]) for row in joint][:2] == [
        ("stl", "stl (torch)"),
        ("mtl", "stl (torch)"),
    ]


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


def test_the_picture_has_a_row_for_each_target_and_says_who_reached_it():
    figure = plot_comparison(comparison_of("out of reach"))
    assert [axes.get_title(loc="left") for axes in figure.axes[::2]] == [
        "to 0.99 (given) (median 0.9900)",
        "to STL's best (median 0.8200)",
        "to MTL's best (median 0.7200)",
        "to MTL's best minus 0.2 points (median 0.7180)",
        "to the plateau (later rises below 0.2 points)",
    ]
    given, stl_best = figure.axes[0], figure.axes[2]
    assert texts_of(given) == ["0 of 3 reached it"] * 3
    assert texts_of(stl_best) == ["3", "0 of 3 reached it", "3 (2 of 3)"]
    assert len(stl_best.patches) == 2
    assert svg(figure)


@pytest.mark.parametrize(("factor", "scale"), [(2.0, "linear"), (100.0, "log")])
def test_what_is_many_times_longer_is_drawn_by_ratios(factor, scale):
    seconds, steps = plot_comparison(both_engines(1, 2, 3, factor=factor)).axes[:2]
    assert seconds.get_xscale() == scale
    assert steps.get_xscale() == "linear"
    low, high = seconds.get_xlim()
    assert all(low <= x <= high for line in seconds.lines for x in line.get_xdata())


def test_nothing_is_not_less_than_nothing():
    nearly = {"value": -0.001, "low": -0.004, "high": 0.0}
    assert in_percent(nearly) == "+0 % [+0, +0]"
    assert in_points({"value": -0.00001, "low": None, "high": None}) == "+0.00"


def test_a_target_of_each_seed_is_said_to_be_of_its_run():
    """With all labels, seeds have the same data: these are no reason."""
    text = render(comparison_of("three seeds"))
    assert "Each seed has its own target, from its own run: " in text
    assert "its data" not in text


def test_span_f1_is_a_column_where_a_run_has_it():
    runs = {
        "stl": [run_of(1, 0.5, test=0.9, span_f1=0.625), run_of(2, 0.5, test=0.9)],
        "mtl": [run_of(1, 0.5, test=0.9, span_f1=0.75), run_of(2, 0.5, test=0.9, span_f1=0.75)],
    }
    comparison = compared(runs, **FACTS)
    columns, rows = table_of(comparison)
    assert columns[:4] == ["strategy", "best development:", "test:", "test, span F1:"]
    assert [row[3] for row in rows] == ["–", "0.7500"]  # half of the runs have none
    [quality] = [section for section in sections_of(comparison) if section.title == "Quality"]
    assert "conlleval" in quality.lines[0]
    assert [row[3] for row in quality.tables[0].rows] == ["–", "0.7500 (0.7500–0.7500)"]
    runs = {name: [run_of(1, 0.5, test=0.9), run_of(2, 0.5, test=0.9)] for name in runs}
    comparison = compared(runs, **FACTS)
    assert "span F1" not in " ".join(table_of(comparison)[0])
    tables = [table for section in sections_of(comparison) for table in section.tables]
    assert all("span F1" not in " ".join(table.columns) for table in tables)

"""python -m bench.claims NAME FOLDER: store the results of `mt2st-fast compare` as bench/records/claims/NAME.json.

The few-label tables in docs/claims.md and the table in the README are made from these (`python -m bench.report`).
Curves and file names are left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from bench.environment import ROOT
from bench.ledger import FOLDER
from bench.markdown import table
from mt2st_fast.runs.arms import Arm
from mt2st_fast.runs.comparison import compare_runs
from mt2st_fast.runs.comparison_schema import ComparisonFacts

CLAIMS = FOLDER / "claims"
Comparison = dict[str, Any]
README_ROWS = (
    ("ewt", "English EWT, part of speech, 5 %"),
    ("conll", "CoNLL-2000, chunks, 5 %"),
    ("default", "the default corpus, expressions, 1 %"),
)
README_STRATEGIES = ("stl", "mtl", "switch")
ROWS_OF_ONE = (
    *README_ROWS,
    ("context", "CoNLL-2000, chunks, 5 %, with context prediction"),
    ("hungarian", "Hungarian, part of speech, 10 %"),
    ("turkish", "Turkish, part of speech, 10 %"),
    ("turkish_relations", "Turkish, relations, 10 %"),
    ("chemicals", "entities in abstracts, 5 %"),
)


def keep(name: str, folder: Path) -> Path:
    """Write the record of a comparison."""
    found = json.loads((folder / "compare.json").read_text("utf-8"))
    runs = {arm: of_arm["seeds"] for arm, of_arm in found["strategies"].items()}
    arms = [Arm(name, of_arm["strategy"], of_arm["engine"]) for name, of_arm in found["strategies"].items()]
    # Computed again from the runs, so that every record has what `compare` now reports.
    facts = cast(ComparisonFacts, {key: found[key] for key in ComparisonFacts.__required_keys__})
    compared = compare_runs(runs, arms, facts, None, found["plateau_margin"])
    for of_arm in compared["strategies"].values():
        for seed in of_arm["seeds"]:
            seed.pop("curve")
    facts = {key: found[key] for key in ("main", "metric", "auxiliary", "n_seeds", "environment", "tuning")}
    kept = facts | {key: compared[key] for key in ("strategies", "differences")}
    path = CLAIMS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, separators=(",", ":")) + "\n", encoding="utf-8")
    return path


def read(name: str) -> Comparison:
    """Read the record of a comparison."""
    found: Comparison = json.loads((CLAIMS / f"{name}.json").read_text("utf-8"))
    return found


def of_strategies(name: str) -> list[str]:
    """Return the lines of a table of all strategies of a comparison."""
    found = read(name)
    heading = [
        "strategy", "test, at the end", "seconds to STL's best", "steps", "against stl",
        "steps to MTL's best minus 0.2 points", "whole run, s", "against mtl",
    ]  # fmt: skip
    rows = []
    for strategy, runs in found["strategies"].items():
        shown = _cells(found, strategy)
        rows.append([strategy, *shown[:4], _reached(runs, "mtl_best_less", "steps"), *shown[4:]])
    return table(heading, rows)


def of_readme() -> list[str]:
    """Return the lines of the README's table."""
    heading = [
        "data, labels kept", "strategy", "test, at the end", "seconds to STL's best", "steps", "against stl",
        "whole run, s", "against mtl",
    ]  # fmt: skip
    rows = []
    for name, data in README_ROWS:
        found = read(name)
        for strategy in README_STRATEGIES:
            first = data if strategy == README_STRATEGIES[0] else ""
            rows.append([first, strategy, *_cells(found, strategy)])
    return table(heading, rows, words=2)


def of_one(strategy: str) -> list[str]:
    """Return the lines of a table of one strategy on all data with few labels, against stl and mtl."""
    heading = [
        "data, labels kept", "to STL's best, against stl", "to MTL's best, against mtl", "to it minus 0.2 points",
        "whole run", "test, in points, against stl", "against mtl",
    ]  # fmt: skip
    rows = []
    for name, data in ROWS_OF_ONE:
        found = read(name)
        rows.append(
            [
                data,
                _saved(found, strategy, "stl", "stl_best"),
                _saved(found, strategy, "mtl", "mtl_best"),
                _saved(found, strategy, "mtl", "mtl_best_less"),
                _percent(_difference(found, strategy, "mtl", "whole", "seconds")),
                *(_percent(_difference(found, strategy, other, "test"), 2, "") for other in ("stl", "mtl")),
            ]
        )
    return table(heading, rows)


def _saved(found: Comparison, strategy: str, other: str, target: str) -> str:
    """Return how much less time than another strategy a strategy took to a target, if both reached it in every seed."""
    short = [
        name
        for name in (strategy, other)
        if found["strategies"][name]["to"][target]["reached"] < found["n_seeds"]
    ]
    if short:
        reached = found["strategies"][short[0]]["to"][target]["reached"]
        return f"in {reached} of {found['n_seeds']} seeds"
    return _percent(_difference(found, strategy, other, "to", target, "seconds"))


NAMES = (
    "ewt", "ewt_tuned", "conll", "default", "context", "polarity", "hungarian", "chemicals",
    "turkish", "turkish_relations",
)  # fmt: skip
TABLES: dict[str, Callable[[], list[str]]] = {"claims": of_readme} | {
    name: partial(of_strategies, name) for name in NAMES
}
TABLES |= {f"one_{strategy}": partial(of_one, strategy) for strategy in ("switch", "adaptive")}


def _cells(found: Comparison, strategy: str) -> list[str]:
    """Return quality; time and steps to STL's best, and that time vs. stl; time of the whole run, and that vs. mtl."""
    runs = found["strategies"][strategy]
    return [
        f"{runs['test_median']:.4f}",
        _reached(runs, "stl_best", "seconds"),
        _reached(runs, "stl_best", "steps") if runs["to"]["stl_best"]["reached"] == found["n_seeds"] else "",
        _percent(_difference(found, strategy, "stl", "to", "stl_best", "seconds")),
        f"{runs['seconds_median']:.2f}",
        _percent(_difference(found, strategy, "mtl", "whole", "seconds")) if strategy != "stl" else "",
    ]


def _reached(runs: Comparison, target: str, of: str) -> str:
    """Return the median if every seed reached the target."""
    to, n = runs["to"][target], len(runs["seeds"])
    if to["reached"] < n:
        return f"in {to['reached']} of {n} seeds" if to["reached"] else "never"
    median = to[of]["median"]
    return f"{median:.2f}" if of == "seconds" else f"{median:,.0f}"


def _difference(found: Comparison, strategy: str, other: str, *path: str) -> dict[str, float] | None:
    value: Any = found["differences"][strategy].get(other)
    for part in path:
        value = None if value is None else value[part]
    return None if value is None or None in value.values() else value


def _percent(difference: dict[str, float] | None, digits: int = 0, unit: str = " %") -> str:
    if difference is None:
        return ""
    value, low, high = (
        f"{100 * difference[part]:+.{digits}f}".replace("-", "−") for part in ("value", "low", "high")
    )
    return f"{value}{unit} [{low}, {high}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    print(f"wrote {keep(given.name, given.folder).relative_to(ROOT)}")

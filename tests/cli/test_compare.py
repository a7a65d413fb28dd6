"""`mt2st-fast compare`: a table of all strategies, and what is refused before anything trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.running import QUICK, fails, run


def test_compare_writes_a_table_of_all_strategies(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run("compare", "--data", treebank, "--label-fraction", "0.3", "--seeds", "2", "--out", str(out), *QUICK)
    comparison = json.loads((out / "compare.json").read_text())
    assert list(comparison["strategies"]) == ["stl", "mtl", "diminish", "switch"]
    for name, strategy in comparison["strategies"].items():
        assert len(strategy["seeds"]) == 2
        assert strategy["best_median"] >= comparison["target"]
        assert strategy["steps_to_target_median"] <= strategy["steps_median"]
        assert set(comparison["reductions"][name]) >= {"vs_stl", "vs_mtl"}
    assert comparison["reductions"]["stl"]["vs_stl"] == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in comparison["strategies"])
    assert (out / "compare.md").exists()
    assert (out / "compare.png").exists()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--floor", "0"], ["floor", "diminish"]),
        (["--aux-weight", "0"], ["aux-weight"]),
        (["--switch-at", "0"], ["switch-at"]),
        (["--seed", "-1"], ["seed"]),
        (["--epochs", "inf"], ["epochs"]),
    ],
)
def test_compare_refuses_before_it_trains(
    options: list[str], names: list[str], treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = fails(capsys, "compare", "--data", treebank, "--out", str(tmp_path / "out"), *QUICK, *options)
    assert all(name in error for name in names)

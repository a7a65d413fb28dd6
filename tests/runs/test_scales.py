"""The unit in which a table has its numbers decides nothing: a run learns standard deviations from their mean."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mt2st_fast import load
from mt2st_fast.cli import main
from mt2st_fast.data import TargetColumn
from mt2st_fast.data.scaling import Scale
from mt2st_fast.runs import experiment
from mt2st_fast.runs.comparison_progress import FILE as PROGRESS
from mt2st_fast.runs.comparison_progress import Progress
from tests.cli.running import fails, run

TASKS = ("kind", "price:regression")


def table(folder: Path, unit: float, zero: float = 0.0) -> str:
    chance = random.Random(0)
    lines = ["text,kind,price"]
    for i in range(400):
        numbers = [chance.randrange(20) for _ in range(6)]
        price = "" if i % 7 == 0 else zero + unit * (sum(n % 5 for n in numbers) + 2 + chance.random())
        lines.append(f"{' '.join(f'w{n}' for n in numbers)},{'x' if sum(numbers) > 57 else 'y'},{price}")
    path = folder / f"in {unit:g} from {zero:g}.csv"
    path.write_text("\n".join(lines) + "\n")
    return f"csv:{path}"


def trained(data: str, folder: Path, tasks: Sequence[str] = TASKS, strategy: str = "mtl") -> Path:
    columns = [word for task in tasks for word in ("--label-column", task)]
    run("train", "--data", data, *columns, "--epochs", "4", "--strategy", strategy, "--out", str(folder))
    return folder


@pytest.mark.parametrize("strategy", ["mtl", "selector", "adatask"])
def test_a_run_learns_the_same_in_any_unit(tmp_path: Path, strategy: str) -> None:
    runs = {
        unit: trained(table(tmp_path, unit), tmp_path / f"{unit:g}", tuple(reversed(TASKS)), strategy)
        for unit in (1.0, 2.0**20)
    }
    reports = {unit: json.loads((folder / "report.json").read_text()) for unit, folder in runs.items()}
    for report in reports.values():
        assert report["tasks"]["price"]["test"] > 0.8
        assert report["score"]["value"] == pytest.approx(report["tasks"]["price"]["test"], abs=1e-4)
    assert reports[1.0]["tasks"]["price"]["test"] == pytest.approx(
        reports[2.0**20]["tasks"]["price"]["test"], abs=1e-3
    )
    words = [["w1", "w2"], ["w4", "w4", "w9"], []]
    small, large = (np.array(load(folder).predict(words, "price")) for folder in runs.values())
    np.testing.assert_allclose(large, small * 2.0**20, rtol=1e-3)


def test_numbers_far_from_zero_leave_the_main_task_alone(tmp_path: Path) -> None:
    far = trained(table(tmp_path, 1e5, 5e7), tmp_path / "far")
    near = trained(table(tmp_path, 1.0), tmp_path / "near")
    quality = [json.loads((folder / "report.json").read_text())["main"]["test"] for folder in (far, near)]
    assert quality[0] == pytest.approx(quality[1], abs=0.03)
    assert quality[0] > 0.8


def test_what_has_no_spread_is_measured_from_its_mean() -> None:
    def column(*values: float) -> TargetColumn:
        return TargetColumn("values", ("n",), np.array(values, np.float32)[:, None])

    nothing = Scale.of(column(np.nan, np.nan))
    assert (nothing.mean, nothing.deviation) == (0.0, 1.0)
    alike = Scale.of(column(3.5, np.nan, 3.5))
    assert (alike.mean, alike.deviation) == (3.5, 1.0)
    several = Scale.of(column(1.0, np.nan, 3.0))
    np.testing.assert_array_equal(several.measured(column(1, 3, np.nan)).values, [[-1], [1], [np.nan]])


def before_scales(patched: pytest.MonkeyPatch) -> None:
    """Commands train as a version did that learned numbers as they are."""
    make = experiment.make_batches

    def without_settings(*of: Any) -> Any:
        batches = make(*of)
        batches.data_settings.clear()
        return batches

    patched.setattr(experiment, "scales_of", lambda train: {})
    patched.setattr(experiment, "make_batches", without_settings)


def test_a_run_from_before_scales_is_refused_by_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = table(tmp_path, 1.0), str(tmp_path / "out")
    with monkeypatch.context() as patched:
        before_scales(patched)
        trained(data, tmp_path / "out")
        trained(data, tmp_path / "classes", ("kind",))
    error = fails(capsys, "train", "--resume", "--epochs", "6", "--out", out)
    assert (
        "was made with regression targets in the unit of the data, this run has standard deviations" in error
    )
    assert "an earlier version began it: start a new run without resume" in error
    run("train", "--resume", "--epochs", "6", "--out", str(tmp_path / "classes"))


def test_a_comparison_from_before_scales_is_refused_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(task: str, out: Path) -> None:
        """After the first of two runs."""
        end = Progress.end
        with monkeypatch.context() as patched:
            before_scales(patched)
            patched.setattr(Progress, "end", lambda *of: (end(*of), sys.exit(1)))
            with pytest.raises(SystemExit) as stop:
                main([*asked, "--label-column", task, "--out", str(out)])
            assert stop.value.code == 1
        stored = json.loads((out / PROGRESS).read_text())
        del stored["settings"], stored["runs"]["stl"][0]["test_span_f1"], stored["config"]["backward"]
        stored["config"]["fuse_backward"] = None
        (out / PROGRESS).write_text(json.dumps(stored))

    asked = [
        "compare",
        "--data",
        table(tmp_path, 1.0),
        "--epochs",
        "1",
        "--strategies",
        "stl,mtl",
        "--seeds",
        "1",
    ]
    stopped("price:regression", tmp_path / "of numbers")
    error = fails(capsys, "compare", "--resume", "--out", str(tmp_path / "of numbers"))
    assert (
        "of numbers was made with regression targets in the unit of the data, this version has standard"
        in error
    )
    assert f"choose another --out, or remove '{tmp_path / 'of numbers' / PROGRESS}'" in error
    stopped("kind", tmp_path / "classes")
    run("compare", "--resume", "--out", str(tmp_path / "classes"))


def test_a_comparison_of_this_version_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = Progress.end
    asked = ["compare", "--data", table(tmp_path, 1.0), "--label-column", "price:regression", "--epochs", "1",
             "--strategies", "stl,mtl", "--seeds", "1", "--out", str(tmp_path / "out")]  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "end", lambda *of: (end(*of), sys.exit(1)))
        with pytest.raises(SystemExit):
            main(asked)
    run("compare", "--resume", "--out", str(tmp_path / "out"))

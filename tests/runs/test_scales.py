"""The unit in which a table has its numbers decides nothing: a run learns standard deviations from their mean."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mt2st_fast import load
from mt2st_fast.data import TargetColumn
from mt2st_fast.data.scaling import Scale
from tests.cli.running import run

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

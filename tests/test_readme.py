"""The README stays true: its commands are the ones that run, its ratios the ones that were measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mt2st_fast

ROOT = Path(__file__).parent.parent
COMMAND = "python -m pytest -n 2 --dist loadfile"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_ci_calls_the_test_command() -> None:
    commands = [line for line in README.splitlines() if line.endswith(COMMAND)]
    assert len(commands) == 1
    assert f"grep -m1 '{COMMAND}$' README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_names_exist() -> None:
    imported = ", ".join(re.findall(r"^\+?from mt2st_fast import (.*)", README, re.MULTILINE))
    table = README[README.index("| what | names |") : README.index("Batches are")]
    named = set(imported.split(", ")) | set(re.findall(r"`([A-Z]\w+)`", table))
    assert named <= set(mt2st_fast.__all__)


def test_ratios_are_those_of_the_records() -> None:
    results = (ROOT / "bench" / "RESULTS.md").read_text(encoding="utf-8")
    heads = README[README.index("## Measured") : README.index("`python -m bench.measure all")]
    words = README[README.index("## Words") : README.index("`python -m bench.bags")]
    ratios = re.findall(r"\*\*([\d.]+)\*\*", heads + words)
    assert len(ratios) >= 10
    for ratio in ratios:
        assert re.search(rf"\b{re.escape(ratio)}\d? \[", results), f"{ratio} is not in bench/RESULTS.md"


@pytest.mark.parametrize("picture", re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README))
def test_pictures_exist(picture: str) -> None:
    assert (ROOT / picture).stat().st_size > 0

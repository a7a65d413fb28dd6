"""The README stays true: its commands are the ones that run, its tables made from what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mt2st_fast
from bench import claims, ledger, pages

ROOT = Path(__file__).parent.parent
COMMAND = "python -m pytest -n 2 --dist loadfile"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_ci_calls_the_test_command() -> None:
    commands = [line for line in README.splitlines() if line.endswith(COMMAND)]
    assert len(commands) == 1
    assert f"grep -m1 '{COMMAND}$' README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_names_exist() -> None:
    imported = ", ".join(re.findall(r"^\+?from mt2st_fast import (.*)", README, re.MULTILINE))
    named = set(imported.split(", ")) | set(re.findall(r"`([A-Z][a-z]\w+)`", README))
    assert len(named) >= 10
    assert named <= set(mt2st_fast.__all__)


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_tables_are_made_from_the_records(page: Path) -> None:
    text = page.read_text("utf-8")
    assert pages.written(text, ledger.latest(ledger.read())) == text, "run python -m bench.report"


def test_every_table_stands_in_a_page() -> None:
    text = "".join(page.read_text("utf-8") for page in pages.PAGES)
    named = re.findall(r"<!-- measured: (\w+) -->", text)
    assert sorted(named) == sorted({**pages.TABLES, **claims.TABLES})


def test_a_table_that_was_typed_is_written_anew() -> None:
    found = ledger.latest(ledger.read())
    assert pages.written(re.sub(r"\*\*\d", "**9", README), found) == README


@pytest.mark.parametrize("picture", re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README))
def test_pictures_exist(picture: str) -> None:
    assert (ROOT / picture).stat().st_size > 0

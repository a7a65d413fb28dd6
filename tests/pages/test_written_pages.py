"""What pages list is all that there is: flags of the command line, schedules, kinds of data, names of the reference."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest

import mt2st_fast
from mt2st_fast.data import READERS
from mt2st_fast.kernels import RULES
from mt2st_fast.training.schedules import strategies
from tests.pages.blocks import DOCS, PAGES, blocks_of, text_of


def _loaded(name: str) -> ModuleType:
    """A program of docs/."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FLAGS = _loaded("flags")


def test_the_tables_of_flags_are_as_the_command_line_has_them() -> None:
    page = text_of("command-line.md")
    assert FLAGS.written(page) == page, "write them anew: python docs/flags.py"


def test_a_table_that_is_not_as_it_should_be_is_written_anew() -> None:
    page = text_of("command-line.md")
    assert FLAGS.written(page.replace("| `--seeds` |", "| `--seed-count` |")) == page


@pytest.mark.parametrize("name", sorted(FLAGS.commands()))
def test_every_flag_of_a_command_is_in_its_section(name: str) -> None:
    sections = dict(
        part.split("\n", 1) for part in re.split(r"^## ", text_of("command-line.md"), flags=re.MULTILINE)[1:]
    )
    section = sections[name]
    if name in FLAGS.SHARED:
        section += sections[f"{' and '.join(FLAGS.SHARED)}: the flags of a run"]
    for flag in FLAGS.flags_of(FLAGS.commands()[name]):
        is_argument = flag.param_type_name == "argument"
        for spelled in [flag.name.upper()] if is_argument else [*flag.opts, *flag.secondary_opts]:
            assert f"`{spelled}`" in section, f"{name} {spelled}"


def test_every_kind_of_data_is_told_of() -> None:
    for reader in READERS.values():
        assert f"`{reader.spec}`" in text_of("command-line.md")


def test_every_strategy_is_told_of() -> None:
    page = text_of("schedules.md")
    rows = dict(re.findall(r"^\| `(\w+)` \| `([\w-]+)` \|", page, re.MULTILINE))
    assert set(rows.values()) == set(strategies())
    for schedule in rows:
        assert hasattr(mt2st_fast, schedule)
        programs = "".join(block.code for block in blocks_of("schedules.md"))
        assert re.search(rf"\b{schedule}[(,)]", programs), f"{schedule} is in no program"


def test_every_rule_of_the_plans_is_told_of() -> None:
    rows = re.findall(r"^\| `(numba|triton)` \| `(\w+)` \|", text_of("kernels.md"), re.MULTILINE)
    assert rows == [(backend, rule.plan) for backend, rules in RULES.items() for rule in rules]
    for number in re.findall(r"\d[\d,]*", " ".join(rule.when for rules in RULES.values() for rule in rules)):
        assert re.search(rf"\b{number}\b", text_of("kernels.md")), number


def test_the_reference_has_every_public_name() -> None:
    told = [
        name
        for page in PAGES
        if page.startswith("reference/")
        for name in re.findall(r"^::: mt2st_fast\.(\w+)$", text_of(page), re.MULTILINE)
    ]
    assert sorted(told) == sorted(mt2st_fast.__all__)


def test_the_readme_leads_to_the_pages() -> None:
    assert "(docs/index.md)" in text_of("README.md")

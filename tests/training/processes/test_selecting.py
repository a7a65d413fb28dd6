"""Two processes train on the same parts, those that process 0 has chosen, and learn what one learns."""

from __future__ import annotations

from typing import Any

import pytest

from tests.training.processes import selecting
from tests.training.processes.test_together import assert_bits, assert_close, plain
from tests.training.processes.together import run_together

NAMES = ["selecting", "selecting_apart"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    return run_together("selecting", NAMES, tmp_path_factory.mktemp("selecting"))


@pytest.mark.parametrize("name", NAMES)
def test_all_train_on_the_parts_that_process_0_has_chosen(name: str, found: Any) -> None:
    first, second = found[name]
    assert "error" not in first, first
    assert_bits(first, second)
    assert first["history"]["selections"] == second["history"]["selections"]
    (selection,) = first["history"]["selections"]
    becomes = {part["becomes"] for part in selection["parts"] if part["rows"] is not None}
    assert becomes == {"trained", "frozen"}


def test_two_processes_learn_what_one_learns(found: Any, tmp_path: Any) -> None:
    alone, first = selecting.selecting(tmp_path), found["selecting"][0]
    assert_close(plain(alone["history"]), plain(first["history"]))
    assert_close(alone["weights"], first["weights"])

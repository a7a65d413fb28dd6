"""Processes of one machine post their gradients once a step, and hold one copy of a large table's moments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.processes import posted
from tests.training.processes.test_together import assert_bits, assert_close, plain
from tests.training.processes.together import run_together

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="memory without a name is Linux's"
)

SHARED = ["shared", "in_parts", "replaced"]
OTHERS = ["refused", "small"]
NAMES = [*SHARED, *OTHERS, "apart", "hooked", "with_numbers_alone", "stopped_then_resumed", "own_afterwards"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    of_all = run_together("posted", NAMES, tmp_path_factory.mktemp("posted"))
    for name, of_name in of_all.items():
        for of_one in of_name:
            assert "error" not in of_one, (name, of_one)
    return of_all


@pytest.mark.parametrize("name", SHARED)
def test_all_steps_are_taken_with_shared_state(name: str, found: Any) -> None:
    for of_one in found[name]:
        assert len(of_one["shared"]) > 10
        # The first step of a phase looks at the model, and is summed by the optimizer.
        assert all(of_one["shared"])


@pytest.mark.parametrize("name", OTHERS)
def test_state_that_cannot_or_need_not_be_shared_is_not(name: str, found: Any) -> None:
    for of_one in found[name]:
        assert len(of_one["shared"]) > 10
        assert not any(of_one["shared"])


@pytest.mark.parametrize("name", [*SHARED, *OTHERS])
def test_sharing_changes_no_bit(name: str, found: Any) -> None:
    for of_one in found[name]:
        assert_bits(found["apart"][0], of_one)


def test_what_is_learnt_is_what_one_process_learns(found: Any, tmp_path: Path) -> None:
    for name, alone in (("shared", posted.apart(tmp_path)), ("hooked", posted.hooked_apart(tmp_path))):
        first, second = found[name]
        assert_bits(first, second)
        assert_close(plain(alone["history"]), plain(first["history"]), name)
        assert_close(alone["weights"], first["weights"], name)


def test_steps_of_another_kind_have_state_of_their_own(found: Any) -> None:
    """And it is shared again after them."""
    for of_one in found["hooked"]:
        assert len(of_one["shared"]) < len(found["shared"][0]["shared"])
        assert all(of_one["shared"])


def test_a_rule_without_tables_needs_no_sharing(found: Any) -> None:
    first, second = found["with_numbers_alone"]
    assert not any(first["shared"])
    assert_bits(first, second)


def test_a_resumed_run_is_the_same_to_the_bit(found: Any) -> None:
    for of_one in found["stopped_then_resumed"]:
        whole, resumed = of_one["windows"]["whole"], of_one["windows"]["resumed"]
        assert_bits(whole, resumed)


def test_after_a_run_every_process_has_state_of_its_own(found: Any) -> None:
    for rank, of_one in enumerate(found["own_afterwards"]):
        torch.testing.assert_close(of_one["added"], torch.full_like(of_one["added"], rank + 1.0))


def test_three_processes_share_too(tmp_path: Path) -> None:
    of_three = run_together("posted", ["shared", "apart", "in_parts"], tmp_path, count=3)
    first = of_three["apart"][0]
    for of_name in of_three.values():
        for of_one in of_name:
            assert "error" not in of_one, of_one
            assert_bits(first, of_one)

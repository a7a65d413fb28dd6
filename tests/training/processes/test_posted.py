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

SHARED = ["shared", "in_parts"]
OTHERS = ["refused", "small"]
NAMES = [
    *SHARED,
    *OTHERS,
    "apart",
    "with_numbers_alone",
    "stopped_then_resumed",
    "own_afterwards",
    "disturbed",
]
MOST_CALLS = 340  # of this package's functions in a step
NAMES += ["given_back", "in_turns", "host_work"]


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


def test_a_step_enters_few_functions(found: Any) -> None:
    """Right after a kernel, each takes several times as long as elsewhere."""
    for of_one in found["host_work"]:
        assert of_one["shared"][-1]
        assert of_one["calls"] <= MOST_CALLS, of_one["calls"]


def test_what_is_learnt_is_what_one_process_learns(found: Any, tmp_path: Path) -> None:
    hooked = [of_one["hooked"]["shared"] for of_one in found["disturbed"]]
    for of_two, alone in (
        (found["shared"], posted.apart(tmp_path)),
        (hooked, posted.hooked_alone(tmp_path)),
    ):
        first, second = of_two
        assert_bits(first, second)
        assert_close(plain(alone["history"]), plain(first["history"]))
        assert_close(alone["weights"], first["weights"])


@pytest.mark.parametrize("name", posted.DISTURBED)
def test_whatever_a_callback_does_sharing_changes_no_bit(name: str, found: Any) -> None:
    apart = found["disturbed"][0][name]["apart"]
    for of_one in found["disturbed"]:
        assert_bits(apart, of_one[name]["shared"])
        assert any(of_one[name]["shared"]["shared"])


@pytest.mark.parametrize("name", ["hooked", "hooked_in_one"])
def test_steps_of_another_kind_have_state_of_their_own(name: str, found: Any) -> None:
    """And it is shared again after them."""
    for of_one in found["disturbed"]:
        steps = of_one[name]["shared"]["shared"]
        assert len(steps) < len(found["shared"][0]["shared"])
        assert all(steps)


def test_the_memory_is_given_back(found: Any) -> None:
    for of_one in found["given_back"]:
        # For messages; and for moments, but where a hook has to be called.
        assert set(of_one["mapped"]) == {1, 2}
        assert of_one["mapped"][-1] == 2
        assert of_one["left"] == 0


def test_two_runs_at_once_do_not_disturb_each_other(found: Any) -> None:
    for of_one in found["in_turns"]:
        assert all(of_one["shared"])
        for both, alone in zip(of_one["both"], found["in_turns"][0]["alone"], strict=True):
            assert_bits(alone, both)


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


def test_the_phase_says_what_it_did_without(found: Any) -> None:
    def passed_over(of_one: Any) -> Any:
        return of_one["history"]["phases"][0]["passed_over"]

    moments, message = "one copy of the table's moments", "one message a step"
    for rank in range(2):
        assert not {moments, message} & passed_over(found["shared"][rank]).keys()
        assert passed_over(found["small"][rank])[moments] == "the table has less than 32 MB"
        assert "cannot share" in passed_over(found["refused"][rank])[moments]
        assert (
            passed_over(found["with_numbers_alone"][rank])[moments]
            == "RowwiseAdagrad keeps no table of moments"
        )
    of_first, of_second = (passed_over(of_one["hooked_in_one"]["shared"]) for of_one in found["disturbed"])
    assert of_first[message] == "process 1 of 2 cannot"
    assert of_second["gradients in one kernel call"] == "in some steps: a module has hooks"

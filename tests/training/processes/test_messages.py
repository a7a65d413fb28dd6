"""Processes of one machine exchange by a board what they would exchange by gloo."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mt2st_fast.training.processes import board
from mt2st_fast.training.processes.memory import new_memory, opened, where_is
from tests.training.processes.test_together import assert_bits
from tests.training.processes.together import ROOT, run_together

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="memory without a name is Linux's"
)

WAYS = ["on_a_board", "by_gloo", "without_permission"]
RUNS = ["windows_by_gloo", "windows_in_parts"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    return run_together(
        "messages", [*WAYS, *RUNS, "of_another_length", "memory"], tmp_path_factory.mktemp("messages")
    )


def test_all_receive_what_gloo_would_bring(found: Any) -> None:
    expected = found["by_gloo"][0]
    assert "error" not in expected, expected
    for way in WAYS:
        for received in found[way]:
            assert received.keys() == expected.keys(), received
            for name, value in expected.items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(received[name], value), (way, name)
                else:
                    assert received[name] == value, (way, name)


def test_three_receive_it_too(tmp_path: Path) -> None:
    of_three = run_together("messages", ["on_a_board", "by_gloo"], tmp_path, count=3)
    first = of_three["on_a_board"][0]
    for received in of_three["on_a_board"]:
        for name, value in of_three["by_gloo"][0].items():
            if not isinstance(value, torch.Tensor):
                assert received[name] == value, name
                continue
            assert torch.equal(received[name], first[name]), name  # the same bits in all
            torch.testing.assert_close(received[name], value, msg=name)  # gloo adds in another order


def test_a_run_learns_the_same_by_either(found: Any) -> None:
    by_gloo, in_parts = (found[name] for name in RUNS)
    for run in (*by_gloo, *in_parts):
        assert "error" not in run, run
        assert_bits(by_gloo[0], run)


def test_messages_that_do_not_fit_together_are_reported(found: Any) -> None:
    for rank, of_one in enumerate(found["of_another_length"]):
        own = 4 + 4 * rank
        assert of_one["said"].startswith("the processes exchange messages of [4, 8] bytes in ")
        assert of_one["said"].endswith(f", not of [{own}, {own}]: let all do the same in it")


def test_the_memory_is_in_no_folder(found: Any) -> None:
    """So nothing is left of it, however the processes end."""
    for of_one in found["memory"]:
        assert of_one["file"] == "/memfd:mt2st_fast (deleted)"


SECOND = """
import json, sys, time
from mt2st_fast.training.processes import board, memory
found = board.Board(memory.opened(json.loads(sys.argv[1]), board.size_of(2)), 1, 2)
print("there", flush=True)
time.sleep(1000)
"""


def test_whoever_waits_for_a_killed_process_learns_of_it() -> None:
    """Also while nobody has waited for its end yet, as the system then still knows its number."""
    memory = new_memory(board.size_of(2))
    assert memory is not None
    first = board.Board(memory, 0, 2)
    told = json.dumps(where_is(memory))
    with subprocess.Popen([sys.executable, "-c", SECOND, told], cwd=ROOT, stdout=subprocess.PIPE) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == b"there\n"
        assert not first._is_dead(1)
        second.kill()
        began = time.monotonic()
        with pytest.raises(RuntimeError, match="process 1 has closed its memory"):
            first.barrier(lambda: None)
        assert time.monotonic() - began < 5
    first.close()


def test_memory_of_another_machine_or_another_run_is_not_opened() -> None:
    memory = new_memory(board.size_of(2))
    assert memory is not None
    told = where_is(memory)
    for other in ({"machine": "another"}, {"token": "00"}, {"file": 1_000_000}, {"process": 0}):
        assert opened(told | other, board.size_of(2)) is None
    assert opened(told, board.size_of(3)) is None

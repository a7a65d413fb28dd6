"""Processes that hold one copy of a table's moments: whatever their number and threads, and when one is killed."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.training.processes import shared_moments
from tests.training.processes.shared_moments import POINTS, TRAP
from tests.training.processes.test_lost import ends_with
from tests.training.processes.test_together import assert_bits, assert_close, plain
from tests.training.processes.together import run_together, scenarios, started, wait_for

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="memory without a name is Linux's"
)

SECONDS = 60.0  # within which the others end
KILLS = 20


def _assert_as_one(of_all: list[Any], alone: Any) -> None:
    """The same bits in all processes, and what one process learns, within the tolerance of `assert_close`."""
    for of_one in of_all:
        assert "error" not in of_one, of_one
        assert_bits(of_all[0], of_one)
    assert_close(plain(alone["history"]), plain(of_all[0]["history"]))
    assert_close(alone["weights"], of_all[0]["weights"])
    assert [phase["active"] for phase in of_all[0]["history"]["phases"]] == [("main", "aux"), ("main",)]


def test_four_processes_learn_what_one_learns(tmp_path: Path) -> None:
    names = ["small", "singles_beside_doubles", "doubles"]
    for name, found in run_together("shared_moments", names, tmp_path, count=4).items():
        _assert_as_one(found, getattr(shared_moments, name)(tmp_path))
        for of_one in found:  # float64 goes without kernels
            assert of_one["shared"] == ([] if name == "doubles" else [True] * 20)


@pytest.mark.long
def test_so_do_processes_of_different_threads_with_a_large_table(tmp_path: Path) -> None:
    names = ["large", "with_other_threads"]
    found = run_together("shared_moments", names, tmp_path, count=4)
    alone = shared_moments.large(tmp_path)
    for name in names:
        _assert_as_one(found[name], alone)
        assert_bits(found["large"][0], found[name][0])
        assert all(all(of_one["shared"]) and of_one["shared"] for of_one in found[name])


@pytest.mark.long
def test_a_run_goes_on_with_any_other_number_of_processes(tmp_path: Path) -> None:
    whole = shared_moments.small(tmp_path)
    shared_moments.left_for_others(tmp_path)
    for count in (2, 4):
        run_together("shared_moments", ["left_for_others"], tmp_path, count)
    for count in (1, 2, 3, 4):
        folder = tmp_path / str(count)
        folder.mkdir()
        for path in tmp_path.glob("of-*.safetensors"):
            (folder / path.name).write_bytes(path.read_bytes())
        if count == 1:
            of_all = [shared_moments.taken_over(folder)]
        else:
            of_all = run_together("shared_moments", ["taken_over"], folder, count)["taken_over"]
        for of_one in of_all:
            assert of_one.keys() == {"of-1", "of-2", "of-4"}
            for name, found in of_one.items():
                assert_bits(of_all[0][name], found)
                assert_close(whole["weights"], found["weights"], name)


def _lose(scenario: str, lost: int, folder: Path, *, after: float | None = None) -> float:
    """Run it until a process is killed, by itself or after so many seconds; return in what time the other has ended."""
    with started(scenarios("shared_moments", [scenario], folder)) as processes:
        if after is not None:
            for rank in range(2):
                wait_for(folder / f"going-{rank}", *processes)
            time.sleep(after)
            processes[lost].kill()
        processes[lost].wait()
        begun = time.monotonic()
        assert processes[lost].returncode == -9, processes[lost].communicate()[0]
        said = ends_with(processes[1 - lost])
        # The other line is that of a process that has reached a call that needs both.
        assert f"process {lost} of 2 is lost" in said or f"process {lost} has left without it" in said
        ended = time.monotonic() - begun
    for file in folder.glob("going-*"):
        file.unlink()
    return ended


def _assert_ends_as_ever(scenario: str, folder: Path, undisturbed: list[Any]) -> None:
    for one, other in zip(
        undisturbed, run_together("shared_moments", [scenario], folder)[scenario], strict=True
    ):
        assert "error" not in other, other
        assert_bits(one, other)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_together("shared_moments", ["trapped"], tmp_path_factory.mktemp("undisturbed"))["trapped"]


@pytest.mark.parametrize(
    ("lost", "point"),
    [
        pytest.param(lost, point, marks=[] if (lost, point) == (1, "moved") else pytest.mark.long)
        for point in POINTS
        for lost in (0, 1)
    ],
)
def test_killed_within_a_step_a_run_ends_as_if_nothing_had_happened(
    lost: int, point: str, tmp_path: Path, undisturbed: list[Any]
) -> None:
    (tmp_path / TRAP).write_text(json.dumps([lost, point]))
    assert _lose("trapped", lost, tmp_path) < SECONDS
    (tmp_path / TRAP).unlink()
    assert (tmp_path / "last.safetensors").exists() == (point != "sharing")
    _assert_ends_as_ever("trapped", tmp_path, undisturbed)


@pytest.mark.long
def test_killed_at_any_moments_a_run_with_a_large_table_does_too(tmp_path: Path) -> None:
    chance, seconds = random.Random(11), []
    (tmp_path / "undisturbed").mkdir()
    undisturbed = run_together("shared_moments", ["fast"], tmp_path / "undisturbed")["fast"]
    for _ in range(KILLS):
        seconds.append(_lose("fast", chance.randrange(2), tmp_path, after=chance.uniform(0.0, 0.6)))
    print(f"the other ended after {min(seconds):.1f} to {max(seconds):.1f} seconds")
    assert max(seconds) < SECONDS
    _assert_ends_as_ever("fast", tmp_path, undisturbed)

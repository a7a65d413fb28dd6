"""A process that is gone ends the others, in time, with a line that names it."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.training.processes.together import run_together, scenarios, started, wait_for

IN_TIME = 120.0  # a third of that alone; torch's collectives wait for half an hour


def wait_for_all(processes: list[subprocess.Popen[str]], folder: Path) -> None:
    """Until every process has made some steps."""
    for rank in range(len(processes)):
        wait_for(folder / f"going-{rank}", *processes)


def ends_with(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=IN_TIME)
    assert process.returncode not in (0, -signal.SIGKILL)
    return text


@pytest.mark.parametrize("scenario", ["endless", "endless_sharded"])
@pytest.mark.parametrize(("lost", "left"), [(1, 0), pytest.param(0, 1, marks=pytest.mark.long)])
def test_a_killed_process_ends_the_other(lost: int, left: int, scenario: str, tmp_path: Path) -> None:
    with started(scenarios("losses_of_one", [scenario], tmp_path)) as processes:
        wait_for_all(processes, tmp_path)
        processes[lost].kill()
        assert f"LostProcessError: process {lost} of 2 is lost" in ends_with(processes[left])


def test_a_process_that_fails_ends_the_other_with_its_own_line(tmp_path: Path) -> None:
    with started(scenarios("losses_of_one", ["failing"], tmp_path)) as processes:
        assert "LostProcessError: process 1 of 2 stopped: the disk is full" in ends_with(processes[0])
        assert "ended: RuntimeError: the disk is full" in ends_with(processes[1])


@pytest.mark.long
@pytest.mark.parametrize(("stopped", "others"), [(2, (0, 1)), (0, (1, 2))])
def test_a_process_that_hangs_ends_the_others(stopped: int, others: tuple[int, ...], tmp_path: Path) -> None:
    """Nothing breaks then: only the watch can see it, and end a process that waits in a collective."""
    with started(scenarios("losses_of_one", ["endless"], tmp_path), count=3) as processes:
        wait_for_all(processes, tmp_path)
        processes[stopped].send_signal(signal.SIGSTOP)
        for rank in others:
            assert f"process {stopped} of 3 is lost" in ends_with(processes[rank])


@pytest.mark.long
@pytest.mark.parametrize("scenario", ["slow", "slow_divided"])
def test_killed_again_and_again_a_run_ends_as_if_nothing_had_happened(scenario: str, tmp_path: Path) -> None:
    chance = random.Random(7)
    (tmp_path / "undisturbed").mkdir()
    undisturbed = run_together("losses_of_one", [scenario], tmp_path / "undisturbed")[scenario]
    for _ in range(4):
        with started(scenarios("losses_of_one", [scenario], tmp_path)) as processes:
            lost = chance.randrange(2)
            wait_for(tmp_path / f"going-{lost}", *processes)
            time.sleep(chance.uniform(0.0, 0.8))
            processes[lost].kill()
            assert f"process {lost} of 2 is lost" in ends_with(processes[1 - lost])
        for file in tmp_path.glob("going-*"):
            file.unlink()
    assert (tmp_path / "slow.safetensors").exists()
    resumed = run_together("losses_of_one", [scenario], tmp_path)[scenario]
    for one, other in zip(undisturbed, resumed, strict=True):
        assert "error" not in other, other
        for name, weight in one["weights"].items():
            assert torch.equal(weight, other["weights"][name]), name

"""`torchrun -m mt2st_fast train`: what one process gives, by two; one writes and speaks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import QUICK, run
from tests.training.processes.together import SECONDS, all_said, started, wait_for

TRAIN = ["-m", "mt2st_fast", "train"]
# What dropout leaves out is another thing in every process.
EXACT = [*QUICK, "--epochs", "2", "--dropout", "0"]


def history(folder: Path) -> list[dict[str, Any]]:
    left_out = ("train_seconds", "step_ms", "engine", "passed_over", "graph")
    lines = (folder / "history.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in left_out} for line in lines]


def close(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return other == pytest.approx(one, rel=1e-4, abs=1e-5) if isinstance(one, float) else one == other


def test_two_processes_train_what_one_trains(treebank: str, tmp_path: Path) -> None:
    flags = ["--data", treebank, *EXACT]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *TRAIN]
    found = subprocess.run(
        [*launch, *flags, "--out", str(tmp_path / "two")], capture_output=True, text=True, timeout=SECONDS
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("Written to") == 1
    run("train", *flags, "--out", str(tmp_path / "one"))
    assert close(history(tmp_path / "one"), history(tmp_path / "two"))
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    assert close(one["main"], two["main"])
    assert {phase["engine"] for phase in two["phases"]} == {"gradients in one kernel call"}
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        path.name for path in (tmp_path / "two").iterdir()
    }
    # One process goes on where two have stopped.
    run("train", "--resume", "--epochs", "3", "--out", str(tmp_path / "two"))
    assert json.loads((tmp_path / "two" / "report.json").read_text())["steps"] == one["steps"] // 2 * 3


@pytest.mark.long
def test_a_killed_process_ends_the_other_in_one_line(treebank: str, tmp_path: Path) -> None:
    flags = [*TRAIN, "--data", treebank, *QUICK, "--out", str(tmp_path), "--epochs"]
    with started([*flags, "100000"]) as (first, second):
        wait_for(tmp_path / "checkpoint/last.safetensors", first, second)
        second.kill()
        text, _ = first.communicate(timeout=120)
        assert first.returncode == 2
        last = text.splitlines()[-1]
        assert last.startswith("mt2st-fast: process 1 of 2 is lost: it stopped responding; restart all")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["compare"],
            "mt2st-fast: compare runs in one process, but 2 were started; run it without torchrun",
        ),
        (["train", "--lr", "x"], "mt2st-fast: Invalid value for '--lr'"),
        (["train", "--data", "conllu:nowhere"], "mt2st-fast: nowhere: there is no such file"),
    ],
)
def test_what_is_wrong_in_both_is_said_once(arguments: list[str], line: str, tmp_path: Path) -> None:
    with started(["-m", "mt2st_fast", *arguments, "--out", str(tmp_path)]) as processes:
        first, second = all_said(processes)
        assert [process.returncode for process in processes] == [2, 2]
    assert line in first
    assert len(first.splitlines()) == 1
    assert second == ""

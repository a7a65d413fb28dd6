"""A run that is killed (SIGKILL: no handler runs) goes on from its last checkpoint, to the end it would have had."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mt2st_fast.errors import InputError
from mt2st_fast.files import write_atomically
from mt2st_fast.model_folder import read_model, write_model
from tests.cli.running import QUICK, make_treebank

ROOT = Path(__file__).resolve().parents[2]


def train_killed(out: Path, kills: int, seed: int = 0) -> dict[str, int]:
    """By a process of its own, which forks: this one may have threads."""
    fresh = ["--data", make_treebank(out.parent), *QUICK, "--epochs", "300", "--against", "none"]
    command = [sys.executable, "-m", "tests.cli.killed_run", str(out), str(kills), str(seed), *fresh]
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | threads, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def without_seconds(value):
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if "second" not in k and k != "step_ms"}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


def lines(path: Path) -> list:
    return [without_seconds(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kills", [4, pytest.param(200, marks=pytest.mark.long)])
def test_runs_killed_again_and_again_end_with_the_same_bits(kills: int, tmp_path: Path) -> None:
    straight = tmp_path / "straight"
    train_killed(straight, 0)
    in_all = {"before": 0, "after": 0}
    for attempt in itertools.count():
        out = tmp_path / f"out-{attempt}"
        killed = train_killed(out, kills - sum(in_all.values()), seed=attempt)
        in_all = {when: number + killed[when] for when, number in in_all.items()}
        for name in ("checkpoint/last.safetensors", "model/tensors.safetensors"):
            ours, theirs = load_file(out / name), load_file(straight / name)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
        assert lines(out / "history.jsonl") == lines(straight / "history.jsonl")
        # Nothing half-written, and nothing that only a killed process leaves.
        files = [sorted(p.relative_to(folder) for p in folder.rglob("*")) for folder in (out, straight)]
        assert files[0] == files[1]
        if sum(in_all.values()) == kills:
            break
    assert in_all["after"] >= kills // 8, in_all


@pytest.fixture
def gone() -> int:
    """The number of a process that is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_what_a_killed_writer_left_is_swept_up_by_the_next(gone: int, tmp_path: Path) -> None:
    path = tmp_path / "a[1].bin"
    left, of_a_living = path.with_name(f".a[1].bin.{gone}"), path.with_name(".a[1].bin.1")
    others = [path.with_name(".a[1].bin.x"), path.with_name(f".a.bin.{gone}")]
    for file in (left, of_a_living, *others):
        file.mkdir()
        (file / "half").write_bytes(b"half")
    write_atomically(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert sorted(tmp_path.iterdir()) == sorted([path, of_a_living, *others])


def test_a_model_that_a_killed_writer_had_put_aside_is_put_back(gone: int, tmp_path: Path) -> None:
    """Killed between the two renames that replace a model by another: the next writer finds the first one."""
    folder = tmp_path / "model"
    write_model(folder, "kind", {"n": 1}, {"w": torch.ones(2)})
    folder.rename(tmp_path / f".model.{gone}.old")
    (tmp_path / f".model.{gone}").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_model(folder, "kind", {"n": 2}, {"w": NoTensor()})
    assert read_model(folder)[1] == {"n": 1}
    assert list(tmp_path.iterdir()) == [folder]


class NoTensor:
    """Cannot be written, as on a disk that is full."""

    def detach(self):
        raise OSError(28, "No space left on device")

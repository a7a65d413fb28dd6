"""Data for the commands."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mt2st_fast.cli import main
from tests.cli.running import make_treebank, run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For small steps of plain torch: its threads wait for each other, beside busy processes for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def treebank(tmp_path: Path) -> str:
    """A small CoNLL-U file whose tags follow from the words; beside it, tiny.vec has one vector of three numbers."""
    (tmp_path / "tiny.vec").write_text("dog 1 2 3\n", encoding="utf-8")
    return make_treebank(tmp_path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What a command is asked to do by some arguments, or how it refuses them; nothing is trained."""
    monkeypatch.chdir(tmp_path)
    seen: list[Any] = []
    monkeypatch.setattr(
        importlib.import_module("mt2st_fast.cli.train"),
        "_train",
        lambda config, output, folder, writes: seen.append((config, output)),
    )
    monkeypatch.setattr(
        importlib.import_module("mt2st_fast.cli.compare"),
        "_compare",
        lambda progress, folder, output, stopping: seen.append(
            (progress.config, output, progress.comparison, progress.fixed)
        ),
    )

    def of(*arguments: str) -> Any:
        seen.clear()
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        return seen[0] if stop.value.code == 0 else capsys.readouterr().err

    return of


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command that succeeds answers to a text that is piped into it; it says nothing else."""

    def of(given: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        capsys.readouterr()
        run(*arguments)
        said = capsys.readouterr()
        assert said.err == ""
        return said.out

    return of

"""Data for the commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cli.running import make_treebank


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

"""A folder of text as `prepare` may find one, and blocks so small that borders fall everywhere."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from mt2st_fast.data import preparation
from mt2st_fast.data.text import word_files
from tests.data.token_files import some_text


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 300 bytes: borders fall into words, lines and files of a few kilobytes."""
    monkeypatch.setattr(preparation, "BLOCK_BYTES", 300)
    monkeypatch.setattr(word_files, "BLOCK_BYTES", 300)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder: a plain file without a line feed at its end, a packed one in a folder, a hidden and an empty one."""
    folder = tmp_path / "corpus"
    (folder / "deeper").mkdir(parents=True)
    (folder / "b.txt").write_bytes(
        "\ufefffirst line\n".encode() + some_text(200).encode() + b"the last words"
    )
    (folder / "deeper" / "c.txt.gz").write_bytes(gzip.compress(some_text(150, seed=1).encode()))
    (folder / "a.txt").write_bytes(b"")
    (folder / ".hidden").write_bytes(b"hidden hidden hidden hidden")
    return folder

"""Data are the same whatever way leads to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mt2st_fast.data.readers.same_data import is_training_file_of, located, same_data


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "train.csv").touch()
    (tmp_path / "f" / "read.me").touch()
    (tmp_path / "other.csv").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_spelling_of_a_path_is_the_same_data(folder: Path) -> None:
    os.symlink("f", "link")
    os.symlink("f/train.csv", "train.lnk")
    for spelled in (
        "f/train.csv",
        "./f/../f/train.csv",
        "link/train.csv",
        "train.lnk",
        folder / "f/train.csv",
    ):
        assert same_data("csv:f/train.csv", f"csv:{spelled}"), spelled
        assert same_data(f"csv:{spelled}", "csv:f"), "the only file of a folder"
    for other in ("csv:other.csv", "csv:gone.csv", "jsonl:f/train.csv", "csv:", "csv", "csv:."):
        assert not same_data("csv:f/train.csv", other), other
    assert same_data("csv:gone/../gone.csv", "csv:gone.csv")
    assert same_data("stdlib", "stdlib")
    Path("f/test.csv").touch()
    assert not same_data("csv:f/train.csv", "csv:f")


def test_a_place_is_the_same_from_any_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = located("csv:f/train.csv")
    monkeypatch.chdir("f")
    assert same_data(kept, "csv:train.csv")
    assert located("stdlib") == "stdlib"


def test_training_text_of_a_folder(folder: Path) -> None:
    Path("f/test.csv").touch()
    assert is_training_file_of("csv:f/train.csv", f"csv:{folder}/f/")
    assert not is_training_file_of("csv:f/test.csv", "csv:f")
    assert not is_training_file_of("csv:f/train.csv", "csv:.")
    assert not is_training_file_of("csv:f", "csv:.")

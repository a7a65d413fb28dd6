"""One run at a time writes to a folder."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mt2st_fast.errors import InputError
from mt2st_fast.folder_lock import check_can_write, holding

HOLD = """
import sys, time
from pathlib import Path
from mt2st_fast.folder_lock import check_can_write, holding
with holding(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_refused_in_one_line(tmp_path):
    with (
        holding(tmp_path),
        pytest.raises(InputError, match="another run is writing") as refused,
        holding(tmp_path),
    ):
        pass
    assert "\n" not in str(refused.value)


def test_a_folder_can_be_held_again(tmp_path):
    for _ in range(2):
        with holding(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


def test_a_lock_dies_with_its_process(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError), holding(tmp_path):
            pass
        other.kill()
    with holding(tmp_path):
        pass


def test_a_folder_that_stays_empty_goes_with_those_made_for_it(tmp_path):
    with pytest.raises(InputError), holding(tmp_path / "a" / "b"):
        raise InputError("refused")
    assert not list(tmp_path.iterdir())
    with holding(tmp_path / "a" / "b"):
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


def test_a_folder_that_another_removes_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    opened, gone = os.open, []

    def then_removed(path, *flags):
        descriptor = opened(path, *flags)
        if not gone:
            gone.append(os.rmdir(path))
        return descriptor

    monkeypatch.setattr(os, "open", then_removed)
    folder = tmp_path / "out"
    with holding(folder):
        assert folder.is_dir()
        with pytest.raises(InputError, match="another run is writing"), holding(folder):
            pass
    assert gone


def test_where_nothing_can_be_written_is_found_without_making_anything(tmp_path):
    check_can_write(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for folder in ("file/a", "link/a", "n" * 300):
        with pytest.raises(OSError, match=r"Not a directory|No such file|too long"):
            check_can_write(tmp_path / folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]

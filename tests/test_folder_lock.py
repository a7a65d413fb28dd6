"""One run at a time writes to a folder."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mt2st_fast.errors import InputError
from mt2st_fast.folder_lock import holding

HOLD = """
import sys, time
from pathlib import Path
from mt2st_fast.folder_lock import holding
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

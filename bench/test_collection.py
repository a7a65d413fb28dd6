"""Which benchmarks a run of pytest selects: real sizes if timing is requested, tiny ones otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench.environment import ROOT


def collected(*options: str) -> str:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "bench/test_heads.py",
        "bench/test_step.py",
        "--collect-only",
        "-q",
    ]
    # A worker of pytest-xdist, which its environment variables identify, runs no benchmarks.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [*command, *options], cwd=ROOT, env=alone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("options", "taken", "left_out"),
    [(["--benchmark-only"], "test_real_heads", "tiny"), ([], "test_tiny_heads", "test_real_heads")],
    ids=["timed", "tried"],
)
def test_sizes(options, taken, left_out):
    shown = collected(*options)
    assert taken in shown
    assert left_out not in shown

"""Commands in an environment that keeps Numba from compiling: one line says so, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--data", "csv:table.csv", "--out", "out"],
        ["compare", "--data", "csv:table.csv", "--out", "out", "--backend", "reference"],
        ["prepare", "table.csv", "--out", "out", "--min-count", "1"],
    ],
)
def test_a_command_that_needs_compiled_kernels_is_refused_in_one_line(
    command: list[str], tmp_path: Path
) -> None:
    (tmp_path / "table.csv").write_text("text,tone\n" + "good,yes\nbad,no\n" * 20)
    words = [sys.executable, "-c", "from mt2st_fast.cli import main; main()", *command]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("mt2st-fast: NUMBA_DISABLE_JIT is set, and ")
    assert done.stderr.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["table.csv"]

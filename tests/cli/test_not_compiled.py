"""Commands in an environment that keeps Numba from compiling: one line says so, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMANDS = [
    ["train", "--data", "csv:table.csv", "--out", "out"],
    ["compare", "--data", "csv:table.csv", "--out", "out", "--backend", "reference"],
    ["prepare", "table.csv", "--out", "out", "--min-count", "1"],
]
PROGRAM = f"""
from mt2st_fast.cli import main
for command in {COMMANDS}:
    try:
        main(command)
    except SystemExit as left:
        print(command[0], left.code)
"""


def test_commands_that_need_compiled_kernels_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("text,tone\n" + "good,yes\nbad,no\n" * 20)
    words = [sys.executable, "-c", PROGRAM]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"{command[0]} 2" for command in COMMANDS]
    said = done.stderr.splitlines()
    assert len(said) == len(COMMANDS)
    assert all(line.startswith("mt2st-fast: NUMBA_DISABLE_JIT is set, and ") for line in said)
    assert [each.name for each in tmp_path.iterdir()] == ["table.csv"]

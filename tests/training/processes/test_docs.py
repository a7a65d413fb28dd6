"""The program of docs/processes.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.training.processes.together import ROOT, all_said, started

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "processes.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.long
@pytest.mark.parametrize("block", BLOCKS)
def test_the_program_trains_one_model(block: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(block, encoding="utf-8")
    with started([str(tmp_path / "program.py")]) as processes:
        texts = all_said(processes)
        assert [process.returncode for process in processes] == [0, 0], texts
    losses = re.fullmatch(r"\{'topic': (\d\.\d+)\}\n", texts[0])
    assert losses is not None, texts[0]
    assert float(losses[1]) < 0.6  # it was above log 2 at first
    assert texts[1] == ""

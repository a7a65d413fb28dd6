"""The programs of docs/processes.md run as they stand there; later ones use names of the first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.training.processes.together import ROOT, all_said, started

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "processes.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.long
def test_the_program_trains_one_model(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(BLOCKS[0], encoding="utf-8")
    with started([str(tmp_path / "program.py")]) as processes:
        texts = all_said(processes)
        assert [process.returncode for process in processes] == [0, 0], texts
    losses = re.fullmatch(r"\{'topic': (\d\.\d+)\}\n", texts[0])
    assert losses is not None, texts[0]
    assert float(losses[1]) < 0.6  # it was above log 2 at first
    assert texts[1] == ""


@pytest.mark.long
@pytest.mark.parametrize("block", BLOCKS[1:])
def test_the_later_programs_run(block: str, tmp_path: Path) -> None:
    """Each in processes of its own: torch cannot be relied on to connect the same ones twice."""
    names = BLOCKS[0].split("heads = ")[0].replace('dist.init_process_group("gloo")\n', "")
    (tmp_path / "program.py").write_text(names + block, encoding="utf-8")
    with started([str(tmp_path / "program.py")]) as processes:
        texts = all_said(processes)
        assert [process.returncode for process in processes] == [0, 0], texts

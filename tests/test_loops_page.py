"""docs/loops.md: every block of it runs, where the library that it is about is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "loops.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_blocks_are_found():
    assert len(BLOCKS) == PAGE.count("```") // 2 == 7


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_runs(block):
    for library in set(
        re.findall(r"^(?:from|import) (torchjd|sklearn|datasets|accelerate|skorch)", block, re.MULTILINE)
    ):
        pytest.importorskip(library)
    exec(compile(block, "docs/loops.md", "exec"), {"__name__": "block"})


def test_the_files_that_it_names_are_there():
    for name in set(re.findall(r"`(examples/\w+\.py)`", PAGE)):
        assert (Path(__file__).parents[1] / name).is_file(), name

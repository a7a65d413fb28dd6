"""Sizes of the programs that make losses on a GPU, where the compiler's own choice would spill registers."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind
from mt2st_fast.kernels.heads.on_triton import row_blocks, wide_rows
from mt2st_fast.kernels.heads.on_triton.sample_heads import heads_of
from mt2st_fast.kernels.heads.on_triton.tile_blocks import ALL_REGISTERS, forward_blocks

CLASSES = HeadLayout((HeadSpec(Kind.SOFTMAX, 5),) * 3)


@pytest.mark.parametrize("what", ["several", "many"])
@pytest.mark.parametrize(("family", "rows"), [("ampere", 32), ("hopper", 64), ("blackwell", 32)])
def test_a_tile_of_float32_is_lower_where_many_heads_would_spill(what, family, rows):
    layout = HeadLayout(heads_of((), what))
    blocks = forward_blocks(8192, 768, 4, layout, family)
    assert blocks.rows == rows
    assert blocks.options.get("maxnreg") == (ALL_REGISTERS if rows == 32 else None)
    assert forward_blocks(8192, 768, 2, layout, family).rows == (32 if family == "blackwell" else 64)


def test_few_heads_have_the_tile_that_was_measured():
    for family in ("ampere", "hopper"):
        assert forward_blocks(8192, 768, 4, CLASSES, family) == (64, 32, 4, 3, None)


@pytest.mark.parametrize(("family", "limit"), [("ampere", 80), ("hopper", 80), ("blackwell", 200)])
def test_a_limit_of_registers_is_for_gpus_that_do_not_spill_with_it(family, limit):
    assert row_blocks.CHOICES[row_blocks.DEFAULT].options(CLASSES, family)["maxnreg"] == limit
    beside_wide = row_blocks.BESIDE_WIDE.options(CLASSES, family)["maxnreg"]
    assert beside_wide == (96 if family == "hopper" else 200)


@pytest.mark.parametrize(("family", "columns"), [("ampere", 8192), ("hopper", 8192), ("blackwell", 4096)])
def test_a_vocabulary_takes_as_many_lanes_as_fit(family, columns):
    assert wide_rows.choose_blocks(151_936, 2, False, True, False, family).columns == columns
    assert wide_rows.choose_blocks(1000, 2, False, True, False, family).registers == (
        128 if family == "blackwell" else 64
    )

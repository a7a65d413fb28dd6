"""Sizes of blocks of the kernels of bags: columns, rows and positions of a program, and its warps."""

from __future__ import annotations

from typing import NamedTuple

import triton

from ...machine.launch import launch_options


class Blocks(NamedTuple):
    """Columns of a program, rows that it gathers at a time, and its warps."""

    columns: int
    rows: int
    warps: int

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told. Left alone, ptxas spills a few scalars to win another block of 8 warps."""
        return launch_options(self.warps, LIMITED_REGISTERS if self.warps == 8 else None)

    @property
    def constexprs(self) -> dict[str, int]:
        """The compile-time arguments of a kernel that sums rows."""
        return {"BLOCK_D": self.columns, "ROWS": self.rows}


# Columns of a program that needs not see a whole row: of longer rows, more programs share the work.
SHARED_COLUMNS = 256
# Columns that a program with a whole row holds at a time: 8 warps, as many as hide each other's waiting.
WHOLE_COLUMNS = 1024
# Sorted positions of a piece. A program adds fewer than two pieces itself; the sums of pieces are written and read
# again, 1/128 of what is gathered.
PIECE = 128
# Positions among which the end of a segment is looked for first.
SCAN = 32
POSITIONS = {"BLOCK": 512}
# Positions that our own kernels sort; for more torch.sort is asked. Guessed from counts of operations: a key is
# compared with CHUNK others and then looked for in MOST_RANKED / CHUNK chunks.
MOST_RANKED = 65_536
CHUNK = 1024
RANK_BLOCK = 4  # 8 spill scalar registers on AMD
MERGE_BLOCK = 64
MERGE_CHUNKS = 8
WARPS = 4
LIMITED_REGISTERS = 80  # a thread


def choose_blocks(D: int, most: int) -> Blocks:
    """Blocks of at most `most` columns for rows of D.

    A table, not an autotuner: that needs a driver to choose and stalls inside a graph capture. A thread holds 16 sums,
    4 columns side by side (16 bytes an access in float32) of 4 rows: 4 accesses are under way at once, and twice as
    many would take the registers of half the warps, where most rows and bags are short and would leave them masked.
    Up to 128 columns one warp does it, which never waits for another; narrow rows come more at a time to keep its
    threads busy.
    """
    columns = min(most, max(16, triton.next_power_of_2(D)))
    return Blocks(columns, max(4, min(32, 512 // columns)), max(1, columns // 128))


def rank_blocks() -> dict[str, int]:
    """The compile-time sizes of `rank_kernel`; the block divides the chunk."""
    return {"CHUNK": CHUNK, "BLOCK": RANK_BLOCK}


def merge_blocks() -> dict[str, int]:
    """The compile-time sizes of `merge_kernel`; the block divides the chunk."""
    return {
        "CHUNK": CHUNK, "CHUNK_HALVINGS": CHUNK.bit_length(), "BLOCK": MERGE_BLOCK, "CHUNKS": MERGE_CHUNKS,
    }  # fmt: skip

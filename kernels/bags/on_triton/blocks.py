"""Block sizes of the bag kernels: columns, rows and positions of a program, and its warps."""

from __future__ import annotations

from typing import NamedTuple

import triton

from ...machine.launch import launch_options, roomy_options


class Blocks(NamedTuple):
    """Columns of a program, rows that it gathers at a time, and its warps."""

    columns: int
    rows: int
    warps: int

    @property
    def options(self) -> dict[str, int]:
        """Options for the compiler. Without a limit, ptxas spills a few scalars to fit another block of 8 warps."""
        return launch_options(self.warps, LIMITED_REGISTERS if self.warps == 8 else None)

    def roomy(self, family: str) -> dict[str, int]:
        """`options` of a kernel which Blackwell's compiler would have spill with any number of warps."""
        return roomy_options(self.warps, family) if family == "blackwell" else self.options

    @property
    def constexprs(self) -> dict[str, int]:
        """The compile-time arguments of a kernel that sums rows."""
        return {"BLOCK_D": self.columns, "ROWS": self.rows}


# Columns of a program that need not see a whole row: longer rows are shared among more programs.
SHARED_COLUMNS = 256
# Columns that a program with a whole row holds at a time: 8 warps, enough to hide each other's latency.
WHOLE_COLUMNS = 1024
# Sorted positions of a piece. A program adds fewer than two pieces itself; the sums of pieces are written and read
# again, which is 1/128 of what is gathered.
PIECE = 128
# Number of positions in which the end of a segment is searched first.
SCAN = 32
POSITIONS = {"BLOCK": 512}
# Most positions that our own kernels sort; beyond it, torch.sort does. An estimate from operation counts: a key is
# compared with CHUNK others and then searched for in MOST_RANKED / CHUNK chunks.
MOST_RANKED = 65_536
CHUNK = 1024
RANK_BLOCK = 4  # 8 spill scalar registers on AMD
MERGE_BLOCK = 64
MERGE_CHUNKS = 8
WARPS = 4
LIMITED_REGISTERS = 80  # per thread


def choose_blocks(D: int, most: int) -> Blocks:
    """Blocks of at most `most` columns for rows of D.

    A table, not an autotuner: that needs a driver to choose and stalls inside a graph capture. A thread holds 16 sums,
    4 adjacent columns (16 bytes per access in float32) of 4 rows: 4 accesses are in flight at once. Twice as many would
    take the registers of half the warps, and most rows and bags are short and would leave them masked. For up to 128
    columns one warp is enough, which never waits for another; of narrow rows it takes more at a time to keep its
    threads busy.
    """
    columns = min(most, max(16, triton.next_power_of_2(D)))
    return Blocks(columns, max(4, min(32, 512 // columns)), max(1, columns // 128))


def rank_blocks() -> dict[str, int]:
    """Compile-time sizes of `rank_kernel`; the block divides the chunk."""
    return {"CHUNK": CHUNK, "BLOCK": RANK_BLOCK}


def merge_blocks() -> dict[str, int]:
    """Compile-time sizes of `merge_kernel`; the block divides the chunk."""
    return {
        "CHUNK": CHUNK, "CHUNK_HALVINGS": CHUNK.bit_length(), "BLOCK": MERGE_BLOCK, "CHUNKS": MERGE_CHUNKS,
    }  # fmt: skip

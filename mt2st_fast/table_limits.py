"""Limits of tables of vectors, and the error of one that does not fit into memory: it names sizes, not bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mt2st_fast.errors import InputError

MOST_BUCKETS = 2_000_000_000  # row numbers have 32 bits
MOST_DIM = 2**20  # a vector that is longer is a slip, and fills the memory before anything is said
BYTES = 4  # of a float32


@contextmanager
def naming_table(rows: int, dim: int) -> Iterator[None]:
    """Make a table of vectors in this block. Raises InputError if there is not enough memory for it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # of NumPy, and of torch on any device
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        raise InputError(
            f"a table of {rows:,} vectors of dimension {dim:,} takes {rows * dim * BYTES / 1e9:,.0f} GB, which is more "
            "than there is memory for; choose a smaller dimension, or fewer buckets or words"
        ) from None

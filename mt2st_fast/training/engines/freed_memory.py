"""Memory that a step of torch's operators frees stays with the process, for the next step."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

# What glibc counts as its largest block, with room for its own words and for alignment.
_LARGEST_BLOCK_BYTES = (32 << 20) - (64 << 10)


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Have glibc keep up to 64 MB that are free at the end of its heap; other allocators do as they do.

    A step frees what it has computed all at once. Whatever exceeds a limit then goes back to the system, and the next
    step takes it again, page by page, at a microsecond or two for each. glibc raises that limit by itself, to twice the
    largest block that was ever freed, of at most 32 MB: freeing such a block once is all it takes. Its pages are never
    touched. Where limits are set (MALLOC_TRIM_THRESHOLD_), they stay.
    """
    np.empty(_LARGEST_BLOCK_BYTES, np.uint8)

"""Work on the next block while somebody uses the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Block = TypeVar("Block")
Result = TypeVar("Result")


def computed_ahead(
    compute: Callable[[Block], Result], blocks: Iterable[Block]
) -> Iterator[tuple[Block, Result]]:
    """Every block with compute(block), which a thread of its own makes while the caller has the block before."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        before: tuple[Block, Future[Result]] | None = None
        for block in blocks:
            now = block, pool.submit(compute, block)
            if before is not None:
                yield before[0], before[1].result()
            before = now
        if before is not None:
            yield before[0], before[1].result()

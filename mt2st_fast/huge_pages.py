"""Large tables on pages of 2 MB, where the system has them.

A step reads and writes rows all over a table. On pages of 4 KB, nearly every row is on a page whose address the
processor has to look up; of pages of 2 MB, it remembers those of a whole table. This is advice to the system: numbers
and addresses stay as they are, and a system that does not follow it says nothing.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import Tensor, nn

# Of a tensor; with its moments it is then more than a processor remembers in pages of 4 KB.
LEAST_BYTES = 1 << 22
PAGE = 1 << 21
USE_THEM, COLLAPSE = 14, 25  # Linux's MADV_HUGEPAGE; MADV_COLLAPSE, since 6.1
SETTING = "/sys/kernel/mm/transparent_hugepage/enabled"


def prefer_huge_pages(*tensors: Tensor) -> None:
    """Have large tensors on a CPU lie on huge pages, as far as nothing was written to them yet."""
    _advise(tensors, USE_THEM)


def move_to_huge_pages(*tensors: Tensor) -> None:
    """Have large tensors on a CPU lie on huge pages, also those that hold numbers: takes about a second for a GB."""
    _advise(tensors, USE_THEM, COLLAPSE)


def _advise(tensors: Iterable[Tensor], *advices: int) -> None:
    call = _system_call()
    if call is None:
        return
    for tensor in tensors:
        first, n_bytes = _whole_pages(tensor)
        if n_bytes:
            for advice in advices:
                call(first, n_bytes, advice)


def _whole_pages(tensor: Tensor) -> tuple[int, int]:
    """Return where the huge pages begin that a large tensor fills, and how many bytes they have; 0 for another."""
    # Others, such as a part of a sharded table or a fake tensor, do not lie where their address says.
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.device.type != "cpu":
        return 0, 0
    if tensor.nbytes < LEAST_BYTES or not tensor.is_contiguous():
        return 0, 0
    try:
        begin = tensor.data_ptr()
    except RuntimeError:  # one that stands for another, and has no memory
        return 0, 0
    first = -(-begin // PAGE) * PAGE
    return first, (begin + tensor.nbytes - first) // PAGE * PAGE


@cache
def _system_call() -> Any:
    """Return Linux's madvise(address, bytes, advice); None elsewhere, or where huge pages are turned off."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        with open(SETTING) as file:
            if "[never]" in file.read():
                return None
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise

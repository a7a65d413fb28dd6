"""The OpenMP library whose threads run torch's operators on a CPU, for pieces of kernels between such operators.

Threads of an OpenMP region spin for a while when it is over, to be awake for the next one. A second team of threads
finds its cores taken meanwhile.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch


class OpenMP(NamedTuple):
    """Addresses of two functions of an OpenMP library."""

    region: int  # GOMP_parallel(function, its argument, number of threads, flags)
    thread_number: int  # omp_get_thread_num()


def openmp_of_torch() -> OpenMP | None:
    """Return the library that torch is linked to, or None if its threads cannot be entered from machine code.

    GCC's and LLVM's libraries, and Intel's, have both names on Linux.
    """
    if not torch.backends.openmp.is_available():
        return None
    try:
        # A name is looked up in this library and then in those that it is linked to.
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        return OpenMP(_address(library.GOMP_parallel), _address(library.omp_get_thread_num))
    except (OSError, AttributeError):
        return None


def _address(function: ctypes._FuncPointer) -> int:  # type: ignore[name-defined]
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address

"""Memory that the processes of one machine share. It has no name: it ends with the last of them, however that ends."""

from __future__ import annotations

import mmap
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

PAGE = 4096  # bytes; the first page is for the token, and for whatever the processes need besides
TOKEN = slice(1024, 1040)  # bytes of the first page, by which a process knows the memory that it has opened


class Memory(NamedTuple):
    """An open file without a name, and what it holds."""

    file: int
    content: mmap.mmap


def shared_memory(
    rank: int, n_bytes: int, from_first: Callable[[Any], Any], any_of_all: Callable[[bool], list[bool]]
) -> Memory | None:
    """Make memory for all processes, of which this is number `rank`, in every one of them.

    None, in every one, if they cannot share any: on several machines, in several containers, without permission, or
    where there is too little. n_bytes: with the first page. from_first, any_of_all: as of `Processes`.
    """
    memory = new_memory(n_bytes) if rank == 0 else None
    told = from_first(None if memory is None else where_is(memory))
    if memory is None and told is not None:
        memory = opened(told, n_bytes)
    if memory is not None:  # before anybody may look whether this process lives
        hold(memory.file, rank)
    (lacking,) = any_of_all(memory is None)
    if memory is not None and lacking:
        os.close(memory.file)
        return None
    return memory


def hold(file: int, rank: int) -> None:
    """Lock the byte of this process, which the system releases when it dies, or closes the file."""
    import fcntl

    fcntl.lockf(file, fcntl.LOCK_EX, 1, rank)


def new_memory(n_bytes: int) -> Memory | None:
    """Make memory, of zeros but for the token; None if the system cannot, or has too little."""
    if not hasattr(os, "memfd_create"):
        return None
    file = None
    try:
        file = os.memfd_create("mt2st_fast")
        os.posix_fallocate(file, 0, n_bytes)  # otherwise memory that is missing would end the process
        content = mmap.mmap(file, n_bytes)
    except OSError:
        if file is not None:
            os.close(file)
        return None
    content[TOKEN] = secrets.token_bytes(TOKEN.stop - TOKEN.start)
    return Memory(file, content)


def where_is(memory: Memory) -> dict[str, Any]:
    """Return how other processes find this one's memory, JSON-able."""
    return {
        "machine": _machine(),
        "process": os.getpid(),
        "file": memory.file,
        "token": memory.content[TOKEN].hex(),
    }


def opened(told: dict[str, Any], n_bytes: int) -> Memory | None:
    """Open the memory of process 0; None from another machine or container, or without permission."""
    if told["machine"] != _machine():
        return None
    try:
        file = os.open(f"/proc/{told['process']}/fd/{told['file']}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with suppress(OSError):
        found = os.fstat(file)
        if stat.S_ISREG(found.st_mode) and found.st_size == n_bytes:
            content = mmap.mmap(file, found.st_size)
            if content[TOKEN].hex() == told["token"]:
                return Memory(file, content)
    os.close(file)
    return None


def _machine() -> str:
    """Return a name of the running system, and of the part of it whose processes see each other."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown {secrets.token_hex(8)}"

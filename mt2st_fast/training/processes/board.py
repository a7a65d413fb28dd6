"""A board in memory that the processes of one machine share: each posts its message, and all read those of all.

A message through a connection is copied into the kernel and out of it, by a thread that has to wake up for it; beside a
busy process this takes milliseconds, and a step has several. Here a message takes one copy, and its readers wait for
nothing but the others.

The memory has no name: it ends with the last process, however that ends. While a process lives, it holds a lock on a
byte of it, which the system releases when it dies. So a dead process is found out by those that wait for it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.errors import InputError
from mt2st_fast.model.meeting import different_calls
from mt2st_fast.training.processes.memory import PAGE, Memory, hold, shared_memory

LINE = 128  # bytes of a process's counter, lengths and call, which waiting processes read again and again
CALL = slice(24, LINE)  # bytes of a process's line that name its call
MARK_BITS = 32  # of a posted length, above which is a checksum of the call
TOO_LONG = (1 << MARK_BITS) - 1  # in place of a length, for a message that is not there
SLOT = 1 << 22  # bytes; a longer message is posted in parts
ALIGNED = 64  # bytes; where a part of a message begins
TURNS = 2  # a slot is written again when all have read what it held, because all have posted once more
MOST_PROCESSES = 8  # each adds up the numbers of all; of more processes, torch's ring does it better
LOOK_NS = 50_000_000  # between looks at the others while waiting for them
# How long a waiting process keeps its core: a process that yields it for a moment may get it back milliseconds later,
# if anything else wants to run. Where processes share cores, the others need it.
SPIN_NS, SHORT_SPIN_NS = 1_000_000, 20_000
LOOKS_AT_CORES = 64  # messages from one look at how many cores there are to the next


class Board:
    """Messages of `count` processes, of which this is number `rank`, in memory that all of them have open.

    All processes must call each method, in the same order. check: called while waiting; raises if others are known to
    be gone. Raises RuntimeError if another process is dead, and InputError if it posts a message of another length, or
    for another call.
    """

    def __init__(self, memory: Memory, rank: int, count: int) -> None:
        hold(memory.file, rank)
        from mt2st_fast.kernels.machine import counters  # loads Numba, for which the others may wait

        self._counters = counters
        self._file, self._rank, self._count = memory.file, rank, count
        self._content = memory.content
        self._bytes = torch.frombuffer(memory.content, dtype=torch.uint8)
        self._array = np.frombuffer(memory.content, np.uint8)
        self._address = self._bytes.data_ptr()
        self._numbers = memoryview(memory.content).cast("q")
        self._n_posted = 0
        self._call, self._mark = "", 0
        first = PAGE + _rounded(count * LINE)
        self._begins = [[first + (TURNS * r + turn) * SLOT for r in range(count)] for turn in range(TURNS)]
        self._spin_ns = SPIN_NS

    def posts_for(self, call: str) -> None:
        """From now on, messages belong to this call; those of the others must, too."""
        if call != self._call:
            name = call.encode()[: CALL.stop - CALL.start].ljust(CALL.stop - CALL.start, b"\0")
            first = PAGE + self._rank * LINE
            self._content[first + CALL.start : first + CALL.stop] = name
            self._call, self._mark = call, (zlib.crc32(name) >> 1) << MARK_BITS

    def close(self) -> None:
        """Let go of the memory; nobody may be waiting for this process any more."""
        os.close(self._file)

    def barrier(self, check: Callable[[], None]) -> None:
        """Wait for all processes."""
        self._post(0)
        self._wait_for([0] * self._count, check)

    def gather(self, message: bytes, check: Callable[[], None]) -> list[bytes]:
        """Return the messages of all processes, of one length, in the order of the processes.

        Without tensors: a step has several short messages, and after a kernel even small operations of torch are slow.
        """
        found = [b""] * self._count
        for first in range(0, max(1, len(message)), SLOT):
            part = message[first : first + SLOT]
            begin = self._begin_of(self._rank)
            self._content[begin : begin + len(part)] = part
            self._post(len(part))
            self._wait_for([len(part)] * self._count, check)
            for rank in range(self._count):
                begin = self._begin_of(rank, 1)
                found[rank] += self._content[begin : begin + len(part)]
        return found

    def room(self) -> np.ndarray:
        """Return where this process's next message goes, float32: an array made there need not be copied."""
        begin = self._begin_of(self._rank)
        return self._array[begin : begin + SLOT].view(np.float32)

    def gather_arrays(
        self, arrays: Sequence[np.ndarray], check: Callable[[], None]
    ) -> list[np.ndarray] | None:
        """Return the bytes of all processes, which may differ in length, until the next message.

        A process's arrays are one after another, each at the next multiple of ALIGNED; the first may lie there already
        (`room`). None, in every process, if those of any process take more than SLOT bytes.
        """
        sizes = [each.nbytes for each in arrays]
        ends = list(accumulate([-(-size // ALIGNED) * ALIGNED for size in sizes], initial=0))  # see `padded`
        if fits := ends[-1] <= SLOT:
            first = self._begin_of(self._rank)
            for each, size, end in zip(arrays, sizes, ends, strict=False):
                place = self._array[first + end : first + end + size]
                # A few numbers are sooner copied than asked where they lie.
                if size < PAGE or place.__array_interface__["data"] != each.__array_interface__["data"]:
                    place[:] = each.reshape(-1).view(np.uint8)
        self._post(ends[-1] if fits else TOO_LONG)
        found = self._wait(check)
        if TOO_LONG in found:
            return None
        begins = self._begins[(self._n_posted - 1) % TURNS]
        return [self._array[begin : begin + n] for begin, n in zip(begins, found, strict=True)]

    def gather_written(
        self, write: Callable[[Tensor], None], lengths: Sequence[int], check: Callable[[], None]
    ) -> list[Tensor]:
        """Return the bytes of all processes, so many of each, until the next call; `write` fills in this one's."""
        own = lengths[self._rank]
        if max(lengths) > SLOT:
            padded = torch.zeros(max(lengths), dtype=torch.uint8, device="cpu")
            write(padded[:own])
            found = torch.empty(self._count, len(padded), dtype=torch.uint8, device="cpu")
            for first, last, parts in self._exchanged(padded, check):
                for message, part in zip(found, parts, strict=True):
                    message[first:last] = part
            return [message[:length] for message, length in zip(found, lengths, strict=True)]
        write(self._slot(self._rank)[:own])
        self._post(own)
        self._wait_for(lengths, check)
        return [self._slot(rank, 1)[:length] for rank, length in enumerate(lengths)]

    def add_up(self, values: Tensor, check: Callable[[], None]) -> None:
        """Sum over all processes, in their order, in place."""
        whole, size = values.contiguous(), values.element_size()
        flat = whole.view(-1)
        for first, last, messages in self._exchanged(_bytes_of(whole), check):
            total = flat[first // size : last // size]
            one, other, *more = (message.view(values.dtype) for message in messages)
            torch.add(one, other, out=total)
            for each in more:
                total += each
        if whole is not values:
            values.copy_(whole)

    def _exchanged(
        self, own: Tensor, check: Callable[[], None]
    ) -> Iterator[tuple[int, int, Sequence[Tensor]]]:
        """Yield (first, last, those bytes of all processes) for each part; they stay until the next part is asked."""
        for first in range(0, max(1, len(own)), SLOT):
            part = own[first : first + SLOT]
            self._slot(self._rank)[: len(part)] = part
            self._post(len(part))
            self._wait_for([len(part)] * self._count, check)
            yield (
                first,
                first + len(part),
                [self._slot(rank, 1)[: len(part)] for rank in range(self._count)],
            )

    def _slot(self, rank: int, behind: int = 0) -> Tensor:
        """Return where a process's next message goes, or where the one so many before it is."""
        first = self._begin_of(rank, behind)
        return self._bytes[first : first + SLOT]

    def _begin_of(self, rank: int, behind: int = 0) -> int:
        return self._begins[(self._n_posted - behind) % TURNS][rank]

    def _length_at(self, rank: int) -> int:
        """Return where the length of a process's last message is, among the numbers."""
        return (PAGE + rank * LINE) // 8 + 1 + self._n_posted % TURNS

    def _post(self, length: int) -> None:
        self._n_posted += 1
        self._numbers[self._length_at(self._rank)] = self._mark | length
        self._counters.raise_to(self._address + PAGE + self._rank * LINE, self._n_posted)

    def _wait_for(self, lengths: Sequence[int], check: Callable[[], None]) -> None:
        """Wait for messages of these lengths."""
        if (posted := self._wait(check)) != list(lengths):
            raise InputError(
                f"the processes exchange messages of {posted} bytes in {self._call}, not of {list(lengths)}: let all "
                "do the same in it"
            )

    def _wait(self, check: Callable[[], None]) -> list[int]:
        """Wait for the messages of all; return their lengths."""
        if self._n_posted % LOOKS_AT_CORES == 1:
            cores = self._count * torch.get_num_threads()
            self._spin_ns = SPIN_NS if cores <= _available_cores() else SHORT_SPIN_NS
        counters = self._address + PAGE, self._count, LINE, self._n_posted, self._spin_ns
        while (late := self._counters.wait_for(*counters, LOOK_NS)) < self._count:
            check()
            # It may have posted and left after that look at its counter.
            if self._is_dead(late) and self._counters.wait_for(*counters, 0) == late:
                raise RuntimeError(f"process {late} has closed its memory")
        first = self._length_at(0)
        found = self._numbers[first : first + LINE // 8 * self._count : LINE // 8].tolist()
        for rank, number in enumerate(found):
            if number & ~TOO_LONG != self._mark:
                raise InputError(different_calls(rank, self._call_of(rank), self._rank, self._call))
        return [number & TOO_LONG for number in found]

    def _call_of(self, rank: int) -> str:
        first = PAGE + rank * LINE
        call = self._content[first + CALL.start : first + CALL.stop]
        return call.rstrip(b"\0").decode(errors="replace")

    def _is_dead(self, rank: int) -> bool:
        import fcntl

        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
        except OSError:
            return False
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, rank)
        return True


def board_for(
    rank: int, count: int, from_first: Callable[[Any], Any], any_of_all: Callable[[bool], list[bool]]
) -> Board | None:
    """Make a board for all processes, in every one of them; None, in every one, if they cannot share memory.

    from_first, any_of_all: as of `Processes`.
    """
    if count > MOST_PROCESSES:
        return None
    memory = shared_memory(rank, size_of(count), from_first, any_of_all)
    return None if memory is None else Board(memory, rank, count)


def _available_cores() -> int:
    return len(os.sched_getaffinity(0))


def size_of(count: int) -> int:
    """Return how many bytes a board of so many processes takes."""
    return PAGE + _rounded(count * LINE) + count * TURNS * SLOT


def padded(n_bytes: int) -> int:
    """Return how many bytes an array takes in a message of several."""
    return -(-n_bytes // ALIGNED) * ALIGNED


def _rounded(n_bytes: int) -> int:
    return -(-n_bytes // PAGE) * PAGE


def _bytes_of(values: Tensor) -> Tensor:
    return values.view(-1).view(torch.uint8)

"""Calls that all processes must make: one that comes alone is told so, instead of waiting for torch's timeout.

Torch's collectives are matched by order alone: a process that calls something by itself waits in it, or takes part in
what the others do next. So before such a call the processes meet in the store of their group, each with the name of
its call. A collective within a pass cannot afford that; it is waited for as ever, but not in silence.
"""

from __future__ import annotations

import logging
import math
import os
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from mt2st_fast.errors import InputError, LostProcessError

PATIENCE_SECONDS = 10.0  # until the log says who is missing
GIVE_UP_SECONDS = 300.0  # from the first call to the last: one may read data or write meanwhile
VARIABLE = "MT2ST_PATIENCE"  # the same, as the environment sets it
# Between looks at what the others do, of up to 100 processes: the store answers them one by one.
LOOK_SECONDS = 1.0
PROBE = 0x6D7432  # a tag of messages that nobody receives
ALL, OFF = b"all", b"off"

logger = logging.getLogger(__name__)
_of: Callable[[], Any] | None = None  # the group of the last meeting, which must not live longer by it
_number = 0  # of the last meeting of that group


def meet(
    call: str,
    *,
    patience: float | None = None,
    elsewhere: Callable[[], str | None] = lambda: None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Wait until all processes of the default group have made this call, which only works in all of them.

    patience: seconds to wait; by default those of MT2ST_PATIENCE in the environment, or GIVE_UP_SECONDS. After
    PATIENCE_SECONDS, the log says who is missing. elsewhere: says which of the others waits for this process in
    something else, so that it would never come. check: raises if others are known to be gone. Raises InputError if
    others do not come in time, if they come with another call, or wait elsewhere, and LostProcessError if they have
    left.
    """
    global _of, _number
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    patience = _patience() if patience is None else patience
    try:
        store = dist.PrefixStore("mt2st_fast/meetings", dist.distributed_c10d._get_default_store())
        # From 1 in every group: this process may have held meetings alone in an earlier one, which others know not of.
        if _of is None or _of() is not dist.group.WORLD:
            _of, _number = weakref.ref(dist.group.WORLD), 0
        _number += 1
        # Held, or given up, before this process came, or by an earlier group.
        while store.check([f"{_number}/end"]):
            _number += 1
        _Meeting(store, _number, call).hold(patience, elsewhere, check)
    except dist.DistError as error:
        raise LostProcessError(
            f"{_alone(call)}: the others have left ({' '.join(str(error).split())[:120]}); call it in all processes"
        ) from error


def different_calls(rank: int, call: str, other: int, other_call: str) -> str:
    """Return the line about two processes that make different calls at one time."""
    return (
        f"process {rank} of {dist.get_world_size()} calls {call} while process {other} calls {other_call}: let all "
        "processes make the same calls in one order"
    )


def _patience() -> float:
    text = os.environ.get(VARIABLE, "")
    if not text.strip():
        return GIVE_UP_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise InputError(f"{VARIABLE}={text} is not a number of seconds above 0; set it to 600, for instance")
    return seconds


def wait_for(work: Any, what: str) -> None:
    """Wait for a collective that all processes take part in, and say after PATIENCE_SECONDS that others are missing."""
    try:
        work.wait(timedelta(seconds=PATIENCE_SECONDS))
    except RuntimeError as error:
        if "timed out" not in str(error).lower():
            raise
        if not work.is_completed():
            logger.warning("%s", _waits(what, "others"))
        work.wait()  # raises again if it was the collective itself that timed out


class _Meeting:
    def __init__(self, store: Any, number: int, call: str) -> None:
        self._store, self._number, self._call = store, number, call
        self._rank, self._count = dist.get_rank(), dist.get_world_size()

    def hold(self, patience: float, elsewhere: Callable[[], str | None], check: Callable[[], None]) -> None:
        """Wait for the others, as `meet` says."""
        try:
            self._wait(patience, elsewhere, check)
        except BaseException:  # Ctrl-C among them: whoever comes later must not take it for present
            with suppress(RuntimeError):  # nobody is left to be told
                self._end(OFF)
            raise
        self._check_same()

    def _wait(self, patience: float, elsewhere: Callable[[], str | None], check: Callable[[], None]) -> None:
        self._store.set(self._key(self._rank), self._call)
        self._store.add(self._key("count"), 1)
        began, pause, is_told, looked = time.monotonic(), 0.001, False, 0.0
        while not self._have_all_come():
            check()
            waited = time.monotonic() - began
            if waited > patience and self._end(OFF) == OFF:
                raise InputError(
                    f"{_alone(self._call)}: {self._names(self._missing())} did not come within {patience:g} seconds; "
                    f"call it in all processes, or set {VARIABLE} to more seconds if some come later than that"
                )
            if waited - looked > LOOK_SECONDS * max(1.0, (self._count / 100) ** 2):
                looked = waited
                self._look(elsewhere)
            if waited > PATIENCE_SECONDS and not is_told:
                is_told = True
                logger.warning("%s", _waits(self._call, self._names(self._missing())))
            time.sleep(pause)
            pause = min(0.05, 2 * pause)

    def _look(self, elsewhere: Callable[[], str | None]) -> None:
        """Raises if somebody will not come: who is gone, has come with another call, or waits for this process."""
        missing = self._missing()
        if len(missing) + 1 < self._count:
            self._check_same()
        if (place := elsewhere()) is not None and self._end(OFF) == OFF:
            raise InputError(
                f"{_alone(self._call)}: {place}, which needs this one; let all processes make the same calls in one "
                "order"
            )
        for rank in missing[:8]:
            if (said := _said_by_connection(rank)) is not None and self._end(OFF) == OFF:
                raise LostProcessError(
                    f"{_alone(self._call)}: process {rank} has left without it ({said}); restart all processes"
                )

    def _have_all_come(self) -> bool:
        """Return whether all are here. Raises InputError if another process has given up."""
        if self._store.add(self._key("count"), 0) == self._count:
            end = self._end(ALL)
        elif self._store.check([self._key("end")]):  # the last one may have come, and said so, since
            end = self._store.get(self._key("end"))
        else:
            return False
        if end == OFF:
            self._check_same()  # if this is why they gave up, it says more
            raise InputError(
                f"{_alone(self._call)}: the others did not wait any longer; call it in all at one time"
            )
        return True

    def _end(self, how: bytes) -> bytes:
        """Decide how the meeting ends, unless it is decided; returns how it ends for all."""
        found: bytes = self._store.compare_set(self._key("end"), "", how.decode())
        return found

    def _check_same(self) -> None:
        """Raises InputError if a process that is here makes another call."""
        for rank in range(self._count):
            if not self._store.check([self._key(rank)]):
                continue
            call = self._store.get(self._key(rank)).decode()
            if call != self._call:
                raise InputError(different_calls(rank, call, self._rank, self._call))

    def _missing(self) -> list[int]:
        return [rank for rank in range(self._count) if not self._store.check([self._key(rank)])]

    def _names(self, ranks: list[int]) -> str:
        return names_of(ranks, self._count)

    def _key(self, name: object) -> str:
        return f"{self._number}/{name}"


def names_of(ranks: Sequence[int], count: int) -> str:
    """Return the processes of these numbers, in words; of many, the first."""
    some = f"{', '.join(map(str, ranks[:8]))}{', ...' if len(ranks) > 8 else ''}"
    return f"process{'es' if len(ranks) > 1 else ''} {some} of {count}"


def _said_by_connection(rank: int) -> str | None:
    """Return what gloo says of a process whose connection is closed; None if it is open, or not gloo's."""
    try:
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))  # type: ignore[union-attr]
    except RuntimeError:  # there is none for the CPU
        return None
    if not isinstance(backend, dist.ProcessGroupGloo):
        return None
    try:
        # Only announced to the other process, and dropped. A receive would see the end, too, but cannot be given up.
        dist.isend(torch.zeros(1, dtype=torch.uint8), rank, tag=PROBE)
    except RuntimeError as error:
        return " ".join(str(error).split("]", 1)[-1].split()).split(". ")[0][:80]
    return None


def _alone(call: str) -> str:
    return f"{call} was called by process {dist.get_rank()} of {dist.get_world_size()} and needs all of them"


def _waits(call: str, missing: str) -> str:
    return (
        f"process {dist.get_rank()} of {dist.get_world_size()} has waited for {missing} in {call} for "
        f"{PATIENCE_SECONDS:g} seconds: all processes must call it"
    )

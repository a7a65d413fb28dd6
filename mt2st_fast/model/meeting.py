"""Calls that all processes must make: one that comes alone is told so, instead of waiting for torch's timeout.

Torch's collectives are matched by order alone: a process that calls something by itself waits in it, or takes part in
what the others do next. So before such a call the processes meet in the store of their group, each with the name of
its call. A collective within a pass cannot afford that; it is waited for as ever, but not in silence.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from mt2st_fast.errors import InputError

PATIENCE_SECONDS = 30.0  # until the log says who is missing
GIVE_UP_SECONDS = 300.0  # from the first call to the last: one may read data or write meanwhile
ALL, OFF = b"all", b"off"

logger = logging.getLogger(__name__)
_of: Callable[[], Any] | None = None  # the group of the last meeting, which must not live longer by it
_number = 0  # of the last meeting of that group


def meet(
    call: str,
    *,
    patience: float | None = None,
    is_awaited: Callable[[], bool] = lambda: False,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Wait until all processes of the default group have made this call, which only works in all of them.

    patience: seconds to wait, GIVE_UP_SECONDS by default. After PATIENCE_SECONDS, the log says who is missing, and
    is_awaited whether one of the others waits for this process in something else, so that nobody would ever come.
    check: raises if others are known to be gone. Raises InputError if others do not come in time, if they come with
    another call, or if they have left.
    """
    global _of, _number
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    try:
        store = dist.PrefixStore("mt2st_fast/meetings", dist.distributed_c10d._get_default_store())
        # From 1 in every group: this process may have held meetings alone in an earlier one, which others know not of.
        if _of is None or _of() is not dist.group.WORLD:
            _of, _number = weakref.ref(dist.group.WORLD), 0
        _number += 1
        # Held, or given up, before this process came, or by an earlier group.
        while store.check([f"{_number}/end"]):
            _number += 1
        _Meeting(store, _number, call).hold(
            GIVE_UP_SECONDS if patience is None else patience, is_awaited, check
        )
    except dist.DistError as error:
        raise InputError(
            f"{_alone(call)}: the others have left ({' '.join(str(error).split())[:120]}); call it in all processes"
        ) from error


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

    def hold(self, patience: float, is_awaited: Callable[[], bool], check: Callable[[], None]) -> None:
        """Wait for the others, as `meet` says."""
        try:
            self._wait(patience, is_awaited, check)
        except BaseException:  # Ctrl-C among them: whoever comes later must not take it for present
            with suppress(RuntimeError):  # nobody is left to be told
                self._end(OFF)
            raise
        self._check_same()

    def _wait(self, patience: float, is_awaited: Callable[[], bool], check: Callable[[], None]) -> None:
        self._store.set(self._key(self._rank), self._call)
        self._store.add(self._key("count"), 1)
        began, pause, is_told = time.monotonic(), 0.001, False
        while not self._have_all_come():
            check()
            waited = time.monotonic() - began
            if waited > patience and self._end(OFF) == OFF:
                raise InputError(
                    f"{_alone(self._call)}: {self._missing()} did not come within {patience:g} seconds; call it in "
                    "all processes, after torch.distributed.barrier() if some come later than that"
                )
            if waited > PATIENCE_SECONDS and is_awaited() and self._end(OFF) == OFF:
                raise InputError(
                    f"{_alone(self._call)}: {self._missing()} did something else, which needs this one; call it in all "
                    "processes"
                )
            if waited > PATIENCE_SECONDS and not is_told:
                is_told = True
                logger.warning("%s", _waits(self._call, self._missing()))
            time.sleep(pause)
            pause = min(0.05, 2 * pause)

    def _have_all_come(self) -> bool:
        """Return whether all are here. Raises InputError if another process has given up."""
        if self._store.add(self._key("count"), 0) < self._count:
            return False
        if self._end(ALL) == OFF:
            raise InputError(
                f"{_alone(self._call)}: the others did not wait any longer; call it in all at one time"
            )
        return True

    def _end(self, how: bytes) -> bytes:
        """Decide how the meeting ends, unless it is decided; returns how it ends for all."""
        found: bytes = self._store.compare_set(self._key("end"), "", how.decode())
        return found

    def _check_same(self) -> None:
        for rank in range(self._count):
            call = self._store.get(self._key(rank)).decode()
            if call != self._call:
                raise InputError(
                    f"process {rank} of {self._count} calls {call} while process {self._rank} calls {self._call}: let "
                    "all processes make the same calls in one order"
                )

    def _missing(self) -> str:
        missing = [str(rank) for rank in range(self._count) if not self._store.check([self._key(rank)])]
        some = f"{', '.join(missing[:8])}{', ...' if len(missing) > 8 else ''}"
        return f"process{'es' if len(missing) > 1 else ''} {some} of {self._count}"

    def _key(self, name: object) -> str:
        return f"{self._number}/{name}"


def _alone(call: str) -> str:
    return f"{call} was called by process {dist.get_rank()} of {dist.get_world_size()} and needs all of them"


def _waits(call: str, missing: str) -> str:
    return (
        f"process {dist.get_rank()} of {dist.get_world_size()} has waited for {missing} in {call} for "
        f"{PATIENCE_SECONDS:g} seconds: all processes must call it"
    )

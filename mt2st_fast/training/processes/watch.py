"""Watches that every process is alive: a lost one ends the others, and is named.

A collective of torch waits for a process that hangs; about one that died it says that a connection was closed, but not
whose. So once a second, a thread beside the training of every process increments the process's own counter in a store,
and looks at the counter of the next process. A process whose counter has stood still for SILENT_SECONDS is lost, and
all are told. A process that leaves with an error reports it there, in one line. A second thread, which asks nobody,
ends the process if training does not notice by itself, and detects when the first waits for a store that does not
answer.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple, NoReturn

import torch.distributed as dist

from mt2st_fast.errors import LostProcessError
from mt2st_fast.model.meeting import different_calls, names_of

BEAT_SECONDS = 1.0
SILENT_SECONDS = 20.0  # without a sign of life from a process
ALARMED_SECONDS = 5.0  # the same, after a connection has broken
GRACE_SECONDS = 15.0  # for training to notice by itself, before its process is ended
STOPPED_SECONDS = 2.5  # between two looks at the others; what is longer does not count
STORE_SECONDS = 10.0  # for the store to answer
WAITING_SECONDS = 5.0  # in one message, after which a process tells the others that it waits
LOG_SECONDS = 30.0  # in one message, after which the log says for whom
WAITS = "waits"  # how many processes say that they wait in a message; with a number, what one says
HEARD_SECONDS = 3.0  # that a process leaving with an error waits to be heard, or to hear of the same error


logger = logging.getLogger(__name__)


class Waiting(NamedTuple):
    """A message in which this process waits for the others: since when, by time.monotonic(), and for which call.

    number: of the messages so far, which every process counts alike.
    """

    since: float
    number: int
    call: str


class Watch:
    """Sends this process's signs of life and checks the others', from `start` to `close`.

    store: shared by all `count` processes, of which this is number `rank`; process 0 keeps it. trouble: which process
    is lost, or has stopped, in a line. If training has not left within GRACE_SECONDS after that, the process is ended:
    nothing else gets it out of a collective.
    """

    def __init__(self, store: dist.TCPStore, rank: int, count: int) -> None:
        store.set_timeout(timedelta(seconds=STORE_SECONDS))
        self._store, self._rank, self._count = store, rank, count
        self._closed, self._found = threading.Event(), threading.Event()
        self._alarmed = False
        # A process's counter, and how long it has stood still.
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._looked = time.monotonic()
        self.trouble: str | None = None
        self.waiting: Waiting | None = None
        self._told: Waiting | None = None  # to the others
        self._logged: Waiting | None = None
        self._unanswered = 0  # seconds that a request to the store has waited
        self._store.add(_beat(rank), 1)
        self._threads = [threading.Thread(target=f, daemon=True) for f in (self._look, self._guard)]

    def start(self) -> None:
        """Start watching; call it after every process has made its watch."""
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Raises LostProcessError if another process is known to be gone."""
        if self.trouble is not None:
            raise LostProcessError(self.trouble)

    def elsewhere(self, n_messages: int) -> str | None:
        """Return which other process waits, and in which call, for a message that this one has not sent; or None.

        n_messages: those that this process has sent. The others tell it after WAITING_SECONDS.
        """
        if not self._store.add(WAITS, 0):
            return None
        for rank in self._others():
            if (told := self._told_by(rank)) is not None and told[0] > n_messages:
                return f"{self._name(rank)} waits in {told[1]}"
        return None

    def _told_by(self, rank: int) -> tuple[int, str] | None:
        """Return the number of the message in which another process waits, and its call."""
        key = f"{WAITS}/{rank}"
        if not self._store.check([key]):  # a request for one that is not there would wait for it
            return None
        number, call = json.loads(self._store.get(key))
        return None if number == 0 else (number, call)

    def _others(self) -> list[int]:
        return [rank for rank in range(self._count) if rank != self._rank]

    def explain(self, error: Exception) -> LostProcessError:
        """Explain a collective that failed with `error`: which process is gone, found out within half a minute."""
        self._alarmed = True
        self._found.wait(SILENT_SECONDS + GRACE_SECONDS / 2)
        said = " ".join(str(error).split())[:200]
        return LostProcessError(self.trouble or f"the processes have lost contact with each other ({said})")

    def tell(self, message: str) -> bool:
        """Tell the others that this process stops with an error; returns whether process 0 stops with the same one.

        In that case nobody needs to report it again. Waits until the message is heard, or known.
        """
        if self.trouble is not None:  # they know it already
            return self.trouble == f"{self._name(0)} stopped: {message}"
        is_echo = False
        try:
            self._store.set(f"failed/{self._rank}", message)
            self._store.compare_set("failed", "", str(self._rank))
            if self._rank:
                is_echo = self._await(lambda: self._store.check(["failed/0"])) and (
                    self._store.get("failed/0").decode() == message
                )
            self._store.add("heard", 1)
            if self._rank == 0:  # the store ends with it
                self._await(lambda: self._store.add("heard", 0) >= self._count)
        except RuntimeError:  # the process that kept the store is already gone
            pass
        return is_echo

    @staticmethod
    def _await(happened: Callable[[], bool]) -> bool:
        end = time.monotonic() + HEARD_SECONDS
        while not happened():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(STORE_SECONDS)

    def _look(self) -> None:
        while not self._closed.wait(BEAT_SECONDS) and self.trouble is None:
            try:
                self._store.add(_beat(self._rank), 1)
                waiting = self.waiting
                self._tell_waiting(waiting)
                trouble = self._what_is_wrong() or self._crossed(waiting)
                self._log_waiting(waiting)
            except RuntimeError:  # torch's DistNetworkError and DistStoreError among them
                trouble = self._no_store()
            self._unanswered = 0
            if trouble is not None:
                self._find(trouble)

    def _tell_waiting(self, waiting: Waiting | None) -> None:
        if waiting is not None and time.monotonic() - waiting.since <= WAITING_SECONDS:
            waiting = None
        if waiting == self._told:
            return
        told = [0, ""] if waiting is None else [waiting.number, waiting.call]
        self._store.set(f"{WAITS}/{self._rank}", json.dumps(told))
        self._store.add(WAITS, (waiting is not None) - (self._told is not None))
        self._told = waiting

    def _crossed(self, waiting: Waiting | None) -> str | None:
        """Return the trouble if process 0 and this one wait for each other in different calls.

        A board sees that at once; in gloo, messages that do not fit together wait for ever, or are mixed up.
        """
        if waiting is None or waiting != self._told or self._rank == 0:
            return None
        told = self._told_by(0)
        if told is None or told[0] != waiting.number or told[1] == waiting.call:
            return None
        trouble = different_calls(self._rank, waiting.call, 0, told[1])
        self._store.set(f"failed/{self._rank}", trouble)
        self._store.compare_set("failed", "", str(self._rank))
        return trouble

    def _log_waiting(self, waiting: Waiting | None) -> None:
        if waiting is None or waiting == self._logged or time.monotonic() - waiting.since < LOG_SECONDS:
            return
        self._logged = waiting
        told = {rank: self._told_by(rank) for rank in self._others()}
        late = [rank for rank, of_one in told.items() if of_one is None or of_one[0] < waiting.number]
        if late:
            logger.warning(
                "%s has waited in %s for %s for %g seconds",
                self._name(self._rank), waiting.call, names_of(late, self._count), LOG_SECONDS,
            )  # fmt: skip

    def _guard(self) -> None:
        # Counted in beats, not by the clock: a machine that was asleep has not been silent.
        while not self._closed.wait(BEAT_SECONDS):
            self._unanswered += 1
            if self.trouble is None and self._unanswered * BEAT_SECONDS > SILENT_SECONDS:
                self._find(self._no_store())
            if self.trouble is not None:
                if not self._closed.wait(GRACE_SECONDS):
                    self._end(self.trouble)
                return

    def _find(self, trouble: str) -> None:
        self.trouble = trouble
        self._found.set()

    def _no_store(self) -> str:
        return f"{self._name(0)} is lost: its store does not answer"

    def _what_is_wrong(self) -> str | None:
        if self._store.check(["failed"]):
            rank = int(self._store.get("failed"))
            if rank == self._rank:
                return None
            self._store.add("heard", 1)
            return f"{self._name(rank)} stopped: {self._store.get(f'failed/{rank}').decode(errors='replace')}"
        if self._store.check(["lost"]):
            rank = int(self._store.get("lost"))
            return None if rank == self._rank else self._lost(rank)
        # Whoever was stopped himself, as by Ctrl-Z, has not looked at the others, who were probably stopped, too.
        now, before = time.monotonic(), self._looked
        self._looked, passed = now, min(now - before, STOPPED_SECONDS)
        # Watching all of them would need as many requests as there are pairs of processes.
        watched = self._others() if self._alarmed else [(self._rank + 1) % self._count]
        for rank, number in zip(watched, self._store.multi_get([_beat(r) for r in watched]), strict=True):
            if self._stands_still(rank, number, passed):
                self._store.set("lost", str(rank))
                return self._lost(rank)
        return None

    def _stands_still(self, rank: int, number: bytes, passed: float) -> bool:
        """Return whether a counter has stood still, by this process's own clock: clocks of two machines differ.

        passed: seconds since this process has last looked.
        """
        before, silent = self._seen.get(rank, (b"", 0.0))
        silent = silent + passed if number == before else 0.0
        self._seen[rank] = (number, silent)
        return silent > (ALARMED_SECONDS if self._alarmed else SILENT_SECONDS)

    def _lost(self, rank: int) -> str:
        return (
            f"{self._name(rank)} is lost: it stopped responding; restart all processes and resume from the last "
            "checkpoint"
        )

    def _name(self, rank: int) -> str:
        return f"process {rank} of {self._count}"

    def _end(self, trouble: str) -> NoReturn:
        print(f"mt2st-fast: {trouble}", file=sys.stderr, flush=True)
        os._exit(1)


def _beat(rank: int) -> str:
    return f"beat/{rank}"

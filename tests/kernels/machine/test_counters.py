"""Counters that several processes share: who waits for them learns which one is late."""

from __future__ import annotations

import threading

import numpy as np

from mt2st_fast.kernels.machine.counters import raise_to, wait_for

STRIDE = 128
FOREVER_NS = 60_000_000_000


def counters(n: int) -> np.ndarray:
    return np.zeros((n, STRIDE // 8), np.int64)


def test_it_returns_the_first_that_is_late():
    held = counters(3)
    held[:, 0] = (5, 4, 3)
    assert wait_for(held.ctypes.data, 3, STRIDE, 5, 500, 1000) == 1
    assert wait_for(held.ctypes.data, 3, STRIDE, 4, 0, 1000) == 2
    assert wait_for(held.ctypes.data, 3, STRIDE, 3, 0, 0) == 3


def test_it_waits_for_others_and_sees_what_they_wrote_before():
    held, content, answers = counters(2), np.zeros(1000, np.int64), []

    def other() -> None:
        for number in range(1, 200):
            if wait_for(held.ctypes.data, 1, STRIDE, number, 1000, FOREVER_NS) == 1:
                answers.append(int(content.min()) if content.min() == content.max() else None)
            raise_to(held.ctypes.data + STRIDE, number)

    thread = threading.Thread(target=other)
    thread.start()
    for number in range(1, 200):
        content[:] = number
        raise_to(held.ctypes.data, number)
        assert wait_for(held.ctypes.data, 2, STRIDE, number, 1000, FOREVER_NS) == 2
    thread.join()
    assert answers == list(range(1, 200))

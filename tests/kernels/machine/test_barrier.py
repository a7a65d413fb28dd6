"""The barrier where threads of a training round meet."""

import time
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

from mt2st_fast.kernels.context.batch import stream_key, word_sampler
from mt2st_fast.kernels.context.on_numba import training as numba_context
from mt2st_fast.kernels.context.training import ContextOptions, ContextTraining
from mt2st_fast.kernels.machine.barrier import fail, new_barrier, stop, wait


@numba.njit(nogil=True)
def write_and_look(written, seen, thread, n_threads, rounds, barrier):
    """In each round every thread writes its own place and, when all have, reads everybody's."""
    for r in range(rounds):
        written[thread] = r + 1
        wait(barrier, n_threads)
        for other in range(n_threads):
            seen[thread] += written[other] == r + 1
        wait(barrier, n_threads)


@numba.njit(nogil=True)
def wait_once(barrier, n_threads):
    return wait(barrier, n_threads)


@pytest.mark.parametrize("n_threads", [1, 2, 5])  # 5: more than there may be processors
def test_nobody_goes_on_before_all_have_come(n_threads):
    rounds, barrier = 300, new_barrier()
    written, seen = np.zeros(n_threads, np.int64), np.zeros(n_threads, np.int64)
    with ThreadPoolExecutor(n_threads) as pool:
        arguments = [(written, seen, t, n_threads, rounds, barrier) for t in range(n_threads)]
        list(pool.map(write_and_look, *zip(*arguments, strict=True)))
    assert seen.tolist() == [rounds * n_threads] * n_threads


def test_who_waits_for_nobody_is_let_go():
    barrier = new_barrier()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_once, barrier, 2)
        time.sleep(0.05)
        assert not waiting.done()
        fail(barrier)
        assert waiting.result(timeout=60) is False


@numba.njit(nogil=True)
def meet_until_stopped(met, thread, n_threads, barrier):
    while wait(barrier, n_threads):
        met[thread] += 1


def test_all_stop_at_the_same_meeting():
    barrier, met = new_barrier(), np.zeros(3, np.int64)
    with ThreadPoolExecutor(3) as pool:
        threads = [pool.submit(meet_until_stopped, met, t, 3, barrier) for t in range(3)]
        while not met.all():
            time.sleep(0.01)
        stop(barrier)
        for thread in threads:
            thread.result(timeout=60)
    assert met.min() == met.max() > 0


def test_a_thread_that_fails_stops_the_others(monkeypatch):
    tokens = np.random.default_rng(0).integers(0, 30, 4000).astype(np.int32)
    counts = np.bincount(tokens, minlength=30)
    tables = [np.zeros((30, 8), np.float32) for _ in range(2)]
    training = ContextTraining(*tables, word_sampler(counts), ContextOptions(shards=2, shard_words=100))
    kernel = numba_context.train_rounds

    def failing(*args, parallel):
        if args[-2].thread == 1:
            raise MemoryError("no memory for thread 1")
        return kernel(*args, parallel=parallel)

    monkeypatch.setattr(numba_context, "train_rounds", failing)
    monkeypatch.setattr("mt2st_fast.kernels.machine.jit.thread_count", lambda: 2)
    with pytest.raises(MemoryError, match="thread 1"):
        training.run(tokens, np.array([0, 4000]), stream_key(1, 0), (0, 20), 0.1, 0.0, 0.0)

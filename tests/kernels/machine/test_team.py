"""Threads that share pieces of work: every piece is computed once, by whoever is free, for one caller at a time."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mt2st_fast.kernels.machine.jit import helper
from mt2st_fast.kernels.machine.team import (
    PIECES_A_THREAD,
    Kernel,
    OwnTeam,
    in_parallel,
    pieces_of,
    splits_of,
    team_address,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a team is one thread there")


@helper
def _count(p, visits, sums, x):
    visits[p] += 1
    for i in range(len(x)):
        sums[p] += x[i] * (p + 1)


def _count_pieces(team, visits, sums, x, rounds):
    for _ in range(rounds):
        in_parallel(team, len(visits), _count, (visits, sums, x))


count_pieces = Kernel(_count_pieces)
count_beside_torch = Kernel(_count_pieces, beside_torch=True)
TEAMS = pytest.mark.parametrize("kernel", [count_pieces, count_beside_torch], ids=["own", "torch"])


def run(n_pieces, rounds, floats=64, kernel=count_pieces):
    visits, sums, x = np.zeros(n_pieces, np.int64), np.zeros(n_pieces), np.ones(floats)
    kernel(visits, sums, x, rounds)
    assert visits.tolist() == [rounds] * n_pieces
    assert sums.tolist() == [rounds * floats * (p + 1) for p in range(n_pieces)]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.long
@TEAMS
def test_callers_of_all_sizes_for_a_while(threads, kernel):
    """More threads than cores, jobs of some microseconds, pauses around those after which workers sleep."""
    threads(7)
    failed, end = [], time.monotonic() + 60

    def call(seed):
        chance = random.Random(seed)
        try:
            while time.monotonic() < end and not failed:
                rounds, floats = chance.randrange(1, 30), chance.randrange(1, 3000)
                run(chance.randrange(40), rounds, floats, kernel)
                time.sleep(chance.choice([0.0, 0.0, 5e-5, 2e-3, 4e-3]))
        except AssertionError as error:
            failed.append(error)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=120)
    assert not failed
    assert not any(caller.is_alive() for caller in callers)


@pytest.mark.parametrize("n_threads", [1, 2, 5])  # 5: more than there may be processors
@pytest.mark.parametrize("n_pieces", [0, 1, 2, 3, 17, 1000])
@TEAMS
def test_every_piece_is_computed_once(n_threads, n_pieces, threads, kernel):
    threads(n_threads)
    run(n_pieces, rounds=300, kernel=kernel)


def test_who_sleeps_is_woken(threads):
    threads(3)
    for _ in range(20):
        run(8, rounds=1, floats=10_000)
        time.sleep(0.002)  # workers spin for a tenth of that


@TEAMS
def test_a_second_caller_computes_alone(threads, kernel):
    threads(2)
    failed = []

    def call():
        try:
            run(16, rounds=500, kernel=kernel)
        except AssertionError as error:
            failed.append(error)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failed


def test_another_number_of_threads_is_another_team(threads):
    threads(2)
    first = team_address()
    threads(1)
    assert team_address() == 0
    threads(2)
    assert team_address() == first
    threads(3)
    run(9, rounds=10)
    assert team_address() not in (0, first)
    threads(2)
    assert team_address() == first


def test_threads_of_different_thread_counts_keep_their_teams(threads):
    """Torch's number of threads is each caller's own: one team for all was made anew in every call."""
    addresses, both = {}, threading.Barrier(2)

    def call(n_threads):
        torch.get_num_threads()  # which takes over, once in a thread, what another has set last
        both.wait(60)
        torch.set_num_threads(n_threads)
        for _ in range(20):
            both.wait(60)
            addresses.setdefault(n_threads, set()).add(team_address())

    callers = [threading.Thread(target=call, args=(n,)) for n in (2, 3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [len(found) for found in addresses.values()] == [1, 1]


def test_a_team_that_is_stopped_in_a_job_leaves_the_job_whole(threads):
    threads(2)
    own = OwnTeam(3)
    visits, sums, x = np.zeros(64, np.int64), np.zeros(64), np.ones(20_000)
    caller = threading.Thread(target=lambda: count_pieces.compiled(own.address, visits, sums, x, 100))
    caller.start()
    own.stop()
    caller.join()
    assert visits.tolist() == [100] * 64


@pytest.mark.skipif(
    sys.platform != "linux" or not torch.backends.openmp.is_available(),
    reason="torch has no OpenMP, or one without GCC's names",
)
def test_pieces_between_operators_are_computed_by_the_threads_of_torch(threads):
    """Of our own, none is started: they would contend with torch's for the cores."""
    program = """
import threading, torch
import numpy as np
from tests.kernels.machine.test_team import count_beside_torch, count_pieces
torch.set_num_threads(3)
def workers():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mt2st_fast")]
for kernel in (count_beside_torch, count_pieces):
    kernel(np.zeros(30, np.int64), np.zeros(30), np.ones(4), 1)
    print(len(workers()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0", "2"]


def _in_a_fork(queue, kernel):
    run(16, rounds=50, kernel=kernel)
    queue.put("done")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@TEAMS
def test_a_forked_process_has_a_team_of_its_own(threads, kernel):
    threads(2)
    run(16, rounds=5, kernel=kernel)
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    child = fork.Process(target=_in_a_fork, args=(queue, kernel))
    child.start()
    assert queue.get(timeout=60) == "done"
    child.join(timeout=60)
    assert child.exitcode == 0


def test_work_is_cut_by_its_size_and_by_the_threads(threads):
    threads(3)
    assert [splits_of(work, 100) for work in (0, 99, 250, 10**6)] == [1, 1, 2, 3]
    assert [pieces_of(work, 100) for work in (0, 99, 250, 10**6)] == [1, 1, 2, 3 * PIECES_A_THREAD]


@pytest.mark.parametrize(("n_sums", "expected"), [(3, 0), (2, -signal.SIGABRT)])
def test_where_bounds_are_checked_a_piece_outside_an_array_ends_the_process(n_sums, expected, tmp_path):
    program = f"""
import numpy as np
from tests.kernels.machine.test_team import count_pieces
count_pieces(np.zeros(3, np.int64), np.zeros({n_sums}), np.ones(4), 1)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        check=False,
    )
    assert done.returncode == expected, done.stderr

"""Records are appended, the latest of each measurement counts, and what is missing is said."""

from __future__ import annotations

import numpy as np
import pytest

from bench import ledger
from bench.cases import HEAD_CASES
from bench.environment import describe
from bench.interleaved import MOST_CALLS, WARM_UP_ROUNDS, Candidate, Timings, interleave
from bench.report import MISSING, render


def made(date: str, eager_us: float, kind: str = "cpu") -> list[ledger.Record]:
    environment = describe()
    environment.update(date=date, device={**environment["device"], "kind": kind})
    timings = Timings({"eager": np.full(4, eager_us), "ours": np.full(4, 100.0)})
    case = HEAD_CASES[0]
    return [
        ledger.make_record(
            environment, "heads", case.name, case.shape, peer, "forward+backward", timings,
            f"eager / {peer}", timings.ratio("eager", peer),
        )
        for peer in ("eager", "ours")
    ]  # fmt: skip


def test_candidates_take_turns_and_are_prepared():
    seen = []
    candidates = {
        name: Candidate(lambda name=name: seen.append(name), lambda: seen.append("-")) for name in "AB"
    }
    timings = interleave(candidates, rounds=3)
    assert timings.rounds == 3
    calls = MOST_CALLS  # such short calls that a burst holds as many as it may
    assert "".join(seen) == "-A-B" * WARM_UP_ROUNDS + ("-A" * calls + "-B" * calls) * 3


def test_ratio_is_of_medians():
    timings = Timings({"slow": np.array([20.0, 30.0, 90.0]), "fast": np.array([10.0, 15.0, 10.0])})
    assert timings.ratio("slow", "fast").of_medians == pytest.approx(3.0)


def test_latest_record_counts_and_none_is_lost(tmp_path):
    ledger.append(made("2025-01-01", 200.0), tmp_path)
    ledger.append(made("2025-01-02", 350.0), tmp_path)
    stored = ledger.read(tmp_path)
    assert len(stored) == 4
    text = render(ledger.latest(stored))
    assert "| 3.50 [3.50 to 3.50] | 3, met |" in text
    assert "2.00 [" not in text


def test_gpu_is_not_estimated():
    without, with_gpu = render(made("2025-01-01", 250.0)), render(made("2025-01-01", 250.0, "cuda"))
    assert "2.50" in without
    assert "2.50" not in without.partition("## On a GPU")[2]
    assert MISSING in without.partition("## On a GPU")[2]
    assert "2.50" in with_gpu.partition("## On a GPU")[2]

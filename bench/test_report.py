"""Records are appended, the latest of each measurement counts, and missing ones are reported."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch

from bench import ledger
from bench.cases import GPU_HEAD_CASES, HEAD_CASES, MEMORY_CASE
from bench.cores import placements_of, round_trip_ns
from bench.environment import describe
from bench.interleaved import MOST_CALLS, WARM_UP_ROUNDS, Candidate, Timings, _best_placed, interleave
from bench.report import render
from bench.verdicts import MISSING, cpu_verdicts, gpu_verdicts
from bench.word_report import job_section


def made(date: str, eager_us: float, kind: str = "cpu") -> list[ledger.Record]:
    environment = describe()
    environment.update(date=date, device={**environment["device"], "kind": kind})
    timings = Timings({"eager": np.full(4, eager_us), "ours": np.full(4, 100.0)})
    case = (HEAD_CASES if kind == "cpu" else GPU_HEAD_CASES)[0]
    return [
        ledger.make_record(
            environment, "heads", case.name, case.shape, peer, "forward+backward", timings,
            f"eager / {peer}", timings.ratio("eager", peer),
        )
        for peer in ("eager", "ours")
    ]  # fmt: skip


@pytest.fixture
def trips_ns(monkeypatch):
    """What the cores take to answer each other, before the first round and after each; then 100 ns."""
    planned: list[float] = []
    monkeypatch.setattr("bench.interleaved.round_trip_ns", lambda: planned.pop(0) if planned else 100.0)
    return planned


def test_rounds_with_cores_apart_are_left_out_and_made_up_for(trips_ns):
    trips_ns += [100.0] * 4 + [500.0] * 3  # apart from the end of the fourth round to the end of the sixth
    rounds = iter(range(1000))
    times = interleave({"a": Candidate(lambda: next(rounds))}, rounds=10)
    assert (times.rounds, times.left_out, times.round_trip_ns) == (10, 4, 100.0)


def test_cores_that_are_apart_all_the_time_leave_nothing_out(trips_ns):
    trips_ns += [500.0] * 40
    times = interleave({"a": Candidate(lambda: None)}, rounds=10)
    assert (times.rounds, times.left_out, times.round_trip_ns) == (10, 0, 500.0)


def test_the_placement_with_the_fastest_rounds_is_kept_not_that_with_the_fastest_answers():
    one_core, one_cache, none = 46.0, 97.0, 500.0
    trips = [one_core] * 12 + [one_cache] * 12 + [none] * 12
    rounds_us = np.array([8.0] * 12 + [4.0] * 11 + [6.0] * 12)
    kept = _best_placed(trips, rounds_us, enough=10)
    assert kept.tolist() == [False] * 12 + [True] * 11 + [False] * 12
    few = _best_placed(trips[:20], rounds_us[:19], enough=10)
    assert few.tolist() == [True] * 11 + [False] * 8  # too few with one cache
    assert not _best_placed(trips[:8], rounds_us[:7], enough=10).any()
    assert _best_placed([None] * 4, rounds_us[:3], enough=10).all()


def test_placements_differ_by_more_than_noise():
    assert placements_of(np.array([100.0, 46.0, 120.0, 510.0, 95.0, 640.0, 50.0])).tolist() == [
        1,
        0,
        1,
        2,
        1,
        2,
        0,
    ]


def test_cores_answer_each_other():
    found_ns = round_trip_ns()
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1:
        assert found_ns is not None
        assert 10 < found_ns < 1e6
    else:
        assert found_ns is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be given a core here")
@pytest.mark.parametrize("refused", ["every thread", "the other thread"])
def test_cores_that_may_not_be_chosen_do_not_answer(refused, monkeypatch):
    """As in a container that has lost a core meanwhile."""
    allowed, choose = os.sched_getaffinity(0), os.sched_setaffinity

    def refuse(thread, cores):
        if refused == "every thread" or threading.current_thread() is not threading.main_thread():
            raise OSError("Invalid argument")
        choose(thread, cores)

    monkeypatch.setattr("os.sched_setaffinity", refuse)
    assert round_trip_ns() is None
    assert os.sched_getaffinity(0) == allowed


def test_candidates_take_turns_and_are_prepared(trips_ns):
    seen = []
    candidates = {
        name: Candidate(lambda name=name: seen.append(name), lambda: seen.append("-")) for name in "AB"
    }
    timings = interleave(candidates, rounds=3)
    assert timings.rounds == 3
    calls = MOST_CALLS  # calls so short that a burst has the maximum number
    assert "".join(seen) == "-A-B" * WARM_UP_ROUNDS + ("-A" * calls + "-B" * calls) * 3


def test_on_a_gpu_every_burst_lasts_as_long(monkeypatch):
    seen = []

    def burst(candidate, calls):
        seen.append((candidate.run(), calls))
        return candidate.run()

    monkeypatch.setattr("bench.interleaved._cuda_burst_us", burst)
    candidates = {"fast": Candidate(lambda: 10.0), "slow": Candidate(lambda: 2500.0)}
    interleave(candidates, rounds=1, burst_us=5000, device=torch.device("cuda"))
    assert seen[-2:] == [(10.0, MOST_CALLS), (2500.0, 2)]


def test_ratio_is_of_medians():
    timings = Timings({"slow": np.array([20.0, 30.0, 90.0]), "fast": np.array([10.0, 15.0, 10.0])})
    assert timings.ratio("slow", "fast").of_medians == pytest.approx(3.0)


def test_latest_record_counts_and_none_is_lost(tmp_path):
    ledger.append(made("2025-01-01", 200.0), tmp_path)
    ledger.append(made("2025-01-02", 350.0), tmp_path)
    stored = ledger.read(tmp_path)
    assert len(stored) == 4
    text = render(ledger.latest(stored))
    assert "| 3.50 [3.50 to 3.50] |" in text
    assert "| eager / ours ≥ 3 | 3.50 (eager / ours) | met |" in text
    assert "2.00 [" not in text


def test_rows_without_a_measurement_share_a_line():
    text = render(made("2025-01-01", 250.0, "cuda")).partition("## On a GPU")[2]
    heads = text.partition("**Heads, forward and backward**")[2].partition("**")[0]
    assert heads.count("| vocabulary") == 1
    assert f"| {MISSING}" not in heads
    assert "Not yet measured: 1,000 classes and 4 heads, bfloat16; 8 heads" in heads


def test_gpu_is_not_estimated():
    without, with_gpu = render(made("2025-01-01", 250.0)), render(made("2025-01-01", 250.0, "cuda"))
    assert "2.50" in without
    assert "2.50" not in without.partition("## On a GPU")[2]
    assert MISSING.capitalize() in without.partition("## On a GPU")[2]
    assert "2.50" in with_gpu.partition("## On a GPU")[2]


# --- verdicts ------------------------------------------------------------------------------------------


def record_of(suite, case, peer, p50, share=0.0, kind="cpu", **more):
    return {
        "suite": suite, "case": case, "shape": "", "peer": peer, "direction": "forward+backward", "p50": p50,
        "others_cpu_share": share, "ratio": None, "device": {"kind": kind, "name": "x", "threads": 2}, **more,
    }  # fmt: skip


def cpu_records(ratios, best=None, share=0.0, gemms=80.0):
    records = []
    for case, ratio in zip(HEAD_CASES, ratios, strict=True):
        for peer, p50 in {
            "eager": 100.0 * ratio, "compiled": 100.0 * (best or ratio), "ours": 100.0, "gemms": gemms
        }.items():  # fmt: skip
            records.append(record_of("heads", case.name, peer, p50, share))
    return records


def test_geometric_means_and_the_slowest_case():
    by_name = {v.case: v for v in cpu_verdicts(cpu_records([1.0, 2.0, 4.0, 8.0, 4.0, 2.0, 1.0]))}
    eager = by_name["geometric mean of eager / ours, 7 cases"]
    assert (eager.measured, eager.met) == ("2.44", "missed")  # 2^(9/7)
    best = by_name["geometric mean of best of eager, compiled, linear_cross_entropy / ours, 7 cases"]
    assert (best.measured, best.met) == ("2.44", "met")
    slowest = by_name["no case slower than any peer"]
    assert (slowest.measured, slowest.met) == ("1.00 (tagger)", "met")
    gemms = by_name["ours / bare GEMMs where S ≥ 100"]
    assert gemms.met == "met"
    assert gemms.measured == "1.25 (tagger), 1.25 (2,000 classes), 1.25 (10,000 classes)"


def test_a_case_slower_than_one_peer_is_found():
    by_name = {v.case: v for v in cpu_verdicts(cpu_records([4.0] * 7, best=0.97))}
    assert by_name["no case slower than any peer"].met == "missed"


def test_without_one_case_or_disturbed_nothing_is_decided():
    title = "geometric mean of eager / ours, 7 cases"
    incomplete = cpu_records([4.0] * 7)[4:]
    assert {v.case: v for v in cpu_verdicts(incomplete)}[title].met == MISSING
    disturbed = cpu_records([4.0] * 7, share=0.3)
    assert {v.case: v for v in cpu_verdicts(disturbed)}[title].met == "undecided (disturbed)"


def test_memory_verdicts():
    name = MEMORY_CASE.name
    records = [
        record_of("memory", name, "ours", 90.0, peak_extra_bytes=149_000_000),
        record_of("memory", name, "eager", 100.0, peak_extra_bytes=1_500_000_000),
    ]
    verdicts = [v for v in cpu_verdicts(records) if v.case.startswith(name)]
    assert [(v.measured, v.met) for v in verdicts] == [
        ("149 MB", "met"),
        ("1,500 MB", "missed"),
        ("1.11 (eager / ours)", "met"),
    ]


def test_gpu_verdicts_compare_graphs_with_graphs():
    case = next(case for case in GPU_HEAD_CASES if case.required.of_bytes)
    times = {"eager": 500.0, "liger": 300.0, "eager_graph": 150.0, "ours": 90.0, "ours_graph": 50.0}
    records = [
        record_of("heads", case.name, peer, time, kind="cuda", cold_us=time / 2)
        for peer, time in times.items()
    ]
    records.append({**record_of("floors", "copy", "device", 0.0, kind="cuda"), "value": 4e12})
    verdicts = {v.required: v for v in gpu_verdicts(records) if v.case.startswith(f"{case.name}:")}
    assert verdicts["eager / ours ≥ 5"].measured == "5.56 (eager / ours)"
    assert verdicts["best peer / ours ≥ 2"].measured == "3.00 (eager_graph / ours_graph)"
    assert verdicts["eager / ours, both in a graph ≥ 2"].measured == "3.00 (eager_graph / ours_graph)"
    floor_us = (case.input_bytes + case.gradient_bytes) / 4e12 * 1e6
    assert (
        verdicts["ours (cold) / bytes floor ≤ 1.5"].measured
        == f"{25 / floor_us:.2f} (25.0 of {floor_us:.1f} µs)"
    )
    assert verdicts["ours ≤ 200 µs"].met == "met"
    assert (verdicts["ours_graph ≤ 22 µs"].measured, verdicts["ours_graph ≤ 22 µs"].met) == (
        "50.0 µs",
        "missed",
    )
    assert verdicts["heads_module ≤ 220 µs"].met == MISSING
    assert all(v.met == MISSING for v in gpu_verdicts([]))


def test_whole_jobs_stand_in_the_gpu_report():
    record = record_of("jobs", "mt2st-fast train", "ours on cuda", 0.0, kind="cuda")
    record |= {
        "shape": "ewt, 2480 steps", "unit": "tokens/s", "value": 2.5e6, "call_seconds": 12.0, "quality": 0.9412,
        "phases": [{"active": ["a", "b"], "engine": "cuda graph", "graph": "captured"}],
    }  # fmt: skip
    (row,) = [line for line in job_section([record]) if "train:" in line]
    assert "2,500,000 tokens/s | 12.00 s | 0.9412 | 2 tasks: cuda graph, captured | ≥ 2,000,000, met" in row
    assert job_section([]) == ["Not yet measured."]


def test_a_settled_burst_times_the_second_half_of_its_calls(trips_ns, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "bench.interleaved._burst_us", lambda candidate, calls: seen.append(calls) or 100.0 * len(seen)
    )
    times = interleave({"a": Candidate(lambda: None)}, rounds=1, settles=True)
    assert seen[-2:] == [seen[-1]] * 2
    assert len(seen) == 2 * (WARM_UP_ROUNDS + 1)
    assert times.median_us("a") == 100.0 * len(seen)

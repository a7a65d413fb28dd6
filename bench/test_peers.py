"""Special peers: one without a bias, one less exact than ours; and graphs that own their memory."""

from __future__ import annotations

import importlib.machinery
import sys
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from bench import device as bench_device
from bench import measure, peers
from bench.accuracy import InaccurateError, check_same_computation, peer_rule
from bench.cases import GPU_HEAD_CASES, TINY
from bench.measure import Measurement
from bench.peer_checks import Check
from bench.test_report import record_of
from bench.verdicts import gpu_verdicts

CPU = torch.device("cpu")
BOTH = "forward+backward"


@pytest.fixture
def cut_cross_entropy(monkeypatch):
    """A package of that name whose function takes no bias, as in 25.1.1."""
    module = ModuleType("cut_cross_entropy")
    module.__spec__ = importlib.machinery.ModuleSpec("cut_cross_entropy", None)
    module.linear_cross_entropy = lambda e, c, targets: F.cross_entropy(e @ c.T, targets)
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", module)
    return module


def test_a_peer_without_a_bias_is_compared_with_ours_without_one(cut_cross_entropy, monkeypatch):
    monkeypatch.setattr(measure, "builders", lambda device: peers.BUILDERS)
    monkeypatch.setattr(peers, "ON_GPU_ONLY", {})
    names = ("eager", "ours", "ours_no_bias", "cut_cross_entropy", "gemms")
    made, more, green = measure.checked_peers(TINY, BOTH, Measurement(CPU, 1, 1.0, None), names)
    assert green
    assert list(made) == ["eager", "cut_cross_entropy", "ours", "ours_no_bias", "gemms"]
    assert {name: fields["bias"] for name, fields in more.items() if "bias" in fields} == {
        "eager": True, "ours": True, "ours_no_bias": False, "cut_cross_entropy": False,
    }  # fmt: skip
    assert "1.5 times torch's own" in more["ours_no_bias"]["accuracy_rule"]
    ratios = measure.over_eager(made)
    assert ratios["cut_cross_entropy"] == ("cut_cross_entropy", "ours_no_bias")
    assert "ours_no_bias" not in ratios
    assert ratios["ours"] == ("eager", "ours")


def test_a_peer_without_a_bias_is_held_to_the_truth_without_one(cut_cross_entropy):
    inputs = TINY.inputs(device=CPU)
    check = Check(inputs, BOTH)
    check(peers.cut_cross_entropy(inputs, BOTH))
    # The truth with a bias is different.
    total = peers.ours(inputs, BOTH).results()["total"]
    assert not torch.isclose(total, peers.ours_no_bias(inputs, BOTH).results()["total"], rtol=1e-3)
    cut_cross_entropy.linear_cross_entropy = lambda e, c, targets: 1.01 * F.cross_entropy(e @ c.T, targets)
    with pytest.raises(InaccurateError, match="cut_cross_entropy"):
        check(peers.cut_cross_entropy(inputs, BOTH))


def test_a_peer_that_takes_a_bias_gets_one(cut_cross_entropy):
    cut_cross_entropy.linear_cross_entropy = lambda e, c, targets, bias=None: F.cross_entropy(
        F.linear(e, c, bias), targets
    )
    inputs = TINY.inputs(device=CPU)
    peer = peers.cut_cross_entropy(inputs, BOTH)
    assert len(peer.biases) == 3
    Check(inputs, BOTH)(peer)
    assert "needs heads without a bias" in peers.obstacle("ours_no_bias", CPU)


def test_a_float32_total_of_short_inputs_is_judged_by_the_peers_own_error():
    truth = {"total": torch.tensor(1.0, dtype=torch.float64)}
    off = {"total": torch.tensor(1.0 + 7.6e-5)}
    check_same_computation("liger", off, truth, torch.bfloat16)
    with pytest.raises(InaccurateError):
        check_same_computation("liger", off, truth, torch.float32)
    assert peer_rule(torch.bfloat16).endswith("at most 0.001 in float32, 0.03 in bfloat16")


def test_the_verdict_on_a_peer_without_a_bias_is_on_ours_without_one():
    case = GPU_HEAD_CASES[0]
    times = {"ours": 200.0, "ours_no_bias": 100.0, "cut_cross_entropy": 150.0}
    records = [
        record_of("heads", case.name, peer, time, kind="cuda", bias=peer == "ours")
        for peer, time in times.items()
    ]
    found = [v for v in gpu_verdicts(records) if v.required.startswith("cut_cross_entropy")]
    assert [(v.measured, v.met) for v in found] == [("1.50 (cut_cross_entropy / ours_no_bias)", "met")]


def test_every_peer_has_its_place_in_the_order():
    assert sorted((*peers.FIRST, *peers.LATER)) == sorted(peers.BUILDERS)


def test_a_peer_that_is_not_needed_waits_for_time(capsys):
    m = Measurement(CPU, 1, 1.0, None)
    m.begin(0.0)
    made, _, _ = measure.checked_peers(TINY, BOTH, m, ("eager", "ours", "linear_cross_entropy"))
    assert set(made) == {"eager", "ours"}
    assert "skipped linear_cross_entropy: no time left" in capsys.readouterr().out


@pytest.mark.parametrize(("S", "rows"), [(45, 48), (151_969, 151_976), (256, 256)])
def test_the_floor_of_a_gpu_is_of_aligned_products(S, rows):
    weight_sd = torch.ones(S, 1)
    found = peers.aligned(weight_sd)
    assert found.shape == (rows, 1)
    assert found.sum() == S


# --- graphs ----------------------------------------------------------------------------------------------


class FakeGraph:
    def __init__(self, seen):
        self.seen = seen

    def replay(self):
        self.seen.append("replay")


@pytest.fixture
def seen(monkeypatch):
    """The calls to CUDA, in order."""
    seen = []

    class Stream:
        def __init__(self, device):
            pass

        def wait_stream(self, other):
            pass

    @contextmanager
    def capture(graph, stream):
        seen.append("begin")
        yield
        seen.append("end")

    @contextmanager
    def on_stream(stream):
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(seen))
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(bench_device, "synchronize", lambda device: seen.append("wait"))
    monkeypatch.setattr(bench_device, "clear_workspaces", lambda: seen.append("clear"))
    return seen


def test_a_capture_makes_workspaces_anew_and_keeps_none(seen):
    def run():
        seen.append("run")
        return "result"

    replay = bench_device.captured(run, CPU, prepare=lambda: seen.append("prepare"), warm_ups=1)
    replay()
    assert replay.result == "result"
    assert seen == [
        "prepare", "run", "wait", "prepare", "clear", "begin", "run", "end", "clear", "replay",
    ]  # fmt: skip


def test_a_replay_keeps_what_its_run_reads(seen):
    import gc
    import weakref

    class Inputs:
        pass

    inputs = Inputs()
    alive = weakref.ref(inputs)
    replay = bench_device.captured(lambda inputs=inputs: seen.append("run"), CPU)
    del inputs
    gc.collect()
    assert alive() is not None
    del replay
    gc.collect()
    assert alive() is None


# --- a device that is lost -------------------------------------------------------------------------------


def test_a_case_that_breaks_the_device_leaves_the_others_to_another_process(monkeypatch):
    done, started = [], []

    class LostError(Exception):
        pass

    def restart(program, command):
        started.append(command)
        raise LostError

    def synchronize(device):
        if done[-1] == "second":
            raise RuntimeError("an illegal memory access was encountered")

    work = [
        measure.Work(name, lambda name=name: done.append(name) is None)
        for name in ("first", "second", "third")
    ]
    monkeypatch.setattr(measure, "find", lambda name: torch.device("cuda"))
    monkeypatch.setattr(measure, "describe", lambda device: {})
    monkeypatch.setattr(measure, "_work", lambda suite, case, m: work)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(measure.os, "execv", restart)
    monkeypatch.setattr(sys, "argv", ["measure.py", "heads", "--device", "cuda"])
    with pytest.raises(LostError):
        measure.main(measure.Suite.heads, device="cuda", total_seconds=60.0, records=None, case=None, first=0)
    assert done == ["first", "second"]
    ((program, *command),) = started
    assert program == sys.executable
    assert command[:7] == ["-m", "bench.measure", "heads", "--device", "cuda", "--first", "2"]
    assert command[7] == "--total-seconds"
    assert 0 < float(command[8]) <= 60.0


def test_a_run_that_goes_on_begins_at_its_case_and_stays_red(monkeypatch):
    done = []
    work = [
        measure.Work(name, lambda name=name: done.append(name) is None)
        for name in ("first", "second", "third")
    ]
    monkeypatch.setattr(measure, "_work", lambda suite, case, m: work)
    with pytest.raises(measure.typer.Exit):
        measure.main(measure.Suite.heads, device="cpu", total_seconds=None, records=None, case=None, first=2)
    assert done == ["third"]

"""All heads at once, by every peer: forward and backward, and forward alone."""

from __future__ import annotations

import pytest
import torch

from bench.cases import DIRECTIONS, HEAD_CASES, TINY, HeadCase
from bench.interleaved import interleave
from bench.peer_checks import check
from bench.peers import builders, eager, obstacle, ours

# Inductor loads parts of torch that torch itself calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
LONG = pytest.mark.long
CPU = torch.device("cpu")
BUILDERS = builders(CPU)
# Compiling takes longer than all the rest of the tiny case together.
TINY_PEERS = [pytest.param(name, marks=LONG if name == "compiled" else ()) for name in BUILDERS]


def run_benchmark(benchmark, case: HeadCase, name: str, direction: str) -> None:
    if reason := obstacle(name):
        pytest.skip(reason)
    inputs = case.inputs(device=CPU)
    peer = BUILDERS[name](inputs, direction)
    check(peer, inputs, direction)
    benchmark.group = f"{case.name}: {case.shape}, {direction}"
    benchmark.pedantic(peer.run, setup=peer.clear, rounds=30, warmup_rounds=3)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", TINY_PEERS)
def test_tiny_heads(benchmark, name, direction):
    run_benchmark(benchmark, TINY, name, direction)


@pytest.mark.long
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("case", HEAD_CASES, ids=lambda case: case.name)
def test_heads(benchmark, case, name, direction):
    run_benchmark(benchmark, case, name, direction)


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in HEAD_CASES if case.floor], ids=lambda case: case.name)
def test_required_speedup(case):
    if reason := obstacle("ours"):
        pytest.skip(reason)
    inputs = case.inputs(device=CPU)
    peers = [build(inputs, "forward+backward") for build in (eager, ours)]
    check(peers[1], inputs, "forward+backward")
    timings = interleave({peer.name: peer.candidate() for peer in peers}, rounds=50)
    assert timings.ratio("eager", "ours").of_medians >= case.floor

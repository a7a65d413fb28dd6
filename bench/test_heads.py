"""All heads at once, by every peer: forward and backward, and forward alone."""

from __future__ import annotations

import pytest
import torch

from bench.cases import DIRECTIONS, HEAD_CASES, TINY, HeadCase, HeadInputs
from bench.interleaved import interleave
from bench.peer_checks import check
from bench.peers import builders, eager, obstacle, ours
from mt2st_fast.kernels import Shape, choose_backend, choose_plan

# Inductor loads parts of torch that torch itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
LONG = pytest.mark.long
CPU = torch.device("cpu")
BUILDERS = builders(CPU)
REQUIRED = [case for case in HEAD_CASES if case.on == "cpu" and case.required.over_eager]
QUICK_PEERS = ("ours", "eager", "linear_cross_entropy")
# Compiling takes longer than the rest of the tiny case.
TINY_PEERS = [pytest.param(name, marks=LONG if name == "compiled" else ()) for name in BUILDERS]


def run_benchmark(benchmark, case: HeadCase, name: str, direction: str) -> None:
    if reason := obstacle(name):
        pytest.skip(reason)
    inputs = case.inputs(device=CPU)
    peer = BUILDERS[name](inputs, direction)
    check(peer, inputs, direction)
    benchmark.group = f"{case.name}: {case.shape}, {direction}"
    benchmark.extra_info |= {"threads": torch.get_num_threads(), **how(name, inputs)}
    benchmark.pedantic(peer.run, setup=peer.clear, rounds=30, warmup_rounds=3)


@pytest.mark.tried
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", TINY_PEERS)
def test_tiny_heads(benchmark, name, direction):
    run_benchmark(benchmark, TINY, name, direction)


def how(name: str, inputs: HeadInputs) -> dict[str, str]:
    """Return the backend and the plan of ours."""
    if name != "ours":
        return {}
    backend = choose_backend(CPU, inputs.features_nd.dtype)
    features, layout = inputs.features_nd, inputs.layout
    shape = Shape(*features.shape, layout.width, layout.widest, features.element_size())
    return {"backend": backend.name, "plan": choose_plan(backend.name, shape).name}


@pytest.mark.timed
@pytest.mark.parametrize("name", QUICK_PEERS)
@pytest.mark.parametrize("case", HEAD_CASES, ids=lambda case: case.name)
def test_real_heads(benchmark, case, name):
    run_benchmark(benchmark, case, name, "forward+backward")


@pytest.mark.long
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("case", HEAD_CASES, ids=lambda case: case.name)
def test_heads(benchmark, case, name, direction):
    run_benchmark(benchmark, case, name, direction)


@pytest.mark.long
@pytest.mark.parametrize("case", REQUIRED, ids=lambda case: case.name)
def test_required_speedup(case):
    if reason := obstacle("ours"):
        pytest.skip(reason)
    inputs = case.inputs(device=CPU)
    peers = [build(inputs, "forward+backward") for build in (eager, ours)]
    check(peers[1], inputs, "forward+backward")
    timings = interleave({peer.name: peer.candidate() for peer in peers}, rounds=50)
    assert timings.ratio("eager", "ours").of_medians >= case.required.over_eager

"""The first call of a process may be one that torch.compile traces, while modules of kernels are imported."""

import subprocess
import sys

import pytest

STEPS = """
for called in (torch.compile(loss, fullgraph=True, backend="aot_eager"), loss):
    total = called(inputs)
    total.backward()
    print(total.item(), sum(p.grad.abs().sum().item() for p in parameters))
    for p in parameters:
        p.grad = None
"""
HEADS = """
import torch
from mt2st_fast import Classification, MultiTaskHeads
torch.manual_seed(0)
heads = MultiTaskHeads(8, {"a": Classification(3), "b": Classification(4)}, main="a")
targets = {"a": torch.randint(0, 3, (16,)), "b": torch.randint(0, 4, (16,))}
inputs, parameters = torch.randn(16, 8), list(heads.parameters())
def loss(features):
    return heads(features, targets).total
"""
BAGS = """
import torch
from mt2st_fast import BagEncoder
torch.manual_seed(0)
encoder = BagEncoder(50, 8)
inputs, parameters = (torch.randint(0, 50, (40,)), torch.arange(0, 41, 10)), list(encoder.parameters())
def loss(bags):
    return encoder(bags).square().sum()
"""


@pytest.mark.parametrize("model", [HEADS, BAGS], ids=["heads", "bags"])
def test_a_process_may_begin_with_a_compiled_call(model: str) -> None:
    done = subprocess.run([sys.executable, "-c", model + STEPS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    compiled, called = ([float(number) for number in line.split()] for line in done.stdout.splitlines())
    assert compiled == pytest.approx(called, rel=1e-5)

"""Every peer computes the heads, both ways, at a size that CI can bear."""

from __future__ import annotations

import pytest
import torch

from bench.cases import DIRECTIONS, TINY
from bench.peer_checks import Check
from bench.peers import builders, obstacle

BUILDERS = builders(torch.device("cpu"))
# Compiling takes longer than the rest.
PEERS = [pytest.param(name, marks=pytest.mark.long if name == "compiled" else ()) for name in BUILDERS]


@pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning"
)  # Inductor loads what torch itself deprecates
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", PEERS)
def test_every_peer_computes_the_heads(name, direction):
    if reason := obstacle(name):
        pytest.skip(reason)
    inputs = TINY.inputs()
    Check(inputs, direction)(BUILDERS[name](inputs, direction))

"""What tests share: a small problem that can be learnt, and each plan of the fused op made to work at small sizes."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

# Read when torch is imported. Threads of torch that spin for one another hold up the other workers, and the tests took
# three times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A hundred processes of the tests import the package: each would compile its sources, for a third of a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
import torch
from torch import nn

from mt2st_fast import Classification, MultiLabel, MultiTaskHeads, Regression
from mt2st_fast.kernels.heads.on_numba import chunked as numba_chunked
from mt2st_fast.kernels.heads.on_numba import tile as numba_tile
from tests.kernels.heads.loss_problems import PLAN

# Plans that somebody tuned on this machine must not decide what the tests run.
os.environ["MT2ST_PLANS"] = str(Path(__file__).with_name("no_plans.json"))

TASKS = {
    "tag": Classification(4),
    "feats.Number": MultiLabel(3),
    "score": Regression(1, huber_delta=1.0),
}
F_IN = 6


def make_encoder(dropout: float = 0.0, out: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(F_IN, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, out))


def make_heads(
    main: str = "tag", *, features: int = 8, only: tuple[str, ...] = tuple(TASKS)
) -> MultiTaskHeads:
    return MultiTaskHeads(features, {name: TASKS[name] for name in only}, main)


def make_batches(n_batches: int, rows: int = 32, seed: int = 0) -> list:
    """Batches (inputs, {task: target}) whose targets are functions of the inputs."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.Generator().manual_seed(99)
    mixing = torch.randn(F_IN, 8, generator=rule)
    batches = []
    for _ in range(n_batches):
        inputs = torch.randn(rows, F_IN, generator=generator)
        hidden = inputs @ mixing
        targets = {
            "tag": hidden[:, :4].argmax(dim=1),
            "feats.Number": (hidden[:, 4:7] > 0).float(),
            "score": hidden[:, 7],
        }
        batches.append((inputs, targets))
    return batches


@pytest.fixture
def toy() -> SimpleNamespace:
    """Factories of the small problem; whatever they make is seeded."""
    torch.manual_seed(0)
    return SimpleNamespace(
        tasks=TASKS, encoder=make_encoder, heads=make_heads, batches=make_batches, features=F_IN
    )


@pytest.fixture
def pairs(tmp_path):
    """sea0 and sky0 are said to be the same, sea1 and sea2 to have nothing in common."""
    path = tmp_path / "pairs.tsv"
    path.write_text(
        "word 1\tword 2\tscore\nsea0\tsky0\t10\nsea1\tsea2\t0\nsea0\tunknown\t5\n", encoding="utf-8"
    )
    return path


@pytest.fixture(params=["tile", "tile-parallel", "chunked"])
def plan(request, monkeypatch):
    """Runs a test by every plan, each made to do at this size what it does at its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    name = request.param.removesuffix("-parallel")
    monkeypatch.setitem(PLAN, "forced", name)
    monkeypatch.setattr(numba_tile, "TILE_FLOATS", 0)  # the fewest rows a tile
    if request.param == "tile-parallel":
        monkeypatch.setattr(numba_tile, "LEAST_PRODUCTS", 1)
    monkeypatch.setattr(numba_chunked, "WIDE_HEAD", 3)
    monkeypatch.setattr(numba_chunked, "MOST_ROWS", 48)
    yield name
    torch.set_num_threads(before)

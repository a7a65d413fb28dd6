"""Runs on a CPU under a default device that is another: what a kernel reads or writes must not follow the default."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from mt2st_fast import BagEncoder, Callback, Classification, MultiTaskHeads, Switch, Trainer, WindowEncoder

V, D = 50, 16


@contextmanager
def default_device(name: str) -> Iterator[None]:
    before = torch.get_default_device()
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(before)


def dense(draw):
    return nn.Sequential(nn.Linear(3, D), nn.ReLU(), nn.Dropout(0.2)), torch.randn(64, 3, generator=draw)


def normalized(draw):
    return nn.Sequential(nn.Linear(3, D), nn.LayerNorm(D), nn.Softshrink(0.1)), torch.randn(
        64, 3, generator=draw
    )


def windows(draw):
    return WindowEncoder(V, 8, window=1, hidden=D, sparse=True), torch.randint(0, V, (64, 3), generator=draw)


def bags(draw):
    return BagEncoder(V, D, sparse=True), torch.randint(0, V, (64, 3), generator=draw)


class Stop(Callback):
    def on_step(self, trainer):
        trainer.stop_requested = trainer.step == 5


def run(kind, options, path, *, stop=False, resume=False):
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    encoder, inputs = kind(draw)
    heads = MultiTaskHeads(D, {"a": Classification(4), "b": Classification(3)}, main="a")
    labels = torch.arange(16)
    batches = [(each, {"a": labels % 4, "b": labels % 3}) for each in inputs.split(16)]
    if kind is bags:
        batches = [((each.flatten(), torch.arange(0, 49, 3)), targets) for each, targets in batches]
    trainer = Trainer(
        encoder, heads, schedule=Switch(at=0.5), device="cpu", callbacks=[Stop()] if stop else (), **options
    )
    yield
    trainer.fit(batches, val=batches, epochs=3, evaluate_every=2, checkpoint=path, resume=resume)
    yield [p.detach().clone() for p in (*encoder.parameters(), *heads.parameters())]


def results(kind, options, path, device, **how):
    steps = run(kind, options, path, **how)
    next(steps)
    with default_device(device):
        return next(steps)


@pytest.fixture(autouse=True)
def no_address_elsewhere(monkeypatch):
    """A kernel that gets the address of memory that is not the CPU's ends the process; here it is an error."""
    data_ptr = torch.Tensor.data_ptr

    def checked(tensor):
        assert tensor.device.type == "cpu", f"the address of a tensor on {tensor.device}"
        return data_ptr(tensor)

    monkeypatch.setattr(torch.Tensor, "data_ptr", checked)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"clip_norm": 1.0}], ids=str)
@pytest.mark.parametrize("kind", [dense, normalized, windows, bags])
def test_a_run_does_not_depend_on_it(kind, options, tmp_path):
    path = tmp_path / "checkpoint"
    expected = results(kind, options, path, "cpu")
    assert all(map(torch.equal, expected, results(kind, options, path, "meta")))
    results(kind, options, path, "meta", stop=True)
    assert all(map(torch.equal, expected, results(kind, options, path, "meta", resume=True)))

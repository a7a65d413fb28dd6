"""Steps of encoders on a real GPU: no wait, one CUDA graph for every rate and batch, positions in order."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from bench.device import captured
from mt2st_fast import SGD, BagEncoder, LazyAdam, RowwiseAdagrad, WindowEncoder
from mt2st_fast.kernels.bags.batch import NONE, Bags, type_rows
from mt2st_fast.kernels.bags.on_triton import blocks
from mt2st_fast.kernels.bags.on_triton.order import order_of
from mt2st_fast.training.optimizers.learning_rate import put_on_device, set_rate
from tests.on_gpu.helpers import BACKEND, DEVICE, no_waiting, poisoned_memory

T, R, M, D = 5000, 9000, 12, 64
OPTIMIZERS = {"sgd": SGD, "adagrad": RowwiseAdagrad, "adam": LazyAdam}
RATES = {"sgd": 1e-3, "adagrad": 0.05, "adam": 0.05}


class Model:
    """An encoder, a layer behind it and their optimizer, which steps rows in the backward pass."""

    def __init__(self, kind, subwords, optimizer, backend=BACKEND):
        torch.manual_seed(0)
        rows = torch.randint(1, R, (T, M))
        rows[::3, 4:] = 0  # padding
        options = {"sparse": True, "backend": backend}
        options |= {"rows_of_type": rows, "num_rows": R} if subwords else {}
        if kind == "window":
            self.encoder = WindowEncoder(T, D, hidden=32, **options).to(DEVICE)
        else:
            self.encoder = BagEncoder(T, D, mode=kind, **options).to(DEVICE)
        self.output = nn.Linear(self.encoder.out_features, 3).to(DEVICE)
        self.parameters = [*self.encoder.parameters(), *self.output.parameters()]
        self.optimizer = OPTIMIZERS[optimizer](self.parameters, lr=RATES[optimizer])
        put_on_device(self.optimizer, DEVICE)
        self.optimizer.fuse([self.encoder.table])

    def step(self, batch):
        self.output(self.encoder(batch)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def set_rate(self, rate):
        for group in self.optimizer.param_groups:
            set_rate(group, rate)


def batch_of(kind, seed):
    generator = torch.Generator().manual_seed(seed)
    if kind == "window":
        types = (T * torch.rand(512, 5, generator=generator) ** 3).int() - 1
        return types.to(DEVICE)
    starts = torch.tensor([0, 0, *torch.randint(1, 40, (300,), generator=generator)]).cumsum(0)
    # A buffer of a fixed length, whose end belongs to no bag.
    types = (T * torch.rand(12_500, generator=generator) ** 3).int()
    return types.to(DEVICE), starts.to(DEVICE)


CASES = [*product(("window", "mean", "sum"), (True, False), OPTIMIZERS)]


@pytest.mark.parametrize(("kind", "subwords", "optimizer"), CASES)
def test_a_step_never_waits_and_is_that_of_the_reference(kind, subwords, optimizer):
    ours, truth = (Model(kind, subwords, optimizer, backend) for backend in (BACKEND, "reference"))
    before = [p.detach().clone() for p in ours.parameters]
    for seed in range(3):
        batch = batch_of(kind, seed)
        with poisoned_memory():
            if seed:
                with no_waiting():
                    ours.step(batch)
            else:
                ours.step(batch)  # compiles, and makes what the optimizer keeps
        if kind != "window":  # the reference takes no longer buffer
            batch = batch[0][: int(batch[1][-1])], batch[1]
        truth.step(batch)
    for a, b, start in zip(ours.parameters, truth.parameters, before, strict=True):
        wrong, moved = (a - b).abs(), (b - start).abs().max()
        assert moved > 1e-5
        if (
            optimizer == "adam"
        ):  # divides a gradient by its own size: where it almost cancels, a rounding is a step
            assert (wrong > 1e-2 * moved).float().mean() <= 1e-3
        else:
            assert wrong.max() <= 1e-2 * moved


@pytest.mark.parametrize(("kind", "subwords", "optimizer"), CASES)
def test_one_graph_serves_every_batch_and_rate(kind, subwords, optimizer):
    def buffers(batch):
        return [batch] if kind == "window" else list(batch)

    def as_input(tensors):
        return tensors[0] if kind == "window" else tuple(tensors)

    graphed, eager = (Model(kind, subwords, optimizer) for _ in range(2))
    static = [tensor.clone() for tensor in buffers(batch_of(kind, 0))]
    replay = captured(lambda: graphed.step(as_input(static)), DEVICE, warm_ups=2)
    for seed in (0, 0):  # a capture runs nothing
        eager.step(batch_of(kind, seed))
    for seed, share in ((1, 1.0), (2, 0.4), (3, 0.02)):
        for model in (graphed, eager):
            model.set_rate(share * RATES[optimizer])
        for mine, tensor in zip(static, buffers(batch_of(kind, seed)), strict=True):
            mine.copy_(tensor)
        replay()
        eager.step(batch_of(kind, seed))
    # A GEMM may be another one in a capture; a frozen rate would show in the second digit.
    for a, b in zip(graphed.parameters, eager.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5 if optimizer == "sgd" else 1e-3)


@pytest.mark.parametrize(("kind", "subwords"), [*product(("window", "mean"), (True, False))])
def test_frozen_rows_stay_in_a_step_that_never_waits_and_in_its_graph(kind, subwords):
    eager, graphed = (Model(kind, subwords, "adam") for _ in range(2))
    frozen = torch.arange(len(eager.encoder.table)) % 3 == 0
    before = eager.encoder.table.detach().clone()
    for model in (eager, graphed):
        model.optimizer.freeze_rows(model.encoder.table, frozen)
    batch = batch_of(kind, 0)
    replay = captured(lambda: graphed.step(batch), DEVICE, warm_ups=2)
    replay()
    for _ in range(2):
        eager.step(batch)
    with no_waiting():
        eager.step(batch)
    torch.cuda.synchronize()
    for model in (eager, graphed):
        moved = (model.encoder.table != before).any(1).cpu()
        assert moved[~frozen].any()
        assert not moved[frozen].any()
    for a, b in zip(graphed.parameters, eager.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("mode", ["mean", "sum"])
def test_a_batch_that_was_sorted_before_is_the_same_batch(mode):
    as_it_is, sorted_before = (Model(mode, True, "adam") for _ in range(2))
    buffer = sorted_before.encoder.prepare(*batch_of(mode, 9))
    for seed in range(3):
        as_it_is.step(batch_of(mode, seed))
        buffer.copy_from(sorted_before.encoder.prepare(*batch_of(mode, seed)))
        sorted_before.step(buffer)
    for a, b in zip(as_it_is.parameters, sorted_before.parameters, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "n", [1, 7, 1023, 1024, 1025, 4096, 30_720, blocks.MOST_RANKED, blocks.MOST_RANKED + 1]
)
@pytest.mark.parametrize("V", [2, 3000, 2**31 - 1])
def test_positions_are_in_order(n, V):
    generator = torch.Generator().manual_seed(n)
    ids = torch.randint(0, V, (n,), generator=generator).int()
    ids[::5] = NONE
    with poisoned_memory():
        order = order_of(Bags(ids.to(DEVICE), None, None), V)
    keys, positions = torch.sort(torch.where(ids == NONE, V, ids.long()), stable=True)
    assert torch.equal(order.keys.cpu().long(), keys)
    assert torch.equal(order.positions.cpu().long(), positions)
    known = keys < V
    assert torch.equal(order.bags.cpu()[known].long(), positions[known])


def test_bags_of_types_are_in_order():
    rows = torch.randint(-1, R, (T, M)).int()
    types, starts = batch_of("mean", 1)
    scales = torch.rand(len(starts) - 1, device=DEVICE)
    order = order_of(Bags(types, starts, scales, type_rows(rows.to(DEVICE))), R)
    total = int(starts[-1])
    flat = torch.full((len(types), M), R)
    flat[:total] = rows[types[:total].long().cpu()].long()
    flat = torch.where(flat < 0, R, flat).flatten()
    keys, positions = torch.sort(flat, stable=True)
    assert torch.equal(order.keys.cpu().long(), keys)
    known = keys < R
    bags = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.cpu().diff())[positions[known] // M]
    assert torch.equal(order.bags.cpu()[known].long(), bags)
    counts = (rows >= 0).sum(1)[types.cpu()[positions[known] // M].long()]
    torch.testing.assert_close(order.weights.cpu()[known], scales.cpu()[bags] / counts)

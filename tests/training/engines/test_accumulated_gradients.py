"""The gradients of k micro-batches are those of one batch: every kind of task, every engine, labels missing at random.

Truth is one batch in float64 by plain torch; the allowed error is torch's own in float32 (tests/kernels/heads).
"""

from __future__ import annotations

import math
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mt2st_fast import (
    SGD,
    Classification,
    LazyAdam,
    MultiLabel,
    MultiTask,
    MultiTaskHeads,
    OpenTask,
    Regression,
    Trainer,
)
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.model.word_tasks import WordSimilarity
from tests.kernels.heads.loss_problems import assert_as_accurate, torch_loss
from tests.training.graphs_on_cpu import GraphedOnCpu

ROWS, WORDS, FEATURES = 96, 40, 16
KINDS = {
    "classes": Classification(5),
    "smoothed": Classification(4, class_weights=(1.0, 3.0, 0.2, 1.0), label_smoothing=0.1, ignore_index=9),
    "labels": MultiLabel(6, pos_weight=(1.0, 2.0, 0.5, 1.0, 1.0, 3.0)),
    "values": Regression(2),
    "robust": Regression(1, huber_delta=0.3),
}
WEIGHTS = {"smoothed": 0.5, "labels": 2.0, "values": 0.25, "robust": 1.5}


class Ranking(OpenTask):
    """Rows are scored against each other, of those that have a score; targets lie in a dictionary."""

    def __init__(self):
        super().__init__()
        self.scorer = nn.Linear(FEATURES, 1)

    def loss(self, features, targets, mask):
        known = ~targets["score"].isnan()
        errors = (self.scorer(features).squeeze(-1) - targets["score"].nan_to_num()) ** 2 * known
        return errors.sum() / known.sum().clamp_min(1)

    def count(self, targets):
        return (~targets["score"].isnan()).sum()


def rows(seed):
    """Windows of word types (N, 3), and targets of which more and more are missing towards the end."""
    g = torch.Generator().manual_seed(seed)
    missing = torch.rand(ROWS, 6, generator=g) < torch.linspace(0.1, 0.97, ROWS)[:, None]
    targets = {
        "classes": torch.randint(0, 5, (ROWS,), generator=g).masked_fill(missing[:, 0], -100),
        "smoothed": torch.randint(0, 4, (ROWS,), generator=g).masked_fill(missing[:, 1], 9),
        "labels": torch.randint(0, 2, (ROWS, 6), generator=g).float(),
        "values": torch.randn(ROWS, 2, generator=g).masked_fill(missing[:, 3:4], math.nan),
        "robust": torch.randn(ROWS, 1, generator=g).masked_fill(missing[:, 4:5], math.nan),
    }
    targets["labels"] = targets["labels"].masked_fill(torch.rand(ROWS, 6, generator=g) < 0.5, math.nan)
    scores = torch.randn(ROWS, generator=g).masked_fill(missing[:, 5], math.nan)
    return torch.randint(0, WORDS, (ROWS, 3), generator=g, dtype=torch.int32), targets, {"score": scores}


class Dense(nn.Module):
    """Windows by torch alone."""

    def __init__(self):
        super().__init__()
        self.words, self.hidden = nn.Embedding(WORDS, 8), nn.Linear(24, FEATURES)

    def forward(self, types):
        return torch.tanh(self.hidden(self.words(types).flatten(1)))


def window():
    return WindowEncoder(WORDS, 8, window=1, hidden=FEATURES, dropout=0.0, sparse=True)


def bag():
    return BagEncoder(WORDS, FEATURES, sparse=True)


def bags(types):
    return types.flatten(), torch.arange(0, types.numel() + 1, 3)


# What takes the steps: encoder, how its inputs are made of types, trainer, optimizer.
ENGINES = {
    "eager": (Dense, None, Trainer, torch.optim.SGD),
    "graph": (Dense, None, GraphedOnCpu, torch.optim.SGD),
    "window": (window, None, Trainer, SGD),
    "bag": (bag, bags, Trainer, SGD),
    "reference": (Dense, None, Trainer, torch.optim.SGD),
}


def made(engine, tasks):
    torch.manual_seed(7)
    encoder = ENGINES[engine][0]()
    backend = "reference" if engine == "reference" else "auto"
    return encoder, MultiTaskHeads(FEATURES, deepcopy(tasks), next(iter(tasks)), backend=backend)


def true_gradients(engine, tasks, inputs, targets, dtype):
    """Of one batch by torch: by the name of every parameter that has one."""
    encoder, heads = (module.to(dtype) for module in made(engine, tasks))
    features = plain_features(encoder, inputs, dtype)
    losses = []
    for name, task in tasks.items():
        if isinstance(task, OpenTask):
            scores = {"score": targets[name]["score"].to(dtype)}
            loss = heads.open_task(name).loss(features, scores, None)
        else:
            target = targets[name].to(dtype) if targets[name].is_floating_point() else targets[name]
            loss = torch_loss(
                F.linear(features, heads.linear(name).weight, heads.linear(name).bias), target, task.head
            )
        losses.append(WEIGHTS.get(name, 1.0) * loss)
    torch.stack(losses).sum().backward()
    return {
        n: p.grad for module in (encoder, heads) for n, p in module.named_parameters() if p.grad is not None
    }


def plain_features(encoder, types, dtype):
    if isinstance(encoder, Dense):
        return encoder(types)
    vectors = encoder.table[types.long()]
    if isinstance(encoder, BagEncoder):
        return vectors.mean(1)
    return torch.relu(encoder.hidden(vectors.flatten(1)))


def accumulated(engine, tasks, inputs, targets, sizes):
    """The gradients of a step in micro-batches of those sizes, and the trainer."""
    encoder, heads = made(engine, tasks)
    _, as_inputs, trainer_class, optimizer = ENGINES[engine]
    seen = {}

    class Keeping(optimizer):
        def step(self, closure=None):
            for module in (encoder, heads):
                for name, parameter in module.named_parameters():
                    if parameter.grad is not None and name not in seen:
                        seen[name] = parameter.grad.to_dense().clone()
            return super().step(closure)

    trainer = trainer_class(
        encoder, heads, optimizer=lambda p: Keeping(p, lr=1e-3), schedule=MultiTask(weights_of(tasks)),
        accumulate=len(sizes), device="cpu", log_every=1,
    )  # fmt: skip
    bounds = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    batches = []
    for a, b in pairwise(bounds):
        part = {
            n: ({"score": t["score"][a:b]} if isinstance(t, dict) else t[a:b])
            for n, t in targets.items()
            if n in tasks
        }
        batches.append((inputs[a:b] if as_inputs is None else as_inputs(inputs[a:b]), part))
    trainer.fit(batches, epochs=1)
    return seen, trainer


def weights_of(tasks):
    return {name: WEIGHTS[name] for name in tasks if name in WEIGHTS}


@pytest.mark.parametrize("sizes", [(48, 48), (90, 6), (24, 24, 24, 24), (1, 1, 94), (13,) * 7 + (5,)])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_are_those_of_one_batch(engine, sizes, seed):
    tasks = KINDS if engine != "eager" else {**KINDS, "ranked": Ranking()}
    inputs, targets, ranked = rows(seed)
    targets = {**targets, "ranked": ranked}
    ours, trainer = accumulated(engine, tasks, inputs, targets, sizes)
    truth = true_gradients(engine, tasks, inputs, targets, torch.float64)
    torchs = true_gradients(engine, tasks, inputs, targets, torch.float32)
    assert ours.keys() == truth.keys()
    for name, gradient in ours.items():
        assert_as_accurate(gradient, torchs[name], truth[name], name)
    assert trainer.step == 1


def test_a_graph_is_replayed_for_accumulated_steps():
    inputs, targets, _ = rows(0)
    encoder, heads = made("graph", KINDS)
    batches = [
        (inputs[i : i + 12], {n: t[i : i + 12] for n, t in targets.items()}) for i in range(0, ROWS, 12)
    ]
    weights = []
    for kind in (Trainer, GraphedOnCpu):
        encoder, heads = made("graph", KINDS)
        trainer = kind(
            encoder, heads, optimizer=lambda p: torch.optim.SGD(p, lr=2.0**-7), schedule=MultiTask(),
            accumulate=2, device="cpu",
        )  # fmt: skip
        trainer.fit(batches, epochs=3)
        weights.append(encoder.hidden.weight.detach().clone())
    assert trainer.capturer.replayed > 0
    assert torch.equal(*weights)


@pytest.mark.parametrize("sizes", [(20, 20), (37, 3), (1, 39)])
def test_pairs_of_words_count_by_their_number(sizes):
    g = torch.Generator().manual_seed(1)
    pairs, scores = torch.randint(0, WORDS, (40, 2), generator=g), torch.rand(40, generator=g)
    types, targets, _ = rows(0)
    steps = []
    for parts in ((40,), sizes):
        torch.manual_seed(7)
        encoder = BagEncoder(WORDS, FEATURES, sparse=False)
        heads = MultiTaskHeads(FEATURES, {"classes": KINDS["classes"], "pairs": WordSimilarity()}, "classes")
        bounds = [0, *torch.tensor(parts).cumsum(0).tolist()]
        trainer = Trainer(
            encoder, heads, optimizer=lambda p: torch.optim.SGD(p, lr=1.0), schedule=MultiTask(),
            accumulate=len(parts), device="cpu",
        )  # fmt: skip
        rows_of_part = ROWS // len(parts)
        trainer.fit(
            {
                "classes": [
                    (bags(types[i * rows_of_part : (i + 1) * rows_of_part]),
                     {"classes": targets["classes"][i * rows_of_part : (i + 1) * rows_of_part]})
                    for i in range(len(parts))
                ],
                "pairs": [(pairs[a:b], {"pairs": scores[a:b]}) for a, b in pairwise(bounds)],
            },
            epochs=1,
        )  # fmt: skip
        steps.append(encoder.table.detach().clone())
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("n", "accumulate", "epochs"), [(5, 4, 10), (1, 4, 3), (8, 4, 2), (7, 3, 2), (7, 7, 3)]
)
@pytest.mark.parametrize("engine", ENGINES)
def test_passes_are_counted_exactly(engine, n, accumulate, epochs):
    inputs, targets, _ = rows(0)
    as_inputs = ENGINES[engine][1]
    read = []

    class Loader(list):
        def __iter__(self):
            for number, batch in enumerate(list.__iter__(self)):
                read.append(number)
                yield batch

    parts = [slice(i * 8, i * 8 + 8) for i in range(n)]
    data = Loader(
        (inputs[p] if as_inputs is None else as_inputs(inputs[p]), {k: t[p] for k, t in targets.items()})
        for p in parts
    )
    encoder, heads = made(engine, KINDS)
    optimizer = LazyAdam if engine in ("window", "bag") else torch.optim.SGD
    trainer = ENGINES[engine][2](
        encoder, heads, optimizer=lambda p: optimizer(p, lr=1e-3), schedule=MultiTask(), accumulate=accumulate,
        device="cpu",
    )  # fmt: skip
    history = trainer.fit(data, epochs=epochs)
    assert read == [*range(n)] * epochs
    assert trainer.step == epochs * math.ceil(n / accumulate)
    assert trainer.epoch == epochs == history.steps[-1].epoch

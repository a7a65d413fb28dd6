"""Tasks on words beside rows that one kernel call takes: the step of autograd, table and all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mt2st_fast import (
    BagEncoder,
    Classification,
    ContextPrediction,
    LazyAdam,
    MultiTaskHeads,
    Switch,
    Trainer,
    Uncertainty,
    WindowEncoder,
    WordSimilarity,
    WordTask,
)
from mt2st_fast.data import ContextBatches
from mt2st_fast.kernels.context.batch import draw_batch, local_words, stream_key, word_sampler
from mt2st_fast.training.engines.kernel_calls.context_gradients import ContextGradients
from mt2st_fast.training.optimizers.row_sparse import SGD
from tests.training.engines.kernel_calls.test_text_shapes import rows_of_types
from tests.training.engines.kernel_calls.test_text_training import T, V
from tests.training.graphs_on_cpu import GraphedOnCpu

ONE_CALL, GRADIENTS = "one kernel call", "gradients in one kernel call"


class Pulled(WordTask):
    """Words are drawn to a point that is learnt; some of them come twice, and some are none."""

    def __init__(self, dim):
        super().__init__()
        self.point = nn.Parameter(torch.full((dim,), 0.3))

    def forward(self, vectors_of, inputs, target):
        del target
        return (vectors_of(inputs) - self.point).square().mean()


def made(kind):
    torch.manual_seed(0)
    options = {"sparse": True, "rows_of_type": rows_of_types(), "num_rows": V}
    encoder = (
        BagEncoder(T, 24, **options)
        if kind == "bags"
        else WindowEncoder(T, 24, window=1, hidden=32, **options)
    )
    tasks = {
        "main": Classification(5), "near": WordSimilarity(), "pulled": Pulled(24), "context": ContextPrediction(T, 24)
    }  # fmt: skip
    return encoder, MultiTaskHeads(encoder.out_features, tasks, "main")


def loaders(kind, n=12):
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(n):
        targets = {"main": torch.randint(0, 5, (40,), generator=generator)}
        types = torch.randint(-1, T, (40, 3), generator=generator, dtype=torch.int32)
        inputs = (types.reshape(-1), torch.arange(0, 121, 3)) if kind == "bags" else types
        rows.append((inputs, targets))
    pairs = [
        (torch.randint(-1, 20, (30, 2), generator=generator), {"near": torch.rand(30, generator=generator)})
        for _ in range(n)
    ]
    pulled = [
        (torch.randint(-1, 9, (4, 7), generator=generator), {"pulled": torch.zeros(1)}) for _ in range(n)
    ]
    tokens = torch.randint(0, T, (900,), generator=generator, dtype=torch.int32).numpy()
    context = ContextBatches(tokens, np.arange(0, 901, 30), np.full(T, 3), words=100, sample=0.0)
    return {"main": rows, "near": pairs, "pulled": pulled, "context": context}


def run(kind, *, backward, n=12, **options):
    encoder, heads = made(kind)
    trainer = Trainer(encoder, heads, device="cpu", backward=backward, **{"lr": 0.01, **options})
    history = trainer.fit(loaders(kind, n), epochs=1)
    return [p.detach().clone() for p in (*encoder.parameters(), *heads.parameters())], history


@pytest.mark.parametrize("kind", ["windows", "bags"])
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"schedule": Switch(at=0.5)}, ONE_CALL),
        ({"clip_norm": 0.05}, GRADIENTS),
        ({"accumulate": 3, "clip_norm": 5.0}, GRADIENTS),
    ],
    ids=["one call", "clipped", "accumulated"],
)
def test_a_step_is_that_of_autograd(kind, options, name):
    wanted, expected = run(kind, backward="autograd", **options)
    found, history = run(kind, backward="auto", **options)
    assert history.phases[0].engine == name
    assert not any("in some steps" in reason for reason in history.phases[0].passed_over.values())
    for step, want in zip(history.steps, expected.steps, strict=True):
        assert step.losses == pytest.approx(want.losses, rel=2e-4, abs=1e-5)
    for ours, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, want, rtol=2e-3, atol=2e-5)


def test_what_tasks_on_words_have_of_their_own_moves():
    before = [p.detach().clone() for p in made("windows")[1].word_tasks.parameters()]
    encoder, heads = made("windows")
    Trainer(encoder, heads, device="cpu", lr=0.01).fit(loaders("windows"), epochs=1)
    assert not any(map(torch.equal, before, heads.word_tasks.parameters()))


def test_a_frozen_table_stays_and_the_tasks_own_moves():
    encoder, heads = made("windows")
    encoder.table.requires_grad_(False)
    before, point = encoder.table.clone(), heads.word_tasks["pulled"].point.detach().clone()
    history = Trainer(encoder, heads, device="cpu", lr=0.01).fit(loaders("windows"), epochs=1)
    assert history.phases[0].engine == ONE_CALL
    assert torch.equal(encoder.table, before)
    assert not torch.equal(heads.word_tasks["pulled"].point, point)


def test_what_needs_one_graph_is_taken_by_autograd():
    encoder, heads = made("windows")
    history = Trainer(encoder, heads, schedule=Uncertainty(), device="cpu", lr=0.01).fit(
        loaders("windows"), epochs=1
    )
    assert "weights of tasks on words are learned" in history.phases[0].passed_over[ONE_CALL]
    encoder, heads = made("windows")
    heads.word_tasks["pulled"].table = encoder.table
    history = Trainer(encoder, heads, device="cpu", lr=0.01).fit(loaders("windows"), epochs=1)
    assert "the task pulled holds a parameter of the encoder" in history.phases[0].passed_over[ONE_CALL]


def test_a_word_that_there_is_not_moves_nothing():
    encoder, heads = made("windows")
    given = loaders("windows", 1)
    given["pulled"][0][0][0, 0] = T
    before = [p.detach().clone() for p in (*encoder.parameters(), *heads.parameters())]
    with pytest.raises(Exception, match=f"word type {T}"):
        Trainer(encoder, heads, device="cpu", lr=0.01).fit(given, epochs=1)
    assert all(map(torch.equal, before, (*encoder.parameters(), *heads.parameters())))


def test_the_words_of_a_batch_are_numbered_among_themselves():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 500, 3000).astype(np.int32)
    sampler = word_sampler(np.bincount(tokens, minlength=500), 1e-2)
    batch = draw_batch(tokens, np.arange(0, 3001, 50), 0, 3000, sampler, stream_key(1, 0))
    local = local_words(batch)
    types = local.types.numpy()
    assert len(set(types)) == len(types)
    assert np.array_equal(types[local.words.numpy()], batch.words)
    assert np.array_equal(types[local.drawn.numpy()], batch.drawn)
    assert set(types[: local.n_kept]) == set(batch.words)


def test_a_task_with_a_table_of_its_own_keeps_steps_from_being_captured_until_it_retires():
    torch.manual_seed(0)
    encoder = WindowEncoder(T, 24, window=1, hidden=32)
    tasks = {"main": Classification(5), "context": ContextPrediction(T, 24)}
    trainer = GraphedOnCpu(
        encoder,
        MultiTaskHeads(32, tasks, "main"),
        schedule=Switch(at=0.5),
        optimizer=lambda p: SGD(p, lr=0.1),
    )
    both = loaders("windows")
    history = trainer.fit({name: both[name] for name in tasks}, epochs=2)
    first, last = history.phases
    assert first.graph.startswith("not captured: the task context has other words in every batch")
    assert last.graph == "captured"


def test_context_prediction_needs_no_autograd(monkeypatch):
    """But where something else shares its output vectors, or wants their gradient, autograd computes it."""

    def loss_by_autograd(*_):
        raise AssertionError("by autograd")

    def steps_of(change):
        encoder, heads = made("windows")
        change(heads.word_tasks["context"], heads)
        given = {name: each for name, each in loaders("windows").items() if name in ("main", "context")}
        Trainer(encoder, heads, device="cpu", lr=0.01).fit(given, epochs=1)

    monkeypatch.setattr(ContextPrediction, "forward", loss_by_autograd)
    steps_of(lambda task, heads: None)
    changes = {
        "shared": lambda task, heads: setattr(heads.word_tasks["pulled"], "point", task.table),
        "hooked": lambda task, heads: task.table.register_hook(lambda gradient: gradient),
        "another backend": lambda task, heads: setattr(task, "backend", "reference"),
    }
    for change in changes.values():
        with pytest.raises(AssertionError, match="by autograd"):
            steps_of(change)


def test_output_vectors_of_another_dtype_are_autograds():
    encoder, heads = made("windows")
    optimizer = LazyAdam([*encoder.parameters(), *heads.parameters()])
    context, outputs = ContextGradients(encoder, heads, optimizer), heads.word_tasks["context"].table
    assert context.takes("context")
    outputs.data = outputs.data.double()
    assert not context.takes("context")
    outputs.data = outputs.data.float()
    assert context.takes("context")


def test_a_frozen_output_table_stays():
    encoder, heads = made("windows")
    task = heads.word_tasks["context"]
    torch.nn.init.normal_(task.table)
    task.table.requires_grad_(False)
    before, table = task.table.clone(), encoder.table.detach().clone()
    given = {name: each for name, each in loaders("windows").items() if name in ("main", "context")}
    Trainer(encoder, heads, device="cpu", lr=0.01).fit(given, epochs=1)
    assert torch.equal(task.table, before)
    assert not torch.equal(encoder.table, table)

"""Training on a corpus that lies on the device: what training on its batches gives, with graphs and without."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mt2st_fast import (
    Classification,
    MultiTask,
    MultiTaskHeads,
    Regression,
    Switch,
    Trainer,
    WindowEncoder,
)
from mt2st_fast.data import Corpus, TargetColumn, TokenBatches, evaluation_batches
from mt2st_fast.data.resident import ResidentBatch
from mt2st_fast.training import evaluation
from mt2st_fast.training.engines import StepParts, StepState
from mt2st_fast.training.fusing import fuse
from mt2st_fast.training.optim import SGD, LazyAdam, RowwiseAdagrad
from mt2st_fast.training.sources import Source
from tests.data.test_batches import classes
from tests.training.graphs_on_cpu import RATE, GraphedOnCpu, Recorder, assert_same
from tests.training.small_runs import Stop

CPU = torch.device("cpu")
TASKS = {"main": Classification(5), "aux": Classification(3), "score": Regression(2)}
ROWS, TYPES = 200, 30


def corpus():
    """Tokens whose labels are functions of them; every fifth has no main label, every third no score."""
    generator = np.random.default_rng(5)
    tokens = generator.integers(0, TYPES, ROWS).astype(np.int32)
    main, score = (
        (tokens % 5).astype(np.int64),
        np.stack([tokens / 30, -tokens / 30], axis=1).astype(np.float32),
    )
    main[::5], score[::3] = -100, np.nan
    bounds = np.arange(0, ROWS + 1, 10)
    columns = {
        "main": classes(main),
        "aux": classes(tokens % 3),
        "score": TargetColumn("values", ("x", "y"), score),
    }
    return Corpus(tokens, bounds, columns)


class Resident:
    """A loader whose batches are rows on a device, as a run on CUDA takes them from such batches."""

    def __init__(self, batches):
        self.batches = batches

    def __getattr__(self, name):
        return getattr(self.batches, name)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return self.batches.resident_on(CPU)


def model(sparse=False):
    torch.manual_seed(3)
    encoder = WindowEncoder(TYPES, 8, window=1, hidden=16, dropout=0.1, sparse=sparse)
    # A plan of their own keeps the CPU's one kernel call away.
    return encoder, MultiTaskHeads(16, TASKS, "main", plan="tile")


def fitted(kind, resident, *, epochs=4, sparse=False, fit=None, self_training=False, **options):
    """((history, weights), trainer)."""
    encoder, heads = model(sparse)
    options = {"lr": RATE, "log_every": 4, "schedule": Switch(at_step=31), **options}
    trainer = kind(encoder, heads, device="cpu", **options)
    batches = TokenBatches(corpus(), 16, 1, "main", self_training=self_training)
    train = Resident(batches) if resident else batches
    history = trainer.fit(train, val=evaluation_batches(corpus(), 64, 1), epochs=epochs, **(fit or {}))
    return (history, [v.clone() for m in (encoder, heads) for v in m.state_dict().values()]), trainer


@pytest.mark.parametrize("kind", [Trainer, GraphedOnCpu])
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate": 2}, {"clip_norm": 0.5, "precision": "bfloat16"}, {"self_training": True}],
    ids=["", "accumulate", "clip", "self-training"],
)
def test_history_and_weights_are_those_of_batches_that_cross(kind, options):
    expected, _ = fitted(Trainer, False, **options)
    found, trainer = fitted(kind, True, **options)
    assert_same(expected, found)
    if kind is GraphedOnCpu:
        assert {phase.graph for phase in found[0].phases} == {"captured"}
        shapes = 2 if "accumulate" in options else 1  # the last step of a pass has one batch
        assert trainer.capturer.captured <= 2 * shapes


@pytest.mark.parametrize("stop", [5, 13, 26, 40])
@pytest.mark.parametrize("kind", [Trainer, GraphedOnCpu])
def test_a_run_resumes_within_an_epoch(tmp_path, kind, stop):
    whole, _ = fitted(kind, True)
    path = tmp_path / "checkpoint"
    fitted(kind, True, callbacks=[Stop(stop)], fit={"checkpoint": path})
    resumed, _ = fitted(kind, True, fit={"checkpoint": path, "resume": True})
    assert_same(whole, resumed)


def test_a_captured_step_owns_what_it_gathers_from():
    """A graph reads a phase's targets for as long as it is replayed: it holds them, whoever else lets go."""

    class Holds(Recorder):
        def capture(self, run):
            (cell,) = [c.cell_contents for c in run.__closure__ if hasattr(c.cell_contents, "value")]
            held.append(cell.value[0][0])
            return super().capture(run)

    held: list = []
    fitted(GraphedOnCpu, True, capturer=Holds())
    assert len(held) == 2  # phases
    assert all(isinstance(batch, ResidentBatch) for batch in held)
    assert held[0].targets is not held[1].targets


def test_a_source_takes_rows_from_loaders_that_offer_them():
    batches = TokenBatches(corpus(), 16, 1, "main")
    listed = [(torch.zeros(2, 3), {"aux": torch.zeros(2, dtype=torch.int64)})]
    source = Source({"main": batches, "aux": listed}, "main", ("main", "aux"))
    source.reside_on(CPU)
    ((first, second),) = source.next_step(0)
    assert isinstance(first, ResidentBatch)
    assert second is listed[0]


def test_evaluation_off_the_cpu_reads_what_lies_there():
    class Offers(list):
        fits = True

        def resident_on(self, device):
            return iter(["resident"]) if self.fits else None

    batches = Offers(["plain"])
    for batches.fits, expected in ((True, ["resident"]), (False, ["plain"])):
        assert list(evaluation._on_device(batches, torch.device("meta"))) == expected
        assert list(evaluation._on_device(batches, CPU)) == ["plain"]
    assert list(evaluation._on_device(["plain"], torch.device("meta"))) == ["plain"]


# --- the table's update in the backward pass -----------------------------------------------------------


def lazy_adam(parameters, lr):
    return LazyAdam(parameters, lr=lr, fused=True)  # torch captures no other AdamW on a CPU


@pytest.mark.parametrize("optimizer", [lazy_adam, RowwiseAdagrad, SGD])
def test_a_row_sparse_encoder_is_captured_where_its_update_is_fused(optimizer):
    options = {"optimizer": lambda p: optimizer(p, lr=RATE), "backward": "fused", "sparse": True}
    expected, _ = fitted(Trainer, False, **options)
    found, trainer = fitted(GraphedOnCpu, True, **options)
    assert {phase.graph for phase in found[0].phases} == {"captured"}
    assert trainer.capturer.replayed > 0
    for ours, theirs in zip(found[0].steps, expected[0].steps, strict=True):
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)


def test_a_row_sparse_encoder_with_gradients_is_not_and_says_why():
    (history, _), trainer = fitted(GraphedOnCpu, True, sparse=True, clip_norm=1.0)
    assert trainer.capturer.captured == 0
    assert {phase.graph.split(":")[1].strip() for phase in history.phases} == {
        "the length of a row-sparse gradient varies by batch"
    }


def parts(*, optimizer=LazyAdam, encoder=None, scaler=None, **options):
    encoder = encoder or model(sparse=True)[0]
    _, heads = model()
    whole = [*encoder.parameters(), *heads.parameters()]
    given = Trainer(encoder, heads, lr_decay="linear", device="cpu").options
    return StepParts(
        encoder=encoder,
        heads=heads,
        learnt=None,
        optimizer=optimizer(whole, lr=RATE),
        scaler=scaler or torch.amp.GradScaler("cpu", enabled=False),
        state=StepState(torch.ones(3)),
        options=replace(given, **{"device": torch.device("cuda"), **options}),
        fixed_batches=False,
    )


@pytest.mark.parametrize("optimizer", [LazyAdam, RowwiseAdagrad, SGD])
def test_on_cuda_the_backward_pass_steps_the_table_by_default(optimizer):
    made = parts(optimizer=optimizer)
    (table,) = fuse(made, 1, False)
    assert table is made.encoder.table


def hooked():
    encoder, _ = model(sparse=True)
    encoder.table.register_hook(lambda gradient: gradient)
    return encoder


class Twice(nn.Module):
    """Reads its table twice a step: its rows would be stepped twice."""

    def __init__(self):
        super().__init__()
        self.inner = model(sparse=True)[0]


@pytest.mark.parametrize(
    ("made", "loaders", "wants_gradients"),
    [
        (lambda: parts(device=CPU), 1, False),
        (lambda: parts(backward="autograd"), 1, False),
        (lambda: parts(clip_norm=1.0), 1, False),
        (lambda: parts(accumulate=2), 1, False),
        (lambda: parts(scaler=torch.amp.GradScaler("cpu")), 1, False),
        (lambda: parts(optimizer=torch.optim.AdamW), 1, False),
        (lambda: parts(encoder=model(sparse=False)[0]), 1, False),
        (lambda: parts(encoder=hooked()), 1, False),
        (lambda: parts(encoder=Twice()), 1, False),
        (parts, 2, False),
        (parts, 1, True),
    ],
    ids=[
        "cpu", "not wanted", "clip_norm", "accumulate", "float16", "AdamW", "dense", "hook", "own encoder", "loaders",
        "schedule",
    ],
)  # fmt: skip
def test_not_where_somebody_needs_the_gradient(made, loaders, wants_gradients):
    assert fuse(made(), loaders, wants_gradients) == ()


def test_a_run_lets_go_of_the_tables_that_it_fused():
    _, trainer = fitted(Trainer, False, sparse=True, backward="fused", schedule=MultiTask())
    loss = trainer.heads(
        trainer.encoder(torch.zeros(4, 3, dtype=torch.int32)), {"main": torch.zeros(4, dtype=torch.int64)}
    )
    loss.total.backward()
    assert trainer.encoder.table.grad is not None


def test_options_of_graphs(toy):
    assert Trainer(toy.encoder(), toy.heads(), device="cpu").options.captures is False
    with pytest.raises(ValueError, match="graph must be 'auto', True or False, not 'always'"):
        Trainer(toy.encoder(), toy.heads(), device="cpu", graph="always")

"""The trainer on a real GPU: with CUDA graphs as without them, and what a step launches."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import nn

from mt2st_fast import (
    BagEncoder,
    Callback,
    Classification,
    MultiTask,
    MultiTaskHeads,
    SingleTask,
    Switch,
    Trainer,
    WindowEncoder,
)
from mt2st_fast.training.engines.graphs.graphed_steps import WARM_UP_STEPS
from mt2st_fast.training.inputs.batch import to_device
from tests.on_gpu.helpers import DEVICE, RATE
from tests.training.small_runs import Stop

# --- the trainer with CUDA graphs ----------------------------------------------------------------------


def both(toy, batches, *, encoder=None, epochs=4, **options):
    """The same training without graphs and with them: (history, weights) of each."""
    results = []
    for graph in (False, True):
        torch.manual_seed(3)
        trainer = Trainer(
            (encoder or (lambda: toy.encoder(dropout=0.1)))(),
            toy.heads(),
            device="cuda",
            graph=graph,
            **{"lr": RATE, "log_every": 4, **options},
        )
        history = trainer.fit(batches, val=toy.batches(2, seed=7), epochs=epochs)
        modules = (*trainer.encoder.state_dict().values(), *trainer.heads.state_dict().values())
        results.append((history, [value.clone() for value in modules]))
    return results


def assert_same(eager, graphed, rel=1e-4):
    assert graphed[0].phases == eager[0].phases
    assert len(graphed[0].steps) == len(eager[0].steps)
    for ours, theirs in zip(graphed[0].steps, eager[0].steps, strict=True):
        assert (ours.step, ours.weights) == (theirs.step, theirs.weights)
        assert ours.learning_rate == theirs.learning_rate
        assert ours.losses == pytest.approx(theirs.losses, rel=rel)
    for ours, theirs in zip(graphed[1], eager[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rel * 10, atol=rel)


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": MultiTask(0.5)},
        {"schedule": Switch(at_step=12), "clip_norm": 0.5, "weight_decay": 0.1},
        {"schedule": MultiTask(), "lr_decay": "linear"},
        {"schedule": MultiTask(), "accumulate": 2},
        {"schedule": MultiTask(), "optimizer": lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9)},
    ],
    ids=["multi-task", "switch and clipping", "falling rate", "accumulation", "SGD"],
)
def test_history_and_weights_are_those_without_graphs(toy, options):
    eager, graphed = both(toy, toy.batches(6), **options)
    assert [phase.graph for phase in graphed[0].phases] == ["captured"] * len(graphed[0].phases)
    assert_same(eager, graphed)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_is_captured_too(toy, precision):
    eager, graphed = both(
        toy, toy.batches(6), schedule=MultiTask(), precision=precision, clip_norm=1.0, epochs=3
    )
    assert [phase.graph for phase in graphed[0].phases] == ["captured"]
    assert_same(eager, graphed, rel=1e-2)  # 18 steps of Adam enlarge a rounding of a half-precision GEMM


def test_batches_may_lie_on_the_gpu_already(toy):
    batches = [(x.to(DEVICE), {n: t.to(DEVICE) for n, t in y.items()}) for x, y in toy.batches(6)]
    assert_same(*both(toy, batches, schedule=MultiTask()))


def test_a_smaller_last_batch_has_a_graph_of_its_own(toy):
    batches = toy.batches(6)
    batches[5] = (batches[5][0][:7], {name: target[:7] for name, target in batches[5][1].items()})
    eager, graphed = both(toy, batches, epochs=6, schedule=MultiTask())
    assert graphed[0].phases[0].graph == "captured"
    assert_same(eager, graphed)


def test_missing_tasks_are_right_whether_captured_or_not(toy):
    batches = toy.batches(6)
    batches[2] = (batches[2][0], {"tag": batches[2][1]["tag"]})
    eager, graphed = both(toy, batches, epochs=6, schedule=MultiTask())
    assert graphed[0].phases[0].graph.startswith("captured")
    assert_same(eager, graphed)


def test_a_loader_a_task_is_right_whether_captured_or_not(toy):
    batches = toy.batches(6)
    train = {name: [(x, {name: y[name]}) for x, y in batches] for name in toy.tasks}
    assert_same(*both(toy, train, schedule=Switch(at_step=12)))


TYPES, LENGTH = 200, 5
TOKEN_TASKS = {"tag": Classification(5), "aux": Classification(3)}


def word_batches(kind, n_batches=6, N=64):
    """Windows (N, LENGTH) of word types, or the same as bags, with targets that depend on a word; -1 is none."""
    generator = torch.Generator().manual_seed(5)
    batches = []
    for _ in range(n_batches):
        words = torch.randint(-1, TYPES, (N, LENGTH), generator=generator)
        targets = {name: words[:, 2].clamp_min(0) % t.classes for name, t in TOKEN_TASKS.items()}
        starts = torch.arange(0, N * LENGTH + 1, LENGTH)
        batches.append((words if kind == "window" else (words.flatten().int(), starts), targets))
    return batches


def word_encoder(kind, rows, sparse):
    """A built-in encoder with a row of its own for every type, or with two subwords each."""
    options = {"sparse": sparse, "dropout": 0.1}
    if rows == "subwords":
        hashed = torch.arange(TYPES) % 37 + TYPES
        options |= {"rows_of_type": torch.stack([torch.arange(TYPES), hashed], 1), "num_rows": TYPES + 37}
    if kind == "window":
        return WindowEncoder(TYPES, 16, hidden=32, **options)
    return BagEncoder(TYPES, 32, **options)


BUILT_IN = pytest.mark.parametrize(
    ("kind", "rows", "sparse"), list(itertools.product(("window", "bag"), ("own", "subwords"), (False, True)))
)


@BUILT_IN
def test_a_word_encoder_is_captured(kind, rows, sparse):
    batches, losses = word_batches(kind), []
    for graph in (False, True):
        torch.manual_seed(3)
        trainer = Trainer(
            word_encoder(kind, rows, sparse),
            MultiTaskHeads(32, TOKEN_TASKS, "tag"),
            schedule=Switch(at_step=12),
            device="cuda",
            lr=RATE,
            log_every=4,
            graph=graph,
        )
        history = trainer.fit(batches, epochs=4)
        losses.append([record.losses for record in history.steps])
    assert [phase.graph for phase in history.phases] == ["captured", "captured"]
    for ours, theirs in zip(losses[1], losses[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


class Waits(nn.Module):
    """An encoder that asks the device for a number in every step."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, inputs):
        features = self.inner(inputs)
        return features * (2.0 if features.sum().item() > 1e9 else 1.0)


class RefusesCapture(Waits):
    """An encoder that torch's eye on waiting does not see through."""

    def forward(self, inputs):
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()  # CUDA breaks the capture off
        return self.inner(inputs)


@pytest.mark.parametrize("kind", [Waits, RefusesCapture])
def test_an_encoder_that_cannot_be_captured_trains_all_the_same(toy, kind):
    eager, graphed = both(
        toy, toy.batches(6), encoder=lambda: kind(toy.encoder(dropout=0.1)), schedule=Switch(at_step=12)
    )
    for phase in graphed[0].phases:
        assert phase.graph.startswith("not captured: ")
    assert_same(eager, graphed)
    # Nothing is left behind that a later capture would stumble over.
    eager, graphed = both(toy, toy.batches(6), schedule=MultiTask())
    assert graphed[0].phases[0].graph == "captured"
    assert_same(eager, graphed)


@pytest.mark.parametrize("stop", [9, 12, 17])
def test_a_run_with_graphs_resumes(toy, tmp_path, stop):
    def make(*callbacks):
        torch.manual_seed(3)
        return Trainer(
            toy.encoder(dropout=0.1),
            toy.heads(),
            schedule=Switch(at_step=12),
            lr=RATE,
            lr_decay="linear",
            log_every=4,
            device="cuda",
            graph=True,
            callbacks=callbacks,
        )

    whole = make().fit(toy.batches(6), epochs=4)
    path = tmp_path / "checkpoint"
    make(Stop(stop)).fit(toy.batches(6), epochs=4, checkpoint=path)
    history = make().fit(toy.batches(6), epochs=4, checkpoint=path, resume=True)
    assert [record.step for record in history.steps] == [record.step for record in whole.steps]
    for ours, theirs in zip(history.steps, whole.steps, strict=True):
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-4)
    assert history.phases[-1].graph == "captured"


# --- what a step launches ------------------------------------------------------------------------------


def kernels_of_a_step(toy, schedule, step, **options):
    """Names of everything that the GPU ran in one step, in order."""
    torch.manual_seed(0)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    profiler = torch.profiler.profile(activities=activities)

    class Profile(Callback):
        def on_step(self, trainer):
            torch.cuda.synchronize()
            if trainer.step == step:
                profiler.start()
            elif trainer.step == step + 1:
                profiler.stop()

    trainer = Trainer(
        toy.encoder(dropout=0.1),
        toy.heads(),
        schedule=schedule,
        log_every=1000,
        device="cuda",
        callbacks=[Profile()],
        **options,
    )
    history = trainer.fit(toy.batches(30), epochs=1)
    events = [
        event
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not getattr(event, "is_user_annotation", False)
    ]
    events.sort(key=lambda event: event.time_range.start)
    return [event.name for event in events], history


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")
@pytest.mark.parametrize("graph", [False, True])
def test_a_step_after_the_switch_launches_the_kernels_of_a_single_task_step(toy, graph):
    step = 20
    assert step > 10 + WARM_UP_STEPS
    single, _ = kernels_of_a_step(toy, SingleTask(), step, graph=graph)
    switched, history = kernels_of_a_step(toy, Switch(at_step=10), step, graph=graph)
    before, _ = kernels_of_a_step(toy, Switch(at_step=25), step, graph=graph)
    assert single, "the profiler saw no kernel"
    assert switched == single
    assert before != single
    if graph:
        assert [phase.graph for phase in history.phases] == ["captured", "captured"]


class Watch(Callback):
    """torch raises where steps 7 to 11 wait for the device."""

    def on_step(self, trainer):
        if trainer.step == 6:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch calls the mode a prototype
                torch.cuda.set_sync_debug_mode("error")
        elif trainer.step == 11:
            torch.cuda.set_sync_debug_mode("default")


def train_watched(encoder, heads, batches, **options):
    """12 steps on batches that lie on the device; raises where one waits for it."""
    try:
        trainer = Trainer(
            encoder,
            heads,
            schedule=MultiTask(),
            device="cuda",
            log_every=1000,
            callbacks=[Watch()],
            **options,
        )
        trainer.fit(to_device(batches, DEVICE), epochs=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graph", [False, True])
def test_a_training_step_never_waits_for_the_device(toy, graph):
    train_watched(toy.encoder(dropout=0.1), toy.heads(), toy.batches(12), graph=graph, clip_norm=1.0)


@pytest.mark.parametrize("graph", [False, True])
@BUILT_IN
def test_a_step_of_a_built_in_encoder_never_waits_for_the_device(kind, rows, sparse, graph):
    heads = MultiTaskHeads(32, TOKEN_TASKS, "tag")
    train_watched(word_encoder(kind, rows, sparse), heads, word_batches(kind, 12), graph=graph)

"""Steps as graphs: the same history as without, a reason wherever a step is not captured, and never a guess.

No GPU: a capturer of this file's own records a step and runs it again on the graph's inputs, as a replay would.
tests/on_gpu/test_trainer.py does the same with CUDA graphs.
"""

from __future__ import annotations

import json
import logging
import math
from contextlib import contextmanager
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

from mt2st_fast import Callback, Diminish, History, MultiTask, Switch, Trainer
from mt2st_fast.training.engines.capturer import CudaCapturer
from mt2st_fast.training.engines.cuda_graph import optimizer_obstacle
from mt2st_fast.training.engines.graphed_steps import MOST_GRAPHS, WARM_UP_STEPS
from mt2st_fast.training.engines.static_inputs import (
    ALIGNMENT_BYTES,
    StaticInputs,
    UncapturableError,
    signature,
)

RATE = 2.0**-7  # the same in float32, so that a rate on the device is the same number


class Recorder:
    """A capturer that counts, and may be told to fail."""

    def __init__(self, obstacle=None, error=None):
        self.obstacle, self.error = obstacle, error
        self.warmed_up = self.probed = self.captured = self.replayed = self.released = 0

    def warm_up(self, run):
        self.warmed_up += 1
        return run()

    def probe(self, run):
        self.probed += 1
        return run(), self.obstacle

    def capture(self, run):
        self.captured += 1
        if self.error is not None:
            raise self.error

        def replay():
            self.replayed += 1
            return run().clone()

        return replay

    def release(self):
        self.released += 1


class GraphedOnCpu(Trainer):
    def __init__(self, *args, capturer=None, **options):
        super().__init__(*args, **options)
        self.graph = True
        self.capturer = capturer or Recorder()

    def _make_capturer(self):
        return self.capturer


def both(toy, batches, *, epochs=4, **options):
    """The same training without graphs and with them: (history, weights) of each, and the second trainer."""
    results = []
    for kind in (Trainer, GraphedOnCpu):
        torch.manual_seed(3)
        made = {key: value() if key == "callbacks" else value for key, value in options.items()}
        trainer = kind(toy.encoder(dropout=0.1), toy.heads(), **{"lr": RATE, "log_every": 4, **made})
        history = trainer.fit(batches, val=toy.batches(2, seed=7), epochs=epochs)
        modules = (*trainer.encoder.state_dict().values(), *trainer.heads.state_dict().values())
        results.append((history, [value.clone() for value in modules]))
    return *results, trainer


def assert_same(eager, graphed):
    assert graphed[0] == eager[0]
    for ours, theirs in zip(graphed[1], eager[1], strict=True):
        assert torch.equal(ours, theirs)


# --- the same numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"schedule": MultiTask(0.5)},
        {"schedule": Diminish(eta=1.0, floor=0.2)},
        {"schedule": Switch(at_step=9), "clip_norm": 0.5, "weight_decay": 0.1},
        {"accumulate": 2},
        {"precision": "bfloat16"},
        {"precision": "float16", "clip_norm": 1.0},
        {"optimizer": lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9)},
    ],
    ids=lambda options: ", ".join(options) or "default",
)
def test_history_and_weights_are_those_without_graphs(toy, options):
    eager, graphed, trainer = both(toy, toy.batches(6), **options)
    assert_same(eager, graphed)
    assert trainer.capturer.replayed > 0
    assert {phase.graph for phase in graphed[0].phases} == {"captured"}


def test_a_falling_learning_rate_is_data(toy):
    eager, graphed, trainer = both(toy, toy.batches(6), lr_decay="linear", schedule=MultiTask())
    assert trainer.capturer.captured == 1
    rates = [[record.learning_rate for record in run[0].steps] for run in (eager, graphed)]
    assert rates[0] == rates[1]
    for ours, theirs in zip(graphed[0].steps, eager[0].steps, strict=True):
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)  # the rate is rounded to float32


def test_the_rate_in_the_history_is_the_rate_that_was_asked_for(toy):
    trainer = GraphedOnCpu(toy.encoder(), toy.heads(), lr=2e-3)
    assert {record.learning_rate for record in trainer.fit(toy.batches(6), epochs=1).steps} == {2e-3}


def test_a_smaller_last_batch_and_missing_tasks_have_graphs_of_their_own(toy):
    batches = toy.batches(6)
    batches[2] = (batches[2][0], {"tag": batches[2][1]["tag"]})
    batches[5] = (batches[5][0][:7], {name: target[:7] for name, target in batches[5][1].items()})
    eager, graphed, trainer = both(toy, batches, epochs=6, schedule=MultiTask())
    assert_same(eager, graphed)
    assert trainer.capturer.captured == 3
    # 4 whole batches, 1 with a task missing, 1 small one an epoch: the first three of each are eager.
    assert trainer.capturer.replayed == (24 - 3) + (6 - 3) + (6 - 3)


def test_a_loader_a_task(toy):
    batches = toy.batches(6)
    train = {name: [(x, {name: y[name]}) for x, y in batches] for name in toy.tasks}
    assert_same(*both(toy, train, schedule=Switch(at_step=9))[:2])


# --- when it is captured -------------------------------------------------------------------------------


def test_every_phase_is_captured_anew_after_its_warm_up(toy):
    _, (history, _), trainer = both(toy, toy.batches(10), epochs=2, schedule=Switch(at_step=8))
    capturer = trainer.capturer
    assert (capturer.captured, capturer.probed) == (2, 2)
    assert capturer.warmed_up == 2 * (WARM_UP_STEPS - 1)
    assert capturer.replayed == (8 - WARM_UP_STEPS) + (12 - WARM_UP_STEPS)
    assert capturer.released == 1 + 2  # made, and once a phase
    assert [phase.graph for phase in history.phases] == ["captured", "captured"]


def test_a_phase_that_is_too_short_says_so(toy):
    _, (history, _), trainer = both(toy, toy.batches(WARM_UP_STEPS), epochs=1, schedule=MultiTask())
    assert trainer.capturer.captured == 0
    assert history.phases[0].graph == "not captured: no batch shape has come more than 3 times"


def test_without_graphs_nothing_is_said(toy):
    history = Trainer(toy.encoder(), toy.heads()).fit(toy.batches(2), epochs=1)
    assert [phase.graph for phase in history.phases] == [None] * len(history.phases)


def test_batches_of_ever_new_shapes_run_eagerly(toy):
    batches = [(x[: 3 + i], {n: t[: 3 + i] for n, t in y.items()}) for i, (x, y) in enumerate(toy.batches(9))]
    eager, graphed, trainer = both(toy, batches, epochs=2, schedule=MultiTask())
    assert_same(eager, graphed)
    assert trainer.capturer.captured == 0


def test_a_phase_holds_a_bounded_number_of_graphs(toy):
    batches = toy.batches(MOST_GRAPHS + 2)
    batches = [(x[: 9 + i], {n: t[: 9 + i] for n, t in y.items()}) for i, (x, y) in enumerate(batches)]
    eager, graphed, trainer = both(toy, batches, epochs=5, schedule=MultiTask())
    assert_same(eager, graphed)
    assert trainer.capturer.captured == MOST_GRAPHS
    assert graphed[0].phases[0].graph == f"captured, except where: a phase holds {MOST_GRAPHS} graphs at most"


@pytest.mark.parametrize("change", ["rate", "freeze"])
def test_what_a_callback_changes_makes_another_graph(toy, change):
    class Change(Callback):
        def on_step(self, trainer):
            if trainer.step == 8 and change == "rate":
                trainer.run.optimizer.param_groups[0]["lr"] = RATE / 4
            elif trainer.step == 8:
                trainer.encoder[0].weight.requires_grad_(False)

    eager, graphed, trainer = both(
        toy,
        toy.batches(6),
        schedule=MultiTask(),
        optimizer=lambda p: torch.optim.SGD(p, lr=RATE),
        callbacks=lambda: [Change()],
    )
    assert_same(eager, graphed)
    assert trainer.capturer.captured == 2


# --- when it is not ------------------------------------------------------------------------------------


def test_a_cpu_cannot_honour_it(toy):
    with pytest.raises(
        ValueError, match="graph=True needs a CUDA device to capture graphs on; this trainer's is cpu"
    ):
        Trainer(toy.encoder(), toy.heads(), device="cpu", graph=True)


@pytest.mark.parametrize(
    ("capturer", "reason"),
    [
        (
            lambda: Recorder(error=RuntimeError("operation not permitted when stream is capturing\nmore")),
            "not captured: RuntimeError: operation not permitted when stream is capturing",
        ),
        (
            lambda: Recorder(obstacle="the step waits for the device at encoder.py:7"),
            "not captured: the step waits for the device at encoder.py:7",
        ),
    ],
)
def test_what_cannot_be_captured_runs_eagerly_and_says_why_once(toy, caplog, capturer, reason):
    caplog.set_level(logging.WARNING)
    torch.manual_seed(3)
    eager = Trainer(toy.encoder(), toy.heads(), lr=RATE, log_every=4, precision="float16", clip_norm=1.0)
    expected = eager.fit(toy.batches(6), epochs=4)
    caplog.clear()
    torch.manual_seed(3)
    trainer = GraphedOnCpu(
        toy.encoder(),
        toy.heads(),
        lr=RATE,
        log_every=4,
        precision="float16",
        clip_norm=1.0,
        capturer=capturer(),
    )
    history = trainer.fit(toy.batches(6), epochs=4)
    assert history == expected
    assert trainer.capturer.replayed == 0
    assert trainer.capturer.captured <= 2  # one attempt a phase
    assert [phase.graph for phase in history.phases] == [reason, reason]
    said = [record for record in caplog.records if "CUDA graph" in record.message]
    assert len(said) == 1


def test_a_capture_that_breaks_off_half_way_leaves_nothing_behind(toy):
    class HalfWay(Recorder):
        def capture(self, run):
            self.captured += 1
            trainer = holder[0]
            for parameter in trainer.encoder.parameters():  # as after a backward pass that never ran
                parameter.grad = torch.full_like(parameter, math.nan)
            raise RuntimeError("half-way")

    torch.manual_seed(3)
    expected = Trainer(toy.encoder(), toy.heads(), lr=RATE).fit(toy.batches(6), epochs=2)
    torch.manual_seed(3)
    holder = [GraphedOnCpu(toy.encoder(), toy.heads(), lr=RATE, capturer=HalfWay())]
    assert holder[0].fit(toy.batches(6), epochs=2) == expected


def test_graphs_are_made_again_after_a_capture_that_failed(toy):
    class FailsOnce(Recorder):
        def capture(self, run):
            if self.captured == 1:
                self.error = RuntimeError("once")
            return super().capture(run) if self.error is None else self.fail()

        def fail(self):
            self.captured, error, self.error = self.captured + 1, self.error, None
            raise error

    batches = toy.batches(6)
    batches[5] = (batches[5][0][:7], {name: target[:7] for name, target in batches[5][1].items()})
    torch.manual_seed(3)
    expected = Trainer(toy.encoder(), toy.heads(), schedule=MultiTask(), lr=RATE).fit(batches, epochs=6)
    torch.manual_seed(3)
    trainer = GraphedOnCpu(toy.encoder(), toy.heads(), schedule=MultiTask(), lr=RATE, capturer=FailsOnce())
    assert trainer.fit(batches, epochs=6) == expected
    assert trainer.capturer.captured == 3  # the whole batch, the small one in vain, the whole batch again
    assert trainer.history.phases[0].graph == "captured, except where: RuntimeError: once"


def test_an_error_of_the_step_itself_is_raised(toy):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = toy.encoder(), 0

        def forward(self, inputs):
            self.calls += 1
            if self.calls > WARM_UP_STEPS:
                raise KeyError("broken encoder")
            return self.inner(inputs)

    class Runs(Recorder):
        def capture(self, run):
            run()
            raise AssertionError("the step did not raise")

    trainer = GraphedOnCpu(Broken(), toy.heads(), schedule=MultiTask(), capturer=Runs())
    with pytest.raises(KeyError, match="broken encoder"):
        trainer.fit(toy.batches(6), epochs=1)


def optimizer_of(kind, **options):
    return kind([nn.Parameter(torch.ones(2))], **options)


@pytest.mark.parametrize(
    ("optimizer", "changes", "scaling", "reason"),
    [
        (lambda: optimizer_of(torch.optim.SGD, lr=0.1, momentum=0.9), False, False, None),
        (lambda: optimizer_of(torch.optim.AdamW, capturable=True), False, False, None),
        (
            lambda: optimizer_of(torch.optim.AdamW, lr=torch.tensor(0.1), capturable=True, fused=True),
            True,
            True,
            None,
        ),
        (
            lambda: optimizer_of(torch.optim.AdamW),
            False,
            False,
            "the optimizer AdamW is not capturable: build it with capturable=True",
        ),
        (
            lambda: optimizer_of(torch.optim.Adagrad),
            False,
            False,
            "the optimizer Adagrad is not capturable: take AdamW(capturable=True)",
        ),
        (lambda: optimizer_of(torch.optim.SGD, lr=0.1), True, False, "lr_decay changes the learning rate"),
        (
            lambda: optimizer_of(torch.optim.AdamW, lr=0.1, capturable=True),
            True,
            False,
            "lr_decay changes the learning rate",
        ),
        (lambda: optimizer_of(torch.optim.AdamW, capturable=True), False, True, "float16 loss scaling waits"),
        (lambda: optimizer_of(torch.optim.SGD, lr=0.1), False, True, "float16 loss scaling waits"),
    ],
)
def test_an_optimizer_that_cannot_be_captured_is_named(optimizer, changes, scaling, reason):
    found = optimizer_obstacle(optimizer(), lr_changes=changes, loss_scaling=scaling)
    assert found is None if reason is None else found.startswith(reason)


def test_the_optimizers_reason_stands_in_the_history(toy):
    trainer = GraphedOnCpu(toy.encoder(), toy.heads(), optimizer=torch.optim.Adagrad)
    history = trainer.fit(toy.batches(6), epochs=1)
    assert trainer.capturer.captured == trainer.capturer.warmed_up == 0
    reason = "not captured: the optimizer Adagrad is not capturable: take AdamW(capturable=True)"
    assert [phase.graph for phase in history.phases] == [reason, reason]


@pytest.mark.parametrize("error", [None, RuntimeError("broken off")], ids=["captured", "broken off"])
def test_workspaces_are_cleared_right_before_and_right_after_a_capture(monkeypatch, error):
    """A graph does not own a workspace that was there before, and nobody may keep one that it owns."""
    calls = []

    @contextmanager
    def capturing(*_, **__):
        calls.append("begin")
        try:
            yield
        finally:
            calls.append("end")

    def step():
        calls.append("step")
        if error is not None:
            raise error
        return torch.ones(1)

    for name in ("Stream", "CUDAGraph", "current_stream", "set_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.cuda, "default_generators", [MagicMock()])
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: calls.append("clear"), raising=False)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", MagicMock(), raising=False)
    monkeypatch.setattr(CudaCapturer, "_open_pool", lambda capturer: None)  # captures nothing of cuBLAS
    capturer = CudaCapturer(torch.device("cuda:0"))
    if error is None:
        capturer.capture(step)
    else:
        with pytest.raises(RuntimeError, match="broken off"):
            capturer.capture(step)
    assert calls == ["clear", "begin", "step", "end", "clear"]


# --- checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [5, 12, 17])
@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": lambda p: torch.optim.AdamW(p, lr=torch.tensor(RATE), capturable=True, fused=True)}],
    ids=["own optimizer", "rate on the device"],
)
def test_a_run_resumes_before_and_after_the_switch(toy, tmp_path, stop, options):
    class Stop(Callback):
        def on_step(self, trainer):
            trainer.stop_requested = trainer.step == stop

    def make(*callbacks):
        torch.manual_seed(3)
        return GraphedOnCpu(
            toy.encoder(dropout=0.1),
            toy.heads(),
            schedule=Switch(at_step=12),
            lr=RATE,
            lr_decay="linear",
            callbacks=callbacks,
            **options,
        )

    whole = make().fit(toy.batches(6), epochs=4)
    path = tmp_path / "checkpoint"
    make(Stop()).fit(toy.batches(6), epochs=4, checkpoint=path)
    resumed = make()
    history = resumed.fit(toy.batches(6), epochs=4, checkpoint=path, resume=True)
    assert history == whole
    assert isinstance(resumed.run.optimizer.param_groups[0]["lr"], torch.Tensor)
    assert history.phases[-1].graph == "captured"


def test_the_history_keeps_it_through_json(toy):
    history = GraphedOnCpu(toy.encoder(), toy.heads()).fit(toy.batches(6), epochs=3)
    again = History.from_json(json.loads(json.dumps(history.to_json())))
    assert [phase.graph for phase in again.phases] == ["captured", "captured"]


# --- signatures and inputs -----------------------------------------------------------------------------


def test_a_signature_tells_shapes_dtypes_and_constants_apart():
    like = [({"a": torch.zeros(2, 3)}, [torch.zeros(4, dtype=torch.int64), None, 3])]
    same = [({"a": torch.ones(2, 3)}, [torch.ones(4, dtype=torch.int64), None, 3])]
    assert signature(like) == signature(same)
    assert hash(signature(like)) == hash(signature(same))
    others = [
        [({"a": torch.zeros(3, 2)}, [torch.zeros(4, dtype=torch.int64), None, 3])],
        [({"a": torch.zeros(2, 3)}, [torch.zeros(4, dtype=torch.int32), None, 3])],
        [({"a": torch.zeros(2, 3)}, [torch.zeros(4, dtype=torch.int64), None, 4])],
        [({"b": torch.zeros(2, 3)}, [torch.zeros(4, dtype=torch.int64), None, 3])],
        [({"a": torch.zeros(2, 3)}, (torch.zeros(4, dtype=torch.int64), None, 3))],
        [({"a": torch.zeros(2, 3, device="meta")}, [torch.zeros(4, dtype=torch.int64), None, 3])],
    ]
    for other in others:
        assert signature(other) != signature(like)


@pytest.mark.parametrize(
    "value", [{1, 2}, torch.eye(2).to_sparse(), [object()]], ids=["set", "sparse", "object"]
)
def test_inputs_that_no_buffer_can_stand_for_are_named(value):
    with pytest.raises(UncapturableError, match="inputs hold"):
        signature((value, {}))


def test_such_inputs_run_eagerly(toy):
    class Forgetful(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = toy.encoder()

        def forward(self, inputs):
            return self.inner(inputs[0])

    batches = [((x, {1}), y) for x, y in toy.batches(6)]
    trainer = GraphedOnCpu(Forgetful(), toy.heads(), schedule=MultiTask())
    history = trainer.fit(batches, epochs=1)
    assert history.phases[0].graph == "not captured: inputs hold set, which no buffer can stand for"


def test_inputs_are_copied_into_one_block():
    def batch(seed):
        torch.manual_seed(seed)
        return {
            "words": torch.randint(1000, (5, 3)),
            "mask": [torch.rand(7) > 0.5, torch.randn(4, 6, dtype=torch.float64).t()],
            "none": torch.empty(0, 3),
            "half": torch.randn(3).to(torch.bfloat16),
            "constant": "text",
        }

    inputs = StaticInputs(batch(0), torch.device("cpu"))
    addresses = [inputs.value[key].data_ptr() for key in ("words", "half")]
    for seed in range(3):
        inputs.copy_from(batch(seed))
        expected = batch(seed)
        for key in ("words", "none", "half"):
            assert torch.equal(inputs.value[key], expected[key])
            assert inputs.value[key].dtype == expected[key].dtype
        for ours, theirs in zip(inputs.value["mask"], expected["mask"], strict=True):
            assert torch.equal(ours, theirs)
        assert inputs.value["constant"] == "text"
    assert [inputs.value[key].data_ptr() for key in ("words", "half")] == addresses
    assert (addresses[1] - addresses[0]) % ALIGNMENT_BYTES == 0

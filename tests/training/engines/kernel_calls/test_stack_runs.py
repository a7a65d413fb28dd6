"""Runs in which one kernel call takes the steps of an MLP: those of autograd, resumed, and where it gives way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2st_fast import (
    FAMO,
    AlternateSteps,
    Classification,
    MultiTask,
    MultiTaskHeads,
    Switch,
    Trainer,
    Uncertainty,
)
from mt2st_fast.training.engines.kernel_calls import stack_training
from tests.training.engines.kernel_calls.test_stack_training import (
    OPTIMIZERS,
    TASKS,
    batch,
    model,
    parameters,
)
from tests.training.small_runs import ActAfter, Stop, assert_same


def with_momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True)


def trainer(backward="auto", callbacks=(), **options):
    encoder, heads = model(dropout=options.pop("dropout", 0.0))
    options = {"schedule": Switch(at=0.5), "optimizer": OPTIMIZERS["AdamW"]} | options
    return Trainer(encoder, heads, backward=backward, callbacks=list(callbacks), device="cpu", **options)


def loader():
    return [batch(N, seed=N) for N in (31, 2, 64, 90)]


@pytest.mark.parametrize("options", [
    {}, {"schedule": AlternateSteps()}, {"lr_scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5)},
    {"optimizer": None, "lr": 0.02, "weight_decay": 0.3}, {"optimizer": OPTIMIZERS["SGD"]},
    {"clip_norm": 0.3}, {"accumulate": 3}, {"clip_norm": 0.3, "accumulate": 2}, {"schedule": FAMO(), "clip_norm": 0.3},
    {"schedule": Uncertainty(), "accumulate": 3}, {"optimizer": with_momentum, "schedule": AlternateSteps()},
    {"optimizer": with_momentum, "lr_scheduler": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 12)},
])  # fmt: skip
def test_a_run_takes_it_and_is_that_of_autograd(options):
    runs = [trainer(backward, **options) for backward in ("auto", "autograd")]
    for run in runs:
        run.fit(loader(), epochs=3)
    assert {phase.engine for phase in runs[0].history.phases} == {"one kernel call"}
    assert {phase.engine for phase in runs[1].history.phases} == {"eager"}
    ours, theirs = (parameters(run.encoder, run.heads) for run in runs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stop", "options"),
    [
        (3, {}),
        (9, {}),
        (3, {"clip_norm": 0.2}),
        (5, {"accumulate": 2}),
        (5, {"optimizer": with_momentum}),
    ],
)
def test_a_resumed_run_goes_on_with_the_same_bits(stop, options, tmp_path):
    whole = trainer(dropout=0.2, **options)
    torch.manual_seed(1)
    whole.fit(loader(), epochs=4)
    stopped = trainer(dropout=0.2, callbacks=[Stop(stop)], **options)
    torch.manual_seed(1)
    stopped.fit(loader(), epochs=4, checkpoint=tmp_path / "c")
    resumed = trainer(dropout=0.2, **options)
    resumed.fit(loader(), epochs=4, checkpoint=tmp_path / "c", resume=True)
    assert resumed.history.phases[-1].engine == "one kernel call"
    assert_same(whole, resumed)


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.3}, {"optimizer": with_momentum}])
@pytest.mark.parametrize("first", ["auto", "autograd"])
def test_another_engine_takes_over_a_run(first, options, tmp_path):
    other = {"auto": "autograd", "autograd": "auto"}[first]
    whole = trainer("autograd", **options)
    whole.fit(loader(), epochs=4)
    trainer(first, callbacks=[Stop(5)], **options).fit(loader(), epochs=4, checkpoint=tmp_path / "c")
    resumed = trainer(other, **options)
    resumed.fit(loader(), epochs=4, checkpoint=tmp_path / "c", resume=True)
    ours, theirs = (parameters(run.encoder, run.heads) for run in (resumed, whole))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_single_linear_layer_is_an_encoder_too():
    torch.manual_seed(0)
    run = Trainer(nn.Linear(7, 33), MultiTaskHeads(33, TASKS, "a"), schedule=MultiTask(), device="cpu")
    assert run.fit(loader(), epochs=1).phases[0].engine == "one kernel call"


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm])
def test_a_single_norm_is_an_encoder_too(norm):
    runs = []
    for backward in ("auto", "autograd"):
        torch.manual_seed(0)
        heads = MultiTaskHeads(7, TASKS, "a")
        run = Trainer(norm(7), heads, schedule=MultiTask(), backward=backward, device="cpu")
        runs.append((run.fit(loader(), epochs=2).phases[0].engine, parameters(run.encoder, heads)))
    assert [engine for engine, _ in runs] == ["one kernel call", "eager"]
    torch.testing.assert_close(runs[0][1], runs[1][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("options", "reason"), [
    ({"clip_norm": 1.0, "schedule": Uncertainty()}, "counts the gradients of learned weights"),
    ({"precision": "bfloat16"}, "autocast"),
])  # fmt: skip
def test_a_run_that_needs_gradients_goes_on_without_it(options, reason):
    run = trainer(**options)
    phase = run.fit(loader(), epochs=1).phases[0]
    assert reason in phase.passed_over["one kernel call"]


def set_option(trainer):
    trainer.run.optimizer.param_groups[0]["maximize"] = True


@pytest.mark.parametrize(("act", "reason"), [
    (lambda trainer: trainer.encoder.append(nn.Softmax(1)), "has a Softmax"), (set_option, "maximize"),
    (lambda trainer: trainer.encoder[1].register_forward_hook(lambda *_: None), "has hooks"),
    (lambda trainer: trainer.encoder[1].weight.register_hook(lambda g: g), "a parameter has hooks"),
])  # fmt: skip
def test_what_a_callback_changes_is_noticed_in_the_next_step(act, reason):
    run = trainer(schedule=MultiTask(), callbacks=[ActAfter(2, act)])
    phase = run.fit(loader(), epochs=1).phases[0]
    assert phase.engine == "one kernel call"
    assert reason in phase.passed_over["one kernel call"]


@pytest.mark.parametrize("act", [
    lambda encoder: encoder.append(nn.Linear(33, 33)), lambda encoder: encoder.insert(1, nn.Linear(7, 7)),
    lambda encoder: setattr(encoder, "3", nn.Linear(20, 33)),
    lambda encoder: setattr(encoder[1], "weight", nn.Parameter(torch.ones(20, 7))),
    lambda encoder: setattr(encoder[1], "bias", None),
])  # fmt: skip
def test_other_layers_are_trained_from_the_next_step_on(act):
    def change(trainer):
        torch.manual_seed(3)
        act(trainer.encoder)

    runs = [
        trainer(way, schedule=MultiTask(), callbacks=[ActAfter(2, change)]) for way in ("auto", "autograd")
    ]
    for run in runs:
        run.fit(loader(), epochs=2)
    assert not runs[0].history.phases[0].passed_over
    ours, theirs = (parameters(run.encoder, run.heads) for run in runs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_momentum_that_a_callback_sets_is_kept_from_the_next_step_on():
    def set_momentum(trainer):
        trainer.run.optimizer.param_groups[0]["momentum"] = 0.9

    found = []
    for backward in ("auto", "autograd"):
        run = trainer(backward, optimizer=OPTIMIZERS["SGD"], callbacks=[ActAfter(2, set_momentum)])
        run.fit(loader(), epochs=3)
        assert not run.history.phases[0].passed_over or backward == "autograd"
        found.append((parameters(run.encoder, run.heads), run.run.optimizer.state_dict()["state"]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


class Own(torch.Tensor):
    pass


def test_inputs_that_it_does_not_take_are_taken_by_another_engine():
    inputs, targets = batch(24)
    others = [(inputs.as_subclass(Own), targets), (inputs.clone().requires_grad_(), targets)]
    for each, reason in zip(others, ("not one plain tensor", "want a gradient"), strict=True):
        run = trainer(schedule=MultiTask())
        phase = run.fit([(inputs, targets), each], epochs=1).phases[0]
        assert phase.engine == "one kernel call"
        assert reason in phase.passed_over["one kernel call"]
    assert others[1][0].grad is not None


def test_rows_of_sequences_are_rows():
    inputs, targets = batch(24)
    rows = {name: target.view(4, 6, *target.shape[1:]) for name, target in targets.items()}
    found = []
    for each in ((inputs, targets), (inputs.view(4, 6, 7), rows)):
        run = trainer(schedule=MultiTask())
        run.fit([each], epochs=2)
        assert not run.history.phases[0].passed_over
        found.append(parameters(run.encoder, run.heads))
    assert all(map(torch.equal, *found))


# --- several batches in a step ------------------------------------------------------------------------------


def loaders():
    """Of tasks a, b and c, and of d and e, in batches of other sizes."""
    first = [(inputs, {n: targets[n] for n in "abc"}) for inputs, targets in loader()]
    second = [(inputs, {n: targets[n] for n in "de"}) for inputs, targets in map(batch, (5, 70, 1))]
    inputs, targets = batch(30, seed=8)
    rows = (inputs.view(5, 6, 7), {n: targets[n].to(torch.int32).view(5, 6) for n in "ab"})
    return {"a": [*first, rows], "d": second}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_of_several_loaders_are_one_call(accumulate):
    found = []
    for backward in ("auto", "autograd"):
        run = trainer(backward, accumulate=accumulate)
        run.fit(loaders(), epochs=3)
        found.append((parameters(run.encoder, run.heads), [step.losses for step in run.history.steps]))
        assert not run.history.phases[0].passed_over or backward == "autograd"
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_labels_that_smooth_with_classes_of_weight_0_count_as_in_one_batch():
    tasks = {"a": Classification(3, label_smoothing=0.3, class_weights=[0.0, 1.0, 2.0])}
    inputs, targets = torch.randn(8, 7), torch.tensor([0, 0, 0, 0, 1, 0, 2, 1])
    found = []
    for batches, options in (
        ([(inputs, targets)], {}), ([(inputs[:4], targets[:4]), (inputs[4:], targets[4:])], {"accumulate": 2}),
    ):  # fmt: skip
        encoder, heads = model(tasks=tasks)
        run = Trainer(encoder, heads, device="cpu", **options)
        run.fit([(x, {"a": y}) for x, y in batches], epochs=3)
        assert {phase.engine for phase in run.history.phases} == {"one kernel call"}
        found.append(parameters(encoder, heads))
    assert all(map(torch.equal, *found))


def test_a_wrong_shape_in_one_of_several_batches_is_named_and_moves_nothing():
    (inputs, targets), other = batch(20), batch(12)
    run = trainer(schedule=MultiTask(), accumulate=2)
    before = parameters(run.encoder, run.heads)
    with pytest.raises(ValueError, match=r"targets of b must be \(20,\), not \(21,\)"):
        run.fit([(inputs, targets | {"b": torch.zeros(21, dtype=torch.int64)}), other], epochs=1)
    assert all(map(torch.equal, before, parameters(run.encoder, run.heads)))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_targets_of_a_wrong_type_are_named_in_one_of_several_batches_too(accumulate):
    (inputs, targets), (others, without) = batch(20), batch(12)
    wrong = targets | {"c": torch.ones(20, 3, dtype=torch.int64)}
    without = {"a": without["a"]}
    run = trainer(schedule=MultiTask(), accumulate=accumulate)
    before = parameters(run.encoder, run.heads)
    with pytest.raises(TypeError, match=r"targets of c must be floating point, not torch\.int64"):
        run.fit([(inputs, wrong), (others, without)], epochs=1)
    assert all(map(torch.equal, before, parameters(run.encoder, run.heads)))


@pytest.mark.parametrize("backward", ["auto", "autograd"])
@pytest.mark.parametrize("schedule", [FAMO, Uncertainty])
def test_weights_are_learnt_under_a_default_of_float64_too(schedule, backward):
    found, batches = [], loader()
    for dtype in (torch.float32, torch.float64):
        run = trainer(backward, schedule=schedule())
        torch.set_default_dtype(dtype)
        try:
            run.fit(batches, epochs=2)
        finally:
            torch.set_default_dtype(torch.float32)
        found.append(parameters(run.encoder, run.heads))
    assert all(map(torch.equal, *found))


def test_more_rows_than_there_is_room_for_are_left_to_another_engine(monkeypatch):
    monkeypatch.setattr(stack_training, "MOST_JOINED", 90 * (7 + 2 * 20 + 2 * 33))
    run = trainer(schedule=MultiTask(), accumulate=2)
    phase = run.fit(loader(), epochs=1).phases[0]
    assert phase.engine == "one kernel call"
    assert "have 154 rows, of which its kernel joins up to 90" in phase.passed_over["one kernel call"]


def test_tasks_without_labels_or_targets_and_empty_batches_are_as_in_eager_steps():
    inputs, targets = batch(12)
    nothing = {"a": torch.full((12,), -100), "c": torch.full((12, 3), float("nan"))}
    batches = [(inputs, {"b": targets["b"]}), (inputs, nothing), batch(0), (inputs, targets)]
    found = []
    for backward in ("auto", "autograd"):
        run = trainer(backward, schedule=MultiTask())
        run.fit(batches, epochs=2)
        found.append(parameters(run.encoder, run.heads))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


# --- a table before the layers ------------------------------------------------------------------------------

TABLES = {
    "bag": lambda: nn.Sequential(nn.EmbeddingBag(300, 7, padding_idx=2), nn.Linear(7, 33)),
    "side by side": lambda: nn.Sequential(nn.Embedding(300, 5), nn.Flatten(), nn.Linear(20, 33), nn.Tanh()),
}


@pytest.mark.parametrize("options", [
    {"clip_norm": 0.05}, {"clip_norm": 0.05, "optimizer": OPTIMIZERS["SGD"]}, {"accumulate": 3, "clip_norm": 0.05},
    {"clip_norm": 0.05, "optimizer": lambda p: torch.optim.SGD(p, 0.5)}, {"clip_norm": 1e3, "accumulate": 2},
])  # fmt: skip
@pytest.mark.parametrize("table", TABLES)
def test_gradients_of_a_table_count_in_the_norm_and_are_scaled(table, options):
    batches = [
        (torch.randint(300, (len(inputs), 4), generator=torch.Generator().manual_seed(len(inputs))), targets)
        for inputs, targets in loader()
    ]
    found = []
    for backward in ("auto", "autograd"):
        torch.manual_seed(0)
        encoder, heads = TABLES[table](), MultiTaskHeads(33, TASKS, "a")
        run = Trainer(encoder, heads, device="cpu", backward=backward, **{"lr": 0.02} | options)
        run.fit(batches, epochs=3)
        found.append(parameters(encoder, heads))
        engine = "one kernel call" if backward == "auto" else "eager"
        assert {phase.engine for phase in run.history.phases} == {engine}
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_words_of_other_lengths_in_one_step_are_left_to_another_engine():
    _, targets = batch(24)
    batches = [(torch.randint(300, (24, L)), targets) for L in (4, 4, 3, 4)]
    encoder, heads = TABLES["bag"](), MultiTaskHeads(33, TASKS, "a")
    phase = Trainer(encoder, heads, device="cpu", accumulate=2, lr=0.02).fit(batches, epochs=1).phases[0]
    assert phase.engine == "one kernel call"
    assert "of different lengths" in phase.passed_over["one kernel call"]

"""The training loop: it learns, it does what its options say, and it names what went wrong."""

from __future__ import annotations

import json
import math
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mt2st_fast import (
    Callback,
    Diminish,
    Evaluation,
    History,
    InputError,
    MultiTask,
    MultiTaskHeads,
    NonFiniteLossError,
    PhaseRecord,
    SingleTask,
    StepRecord,
    Switch,
    Trainer,
)
from mt2st_fast.training.sources import Source, to_device


def weights_of(trainer):
    modules = {"encoder": trainer.encoder, "heads": trainer.heads}
    return {
        f"{name}.{key}": value.clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }


def sgd(lr):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


class Rows:
    """A dataset of the toy problem's rows, for a plain DataLoader."""

    def __init__(self, batches):
        self.inputs = torch.cat([inputs for inputs, _ in batches])
        self.targets = {name: torch.cat([t[name] for _, t in batches]) for name in batches[0][1]}

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, row):
        return self.inputs[row], {name: target[row] for name, target in self.targets.items()}


# --- it learns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [SingleTask(), MultiTask(0.3), Switch(), Diminish(eta=1.0)], ids=repr)
def test_it_learns(toy, schedule):
    train, val = toy.batches(20), toy.batches(5, seed=7)
    trainer = Trainer(toy.encoder(), toy.heads(), schedule=schedule, lr=1e-2)
    before = trainer.evaluate(val)
    history = trainer.fit(train, val=val, epochs=8)
    assert before["tag"] < 0.5
    assert history.best.metrics["tag"] > 0.85
    assert history.steps[-1].losses["tag"] < 0.5 * history.steps[0].losses["tag"]
    assert trainer.evaluate(val, ["tag"])["tag"] == history.evaluations[-1].metrics["tag"]


def test_auxiliary_tasks_are_learnt_too(toy):
    val = toy.batches(5, seed=7)
    trainer = Trainer(toy.encoder(), toy.heads(), schedule=MultiTask(), lr=1e-2)
    metrics = trainer.fit(toy.batches(20), val=val, epochs=8).evaluations[-1].metrics
    assert metrics["feats.Number"] > 0.85
    assert metrics["score"] > 0.7


def test_a_data_loader_serves(toy):
    loader = DataLoader(Rows(toy.batches(10)), batch_size=32, shuffle=True)
    history = Trainer(toy.encoder(), toy.heads(), lr=1e-2).fit(loader, epochs=4)
    assert history.steps[-1].step == 40
    assert history.steps[-1].losses["tag"] < 0.7 * history.steps[0].losses["tag"]


def test_a_loader_a_task_each_with_its_own_inputs(toy):
    batches = toy.batches(6)
    train = {
        "tag": [(x, {"tag": y["tag"]}) for x, y in batches],
        "score": [(x[:7], {"score": y["score"][:7]}) for x, y in batches[:2]],
    }
    trainer = Trainer(toy.encoder(), toy.heads(only=("tag", "score")), lr=1e-2)
    history = trainer.fit(train, epochs=10)
    assert history.steps[-1].step == 60  # the main task's loader says what an epoch is
    assert history.steps[-1].losses["tag"] < 0.7 * history.steps[0].losses["tag"]


def test_an_encoder_of_sequences_serves(toy):
    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(toy.features, 8, batch_first=True)

        def forward(self, inputs):
            return self.gru(inputs)[0]  # (N, T, D)

    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(12, 9, toy.features, generator=generator)
    targets = {
        "tag": inputs[..., :4].argmax(-1),
        "feats.Number": (inputs[..., :3] > 0).float(),
        "score": inputs[..., 5],
    }
    trainer = Trainer(Sequences(), toy.heads(), schedule=MultiTask(), lr=1e-2)
    history = trainer.fit([(inputs, targets)], val=[(inputs, targets)], epochs=60)
    assert history.steps[-1].total < 0.6 * history.steps[0].total
    assert history.best.metrics["tag"] > 0.6


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_runs_in_autocast(toy, precision):
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = toy.encoder()

        def forward(self, inputs):
            features = self.inner(inputs)
            seen.append(features.dtype)
            return features

    trainer = Trainer(Spy(), toy.heads(), lr=1e-2, precision=precision)
    history = trainer.fit(toy.batches(10), val=toy.batches(2, seed=7), epochs=4)
    assert set(seen) == {getattr(torch, precision)}
    assert history.steps[-1].losses["tag"] < 0.7 * history.steps[0].losses["tag"]
    assert all(p.dtype == torch.float32 for p in trainer.heads.parameters())


def test_an_encoder_that_holds_the_heads_trains_them_once(toy):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = toy.encoder()
            self.heads = nn.ModuleDict({"tag": nn.Linear(8, 4), "score": nn.Linear(8, 1)})

        def forward(self, inputs):
            return self.body(inputs)

    model = Model()
    heads = MultiTaskHeads.from_modules(model.heads, {n: toy.tasks[n] for n in model.heads}, "tag")
    trainer = Trainer(model, heads, schedule=Switch(at=0.5), lr=1e-2)
    trainer.fit(toy.batches(4), epochs=2)
    assert not model.heads["score"].weight.requires_grad


# --- options -------------------------------------------------------------------------------------------


def test_accumulating_two_halves_equals_the_whole_batch(toy):
    halves = toy.batches(6, rows=16)
    wholes = [
        (torch.cat([a[0], b[0]]), {name: torch.cat([a[1][name], b[1][name]]) for name in a[1]})
        for a, b in zip(halves[::2], halves[1::2], strict=True)
    ]
    results = []
    for batches, accumulate in ((wholes, 1), (halves, 2)):
        torch.manual_seed(3)
        trainer = Trainer(
            toy.encoder(),
            toy.heads(),
            schedule=MultiTask(0.5),
            optimizer=sgd(0.1),
            accumulate=accumulate,
            log_every=1,
        )
        history = trainer.fit(batches, epochs=3)
        results.append((history, weights_of(trainer)))
    (whole_history, whole), (half_history, half) = results
    assert whole_history.steps[-1].step == half_history.steps[-1].step == 9
    torch.testing.assert_close(half, whole, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(half_history.steps, whole_history.steps, strict=True):
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
        assert ours.total == pytest.approx(theirs.total, rel=1e-5)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_clip_norm_bounds_the_step(toy, precision):
    moved = {}
    for clip_norm in (None, 1e-2):
        torch.manual_seed(3)
        trainer = Trainer(
            toy.encoder(), toy.heads(), optimizer=sgd(1.0), clip_norm=clip_norm, precision=precision
        )
        before = weights_of(trainer)
        trainer.fit(toy.batches(1), epochs=1)
        steps = [(value - before[key]).norm() for key, value in weights_of(trainer).items()]
        moved[clip_norm] = torch.stack(steps).norm().item()
    assert moved[None] > 0.1
    assert moved[1e-2] == pytest.approx(1e-2, rel=1e-3)


def test_the_learning_rate_falls_to_zero_where_asked(toy):
    rates = {}
    for lr_decay in ("none", "linear"):
        trainer = Trainer(toy.encoder(), toy.heads(), lr=0.5, lr_decay=lr_decay, log_every=1)
        rates[lr_decay] = [record.learning_rate for record in trainer.fit(toy.batches(2), epochs=2).steps]
    assert rates["none"] == [0.5] * 4
    assert rates["linear"] == pytest.approx([0.5, 0.375, 0.25, 0.125])


def test_weight_decay_belongs_to_the_default_optimizer(toy):
    norms = []
    for weight_decay in (0.0, 1.0):
        torch.manual_seed(3)
        trainer = Trainer(toy.encoder(), toy.heads(), lr=1e-2, weight_decay=weight_decay)
        trainer.fit(toy.batches(4), epochs=4)
        norms.append(sum(p.norm().item() for p in trainer.encoder.parameters()))
    assert norms[1] < 0.95 * norms[0]


def test_weights_are_those_of_the_schedule(toy):
    schedule = Diminish(eta=1.0, floor=0.4)
    history = Trainer(toy.encoder(), toy.heads(), schedule=schedule, log_every=1).fit(
        toy.batches(4), epochs=2
    )
    for record in history.steps:
        t = (record.step - 1) / 4
        expected = {"tag": 1.0} | (
            {name: math.exp(-t) for name in ("feats.Number", "score")} if t < 0.9 else {}
        )
        assert record.weights == pytest.approx(expected)
        assert record.total == pytest.approx(sum(expected[n] * record.losses[n] for n in expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": math.nan}, "lr must be positive"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"accumulate": 0}, "accumulate and log_every"),
        ({"log_every": 0}, "accumulate and log_every"),
        ({"precision": "int8"}, "precision int8 is unknown; there are float32, bfloat16, float16"),
        ({"lr_decay": "cosine"}, "lr_decay cosine is unknown"),
    ],
)
def test_a_bad_option_is_named(toy, options, message):
    with pytest.raises(ValueError, match=message):
        Trainer(toy.encoder(), toy.heads(), **options)


@pytest.mark.parametrize(
    ("train", "options", "error", "message"),
    [
        (lambda toy: toy.batches(1), {"epochs": 0}, ValueError, "epochs must be positive"),
        (lambda toy: toy.batches(1), {"resume": True}, ValueError, "resume needs the checkpoint"),
        (lambda toy: [], {}, ValueError, "train has no batches"),
        (
            lambda toy: iter(toy.batches(1)),
            {},
            TypeError,
            "train must be an iterable of batches with a length",
        ),
        (lambda toy: {"xpos": toy.batches(1)}, {}, ValueError, "loader for xpos, which is no task"),
        (lambda toy: {"score": toy.batches(1)}, {}, ValueError, "no loader for the main task tag"),
        (lambda toy: {"tag": toy.batches(1), "score": []}, {}, ValueError, r"train\[score\] has no batches"),
    ],
)
def test_train_that_cannot_serve_is_named(toy, train, options, error, message):
    with pytest.raises(error, match=message):
        Trainer(toy.encoder(), toy.heads()).fit(train(toy), **options)


# --- what goes wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad_step", [0, 3, 4, 6])
def test_a_loss_that_is_not_finite_names_task_and_step(toy, bad_step):
    batches = toy.batches(8)
    batches[bad_step][1]["score"][5] = math.inf
    trainer = Trainer(toy.encoder(), toy.heads(), schedule=MultiTask(), log_every=5)
    with pytest.raises(NonFiniteLossError, match=rf"the loss of score is (inf|nan) at step {bad_step}:"):
        trainer.fit(batches, epochs=1)


def test_a_batch_without_an_active_task_is_refused(toy):
    batches = toy.batches(4)
    batches[2] = (batches[2][0], {"score": batches[2][1]["score"]})
    trainer = Trainer(toy.encoder(), toy.heads(), schedule=SingleTask())
    with pytest.raises(
        InputError, match=r"a batch at step 2 has no target of an active task \(tag\); it has score"
    ):
        trainer.fit(batches, epochs=1)


# --- callbacks and history -----------------------------------------------------------------------------


class Log(Callback):
    def __init__(self):
        self.calls = []

    def on_fit_start(self, trainer):
        self.calls.append(("fit_start", trainer.step))

    def on_phase(self, trainer, phase):
        assert trainer.history.phases[-1] is phase
        self.calls.append(("phase", trainer.step))

    def on_step(self, trainer):
        self.calls.append(("step", trainer.step))

    def on_record(self, trainer, record):
        assert trainer.history.steps[-1] is record
        self.calls.append(("record", record.step))

    def on_evaluation(self, trainer, evaluation):
        assert trainer.history.evaluations[-1] is evaluation
        self.calls.append(("evaluation", evaluation.step))

    def on_epoch_end(self, trainer):
        self.calls.append(("epoch_end", trainer.step))

    def on_fit_end(self, trainer):
        self.calls.append(("fit_end", trainer.step))


def test_callbacks_are_called_in_order(toy):
    log = Log()
    trainer = Trainer(toy.encoder(), toy.heads(), schedule=Switch(at_step=3), log_every=2, callbacks=[log])
    trainer.fit(toy.batches(4), val=toy.batches(1, seed=7), epochs=1.5)
    assert log.calls == [
        ("fit_start", 0),
        ("phase", 0),
        ("step", 1),
        ("step", 2),
        ("record", 2),
        ("step", 3),
        ("record", 3),  # a record never spans two phases
        ("phase", 3),
        ("step", 4),
        ("record", 4),
        ("evaluation", 4),
        ("epoch_end", 4),
        ("step", 5),
        ("step", 6),
        ("record", 6),
        ("evaluation", 6),
        ("epoch_end", 6),
        ("fit_end", 6),
    ]


def test_fit_again_starts_anew(toy):
    trainer = Trainer(toy.encoder(), toy.heads(), schedule=Switch(at_step=1))
    trainer.fit(toy.batches(2), epochs=1)
    assert trainer.heads.active == ("tag",)
    history = trainer.fit(toy.batches(2), epochs=1)
    assert [phase.first_step for phase in history.phases] == [0, 1]
    assert len(history.phases[0].active) == 3


def test_evaluation_leaves_the_mode_and_the_weights_alone(toy):
    trainer = Trainer(toy.encoder(dropout=0.5), toy.heads())
    for training in (True, False):
        trainer.encoder.train(training)
        before = weights_of(trainer)
        first = trainer.evaluate(toy.batches(3))
        assert trainer.evaluate(toy.batches(3)) == first  # no dropout
        assert trainer.encoder.training is training
        torch.testing.assert_close(weights_of(trainer), before, rtol=0, atol=0)


def test_metrics_by_hand(toy):
    heads = toy.heads(features=8)
    with torch.no_grad():
        for name in toy.tasks:
            linear = heads.linear(name)
            linear.weight.copy_(torch.eye(8)[: len(linear.weight)])
            linear.bias.zero_()
    trainer = Trainer(nn.Identity(), heads)
    features = torch.tensor(
        [[3.0, 1, 0, 0, 0, 0, 0, 0], [-1, 2, 1, 0, 0, 0, 0, 0], [1, 0, -5, 9, 0, 0, 0, 0]]
    )
    nan = math.nan
    targets = {
        "tag": torch.tensor([0, 2, -100]),  # right, wrong, ignored
        "feats.Number": torch.tensor([[1.0, 0, 0], [1, 1, nan], [0, 0, 0]]),  # tp 2, fp 2, fn 1
        "score": torch.tensor([2.0, -2.0, nan]),  # errors 1 and 1; variation 8
    }
    metrics = trainer.evaluate([(features, targets)])
    assert metrics == pytest.approx({"tag": 0.5, "feats.Number": 4 / 7, "score": 1 - 2 / 8})
    nothing = {"tag": torch.tensor([-100] * 3)}
    assert all(math.isnan(value) for value in trainer.evaluate([(features, nothing)]).values())


def record(step, ms):
    return StepRecord(step, step / 10, 0.0, {}, {}, 1e-3, ms, 0.0)


def test_history_finds_the_best():
    qualities = [0.2, math.nan, 0.7, 0.9, 0.9, 0.8]
    evaluations = [Evaluation(10 * i, i, {"tag": q, "aux": 1 - q}, 0.0) for i, q in enumerate(qualities)]
    history = History("tag", evaluations=evaluations)
    assert history.best.step == 30
    assert History("tag").best is None


def test_step_ms_median_is_the_phases_own():
    phases = [PhaseRecord(0, ("tag", "aux")), PhaseRecord(25, ("tag",)), PhaseRecord(40, ())]
    steps = [record(10, 5.0), record(20, 7.0), record(25, 6.0), record(30, 1.0), record(45, 99.0)]
    history = History("tag", steps=steps, phases=phases)
    assert history.step_ms_median(phases[0]) == 6.0
    assert history.step_ms_median(phases[1]) == 1.0  # the record up to 45 spans the border
    assert history.step_ms_median(phases[2]) is None


def test_history_survives_json_and_writes_lines(toy, tmp_path):
    trainer = Trainer(toy.encoder(), toy.heads(), schedule=Switch(at_step=3), log_every=2)
    history = trainer.fit(toy.batches(4), val=toy.batches(1), epochs=2)
    again = History.from_json(json.loads(json.dumps(history.to_json())))
    assert again == history
    assert again.steps[-1].step_ms == history.steps[-1].step_ms
    history.write_jsonl(tmp_path / "history.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert {line["kind"] for line in lines} == {"phase", "step", "evaluation"}
    assert history.train_seconds == pytest.approx(
        sum(r.step_ms * n / 1e3 for r, n in zip(history.steps, (2, 1, 1, 2, 2), strict=True))
    )


# --- sources -------------------------------------------------------------------------------------------


def test_inputs_of_any_nesting_go_to_the_device():
    Pair = namedtuple("Pair", "words mask")
    pair = Pair(torch.zeros(2), [torch.ones(1), "text"])
    moved = to_device({"a": pair, "b": (torch.zeros(1), None)}, torch.device("meta"))
    assert isinstance(moved["a"], Pair)
    assert moved["a"].words.device.type == moved["a"].mask[0].device.type == "meta"
    assert moved["a"].mask[1] == "text"
    assert isinstance(moved["b"], tuple)
    packed = nn.utils.rnn.pack_sequence([torch.ones(2, 1), torch.ones(1, 1)])
    assert to_device(packed, torch.device("cpu")).batch_sizes.tolist() == [2, 1]


def test_steps_per_epoch_count_the_last_incomplete_step(toy):
    assert Source(toy.batches(5), "tag", ("tag",), accumulate=2).steps_per_epoch == 3


def test_a_loader_that_can_be_iterated_once_only_is_refused(toy):
    class Once:
        def __init__(self, batches):
            self.iterator = iter(batches)

        def __len__(self):
            return 2

        def __iter__(self):
            return self.iterator

    with pytest.raises(ValueError, match="train ended at once"):
        Trainer(toy.encoder(), toy.heads()).fit(Once(toy.batches(2)), epochs=2)


def test_a_metric_without_a_value_is_null_in_the_history_file(tmp_path):
    """JSON has no NaN: most readers refuse a file that holds one."""
    evaluation = Evaluation(1, 0.5, {"tag": 0.25, "aux": float("nan")}, 1.0)
    History("tag", evaluations=[evaluation]).write_jsonl(tmp_path / "history.jsonl")
    (line,) = (tmp_path / "history.jsonl").read_text().splitlines()
    stored = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert stored["metrics"] == {"tag": 0.25, "aux": None}

"""Weightings against their formulas in plain torch and Python, their state in checkpoints, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mt2st_fast import (
    FAMO,
    Classification,
    DynamicWeightAverage,
    MultiLabel,
    MultiTaskHeads,
    OpenTask,
    Regression,
    Trainer,
    Uncertainty,
    WindowEncoder,
)
from mt2st_fast.errors import InputError
from mt2st_fast.training.observations import Observation
from mt2st_fast.training.schedules import Moment, RunFacts, find_strategy
from tests.training.graphs_on_cpu import GraphedOnCpu
from tests.training.small_runs import Stop
from tests.training.turn_runs import OPTIMIZERS, PER_EPOCH, batches, parameters_of, trainer_of, windows

TASKS = {
    "tag": Classification(4),
    "feats.Number": MultiLabel(3),
    "squared": Regression(2),
    "huber": Regression(1, huber_delta=1.0),
}
LOSSES = {
    "tag": F.cross_entropy,
    "feats.Number": F.binary_cross_entropy_with_logits,
    "squared": F.mse_loss,
    "huber": F.huber_loss,
}
RATE = 0.1


def encoder_and_heads():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh()), MultiTaskHeads(8, TASKS, "tag")


def data(n_batches=3, rows=24):
    generator = torch.Generator().manual_seed(2)

    def batch():
        targets = {
            "tag": torch.randint(0, 4, (rows,), generator=generator),
            "feats.Number": torch.rand(rows, 3, generator=generator).round(),
            "squared": torch.randn(rows, 2, generator=generator),
            "huber": torch.randn(rows, 1, generator=generator) * 2,
        }
        return torch.randn(rows, 5, generator=generator), targets

    return [batch() for _ in range(n_batches)]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=RATE)


def trained(schedule, epochs, data_of_run=None, kind=Trainer, **options):
    encoder, heads = encoder_and_heads()
    options = {"optimizer": sgd, "device": "cpu", "log_every": 2} | options
    trainer = kind(encoder, heads, schedule=schedule, **options)
    return trainer, trainer.fit(data_of_run or data(), epochs=epochs)


def losses_of(encoder, heads, batch):
    """(K,) by torch's own losses, with gradient."""
    inputs, targets = batch
    features = encoder(inputs)
    return torch.stack([LOSSES[name](heads.logits(features, name), targets[name]) for name in TASKS])


def assert_same_model(trainer, encoder, heads):
    for ours, theirs in zip(
        [*trainer.encoder.parameters(), *trainer.heads.parameters()],
        [*encoder.parameters(), *heads.parameters()],
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


# --- uncertainty weighting ------------------------------------------------------------------------------


def test_uncertainty_is_the_formula_in_plain_torch():
    encoder, heads = encoder_and_heads()
    s = torch.zeros(4, requires_grad=True)
    factors = torch.tensor(
        [1.0, 1.0, 0.5, 1.0]
    )  # equation 7 halves a squared error, equation 10 no cross-entropy
    optimizer = sgd([*encoder.parameters(), *heads.parameters(), s])
    for _ in range(4):
        for batch in data():
            optimizer.zero_grad()
            (factors * torch.exp(-s) * losses_of(encoder, heads, batch) + s / 2).sum().backward()
            optimizer.step()
    trainer, history = trained(Uncertainty(), 4)
    assert_same_model(trainer, encoder, heads)
    found = torch.stack([*trainer.schedule.log_variances.values()])
    torch.testing.assert_close(found, s, rtol=1e-4, atol=1e-6)
    weights = (factors * torch.exp(-s)).tolist()
    assert list(history.steps[-1].weights.values()) == pytest.approx(weights, rel=1e-4)
    assert len({round(weight, 3) for weight in weights}) == 4


def without(batch, *names):
    inputs, targets = batch
    return inputs, {name: target for name, target in targets.items() if name not in names}


def test_the_noise_of_a_task_is_learnt_where_it_has_targets():
    first, *others = data(4)
    rest = [without(batch, "huber", "squared") for batch in others]
    alone, _ = trained(Uncertainty(), 1, [first])
    trainer, _ = trained(Uncertainty(), 1, [first, *rest])
    learnt, then = trainer.schedule.log_variances, alone.schedule.log_variances
    assert torch.equal(learnt["huber"], then["huber"])
    assert torch.equal(learnt["squared"], then["squared"])
    assert not torch.equal(learnt["tag"], then["tag"])


# --- dynamic weight average -----------------------------------------------------------------------------


@pytest.mark.parametrize("log_every", [1, 2, 50])
@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_dynamic_weight_average_is_the_formula(log_every, temperature):
    _, by_step = trained(DynamicWeightAverage(temperature=temperature), 6, log_every=1)
    _, history = trained(DynamicWeightAverage(temperature=temperature), 6, log_every=log_every)
    means = [
        {name: sum(r.losses[name] for r in by_step.steps[3 * t : 3 * t + 3]) / 3 for name in TASKS}
        for t in range(6)
    ]
    checked = set()
    for record in history.steps:
        t = (record.step - 1) // 3
        wanted = dict.fromkeys(TASKS, 1.0)
        if t >= 2:
            ratio = {name: means[t - 1][name] / means[t - 2][name] for name in TASKS}
            total = sum(math.exp(r / temperature) for r in ratio.values())
            wanted = {name: 4 * math.exp(r / temperature) / total for name, r in ratio.items()}
            assert len(set(wanted.values())) == 4
        assert record.weights == pytest.approx(wanted, rel=1e-5)
        checked.add(t)
    assert checked == set(range(6))


def seen(schedule, *epochs):
    for number, losses in enumerate(epochs, 1):
        schedule.observe(Observation(number, losses, None, float(number)))
    return schedule.task_weights(Moment(len(epochs), 1, 9), "main", ("aux",))


def test_a_task_without_a_loss_is_taken_as_one_that_stays():
    half = {"main": 1.0, "aux": 1.0}, {"main": 0.5, "aux": 1.0}
    wanted = seen(DynamicWeightAverage(), *half)
    assert wanted["aux"] > 1 > wanted["main"]
    assert seen(DynamicWeightAverage(), {"main": 1.0, "aux": 0.0}, {"main": 0.5, "aux": 3.0}) == wanted
    assert seen(DynamicWeightAverage(), {"main": 1.0}, {"main": 0.5, "aux": 3.0}) == wanted
    huge = seen(DynamicWeightAverage(temperature=1e-3), {"main": 1e-9, "aux": 1.0}, {"main": 1e9, "aux": 1.0})
    assert huge == {"main": 2.0, "aux": 0.0}


def test_a_second_run_begins_anew():
    schedule = DynamicWeightAverage()
    _, first = trained(schedule, 4)
    _, second = trained(schedule, 4)
    assert first == second


# --- FAMO -----------------------------------------------------------------------------------------------


def famo_in_plain_torch(steps, rate, decay):
    """Model and xi after these batches; the softmax's Jacobian by autograd, the step of xi by torch's own Adam."""
    encoder, heads = encoder_and_heads()
    xi = torch.zeros(4, requires_grad=True)
    optimizer = sgd([*encoder.parameters(), *heads.parameters()])
    adam = torch.optim.Adam([xi], lr=rate, weight_decay=decay)
    weights = []
    for batch in steps:
        losses = losses_of(encoder, heads, batch)
        z = torch.softmax(xi, 0)
        c = 1 / (z / losses).sum()
        weights.append((c * z / losses).detach())
        optimizer.zero_grad()
        (weights[-1] * losses).sum().backward()
        optimizer.step()
        with torch.no_grad():
            fall = losses.log() - losses_of(encoder, heads, batch).log()
        (xi.grad,) = torch.autograd.grad(torch.softmax(xi, 0), xi, fall)
        adam.step()
    return encoder, heads, xi, weights


def test_famo_is_the_algorithm_in_plain_torch():
    encoder, heads, xi, weights = famo_in_plain_torch(data() * 4, 0.05, 0.01)
    trainer, history = trained(FAMO(0.05, 0.01), 4, log_every=1)
    assert_same_model(trainer, encoder, heads)
    found = torch.stack([kept[0] for kept in trainer.schedule.kept.buffers()])
    torch.testing.assert_close(found, xi, rtol=1e-3, atol=1e-4)
    assert found.abs().max() > 0.1
    for record, wanted in zip(history.steps, weights, strict=True):
        assert list(record.weights.values()) == pytest.approx(wanted.tolist(), rel=1e-3)
        assert sum(record.weights.values()) == pytest.approx(1.0)


def test_a_task_without_targets_takes_no_part_in_a_step_of_famo():
    first, second = data(2)
    some = without(second, "huber")
    trainer, history = trained(FAMO(), 1, [first, some], log_every=1)
    alone, _ = trained(FAMO(), 1, [first])
    kept, then = trainer.schedule.kept, alone.schedule.kept
    assert torch.equal(kept.huber[:4], then.huber[:4])
    assert not torch.equal(kept.tag[:4], then.tag[:4])
    last = history.steps[-1].weights
    assert last["huber"] == 0
    assert sum(last.values()) == pytest.approx(1.0)


def test_famo_weighs_all_loaders_of_a_step_together():
    one = data(2)
    by_task = {
        name: [
            (
                inputs,
                {name: targets[name]}
                if name != "tag"
                else {n: t for n, t in targets.items() if n != "squared"},
            )
            for inputs, targets in one
        ]
        for name in ("tag", "squared")
    }
    together, _ = trained(FAMO(), 3, one)
    apart, _ = trained(FAMO(), 3, by_task)
    assert_same_model(apart, together.encoder, together.heads)


# --- all of them ----------------------------------------------------------------------------------------

MAKE = {"uncertainty": Uncertainty, "dwa": DynamicWeightAverage, "famo": FAMO}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("stop", [1, 5, 9, 14])
def test_a_resumed_run_ends_with_the_same_bits(name, stop, tmp_path):
    def run(callbacks=(), **options):
        torch.manual_seed(8)
        trainer = trainer_of("window", OPTIMIZERS["adam"], schedule=MAKE[name](), callbacks=list(callbacks))
        return trainer, trainer.fit(batches("window"), epochs=4, **options)

    whole, history = run()
    run([Stop(stop)], checkpoint=tmp_path / "c")
    resumed, again = run(checkpoint=tmp_path / "c", resume=True)
    assert again == history
    for parameter, value in parameters_of(whole).items():
        assert torch.equal(parameters_of(resumed)[parameter], value), parameter
    if isinstance(whole.schedule, nn.Module):
        ours, theirs = resumed.schedule.state_dict(), whole.schedule.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    else:
        assert resumed.schedule == whole.schedule
        assert resumed.schedule.state_dict() == whole.schedule.state_dict()


@pytest.mark.parametrize("name", MAKE)
def test_graphs_replay_them(name):
    eager, graphed = (trained(MAKE[name](), 6, kind=kind) for kind in (Trainer, GraphedOnCpu))
    assert graphed[1] == eager[1]
    assert graphed[1].phases[0].graph == "captured"
    assert graphed[0].capturer.replayed > 5
    assert_same_model(graphed[0], eager[0].encoder, eager[0].heads)


def test_who_takes_their_steps():
    def phase_of(schedule, **options):
        trainer = trainer_of("window", OPTIMIZERS["adam"], schedule=schedule, **options)
        return trainer.fit(batches("window"), epochs=1).phases[0]

    for schedule in (DynamicWeightAverage(), Uncertainty(), FAMO()):
        assert phase_of(schedule).engine == "one kernel call"
        assert phase_of(schedule, clip_norm=1.0).engine == "eager"


@pytest.mark.parametrize("name", ["uncertainty", "famo"])
@pytest.mark.parametrize(("kind", "optimizer"), [("window", "adam"), ("window", "sgd"), ("bag", "adagrad")])
def test_one_kernel_call_learns_what_autograd_learns(name, kind, optimizer):
    found = []
    for fuse_backward in (None, False):
        schedule = MAKE[name]()
        trainer = trainer_of(kind, OPTIMIZERS[optimizer], schedule=schedule, fuse_backward=fuse_backward)
        data_of_run = batches(kind)
        data_of_run[1] = without(data_of_run[1], "wide")
        history = trainer.fit(data_of_run, epochs=5)
        assert (history.phases[0].engine == "eager") == (fuse_backward is False)
        found.append((parameters_of(trainer), schedule.state_dict(), history.steps[-1].losses))
    (ours, learnt, losses), (theirs, by_autograd, losses_of_autograd) = found
    assert losses == pytest.approx(losses_of_autograd, rel=1e-4)
    for key, wanted in by_autograd.items():
        torch.testing.assert_close(learnt[key], wanted, rtol=1e-3, atol=1e-4, msg=key)
        assert wanted.any(), key
    for key, wanted in theirs.items():
        torch.testing.assert_close(ours[key], wanted, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("kind", ["window", "bag"])
def test_a_learnt_weight_of_zero_gets_its_loss_as_gradient(kind):
    class FromZero(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))

        def task_weights(self, moment, main, auxiliary):
            return dict.fromkeys((main, *auxiliary), 1.0)

        def weights(self, active):
            return self.own

    ends = []
    for fuse_backward in (None, False):
        trainer = trainer_of(kind, OPTIMIZERS["sgd"], schedule=FromZero(), fuse_backward=fuse_backward)
        history = trainer.fit(batches(kind)[:1], epochs=1)
        assert (history.phases[0].engine == "eager") == (fuse_backward is False)
        ends.append(trainer.schedule.own.detach().clone())
        assert all(loss > 0 for loss in history.steps[0].losses.values())
    torch.testing.assert_close(*ends)
    assert (ends[0][1:] < 0).all()


def test_famo_looks_at_a_step_with_the_dropout_of_the_step():
    torch.manual_seed(0)
    heads = MultiTaskHeads(20, {"a": Classification(3), "b": Classification(5)}, "a")
    encoder = WindowEncoder(90, 12, window=2, hidden=20, dropout=0.5, sparse=True)
    seen = []

    class Watched(FAMO):
        def weigh(self, active, losses):
            seen.append(losses.clone())
            return super().weigh(active, losses)

        def learn(self, active, before, after):
            seen.append(before.clone())
            super().learn(active, before, after)

    trainer = Trainer(encoder, heads, schedule=Watched(), optimizer=OPTIMIZERS["sgd"], device="cpu")
    targets = {"a": torch.randint(0, 3, (60,)), "b": torch.randint(0, 5, (60,))}
    history = trainer.fit([(windows(0), targets)], epochs=2)
    assert history.phases[0].engine == "one kernel call"
    for weighed, stepped in zip(seen[::2], seen[1::2], strict=True):
        torch.testing.assert_close(weighed, stepped, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", MAKE)
def test_strategies_make_them(name):
    schedule = find_strategy(name).make({}, RunFacts(9.0))
    assert type(schedule) is MAKE[name]
    assert set(schedule.task_weights(Moment(0, 1, 9), "main", ("aux",))) == {"main", "aux"}
    trainer = trainer_of("window", OPTIMIZERS["adam"], schedule=schedule)
    history = trainer.fit(batches("window"), epochs=5)
    assert history.steps[-1].losses["main"] < history.steps[0].losses["main"]
    assert trainer.step == 5 * PER_EPOCH


class Contrast(OpenTask):
    """A loss below 0."""

    def loss(self, features, targets, mask):
        del targets, mask
        return -features.square().mean() - 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DynamicWeightAverage(temperature=0.0), "temperature must be positive and finite, not 0.0"),
        (lambda: DynamicWeightAverage(temperature=math.nan), "temperature must be positive"),
        (lambda: FAMO(rate=0.0), "rate must be positive"),
        (lambda: FAMO(decay=-1.0), "decay must be finite and not negative"),
        (lambda: find_strategy("dwa").make({"temperature": 0.0}, RunFacts(1.0)), "--temperature must be"),
        (lambda: find_strategy("famo").make({"famo_rate": -1.0}, RunFacts(1.0)), "--famo-rate must be"),
        (lambda: find_strategy("uncertainty").make({"temperature": 1.0}, RunFacts(1.0)), "takes no option"),
        (
            lambda: trained(FAMO(), 1, accumulate=2),
            "FAMO weighs a step by its losses, which accumulate=2 knows only at its end",
        ),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_famo_refuses_a_loss_without_a_logarithm():
    heads = MultiTaskHeads(8, {"tag": Classification(4), "contrast": Contrast()}, "tag")
    trainer = Trainer(encoder_and_heads()[0], heads, schedule=FAMO(), optimizer=sgd)
    batch = [(inputs, {"tag": t["tag"], "contrast": torch.zeros(24)}) for inputs, t in data()]
    with pytest.raises(
        InputError, match=r"loss of contrast is -1\.\d+ before step \d+, and FAMO weighs by log"
    ):
        trainer.fit(batch, epochs=1)

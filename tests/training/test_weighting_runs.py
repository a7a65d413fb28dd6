"""Weightings in runs: their state in checkpoints, the engines that take their steps, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mt2st_fast import (
    FAMO,
    Classification,
    DynamicWeightAverage,
    MultiTaskHeads,
    OpenTask,
    Trainer,
    Uncertainty,
    WindowEncoder,
)
from mt2st_fast.errors import InputError
from mt2st_fast.training.schedules import Moment, RunFacts, find_strategy
from tests.training.graphs_on_cpu import EagerOnCpu, GraphedOnCpu
from tests.training.small_runs import assert_goes_on_with_the_same_bits
from tests.training.turn_runs import OPTIMIZERS, PER_EPOCH, batches, parameters_of, trainer_of, windows
from tests.training.weighting_runs import (
    LOSSES,
    assert_same_model,
    data,
    encoder_and_heads,
    sgd,
    trained,
    without,
)

MAKE = {"uncertainty": Uncertainty, "dwa": DynamicWeightAverage, "famo": FAMO}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("stop", [1, 5, 9, 14])
def test_a_resumed_run_ends_with_the_same_bits(name, stop, tmp_path):
    def run(callbacks=(), **options):
        torch.manual_seed(8)
        trainer = trainer_of("window", OPTIMIZERS["adam"], schedule=MAKE[name](), callbacks=list(callbacks))
        return trainer, trainer.fit(batches("window"), epochs=4, **options)

    whole, resumed = assert_goes_on_with_the_same_bits(run, stop, tmp_path)
    if isinstance(whole.schedule, nn.Module):
        ours, theirs = resumed.schedule.state_dict(), whole.schedule.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    else:
        assert resumed.schedule == whole.schedule
        assert resumed.schedule.state_dict() == whole.schedule.state_dict()


@pytest.mark.parametrize("name", MAKE)
def test_graphs_replay_them(name):
    eager, graphed = (trained(MAKE[name](), 6, kind=kind) for kind in (EagerOnCpu, GraphedOnCpu))
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
        clipped = "eager" if isinstance(schedule, Uncertainty) else "one kernel call"
        assert phase_of(schedule, clip_norm=1.0).engine == clipped


@pytest.mark.parametrize("name", ["uncertainty", "famo"])
@pytest.mark.parametrize(("kind", "optimizer"), [("window", "adam"), ("window", "sgd"), ("bag", "adagrad")])
def test_one_kernel_call_learns_what_autograd_learns(name, kind, optimizer):
    found = []
    for backward in ("auto", "autograd"):
        schedule = MAKE[name]()
        trainer = trainer_of(kind, OPTIMIZERS[optimizer], schedule=schedule, backward=backward)
        data_of_run = batches(kind)
        data_of_run[1] = without(data_of_run[1], "wide")
        history = trainer.fit(data_of_run, epochs=5)
        assert (history.phases[0].engine == "eager") == (backward == "autograd")
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
    for backward in ("auto", "autograd"):
        trainer = trainer_of(kind, OPTIMIZERS["sgd"], schedule=FromZero(), backward=backward)
        history = trainer.fit(batches(kind)[:1], epochs=1)
        assert (history.phases[0].engine == "eager") == (backward == "autograd")
        ends.append(trainer.schedule.own.detach().clone())
        assert all(loss > 0 for loss in history.steps[0].losses.values())
    torch.testing.assert_close(*ends)
    assert (ends[0][1:] < 0).all()


@pytest.mark.parametrize("backward", ["auto", "autograd"])
def test_measuring_a_step_leaves_the_statistics_of_the_encoder(backward):
    encoder, own = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    encoder.register_buffer("expanded", torch.ones(1).expand(3))
    encoder.register_buffer("sparse", torch.eye(3).to_sparse())
    heads = MultiTaskHeads(4, {"a": Classification(3), "b": Classification(2)}, main="a")
    torch.manual_seed(0)
    rows = [torch.randn(6, 4) for _ in range(3)]
    loader = [(x, {"a": torch.arange(6) % 3, "b": torch.arange(6) % 2}) for x in rows]
    Trainer(encoder, heads, schedule=FAMO(), device="cpu", backward=backward).fit(loader, epochs=2)
    for x in (*rows, *rows):
        own(x)
    assert encoder.num_batches_tracked == own.num_batches_tracked == 6
    torch.testing.assert_close(encoder.running_mean, own.running_mean)
    torch.testing.assert_close(encoder.running_var, own.running_var)


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
    with pytest.raises(InputError, match=r"loss of contrast is -1\.\d+ before step \d+, but FAMO uses log"):
        trainer.fit(batch, epochs=1)


class LearntThenDropped(Uncertainty):
    """A schedule of a user: weights are learned, and an auxiliary task retires on the way."""

    def task_weights(self, moment, main, auxiliary):
        names = [main, *auxiliary] if moment.step < 6 else [main, *auxiliary[1:]]
        return dict.fromkeys(names, 1.0)


def test_learnt_weights_may_let_a_task_retire_between_two_records():
    trainer, history = trained(LearntThenDropped(), 6, log_every=4)
    assert [phase.first_step for phase in history.phases] == [0, 6]
    recorded = {record.step: (set(record.losses), set(record.weights)) for record in history.steps}
    assert recorded[6] == (set(trainer.heads.names), set(trainer.heads.names))  # the last of the phase before
    assert recorded[8] == (set(history.phases[1].active), set(history.phases[1].active))


# --- tasks without a target in a step -------------------------------------------------------------------


NOTHING = {"tag": -100, "feats.Number": math.nan, "squared": math.nan, "huber": math.nan}


def with_missing(by_key, n_batches=6):
    """Every other batch has labels of the main task alone: no targets of the others, or targets without a label."""
    found = []
    for i, (inputs, targets) in enumerate(data(n_batches)):
        if i % 2 and by_key:
            targets = {"tag": targets["tag"]}
        elif i % 2:
            targets = {n: t if n == "tag" else torch.full_like(t, NOTHING[n]) for n, t in targets.items()}
        found.append((inputs, targets))
    return found


@pytest.mark.parametrize("by_key", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_weight_rests_in_steps_without_a_label_of_its_task(accumulate, by_key):
    def make(parameters):
        # Targets without a label leave a head a gradient of 0, by which Adam's moments would move it.
        return torch.optim.Adam(parameters, lr=0.1) if by_key else sgd(parameters)

    batches = with_missing(by_key=True)
    schedule = Uncertainty()
    trained(schedule, 2, with_missing(by_key), optimizer=make, accumulate=accumulate)

    encoder, heads = encoder_and_heads()
    own = Uncertainty()
    own.prepare(heads)
    optimizer = make([*encoder.parameters(), *heads.parameters(), *own.parameters()])
    for first in range(0, 2 * len(batches), accumulate):
        step = [batches[i % len(batches)] for i in range(first, first + accumulate)]
        names = [name for name in heads.names if any(name in targets for _, targets in step)]
        sums = dict.fromkeys(names, 0.0)
        for inputs, targets in step:
            features = encoder(inputs)
            for name in targets:
                sums[name] = sums[name] + LOSSES[name](heads.linear(name)(features), targets[name])
        shared = {name: sum(name in targets for _, targets in step) for name in names}
        means_k = torch.stack([sums[name] / shared[name] for name in names])
        total = torch.dot(own.weights(names), means_k) + own.penalty(names)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, wanted in own.log_variances.items():
        torch.testing.assert_close(schedule.log_variances[name], wanted, rtol=1e-4, atol=1e-5)

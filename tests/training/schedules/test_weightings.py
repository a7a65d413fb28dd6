"""Weightings against their formulas in plain torch and Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mt2st_fast import (
    FAMO,
    DynamicWeightAverage,
    MultiTaskHeads,
    Regression,
    Trainer,
    Uncertainty,
)
from mt2st_fast.training.schedules import Moment
from mt2st_fast.training.schedules.shown import Observation
from tests.training.weighting_runs import (
    TASKS,
    assert_same_model,
    data,
    encoder_and_heads,
    losses_of,
    sgd,
    trained,
    without,
)

# --- uncertainty weighting ------------------------------------------------------------------------------


def test_uncertainty_is_the_formula_in_plain_torch():
    encoder, heads = encoder_and_heads()
    s = torch.zeros(4, requires_grad=True)
    # Equation 7 halves a squared error, equation 10 no cross-entropy.
    factors = torch.tensor([1.0, 1.0, 0.5, 1.0])
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


@pytest.mark.parametrize("kind", [DynamicWeightAverage, FAMO, Uncertainty])
def test_a_second_run_begins_anew(kind):
    schedule = kind()
    _, first = trained(schedule, 4)
    _, second = trained(schedule, 4)
    assert first == second
    other = MultiTaskHeads(8, {"other": Regression(1)}, "other")  # no task of the runs before is kept
    trainer = Trainer(nn.Linear(5, 8), other, schedule=schedule, device="cpu")
    trainer.fit([(torch.ones(2, 5), {"other": torch.zeros(2)})], epochs=1)
    assert [name for name in schedule.state_dict() if "tag" in name] == []


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

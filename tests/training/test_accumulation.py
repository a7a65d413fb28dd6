"""Accumulated micro-batches are one batch: every task by its labels, every pass read once, whatever is missing."""

from __future__ import annotations

import math

import pytest
import torch

from mt2st_fast import (
    SGD,
    Callback,
    Classification,
    InputError,
    MultiLabel,
    MultiTask,
    MultiTaskHeads,
    Regression,
    SingleTask,
    Trainer,
    Uncertainty,
    WindowEncoder,
)

ROWS, FEATURES = 64, 5
TASKS = {
    "classes": Classification(4),
    "weighted": Classification(3, class_weights=(1.0, 3.0, 0.2), label_smoothing=0.1, ignore_index=9),
    "labels": MultiLabel(3, pos_weight=(1.0, 2.0, 0.5)),
    "values": Regression(2),
    "robust": Regression(1, huber_delta=0.3),
}


def rows(seed):
    generator = torch.Generator().manual_seed(seed)
    rand = torch.rand(ROWS, 6, generator=generator)
    x = torch.randn(ROWS, FEATURES, generator=generator)
    missing = torch.rand(ROWS, len(TASKS), generator=generator) < torch.linspace(0.2, 0.95, ROWS)[:, None]
    targets = {
        "classes": torch.where(missing[:, 0], -100, (rand[:, 0] * 4).long()),
        "weighted": torch.where(missing[:, 1], 9, (rand[:, 1] * 3).long()),
        "labels": torch.where(rand[:, :3] < 0.4, math.nan, (rand[:, 3:] > 0.5).float()),
        "values": torch.where(missing[:, 3:4], math.nan, rand[:, 2:4]),
        "robust": torch.where(missing[:, 4:5], math.nan, rand[:, 4:5] * 3),
    }
    return x, targets


def trained(sizes, seed, left_out=None, **options):
    """The weights after one step of 64 rows in micro-batches of those sizes, and the losses."""
    x, targets = rows(seed)
    batches, first = [], 0
    for number, size in enumerate(sizes):
        some = slice(first, first + size)
        wanted = [name for name in TASKS if number or name != left_out]
        batches.append((x[some], {name: targets[name][some] for name in wanted}))
        first += size
    torch.manual_seed(1)
    encoder, heads = torch.nn.Linear(FEATURES, 8), MultiTaskHeads(8, TASKS, "classes")
    schedule = MultiTask({"labels": 0.5, "robust": 2.0}) if options.pop("weighted", False) else MultiTask()
    trainer = Trainer(
        encoder,
        heads,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        schedule=schedule,
        accumulate=len(sizes),
        device="cpu",
        **options,
    )
    trainer.fit(batches, epochs=1)
    losses = trainer.history.steps[-1].losses
    return [p.detach() for p in (*encoder.parameters(), *heads.parameters())], losses


@pytest.mark.parametrize("sizes", [(32, 32), (60, 4), (16, 16, 16, 16), (1, 1, 62)])
@pytest.mark.parametrize("seed", range(3))
def test_micro_batches_are_one_batch(sizes, seed):
    whole, losses = trained((ROWS,), seed)
    parts, part_losses = trained(sizes, seed)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    assert part_losses == pytest.approx(losses, rel=1e-5)


def test_a_task_that_a_micro_batch_lacks_counts_by_its_labels():
    # As if those labels were missing in the whole batch.
    parts, _ = trained((32, 32), 0, left_out="values")
    x, targets = rows(0)
    targets["values"][:32] = math.nan
    torch.manual_seed(1)
    encoder, heads = torch.nn.Linear(FEATURES, 8), MultiTaskHeads(8, TASKS, "classes")
    Trainer(
        encoder, heads, optimizer=lambda p: torch.optim.SGD(p, lr=1.0), schedule=MultiTask(), device="cpu"
    ).fit([(x, targets)], epochs=1)
    for one, other in zip((*encoder.parameters(), *heads.parameters()), parts, strict=True):
        torch.testing.assert_close(other, one.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n", "accumulate", "epochs"), [(5, 4, 10), (1, 4, 3), (8, 4, 2), (7, 3, 1)])
def test_a_pass_reads_every_batch_once(n, accumulate, epochs):
    read = []

    class Loader(list):
        def __iter__(self):
            for number, batch in enumerate(list.__iter__(self)):
                read.append(number)
                yield batch

    data = Loader((torch.randn(4, 3), {"a": torch.randint(0, 2, (4,))}) for _ in range(n))
    heads = MultiTaskHeads(8, {"a": Classification(2)}, "a")
    trainer = Trainer(
        torch.nn.Linear(3, 8), heads, schedule=SingleTask(), accumulate=accumulate, device="cpu"
    )
    trainer.fit(data, epochs=epochs)
    assert read == [*range(n)] * epochs
    assert trainer.epoch == epochs


def test_what_a_callback_unfreezes_trains_from_a_gradient_of_its_own():
    encoder = torch.nn.Linear(3, 8).requires_grad_(False)
    before, seen = encoder.weight.clone(), []

    class Unfreeze(Callback):
        def on_epoch_end(self, trainer):
            seen.append(bool((encoder.weight != before).any()))
            if trainer.epoch == 1:
                encoder.weight.grad = torch.full_like(encoder.weight, 1e6)  # left by somebody
                encoder.requires_grad_(True)

    data = [(torch.randn(16, 3), {"a": torch.randint(0, 2, (16,))}) for _ in range(4)]
    heads = MultiTaskHeads(8, {"a": Classification(2)}, "a")
    trainer = Trainer(
        encoder, heads, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), schedule=SingleTask(), device="cpu",
        callbacks=[Unfreeze()],
    )  # fmt: skip
    trainer.fit(data, epochs=3)
    assert seen == [False, True, True]
    assert (encoder.weight - before).abs().max() < 1


def test_learnt_weights_move_as_by_one_batch_though_a_task_is_in_a_part_alone():
    def learnt(accumulate, batches):
        torch.manual_seed(0)
        tasks = {"classes": TASKS["classes"], "values": TASKS["values"]}
        trainer = Trainer(
            torch.nn.Linear(FEATURES, 6), MultiTaskHeads(6, tasks, "classes"), schedule=Uncertainty(), device="cpu",
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5), accumulate=accumulate,
        )  # fmt: skip
        trainer.fit(batches, steps=1)
        return trainer.schedule.state_dict()

    x, targets = rows(1)
    classes, values = targets["classes"], targets["values"].clone()
    values[ROWS // 4 :] = math.nan
    whole = learnt(1, [(x, {"classes": classes, "values": values})])
    parts = [
        (x[p], {"classes": classes[p], "values": values[p]}) for p in torch.arange(ROWS).split(ROWS // 4)
    ]
    for _, without in parts[1:]:
        del without["values"]
    for name, value in learnt(4, parts).items():
        torch.testing.assert_close(value, whole[name], msg=name)
    assert all(value.all() for value in whole.values()), "every weight has moved"


@pytest.mark.parametrize("wrong", [7, -1])
def test_a_refused_batch_leaves_no_gradient_of_the_batches_before_it(wrong):
    x, targets = rows(0)
    good = (x, {name: targets[name] for name in ("classes", "weighted")})
    bad = (x, {**good[1], "weighted": torch.full((ROWS,), wrong)})

    def begun(batches):
        torch.manual_seed(1)
        tasks = {name: TASKS[name] for name in good[1]}
        encoder, heads = torch.nn.Linear(FEATURES, 8), MultiTaskHeads(8, tasks, "classes")
        trainer = Trainer(encoder, heads, schedule=MultiTask(), device="cpu", accumulate=2)
        return trainer.begin(batches, epochs=1), [*encoder.parameters(), *heads.parameters()]

    run, ours = begun([good, bad, good, good])
    before = [p.detach().clone() for p in ours]
    with pytest.raises(ValueError, match=f"targets of weighted: {wrong} lies outside"):
        run.step()
    assert all(map(torch.equal, before, ours))
    run.step()
    straight, theirs = begun([good, good])
    straight.step()
    assert all(map(torch.equal, ours, theirs))


UNCOUNTED = Classification(4, class_weights=(0.0, 1.0, 3.0, 0.5), label_smoothing=0.2)


@pytest.mark.parametrize("words", [False, True])
def test_rows_that_count_nothing_keep_their_smoothing_when_accumulated(words):
    """A micro-batch all of whose labels have weight 0: its smoothing is part of the one batch, as in torch's sum."""
    torch.manual_seed(5)
    target = torch.tensor([0, 0, 0, 1, 2, 3, 0, -100])
    x = torch.randint(0, 9, (8, 3), dtype=torch.int32) if words else torch.randn(8, FEATURES)

    def model():
        torch.manual_seed(1)
        encoder = (
            WindowEncoder(9, 6, window=1, hidden=8, sparse=True) if words else torch.nn.Linear(FEATURES, 8)
        )
        heads = MultiTaskHeads(8, {"classes": Classification(2), "uncounted": UNCOUNTED}, "classes")
        return encoder, heads

    def after(batches):
        encoder, heads = model()
        data = [
            (x[rows], {"classes": (target[rows] > 0).long(), "uncounted": target[rows]}) for rows in batches
        ]
        trainer = Trainer(
            encoder, heads, optimizer=lambda p: SGD(p, lr=1.0), schedule=MultiTask(),
            accumulate=len(batches), device="cpu",
        )  # fmt: skip
        trainer.fit(data, epochs=1)
        losses = trainer.history.steps[-1].losses
        return [p.detach() for p in (*encoder.parameters(), *heads.parameters())], losses

    parts, losses = after([slice(0, 3), slice(3, 8)])
    whole, of_one = after([slice(0, 8)])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    assert losses == pytest.approx(of_one, rel=1e-5)
    encoder, heads = model()
    logits = heads.logits(encoder(x), "uncounted")
    weight = torch.tensor(UNCOUNTED.class_weights)
    wanted = torch.nn.functional.cross_entropy(logits, target, weight=weight, label_smoothing=0.2)
    assert losses["uncounted"] == pytest.approx(wanted.item(), rel=1e-5)
    alone, nothing = after([slice(0, 3)])
    assert nothing["uncounted"] == 0.0  # torch: NaN
    assert all(p.isfinite().all() for p in alone)


def test_sums_and_other_denominators_hold_what_counts_nothing():
    torch.manual_seed(1)
    heads = MultiTaskHeads(5, {"uncounted": UNCOUNTED}, "uncounted")
    features, target = torch.randn(3, 5), torch.zeros(3, dtype=torch.long)
    weight = torch.tensor(UNCOUNTED.class_weights)
    wanted = torch.nn.functional.cross_entropy(
        heads.logits(features, "uncounted"), target, weight=weight, label_smoothing=0.2, reduction="sum"
    )
    assert wanted > 0
    for options, divisor in (
        ({"reduction": "sum"}, 1.0),
        ({"denominators": {"uncounted": 8}}, 8.0),
        ({"denominators": {"uncounted": torch.tensor(4.0)}}, 4.0),
        ({"token_weights": torch.full((3,), 2.0), "reduction": "sum"}, 0.5),
    ):
        out = heads(features, {"uncounted": target}, **options)
        torch.testing.assert_close(out.total, wanted / divisor)
        torch.testing.assert_close(out.losses[0], wanted.detach() / divisor)
    out = heads(features, {"uncounted": target}, denominators={"uncounted": 0})
    assert out.total.item() == 0.0


class OneMemory:
    """Gives every batch in the same tensors, as loaders of images and of GPU pipelines do; `as_array`: by NumPy."""

    def __init__(self, as_array=False, copied=False):
        self.copied = copied
        self.x, self.y = torch.zeros(8, FEATURES), torch.zeros(8, dtype=torch.int64)
        self.into = (self.x.numpy(), self.y.numpy()) if as_array else (self.x, self.y)

    def __len__(self):
        return 8

    def __iter__(self):
        x, targets = rows(3)
        for first in range(0, ROWS, 8):
            for into, values in zip(self.into, (x, targets["classes"]), strict=True):
                some = values[first : first + 8]
                into[:] = some if isinstance(into, torch.Tensor) else some.numpy()
            x_, y_ = (self.x.clone(), self.y.clone()) if self.copied else (self.x, self.y)
            yield x_, {"classes": y_}


@pytest.mark.parametrize("as_array", [False, True])
def test_a_loader_that_writes_over_its_last_batch_is_refused(as_array):
    def fit(accumulate, **options):
        torch.manual_seed(1)
        heads = MultiTaskHeads(8, {"classes": Classification(4)}, "classes")
        trainer = Trainer(torch.nn.Linear(FEATURES, 8), heads, accumulate=accumulate, device="cpu")
        return trainer.fit(OneMemory(as_array, **options), epochs=1)

    with pytest.raises(
        InputError, match=r"train gives every batch in the memory of the one before, .*accumulate=2"
    ):
        fit(2)
    assert fit(1).steps
    assert fit(2, copied=True).steps

"""Schedulers of torch: the rates of a loop by hand on every engine, over a switch, and after resuming."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.optim import lr_scheduler as torch_rates

from mt2st_fast import (
    BagEncoder,
    Callback,
    Classification,
    InputError,
    LazyAdam,
    MultiTaskHeads,
    RowwiseAdagrad,
    Switch,
    Trainer,
    WindowEncoder,
    train_supervised,
)
from tests.training.graphs_on_cpu import assert_same as assert_same_runs
from tests.training.graphs_on_cpu import both
from tests.training.small_runs import Stop, assert_same, batches, trainer_of

STEPS = 24  # three epochs of eight


def several_groups(parameters):
    """A group a parameter: of those of a head that retires nothing is left."""
    groups = [{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(parameters)]
    return torch.optim.AdamW(groups, lr=0.05)


def in_a_row(optimizer, steps):
    parts = [
        torch_rates.LinearLR(optimizer, 0.1, total_iters=5),
        torch_rates.CosineAnnealingLR(optimizer, steps - 5),
    ]
    return torch_rates.SequentialLR(optimizer, parts, milestones=[5])


def a_rule_a_group(optimizer):
    rules = [lambda step, k=k: (k + 1) / (step + 1) for k in range(len(optimizer.param_groups))]
    return torch_rates.LambdaLR(optimizer, rules)


FACTORIES = {
    "step": lambda optimizer: torch_rates.StepLR(optimizer, 5, gamma=0.5),
    "steps": lambda optimizer: torch_rates.MultiStepLR(optimizer, [3, 11, 11]),
    "one cycle": lambda optimizer, steps: torch_rates.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps),
    "cycles": lambda optimizer: torch_rates.CyclicLR(
        optimizer, 0.01, 0.1, step_size_up=4, cycle_momentum=True
    ),
    "a rule a group": a_rule_a_group,
    "in a row": in_a_row,
    "a class": torch_rates.LinearLR,
    "told all but the steps": partial(torch_rates.CosineAnnealingLR, eta_min=0.001),
}


def by_hand(factory, steps, optimizer=several_groups):
    """The rates of all groups in each step, with every head active."""
    own = trainer_of()
    own = optimizer([*own.encoder.parameters(), *own.heads.parameters()])
    takes_steps = factory in (
        FACTORIES["one cycle"],
        FACTORIES["in a row"],
        FACTORIES["told all but the steps"],
    )
    scheduler = factory(own, steps) if takes_steps else factory(own)
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in own.param_groups])
        own.step()
        scheduler.step()
    return rates


class Rates(Callback):
    """What every step was taken with."""

    def __init__(self):
        self.rates = []

    def on_step(self, trainer):
        self.rates.append([float(group["lr"]) for group in trainer.run.optimizer.param_groups])


def both_tasks():
    return [(x, {"a": y["a"], "b": 2 - y["a"]}) for x, y in batches()]


def go(folder, name, *, stop=None, resume=False, epochs=3, **options):
    told = Rates()
    trainer = trainer_of(
        schedule=Switch(at_step=10), optimizer=several_groups, lr_scheduler=FACTORIES[name], log_every=1,
        callbacks=[told, *([Stop(stop)] if stop else [])], **options,
    )  # fmt: skip
    trainer.fit(both_tasks(), epochs=epochs, checkpoint=folder / "c", resume=resume)
    return trainer, told.rates


@pytest.mark.parametrize("name", FACTORIES)
def test_steps_have_the_rates_of_a_loop_by_hand_over_a_switch(tmp_path, name):
    trainer, rates = go(tmp_path, name)
    assert rates == by_hand(FACTORIES[name], STEPS)
    assert [record.learning_rate for record in trainer.history.steps] == [first for first, *_ in rates]
    emptied = [group for group in trainer.run.optimizer.param_groups if not group["params"]]
    assert len(emptied) == 2  # weight and bias of the head that has retired


@pytest.mark.parametrize(
    ("name", "stop"),
    [(name, stop) for name in ("one cycle", "a rule a group") for stop in (1, 9, 10, 17)]
    + [(name, 11) for name in FACTORIES],
)
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path, name, stop):
    (tmp_path / "straight").mkdir()
    straight, rates = go(tmp_path / "straight", name)
    go(tmp_path, name, stop=stop)
    resumed, others = go(tmp_path, name, resume=True)
    assert others == rates[stop:]
    assert_same(straight, resumed)
    ends = [
        {k: v for k, v in group.items() if k != "params"}
        for trainer in (straight, resumed)
        for group in trainer.run.optimizer.param_groups
    ]
    assert ends[: len(ends) // 2] == ends[len(ends) // 2 :]


def test_a_resumed_run_with_another_end_takes_the_rates_of_that_end(tmp_path):
    go(tmp_path, "one cycle", epochs=2)
    _, rates = go(tmp_path, "one cycle", resume=True, epochs=3)
    for own, whole in zip(rates, by_hand(FACTORIES["one cycle"], STEPS)[16:], strict=True):
        assert own == pytest.approx(whole)


def windows(n=8):
    draw = torch.Generator().manual_seed(0)
    types = [torch.randint(0, 40, (16, 3), generator=draw) for _ in range(n)]
    return [(rows, {"a": rows[:, 1] % 3, "b": rows[:, 0] % 2}) for rows in types]


def bags(n=8):
    ids = [(rows.flatten().int(), targets) for rows, targets in windows(n)]
    return [((flat, torch.arange(0, 49, 3)), targets) for flat, targets in ids]


@pytest.mark.parametrize(
    ("make_encoder", "width", "data", "optimizer"),
    [
        (lambda: WindowEncoder(40, 4, window=1, sparse=True, hidden=8), 8, windows, LazyAdam),
        (lambda: WindowEncoder(40, 4, window=1, sparse=True, hidden=8), 8, windows, RowwiseAdagrad),
        (lambda: BagEncoder(40, 4, sparse=True), 4, bags, RowwiseAdagrad),
    ],
)
def test_a_step_in_one_kernel_call_takes_the_same_rate(make_encoder, width, data, optimizer):
    def run(backward, cycle):
        torch.manual_seed(0)
        told, encoder = Rates(), make_encoder()
        heads = MultiTaskHeads(width, {"a": Classification(3), "b": Classification(2)}, "a")
        trainer = Trainer(
            encoder, heads, schedule=Switch(at_step=7), optimizer=lambda p: optimizer(p, lr=0.05), device="cpu",
            backward=backward, callbacks=[told],
            lr_scheduler=lambda own, steps: torch_rates.OneCycleLR(own, 0.2, steps, cycle_momentum=cycle),
        )  # fmt: skip
        trainer.fit(data(), epochs=2)
        return trainer, told.rates

    fused, rates = run("auto", optimizer is LazyAdam)
    eager, others = run("autograd", optimizer is LazyAdam)
    assert {phase.engine for phase in fused.history.phases} == {"one kernel call"}
    assert {phase.engine for phase in eager.history.phases} == {"eager"}
    assert rates == others
    assert max(rates) == [pytest.approx(0.2, rel=0.05)]
    for own, other in zip(fused.encoder.parameters(), eager.encoder.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_parameters_that_a_callback_unfreezes_join_a_group_that_the_scheduler_knows():
    class Unfreeze(Callback):
        def on_epoch_end(self, trainer):
            trainer.encoder.requires_grad_(True)

    encoder = torch.nn.Linear(3, 4).requires_grad_(False)
    before = encoder.weight.clone()
    trainer = trainer_of(encoder, callbacks=[Unfreeze()], lr_scheduler=a_rule_a_group)
    trainer.fit(batches(), epochs=2)
    assert not torch.equal(encoder.weight, before)
    assert len(trainer.run.optimizer.param_groups) == 1


def test_train_supervised_takes_one_instead_of_its_falling_rate(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("__label__a one two\n__label__b three four\n" * 4, "utf-8")
    model = train_supervised(
        text, dim=4, epoch=4, lr=0.1, lr_scheduler=FACTORIES["step"], log_every=1, device="cpu"
    )
    assert [record.learning_rate for record in model.history.steps] == [0.1] * 4
    assert model.history.phases[0].engine == "one kernel call"


def test_a_graph_takes_the_rate_from_the_device_and_no_cycled_momentum(toy):
    def halving(optimizer):
        return torch_rates.StepLR(optimizer, 3, gamma=0.5)

    eager, graphed, trainer = both(toy, toy.batches(6), lr_scheduler=halving, schedule=Switch(at_step=9))
    assert_same_runs(eager, graphed)
    assert trainer.capturer.captured == 2  # one a phase
    assert {phase.graph for phase in graphed[0].phases} == {"captured"}
    *_, trainer = both(toy, toy.batches(6), lr_scheduler=FACTORIES["one cycle"])
    assert "the scheduler changes momentum in every step" in trainer.history.phases[0].graph
    assert "set cycle_momentum=False" in trainer.history.phases[0].graph


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lr_scheduler": 0.5},
            "lr_scheduler must be a function that makes one of the run's optimizer, .* not a float",
        ),
        (
            {"lr_scheduler": FACTORIES["step"], "lr_decay": "linear"},
            "lr_decay='linear' and lr_scheduler both set the rate; leave one of them out",
        ),
        ({"lr_scheduler": lambda optimizer: optimizer}, "of the optimizer that it is given, not a AdamW"),
        (
            {"lr_scheduler": lambda _: torch_rates.StepLR(torch.optim.SGD([torch.zeros(1)], lr=1), 3)},
            "LRScheduler of the optimizer that it is given, not a StepLR",
        ),
        ({"lr_scheduler": torch_rates.ReduceLROnPlateau}, "ReduceLROnPlateau steps by a metric, and here"),
    ],
)
def test_what_is_no_scheduler_of_the_run_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(**options).fit(batches(), epochs=1)


def test_another_scheduler_than_the_checkpoints_is_refused(tmp_path):
    trainer_of(lr_scheduler=FACTORIES["step"]).fit(batches(), epochs=1, checkpoint=tmp_path / "c")
    for other, name in (("steps", "MultiStepLR"), (None, "None")):
        trainer = trainer_of(lr_scheduler=other and FACTORIES[other])
        with pytest.raises(
            InputError, match=f"made with lr_scheduler StepLR, this run has {name}; use the same"
        ):
            trainer.fit(batches(), epochs=2, checkpoint=tmp_path / "c", resume=True)


def test_a_state_that_cannot_be_kept_is_named(tmp_path):
    class Own(torch_rates.LRScheduler):
        def get_lr(self):
            self.seen = {object()}
            return [group["lr"] for group in self.optimizer.param_groups]

    with pytest.raises(
        InputError, match="the state of Own cannot be saved in a checkpoint: Object of type set"
    ):
        trainer_of(lr_scheduler=Own).fit(batches(), epochs=1, checkpoint=tmp_path / "c")

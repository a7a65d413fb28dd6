"""Options that our optimizers inherit from torch's: whoever takes a step honours them, or they are refused."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from mt2st_fast import (
    SGD,
    BagEncoder,
    Callback,
    Classification,
    InputError,
    LazyAdam,
    MultiTaskHeads,
    RowwiseAdagrad,
    Trainer,
    WindowEncoder,
)
from mt2st_fast.training.optimizers.row_sparse import optimizer_by_rule

V, D = 20, 4
OPTIONS = {
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "maximize": {"maximize": True},
    "weight_decay": {"weight_decay": 0.5},
}
OF_ADAM = {"amsgrad": {"amsgrad": True}, "maximize": {"maximize": True}}


def batches(kind):
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(6):
        ids = torch.randint(0, V, (12,), generator=generator)
        inputs = (ids, torch.tensor([0, 3, 7, 7, 12])) if kind == "bag" else ids.view(4, 3)
        found.append((inputs, {"a": torch.randint(0, 3, (4,), generator=generator)}))
    return found


def model(kind):
    torch.manual_seed(1)
    encoder = (
        BagEncoder(V, D, sparse=True)
        if kind == "bag"
        else WindowEncoder(V, D, window=1, hidden=8, dropout=0.0, sparse=True)
    )
    return encoder, MultiTaskHeads(encoder.out_features, {"a": Classification(3)}, main="a")


def trained(kind, optimizer, backward="auto", **options):
    encoder, heads = model(kind)
    trainer = Trainer(encoder, heads, device="cpu", optimizer=optimizer, backward=backward, **options)
    history = trainer.fit(batches(kind), epochs=2)
    dense = torch.cat([p.detach().flatten() for p in nn.ModuleList([encoder, heads]).parameters()])
    return dense, history.phases[0]


def sgd(groups):
    return SGD(groups, lr=0.1)


def lazy_adam(groups):
    return LazyAdam(groups, lr=0.05, betas=(0.9, 0.5))  # second moments that fall, so that amsgrad differs


def in_groups(optimizer, table, dense):
    """Of a function from groups: the table in a group of its own."""

    def make(parameters):
        own = list(parameters)
        rows = [p for p in own if p.shape == (V, D)]
        others = [p for p in own if p.shape != (V, D)]
        return optimizer([{"params": rows, **table}, {"params": others, **dense}])

    return make


@pytest.mark.parametrize("kind", ["bag", "window"])
@pytest.mark.parametrize(
    ("make", "name"),
    [*((sgd, name) for name in OPTIONS), *((lazy_adam, name) for name in OF_ADAM)],
)
def test_dense_parameters_have_the_option_whoever_takes_the_step(kind, make, name):
    optimizer = in_groups(make, {}, {**OPTIONS, **OF_ADAM}[name])
    fused, phase = trained(kind, optimizer)
    by_autograd, _ = trained(kind, optimizer, backward="autograd")
    torch.testing.assert_close(fused, by_autograd, rtol=1e-5, atol=1e-6)
    plain, _ = trained(kind, in_groups(make, {}, {}))
    assert not torch.allclose(fused, plain, atol=1e-4), "the option does something"
    if name != "weight_decay":
        assert phase.engine != "one kernel call"


@pytest.mark.parametrize("kind", ["bag", "window"])
@pytest.mark.parametrize("backward", ["auto", "autograd"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (sgd, "SGD moves rows without momentum, and the table's group has momentum=0.9"),
        (sgd, "SGD moves rows without maximize"),
        (lazy_adam, "LazyAdam moves rows without maximize"),
        (lazy_adam, "LazyAdam moves rows without amsgrad"),
    ],
)  # fmt: skip
def test_rows_that_cannot_follow_are_refused_by_name(kind, backward, make, message):
    name = next(name for name in ("momentum", "maximize", "amsgrad") if name in message)
    option = {**OPTIONS, **OF_ADAM}[name]
    encoder, heads = model(kind)
    before = encoder.table.detach().clone()
    trainer = Trainer(
        encoder,
        heads,
        device="cpu",
        backward=backward,
        optimizer=in_groups(make, option, {}),
    )
    with pytest.raises(InputError, match=message):
        trainer.fit(batches(kind), epochs=1)
    assert torch.equal(before, encoder.table)


@pytest.mark.parametrize("kind", ["bag", "window"])
def test_a_scheduler_that_cycles_momentum_says_what_to_do(kind):
    encoder, heads = model(kind)
    trainer = Trainer(
        encoder,
        heads,
        device="cpu",
        optimizer=sgd,
        lr_scheduler=lambda optimizer, n: OneCycleLR(optimizer, max_lr=0.2, total_steps=n),
    )
    with pytest.raises(InputError, match=r"momentum=0\.95: .*with momentum=0 .*cycle_momentum=False"):
        trainer.fit(batches(kind), epochs=1)
    scheduler = {
        "lr_scheduler": lambda optimizer, n: OneCycleLR(
            optimizer, max_lr=0.2, total_steps=n, cycle_momentum=False
        )
    }
    fused, phase = trained(kind, sgd, **scheduler)
    by_autograd, _ = trained(kind, sgd, "autograd", **scheduler)
    assert phase.engine == "one kernel call"
    torch.testing.assert_close(fused, by_autograd, rtol=1e-5, atol=1e-6)


class Sets(Callback):
    """Sets an option of the dense parameters within a phase; `make` is the optimizer's factory."""

    def __init__(self, option):
        self.option = option

    def make(self, parameters):
        self.optimizer = in_groups(sgd, {}, {})(parameters)
        return self.optimizer

    def on_record(self, trainer, record):
        self.optimizer.param_groups[1].update(self.option)


@pytest.mark.parametrize("kind", ["bag", "window"])
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_comes_within_a_phase_counts_from_the_next_step_on(kind, name):
    def run(backward):
        sets = Sets(OPTIONS[name])
        return trained(kind, sets.make, backward, log_every=4, callbacks=[sets])[0]

    torch.testing.assert_close(run("auto"), run("autograd"), rtol=1e-5, atol=1e-6)


def test_an_optimizer_that_computes_the_loss_itself_is_refused():
    encoder, heads = nn.Linear(4, 4), MultiTaskHeads(4, {"a": Classification(2)}, main="a")
    trainer = Trainer(
        encoder, heads, device="cpu", optimizer=lambda parameters: torch.optim.LBFGS(parameters)
    )
    with pytest.raises(
        InputError, match=r"LBFGS has to compute the loss several times in a step \(step\(closure\)\)"
    ):
        trainer.fit([(torch.randn(3, 4), {"a": torch.tensor([0, 1, 0])})], epochs=1)


@pytest.mark.parametrize("make", [RowwiseAdagrad, optimizer_by_rule("adagrad")])
def test_an_option_that_a_rule_does_not_have_is_refused(make):
    parameters = [nn.Parameter(torch.zeros(3))]
    make([{"params": parameters, "lr": 0.2}])
    with pytest.raises(InputError, match="has no option weight_decay; available for a group: lr, eps"):
        make([{"params": parameters, "weight_decay": 0.5}])


class ByLosses:
    def task_weights(self, moment, main, auxiliary):
        return dict.fromkeys((main, *auxiliary), 1.0)

    def weigh(self, active, losses): ...

    def learn(self, active, before, after): ...


def test_weights_by_losses_that_nobody_would_ask_for_are_refused():
    heads = MultiTaskHeads(4, {"a": Classification(2)}, main="a")
    trainer = Trainer(nn.Linear(4, 4), heads, device="cpu", schedule=ByLosses())
    with pytest.raises(TypeError, match=r"ByLosses weighs by losses .*, so it must be an nn\.Module"):
        trainer.fit([(torch.randn(3, 4), {"a": torch.tensor([0, 1, 0])})], epochs=1)

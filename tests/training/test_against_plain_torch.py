"""Random runs: by every engine that takes them, they are what a slow loop in plain torch does (`plain_loop`)."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2st_fast import (
    SGD,
    AlternateSteps,
    BagEncoder,
    Classification,
    LazyAdam,
    MultiLabel,
    MultiTaskHeads,
    Regression,
    RowwiseAdagrad,
    Trainer,
    Uncertainty,
    WindowEncoder,
)
from mt2st_fast.training.engines.eager import EagerSteps
from mt2st_fast.training.engines.gradient_calls import GradientCallSteps
from mt2st_fast.training.engines.one_call import OneCallSteps
from tests.training.plain_loop import ACTIVATIONS, BETAS, DECAY, EPS, PlainLoop
from tests.training.small_runs import Stop, assert_same

WEIGHTS = (1.0, 0.0, 0.4, 2.0)
INPUTS = 4  # of a stack of linear layers
ROWS = 11  # of a table whose types have rows of their own, 0 for padding
RATE_OF_HEADS = 0.3  # of the encoder's, where they have groups of their own


@dataclass
class Case:
    encoder: str
    tasks: dict[str, Any]
    optimizer: str
    schedule: str
    V: int = 9
    D: int = 5
    hidden: int | None = None
    mode: str = "mean"
    activation: str = "relu"
    rows: Tensor | None = None  # of each type, 0 = none
    sparse: bool = False
    bias: bool = True
    own_groups: bool = False
    frozen: float = 0.0  # the share of frozen parameters
    frozen_rows: Tensor | None = None
    accumulate: int = 1
    clip_norm: float | None = None
    lr: float = 0.05
    scheduler: Callable[..., Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)  # of the trainer alone
    dtype: torch.dtype = torch.float32
    loaders: dict[str, list[Any]] = field(default_factory=dict)

    def groups(self, parameters, moving):
        """The groups of an optimizer, of parameters by name."""
        if not self.own_groups:
            return [{"params": moving}]
        of_encoder = {id(p) for name, p in parameters.items() if name.startswith("encoder.")}
        first, second = ([p for p in moving if (id(p) in of_encoder) is mine] for mine in (True, False))
        groups = [{"params": first}, {"params": second, "lr": RATE_OF_HEADS * self.lr}]
        return [group for group in groups if group["params"]]


# --- drawing ------------------------------------------------------------------------------------------------


def task_of(r, pooling):
    C, how = r.choice([1, 2, 3, 17]), {"pooling": pooling}
    smoothing, weights = r.choice([0.0, 0.2]), r.choice([None, [r.choice([0.5, 2.0]) for _ in range(C)]])
    return r.choice(
        [
            Classification(C, smoothing, weights, r.choice([-100, C, -1]), **how),
            Classification(C, **how),
            MultiLabel(C, weights, **how),
            Regression(C, **how),
            Regression(C, huber_delta=r.choice([0.1, 1.0]), **how),
        ]
    )


def draw(seed, is_mlp=False):
    r = random.Random(seed)
    encoder = "mlp" if is_mlp else r.choice(["window", "window", "bag", "bag", "bag", "tokens"])
    how = ("none", "first", "mean") if encoder == "tokens" else ("none",)
    tasks = {name: task_of(r, r.choice(how)) for name in "abc"[: r.choice([1, 2, 3, 3])]}
    optimizer = r.choice(["adam", "adam", "adagrad", "sgd", "torch adam", "torch sgd"])
    if is_mlp:
        optimizer = r.choice([optimizer, "torch adam", "torch l2 adam", "torch plain sgd"])
    case = Case(
        encoder, tasks, optimizer, r.choice(["steps", "steps", "turns", "learnt"]), D=r.choice([1, 5, 8])
    )
    case.sparse = encoder in ("window", "bag") and not optimizer.startswith("torch")
    case.hidden, case.mode = r.choice([None, 3, 8]), r.choice(["mean", "sum"])
    case.bias, case.own_groups = r.random() < 0.8, r.random() < 0.3
    if encoder in ("window", "bag") and r.random() < 0.4:
        M = r.choice([1, 3])
        rows = [[r.choice([0, *range(1, ROWS, 2)]) for _ in range(M)] for _ in range(case.V)]
        case.rows = torch.tensor(rows)
    if case.sparse and r.random() < 0.2:
        case.frozen_rows = torch.tensor(
            [r.random() < 0.5 for _ in range(case.V if case.rows is None else ROWS)]
        )
    case.frozen = 0.0 if case.schedule == "turns" else r.choice([0.0, 0.0, 0.3])
    case.accumulate, case.clip_norm = r.choice([1, 1, 3]), r.choice([None, None, 0.1])
    if r.random() < 0.3:
        case.scheduler = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    case.dtype = r.choice([torch.float32] * 3 + [torch.float64])
    if is_mlp:  # what one kernel call takes, most of the time
        case.activation = r.choice(list(ACTIVATIONS))
    case.options = {"log_every": r.choice([1, 2, 100])}
    own = [name for name in list(tasks)[1:] if not is_mlp and r.random() < 0.3]
    shared = [name for name in tasks if name not in own]
    case.loaders = {"a": [batch(case, r, shared) for _ in range(4)]}
    case.loaders |= {name: [batch(case, r, [name]) for _ in range(3)] for name in own}
    return case


def batch(case, r, names):
    N, generator = r.choice([1, 2, 7, 20]), torch.Generator().manual_seed(r.randrange(10**9))
    integer = r.choice([torch.int32, torch.int64])
    rows = (N,)
    if case.encoder == "window":
        inputs = torch.randint(-1, case.V, (3, N), generator=generator).to(integer).T  # not contiguous
    elif case.encoder == "bag":
        lengths = torch.tensor([0, *(r.choice([0, 1, 3]) for _ in range(N))])
        types = torch.randint(-1, case.V, (int(lengths.sum()),), generator=generator)
        inputs = types.to(integer), lengths.cumsum(0)
    elif case.encoder == "mlp":
        x = torch.randn(2, N, INPUTS, generator=generator, dtype=case.dtype)
        inputs = x[0] if r.random() < 0.8 else x.transpose(0, 1)[:, 0]  # not contiguous
    else:
        rows = (N, 3)
        x = torch.randn(N, 3, 2, generator=generator, dtype=case.dtype)
        inputs = x, torch.rand(N, 3, generator=generator) < 0.7
    missing = r.choice([0.0, 0.4, 1.0])
    present = [name for name in names if name == "a" or len(names) == 1 or r.random() < 0.8]
    of_rows = {name: rows if case.tasks[name].pooling == "none" else (N,) for name in present}
    return inputs, {
        n: target(case.tasks[n], of_rows[n], missing, integer, generator, case.dtype) for n in present
    }


def target(task, rows, missing, integer, generator, dtype):
    if isinstance(task, Classification):
        classes = torch.randint(0, task.classes, rows, generator=generator)
        gone = torch.rand(rows, generator=generator) < missing
        return classes.masked_fill(gone, task.ignore_index).to(integer)
    shape = (*rows, task.labels if isinstance(task, MultiLabel) else task.outputs)
    values = torch.rand(shape, generator=generator, dtype=dtype)
    return values.masked_fill(torch.rand(shape, generator=generator) < missing, float("nan"))


# --- both loops ---------------------------------------------------------------------------------------------


class Steps:
    """Weights that change at every step, 0 among them; task b retires after three steps, c after five."""

    def task_weights(self, moment, main, auxiliary):
        lasting = [name for name in auxiliary if moment.step < {"b": 3, "c": 5}[name]]
        return {main: 1.0} | {name: WEIGHTS[(moment.step + ord(name)) % 4] for name in lasting}


class Tokens(nn.Module):
    def __init__(self, D):
        super().__init__()
        self.mix = nn.Linear(2, D)

    def forward(self, inputs):
        return torch.tanh(self.mix(inputs[0])), inputs[1]


def mlp(case):
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}[case.activation]
    first = nn.Linear(INPUTS, case.hidden or case.D, bias=case.bias)
    last = [nn.Linear(case.hidden, case.D)] if case.hidden else []
    return nn.Sequential(nn.Dropout(0.0), nn.Sequential(first, nn.Identity(), activation()), *last)


def model_of(case, seed):
    torch.manual_seed(seed)
    rows = {} if case.rows is None else {"rows_of_type": case.rows, "num_rows": ROWS}
    if case.encoder == "window":
        encoder = WindowEncoder(case.V, case.D, window=1, hidden=case.hidden, sparse=case.sparse, **rows)
    elif case.encoder == "bag":
        encoder = BagEncoder(case.V, case.D, mode=case.mode, sparse=case.sparse, **rows)
    elif case.encoder == "mlp":
        encoder = mlp(case)
    else:
        encoder = Tokens(case.D)
    width = getattr(encoder, "out_features", case.D)
    heads = MultiTaskHeads(width, case.tasks, "a", bias=case.bias)
    r, parameters = random.Random(seed), named(encoder, heads)
    for name in parameters:
        if r.random() < case.frozen and name != "heads.linears.a.weight":
            parameters[name].requires_grad_(False)
    return encoder.to(case.dtype), heads.to(case.dtype)


def named(encoder, heads):
    found = {f"encoder.{name}": p for name, p in encoder.named_parameters()}
    return found | {f"heads.{name}": p for name, p in heads.named_parameters()}


def trainer_of(case, seed, backward, callbacks=()):
    encoder, heads = model_of(case, seed)
    adam = {"betas": BETAS, "eps": EPS, "weight_decay": DECAY}
    makers = {
        "adam": lambda groups: LazyAdam(groups, lr=case.lr, **adam),
        "torch adam": lambda groups: torch.optim.AdamW(groups, lr=case.lr, **adam),
        "torch l2 adam": lambda groups: torch.optim.Adam(groups, lr=case.lr, **adam),
        "torch plain sgd": lambda groups: torch.optim.SGD(groups, case.lr, weight_decay=DECAY),
        "torch sgd": lambda groups: torch.optim.SGD(groups, case.lr, 0.9, weight_decay=DECAY, nesterov=True),
        "adagrad": lambda groups: RowwiseAdagrad(groups, lr=case.lr, eps=EPS),
        "sgd": lambda groups: SGD(groups, lr=case.lr),
    }

    def make(parameters):
        optimizer = makers[case.optimizer](case.groups(named(encoder, heads), parameters))
        if case.frozen_rows is not None and encoder.table.requires_grad:
            optimizer.freeze_rows(encoder.table, case.frozen_rows)
        return optimizer

    schedule = {"steps": Steps, "turns": AlternateSteps, "learnt": Uncertainty}[case.schedule]()
    return Trainer(
        encoder, heads, schedule=schedule, optimizer=make, accumulate=case.accumulate, clip_norm=case.clip_norm,
        lr_scheduler=case.scheduler, backward=backward, device="cpu", callbacks=callbacks, **case.options,
    )  # fmt: skip


def by_plain_torch(case, parameters, trainable, n_steps):
    """The loop after `n_steps` steps, two passes over the main loader."""
    loop = PlainLoop(case, parameters, trainable)
    auxiliary, read, steps_per_pass = list(case.tasks)[1:], 0, n_steps // 2
    for step in range(n_steps):
        part, weights = "all", dict.fromkeys(case.tasks, 1.0)
        if case.schedule == "steps":
            moment = type("Moment", (), {"step": step})
            weights = Steps().task_weights(moment, "a", auxiliary)
        elif case.schedule == "turns":
            part = "tasks" if step % 2 else "shared"
        micro = min(case.accumulate, 4 - step % steps_per_pass * case.accumulate)
        loaders = [batches for name, batches in case.loaders.items() if name in weights]
        step_batches = [b[i % len(b)] for i in range(read, read + micro) for b in loaders]
        loop.step(weights, step_batches, part)
        read += micro
    return loop


def assert_as_plain(case, trainer, loop):
    rtol, atol = (1e-6, 1e-7) if case.dtype == torch.float64 else (5e-4, 5e-5)
    for name, p in named(trainer.encoder, trainer.heads).items():
        off = (p.detach().double() - loop.p[name].detach()).abs()
        assert (off <= atol + rtol * loop.p[name].detach().abs()).all(), (name, float(off.max()))
    first = 0
    for record in trainer.history.steps:
        steps = loop.losses[first : record.step]
        for name, loss in record.losses.items():
            want = sum(losses[name] for losses in steps) / len(steps)
            assert loss == pytest.approx(want, rel=rtol, abs=atol), (name, record.step)
        first = record.step


def check(seed, path, is_mlp=False):
    case = draw(seed, is_mlp)
    engines, read_once = set(), len(case.loaders) == case.accumulate == 1 and case.clip_norm is None
    for backward in ("auto", "autograd", *(["fused"] if case.sparse and read_once else [])):
        trainer = trainer_of(case, seed, backward)
        before = {name: p.detach().clone() for name, p in named(trainer.encoder, trainer.heads).items()}
        trainable = {name for name, p in named(trainer.encoder, trainer.heads).items() if p.requires_grad}
        if backward == "fused" and "encoder.table" not in trainable:
            continue
        history = trainer.fit(case.loaders, epochs=2)
        loop = by_plain_torch(case, before, trainable, trainer.total_steps)
        assert_as_plain(case, trainer, loop)
        engines |= {phase.engine for phase in history.phases}
        if case.encoder != "tokens" or backward == "autograd":
            stopped = trainer_of(case, seed, backward, callbacks=[Stop(1 + seed % (trainer.total_steps - 1))])
            stopped.fit(case.loaders, epochs=2, checkpoint=path)
            resumed = trainer_of(case, seed, backward)
            resumed.fit(case.loaders, epochs=2, checkpoint=path, resume=True)
            assert_same(trainer, resumed)
            assert resumed.history == history
    return engines


@pytest.mark.parametrize("seed", range(24))
def test_a_run_is_that_of_plain_torch_and_goes_on_with_the_same_bits(seed, tmp_path):
    check(seed, tmp_path / "c")


def test_the_seeds_reach_every_engine(tmp_path, monkeypatch):
    reached = set()
    for engine in (OneCallSteps, GradientCallSteps, EagerSteps):

        def noting(self, micro_steps, call=engine.__call__):
            reached.add(self.name)
            return call(self, micro_steps)

        monkeypatch.setattr(engine, "__call__", noting)
    check(6, tmp_path / "c")  # a step of three batches, and one of a single batch
    assert reached == {"one kernel call", "gradients in one kernel call", "eager"}


@pytest.mark.parametrize("seed", range(16))
def test_a_run_of_linear_layers_is_that_of_plain_torch(seed, tmp_path):
    case = draw(seed, is_mlp=True)
    taken = case.dtype == torch.float32 and not (case.schedule == "learnt" and case.clip_norm is not None)
    assert ("one kernel call" in check(seed, tmp_path / "c", is_mlp=True)) == taken


@pytest.mark.long
@pytest.mark.parametrize("seed", range(16, 300))
def test_many_runs_of_linear_layers_are_those_of_plain_torch(seed, tmp_path):
    check(seed, tmp_path / "c", is_mlp=True)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(24, 600))
def test_many_runs_are_those_of_plain_torch(seed, tmp_path):
    check(seed, tmp_path / "c")


class Spectral(nn.Module):
    """Has complex parameters, which torch's fused AdamW refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(5, 8, dtype=torch.complex64))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs.to(torch.complex64) @ self.filter).abs()


def test_complex_parameters_train_by_default() -> None:
    torch.manual_seed(0)
    encoder, heads = Spectral(), MultiTaskHeads(8, {"a": Classification(3)}, main="a")
    own_encoder, own_heads = deepcopy((encoder, heads))
    inputs, target = torch.randn(12, 5), torch.arange(12) % 3
    Trainer(encoder, heads, lr=0.01, clip_norm=0.5, device="cpu").fit([(inputs, {"a": target})], steps=4)
    parameters = [*own_encoder.parameters(), *own_heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(own_heads.logits(own_encoder(inputs), "a"), target).backward()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
    torch.testing.assert_close(encoder.filter, own_encoder.filter)

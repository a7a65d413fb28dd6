"""Code around a model and its optimizer, or in the place of theirs, runs in every step, whichever engine takes it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

from mt2st_fast import SGD, BagEncoder, LazyAdam, Trainer
from tests.training.engines.test_changed_parts import ENCODERS as MODELS
from tests.training.engines.test_changed_parts import At, assert_alike, batch, trainer

ENCODERS = ["windows", "bags", "table", "layers"]


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(x)


class Fixed(list[Any]):
    """Batches whose tensors stay the same."""

    fixed_batches = True


@pytest.fixture(autouse=True)
def no_hooks_of_all() -> Iterator[None]:
    yield
    torch_module._global_forward_hooks.clear()
    torch_optimizer._global_optimizer_pre_hooks.clear()


def both_ways(
    encoder: str, act: Callable[[Trainer], Any], batches: Any = None, step: int = 2, **options: Any
) -> str:
    """The same run by the fastest engine and by autograd; returns why the first did not take some of the steps."""
    runs = []
    for backward in ("auto", "autograd"):
        runs.append(trainer(encoder, backward, At(act, step), **options))
        runs[-1].fit([batch(encoder, N) for N in (31, 1, 64)] if batches is None else batches, epochs=3)
        torch_module._global_forward_hooks.clear()
        torch_optimizer._global_optimizer_pre_hooks.clear()
    assert_alike(runs)
    return runs[0].history.phases[0].passed_over.get("one kernel call", "")


# --- modules ------------------------------------------------------------------------------------------------


def own_forward(module: nn.Module) -> None:
    """As instrumentation and some adapters do it."""
    before = module.forward
    module.forward = lambda *inputs: 2.0 * before(*inputs)  # type: ignore[method-assign]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_forward_that_is_replaced_within_a_phase_is_called(encoder: str) -> None:
    reason = both_ways(encoder, lambda trainer: own_forward(trainer.encoder))
    assert "the forward method of a" in reason
    assert "was replaced" in reason


@pytest.mark.parametrize("encoder", ["windows", "bags"])
def test_a_forward_that_was_replaced_before_is_called(encoder: str) -> None:
    run = trainer(encoder)
    own_forward(run.encoder)
    run.fit([batch(encoder, 8)], epochs=1)
    assert "was replaced" in run.history.phases[0].passed_over["one kernel call"]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_head_that_becomes_more_than_a_layer_is_called(encoder: str) -> None:
    def double(trainer: Trainer) -> None:
        trainer.heads.linear("a").__class__ = Doubled

    assert "not a plain torch.nn.Linear" in both_ways(encoder, double)


def test_a_layer_that_becomes_another_class_is_called() -> None:
    def double(trainer: Trainer) -> None:
        trainer.encoder[2].__class__ = Doubled

    assert "the encoder has a Doubled" in both_ways("layers", double)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_hooks_of_all_modules_run(encoder: str) -> None:
    def hook(trainer: Trainer) -> None:
        del trainer
        torch_module.register_module_forward_hook(
            lambda module, _, out: 2.0 * out if type(module) in (nn.ReLU, BagEncoder) else None
        )

    assert "has hooks" in both_ways(encoder, hook)


def test_a_method_that_computes_nothing_may_be_replaced() -> None:
    def stay(trainer: Trainer) -> None:
        trainer.encoder.train = lambda mode=True: trainer.encoder  # type: ignore[method-assign]

    assert not both_ways("layers", stay)


# --- options ------------------------------------------------------------------------------------------------


def test_another_gelu_within_a_phase_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        MODELS, "layers", lambda: nn.Sequential(nn.Linear(3, 16), nn.GELU(), nn.Linear(16, 16))
    )
    seen = []

    def approximate(trainer: Trainer) -> None:
        trainer.encoder[1].approximate = "tanh"
        seen.append(trainer.encoder[2].weight.detach().clone())

    batches = [(3.0 * x, y) for x, y in (batch("layers", N) for N in (31, 1, 64))]
    runs = []
    for act in (approximate, lambda _: None):
        runs.append(trainer("layers", "auto", At(act)))
        runs[-1].fit(batches, epochs=3)
        assert not runs[-1].history.phases[0].passed_over
    assert not torch.equal(runs[0].encoder[2].weight, runs[1].encoder[2].weight)
    assert not both_ways("layers", approximate, batches)


@pytest.mark.parametrize("optimizer", [lambda p: SGD(p, lr=0.1), lambda p: LazyAdam(p, lr=0.02, eps=1e-3)])
def test_another_mode_of_bags_within_a_phase_counts(optimizer: Any) -> None:
    def add_up(trainer: Trainer) -> None:
        trainer.encoder.mode = "sum"

    # In the next epoch, what is known of the batches must not be that of the other mode.
    batches = Fixed(batch("bags", N) for N in (31, 1, 64))
    assert not both_ways("bags", add_up, batches, step=4, optimizer=optimizer)


def test_dropout_of_bags_within_a_phase_counts() -> None:
    def drop(trainer: Trainer) -> None:
        trainer.encoder.dropout.p = 1.0

    assert "has dropout" in both_ways("bags", drop)


# --- the optimizer's step -----------------------------------------------------------------------------------


def gradients(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    yield from (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)


def halve(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for gradient in gradients(optimizer):
        gradient.mul_(0.5)


def halving(optimizer: torch.optim.Optimizer, *, wrapped: bool = True) -> torch.optim.Optimizer:
    """Replace the step of one optimizer."""
    before = optimizer.step

    @functools.wraps(before) if wrapped else (lambda function: function)
    def step(*given: Any) -> Any:
        halve(optimizer)
        return before(*given)

    optimizer.step = step  # type: ignore[method-assign,assignment]
    return optimizer


class HalvingSGD(SGD):
    def step(self, closure: Any = None) -> Any:
        halve(self)
        return super().step(closure)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_hooks_of_all_optimizers_run(encoder: str) -> None:
    def hook(trainer: Trainer) -> None:
        del trainer
        torch_optimizer.register_optimizer_step_pre_hook(halve)  # type: ignore[arg-type]

    assert "the optimizer has hooks" in both_ways(encoder, hook)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_step_that_is_replaced_within_a_phase_is_called(encoder: str, wrapped: bool) -> None:
    reason = both_ways(encoder, lambda trainer: halving(trainer.run.optimizer, wrapped=wrapped) and None)
    assert "the step method of SGD was replaced" in reason


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("make", [lambda p: HalvingSGD(p, lr=0.1), lambda p: halving(SGD(p, lr=0.1))])
def test_a_step_of_ones_own_is_called(encoder: str, make: Any) -> None:
    assert "was replaced" in both_ways(encoder, lambda _: None, optimizer=make)


def test_a_step_that_is_replaced_for_all_of_a_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.optim.SGD.step

    @functools.wraps(before)
    def step(self: Any, *given: Any) -> Any:
        halve(self)
        return before(self, *given)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
    assert "the step method of SGD was replaced" in both_ways("layers", lambda _: None, **options)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_schedulers_wrap_a_step_without_replacing_it(encoder: str) -> None:
    reason = both_ways(
        encoder,
        lambda _: None,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
    )
    assert not reason

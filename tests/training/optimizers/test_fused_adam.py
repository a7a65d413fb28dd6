"""Steps of torch's AdamW and Adam by their operators: the same bits, and only where nobody waits for the call."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

from mt2st_fast import Classification, MultiTaskHeads, Trainer
from mt2st_fast.training.optimizers.fused_adam import step_fused
from mt2st_fast.training.optimizers.upkeep import drop_gradients


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(3)
    return [nn.Parameter(torch.randn(7, 5)), nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(2, 5))]


def make(cls: type = torch.optim.AdamW, **options: object) -> torch.optim.Optimizer:
    first, *others = parameters()
    groups = [{"params": [first], "lr": 0.1}, {"params": others, "weight_decay": 0.3}]
    return cls(groups, **{"lr": 0.01, "fused": True, **options})


def held(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def set_gradients(optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in held(optimizer):
        parameter.grad = torch.randn_like(parameter)


def after_a_step(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """With state, and gradients for the next step."""
    set_gradients(optimizer, 0)
    optimizer.step()
    set_gradients(optimizer, 1)
    return optimizer


def everything(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    states = [value for p in held(optimizer) for value in optimizer.state[p].values()]
    return [*held(optimizer), *states]


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.Adam])
def test_the_same_bits_as_torchs_own_step(cls):
    ours, torchs = after_a_step(make(cls)), after_a_step(make(cls))
    for step in range(5):
        for optimizer in (ours, torchs):
            set_gradients(optimizer, step)
            optimizer.param_groups[1]["lr"] = 0.1 / (step + 1)
            if step == 3:
                held(optimizer)[1].grad = None
        assert step_fused(ours)
        torchs.step()
        for a, b in zip(everything(ours), everything(torchs), strict=True):
            assert torch.equal(a, b)


def test_a_parameters_first_step_is_torchs():
    optimizer = make()
    set_gradients(optimizer, 0)
    before = [p.detach().clone() for p in held(optimizer)]
    assert not step_fused(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, held(optimizer), strict=True))
    assert not optimizer.state


def _wait_before(optimizer: torch.optim.Optimizer) -> None:
    optimizer.register_step_pre_hook(lambda *_: None)


def _wait_after(optimizer: torch.optim.Optimizer) -> None:
    optimizer.register_step_post_hook(lambda *_: None)


def _scheduler(optimizer: torch.optim.Optimizer) -> None:
    torch.optim.lr_scheduler.ConstantLR(optimizer)


def _sparse(optimizer: torch.optim.Optimizer) -> None:
    held(optimizer)[0].grad = held(optimizer)[0].grad.to_sparse()


def _scaled(optimizer: torch.optim.Optimizer) -> None:
    optimizer.found_inf = torch.zeros(())


def _rate_in_a_tensor(optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[1]["lr"] = torch.tensor(0.1)


def _double(optimizer: torch.optim.Optimizer) -> None:
    held(optimizer)[0].data = held(optimizer)[0].data.double()


OBSTACLES: list[Callable[[torch.optim.Optimizer], None]] = [
    _wait_before, _wait_after, _scheduler, _sparse, _scaled, _rate_in_a_tensor, _double,
]  # fmt: skip


@pytest.mark.parametrize("add", OBSTACLES)
def test_nothing_is_done_where_torch_does_more(add):
    optimizer = after_a_step(make())
    add(optimizer)
    before = [tensor.detach().clone() for tensor in everything(optimizer)]
    assert not step_fused(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(optimizer), strict=True))


@pytest.mark.parametrize(
    "options", [{"amsgrad": True}, {"maximize": True}, {"fused": False}, {"fused": False, "foreach": True}]
)
def test_other_options_are_torchs(options):
    assert not step_fused(after_a_step(make(**options)))


def test_other_classes_take_their_own_step():
    class Own(torch.optim.AdamW):
        pass

    assert not step_fused(after_a_step(make(Own)))
    assert not step_fused(torch.optim.SGD(parameters(), lr=0.1))


def test_a_profiler_sees_the_step_by_its_name():
    optimizer = after_a_step(make())
    with torch.autograd.profiler.profile():
        assert not step_fused(optimizer)


@pytest.fixture
def _global_hook() -> Iterator[None]:
    handle = torch_optimizer.register_optimizer_step_pre_hook(lambda *_: None)
    yield
    handle.remove()


@pytest.mark.usefixtures("_global_hook")
def test_hooks_on_all_optimizers_are_run():
    assert not step_fused(after_a_step(make()))


def test_a_step_that_was_put_in_place_of_torchs_is_called(monkeypatch):
    optimizer, called = after_a_step(make()), []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: called.append(self))
    assert not step_fused(optimizer)


def test_a_step_that_was_put_in_place_of_torchs_before_this_package_was_loaded_is_called():
    program = textwrap.dedent("""
        import functools
        import torch
        own = torch.optim.Adam.step
        torch.optim.Adam.step = functools.wraps(own)(lambda self, closure=None: own(self))
        from mt2st_fast.training.optimizers.fused_adam import step_fused
        parameter = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.AdamW([parameter], fused=True)
        parameter.grad = torch.ones(2)
        optimizer.step()
        assert not step_fused(optimizer)
    """)
    subprocess.run([sys.executable, "-c", program], check=True)


# --- gradients -------------------------------------------------------------------------------------------


def test_gradients_are_dropped():
    optimizer = after_a_step(make())
    drop_gradients(optimizer)
    assert all(p.grad is None for p in held(optimizer))


@pytest.mark.parametrize("where", ["class", "object"])
def test_a_zero_grad_of_ones_own_is_called(where):
    class Own(torch.optim.AdamW):
        def zero_grad(self, set_to_none: bool = True) -> None:
            called.append(set_to_none)

    called: list[bool] = []
    optimizer = after_a_step(make(Own if where == "class" else torch.optim.AdamW))
    if where == "object":
        optimizer.zero_grad = lambda set_to_none=True: called.append(set_to_none)
    drop_gradients(optimizer)
    assert called == [True]


# --- in a Trainer ----------------------------------------------------------------------------------------


def trained(monkeypatch: pytest.MonkeyPatch | None, K: int) -> tuple[list[Tensor], int]:
    """Parameters after some steps, and how many of them torch has taken."""
    torch.manual_seed(0)
    tasks = {f"t{k}": Classification(3) for k in range(K)}
    encoder, heads = (
        nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Hardshrink(0.1)),
        MultiTaskHeads(8, tasks, "t0"),
    )
    batches = [(torch.randn(10, 6), {name: torch.randint(3, (10,)) for name in tasks}) for _ in range(6)]
    if monkeypatch is not None:
        monkeypatch.setattr("mt2st_fast.training.engines.eager.step_fused", lambda _: False)
    taken = []
    step = torch.optim.AdamW._init_group  # its own, not Adam's, once something in the process was compiled
    with pytest.MonkeyPatch.context() as counting:
        counting.setattr(torch.optim.AdamW, "_init_group", lambda *args: (taken.append(1), step(*args))[1])
        Trainer(encoder, heads, lr=0.1, weight_decay=0.1, device="cpu").fit(batches, epochs=2)
    return [*encoder.parameters(), *heads.parameters()], len(taken)


@pytest.mark.parametrize("K", [1, 3])
def test_a_trainers_steps_are_taken_so_and_give_the_same_parameters(K, monkeypatch):
    ours, by_torch = trained(None, K)
    expected, all_steps = trained(monkeypatch, K)
    assert by_torch < all_steps
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))

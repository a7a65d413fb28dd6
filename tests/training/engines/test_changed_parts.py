"""What a callback changes of a model counts from the next step on, whichever engine takes the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt2st_fast import (
    SGD,
    BagEncoder,
    Callback,
    Classification,
    MultiTask,
    MultiTaskHeads,
    Regression,
    RowwiseAdagrad,
    Trainer,
    WindowEncoder,
)
from mt2st_fast.errors import InputError

V, D, WIDTH = 40, 16, 3
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "windows": lambda: WindowEncoder(V, 8, window=1, hidden=D, sparse=True),
    "bags": lambda: BagEncoder(V, D, sparse=True),
    "table": lambda: nn.Sequential(nn.EmbeddingBag(V, D, padding_idx=3), nn.Linear(D, D), nn.ReLU()),
    "side by side": lambda: nn.Sequential(
        nn.Embedding(V, 5, padding_idx=3), nn.Flatten(), nn.Linear(5 * WIDTH, D)
    ),
    "layers": lambda: nn.Sequential(nn.Linear(WIDTH, D), nn.ReLU(), nn.Linear(D, D)),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.02, eps=1e-3),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
}


class At(Callback):
    """Acts once, after a step."""

    def __init__(self, act: Callable[[Trainer], Any], step: int = 2) -> None:
        self.act, self.step = act, step

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            self.act(trainer)


def trainer(encoder: str, backward: Any = "auto", *callbacks: Callback, **options: Any) -> Trainer:
    torch.manual_seed(0)
    made = ENCODERS[encoder]()
    heads = MultiTaskHeads(D, {"a": Classification(5), "b": Regression(2)}, "a")
    options = {
        "schedule": MultiTask(), "optimizer": lambda p: SGD(p, lr=0.1), "log_every": 3, "device": "cpu"
    } | options  # fmt: skip
    return Trainer(made, heads, backward=backward, callbacks=list(callbacks), **options)


def batch(encoder: str, N: int) -> tuple[Any, dict[str, Tensor]]:
    torch.manual_seed(N)
    inputs: Any = torch.randn(N, WIDTH) if encoder == "layers" else torch.randint(1, V, (N, WIDTH))
    if encoder == "bags":
        inputs = inputs.flatten(), torch.arange(0, WIDTH * N + 1, WIDTH)
    return inputs, {"a": torch.randint(0, 5, (N,)), "b": torch.randn(N, 2)}


def both_ways(
    encoder: str, act: Callable[[Trainer], Any] = lambda trainer: None, sizes: Any = (31, 1, 64), **options: Any
) -> list[Trainer]:  # fmt: skip
    """The same run by the fastest engine and by autograd; the first step must be one kernel call."""
    runs = []
    for backward in ("auto", "autograd"):
        runs.append(trainer(encoder, backward, At(act), **options))
        runs[-1].fit([batch(encoder, N) for N in sizes], epochs=3)
    assert runs[0].history.phases[0].engine == "one kernel call"
    return runs


def assert_alike(runs: list[Trainer]) -> None:
    ours, theirs = (
        [p.detach() for module in (run.encoder, run.heads) for p in module.parameters()] for run in runs
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def fresh(like: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.randn(like.shape, generator=torch.Generator().manual_seed(1)))


def table_of(trainer: Trainer) -> tuple[nn.Module, str]:
    """The module with the first parameter of an encoder, and that parameter's name."""
    for module in trainer.encoder.modules():
        for name, _ in module.named_parameters(recurse=False):
            return module, name
    raise AssertionError


def replace_the_table(trainer: Trainer) -> None:
    module, name = table_of(trainer)
    setattr(module, name, fresh(getattr(module, name)))


def replace_a_heads_weight(trainer: Trainer) -> None:
    layer = trainer.heads.linear("a")
    layer.weight = fresh(layer.weight)


def replace_a_head(trainer: Trainer) -> None:
    torch.manual_seed(2)
    trainer.heads.linears["a"] = nn.Linear(D, 5)


def stride_the_table(trainer: Trainer) -> None:
    module, name = table_of(trainer)
    getattr(module, name).data = getattr(module, name).data.T.contiguous().T


def turn_a_square_in_place(trainer: Trainer) -> None:
    """The same memory, read in another order."""
    layer = next(m for m in trainer.encoder.modules() if isinstance(m, nn.Linear) and m.in_features == D)
    layer.weight.data = layer.weight.data.T


def to_float64(trainer: Trainer) -> None:
    trainer.encoder.double()
    trainer.heads.double()


def without_dropout(trainer: Trainer) -> None:
    trainer.encoder.dropout = nn.Identity()


CHANGES = [
    replace_the_table, replace_a_heads_weight, replace_a_head, stride_the_table, turn_a_square_in_place, to_float64,
    without_dropout,
]  # fmt: skip


# Of the encoders that have such a part; inputs of layers are float32.
ONLY = {
    turn_a_square_in_place: ("table", "layers"), without_dropout: ("windows", "bags"),
    to_float64: ("windows", "bags", "table", "side by side"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "encoder"), [(change, name) for change in CHANGES for name in ONLY.get(change, ENCODERS)]
)
def test_a_change_counts_from_the_next_step_on(encoder: str, change: Any) -> None:
    assert_alike(both_ways(encoder, change))


@pytest.mark.parametrize("padding", [-1, 0, V - 1, None])
@pytest.mark.parametrize("encoder", ["table", "side by side"])
def test_padding_may_be_counted_from_the_end(encoder: str, padding: int | None) -> None:
    assert_alike(both_ways(encoder, lambda trainer: setattr(trainer.encoder[0], "padding_idx", padding)))


@pytest.mark.parametrize("padding", [V, -V - 1])
@pytest.mark.parametrize("encoder", ["table", "side by side"])
def test_padding_that_is_no_row_is_torchs_error(encoder: str, padding: int) -> None:
    with pytest.raises((RuntimeError, AssertionError), match=r"(?i)padding_idx must be within"):
        both_ways(encoder, lambda trainer: setattr(trainer.encoder[0], "padding_idx", padding))


@pytest.mark.parametrize("encoder", ["table", "side by side", "layers"])
def test_one_of_several_batches_may_be_empty(encoder: str) -> None:
    assert_alike(both_ways(encoder, sizes=(9, 0, 0, 0, 1, 5), accumulate=2, clip_norm=0.1))


@pytest.mark.parametrize("encoder", ["windows", "bags", "table", "layers"])
def test_what_no_step_takes_yet_does_not_count_in_the_norm(encoder: str) -> None:
    options = {"optimizer": OPTIMIZERS["momentum"]} if encoder in ("table", "layers") else {}

    def unfreeze(trainer: Trainer) -> None:
        trainer.heads.linear("b").weight.requires_grad_(True)

    runs = []
    for backward in ("auto", "autograd"):
        run = trainer(encoder, backward, At(unfreeze, 1), clip_norm=0.01, log_every=5, **options)
        run.heads.linear("b").weight.requires_grad_(False)
        run.fit([batch(encoder, N) for N in (31, 8, 64, 20, 9, 11, 7)], epochs=1)
        runs.append(run)
    assert runs[0].history.phases[0].engine == "one kernel call"
    assert_alike(runs)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parameters_with_strides_are_left_to_torch_with_all_their_state(optimizer: str) -> None:
    def contiguous(trainer: Trainer) -> None:
        weight = trainer.encoder[1].weight
        weight.data = weight.data.contiguous()

    runs = []
    for backward in ("auto", "autograd"):
        run = trainer("table", backward, At(contiguous), optimizer=OPTIMIZERS[optimizer])
        run.encoder[1].weight.data = run.encoder[1].weight.data.T.contiguous().T
        run.fit([batch("table", N) for N in (31, 1, 64)], epochs=2)
        runs.append(run)
    assert "contiguous parameters" in runs[0].history.phases[0].passed_over["one kernel call"]
    assert_alike(runs)
    for make in (torch.zeros(V, D, dtype=torch.float64), torch.zeros(D, V).T, torch.zeros(V - 1, D)):

        def other_state(trainer: Trainer, make: Tensor = make) -> None:
            state = trainer.run.optimizer.state[trainer.encoder[0].weight]
            state["momentum_buffer" if optimizer == "momentum" else "exp_avg"] = make

        run = trainer("table", "auto", At(other_state), optimizer=OPTIMIZERS[optimizer])
        try:
            run.fit([batch("table", N) for N in (31, 1, 64)], epochs=2)
        except RuntimeError:  # torch's own
            assert make.dtype is torch.float64 or make.shape[0] < V
        assert "requires contiguous float32 state" in run.history.phases[0].passed_over["one kernel call"]


@pytest.mark.parametrize("backward", ["auto", "autograd"])
@pytest.mark.parametrize("encoder", ["windows", "bags"])
def test_a_table_that_outgrew_its_state_is_refused(encoder: str, backward: Any) -> None:
    def grow(trainer: Trainer) -> None:
        trainer.encoder.table.data = torch.cat([trainer.encoder.table.data] * 2)

    run = trainer(encoder, backward, At(grow), optimizer=lambda p: RowwiseAdagrad(p, lr=0.1))
    with pytest.raises(InputError, match=r"row_sum of a parameter \(80, .*\) is \(40,\), not \(80,\)"):
        run.fit([batch(encoder, N) for N in (31, 1, 64)], epochs=2)


def test_two_parameters_in_one_memory_are_left_to_torch() -> None:
    run = trainer("layers")
    run.encoder[1] = nn.Linear(D, D)
    run.encoder[1].weight.data = run.encoder[2].weight.data
    run.fit([batch("layers", 8)], epochs=1)
    assert "two parameters lie in one memory" in run.history.phases[0].passed_over["one kernel call"]


@pytest.mark.parametrize(
    ("place", "layer", "message"),
    [
        (0, (WIDTH + 1, D), "first layer of the encoder takes 4 inputs, and a batch has 3 a row"),
        (2, (D + 1, D), "a layer of the encoder takes 17 inputs, and the one before it has 16 outputs"),
        (0, (WIDTH, 1), "a layer of the encoder takes 16 inputs, and the one before it has 1 output;"),
    ],
)
def test_a_layer_that_does_not_fit_is_named(place: int, layer: tuple[int, int], message: str) -> None:
    encoder = ENCODERS["layers"]()
    heads = MultiTaskHeads(D, {"a": Classification(3)}, main="a")
    batches = [(torch.randn(8, WIDTH), {"a": torch.randint(0, 3, (8,))})]
    run = Trainer(encoder, heads, lr=1e-3, device="cpu").begin(batches, epochs=3)
    run.step()
    encoder[place] = nn.Linear(*layer)
    with pytest.raises(InputError, match=message):
        run.step()

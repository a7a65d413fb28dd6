"""Whole training steps: encoder, heads and optimizer, by the Trainer and by the usual loop in torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.accuracy import check_as_accurate_as_torch
from bench.cases import DeviceKind
from bench.step_models import EWT, StepModel, embedding_model, ewt_model, mlp_model, tagger_model
from mt2st_fast import (
    MultiTask,
    MultiTaskHeads,
    SingleTask,
    Switch,
    Trainer,
    WindowEncoder,
)
from mt2st_fast.model.plain import plain_encoder
from mt2st_fast.training.schedules import Schedule

# Times the STL step that a step after the switch may take.
SWITCHED_LIMIT = 1.03
# More steps than any measurement takes, so that no schedule ends.
ENDLESS_STEPS = 10**9

Step = Callable[[], object]
Skip = Callable[[str, str], None]


@dataclass(frozen=True)
class StepCase:
    """A named model; `obstacle` says why it cannot be built here, or is None.

    libraries: whether steps of other libraries are measured on it (bench/step_peers.py).
    """

    name: str
    build: Callable[[torch.device], StepModel]
    obstacle: Callable[[], str | None] = lambda: None
    libraries: bool = False


def _ewt_obstacle() -> str | None:
    return None if EWT.is_dir() else "the English Web Treebank is not at ../shared/data/ud_english_ewt"


TINY_STEP = StepCase("tiny", lambda device: embedding_model(50, 20, 60, 5, (5, 3, 2), device))
MODEL_HEADS = (17, 2, 2, 3, 4, 5, 6, 8)

TAGGER = "EWT tagger"
STEP_CASES = (
    StepCase("embedding model", lambda device: embedding_model(10_000, 128, 2048, 20, MODEL_HEADS, device)),
    StepCase(TAGGER, ewt_model, _ewt_obstacle),
    StepCase("two linear layers", lambda device: mlp_model(8, 128, device), libraries=True),
)
TREEBANK_TAGGER = "treebank tagger, N=512"
GPU_STEP_CASES = (
    StepCase(TREEBANK_TAGGER, tagger_model),
    *(
        StepCase(
            f"embedding model, N={N}",
            lambda device, N=N: embedding_model(10_000, 128, N, 20, MODEL_HEADS, device),
        )
        for N in (512, 4096, 2048, 1024)  # the extremes first, as a GPU is only available for minutes
    ),
)
# Required speed-ups of the EWT tagger's step on a CPU, and its maximum time as a multiple of its own GEMMs.
CPU_STEP_OVER = {"eager multi": 4.0, "eager multi, row-sparse": 3.0}
MOST_OVER_GEMMS = 2.0
# Required speed-ups of a step with graphs on a GPU.
GPU_STEP_OVER = {"eager multi": 10.0, "compiled multi": 2.0}


def step_cases(kind: DeviceKind) -> tuple[StepCase, ...]:
    """Return the models that are measured on a kind of device."""
    return STEP_CASES if kind == "cpu" else GPU_STEP_CASES


# --- the steps -------------------------------------------------------------------------------------------


def trainer_step(
    model: StepModel, schedule: Schedule, *, graph: bool = False, clip_norm: float | None = None
) -> tuple[Trainer, Step]:
    """Return a Trainer, and the body of its training loop as a function: two loops of `fit` cannot take turns."""
    encoder, heads = copy.deepcopy(model.encoder), copy.deepcopy(model.heads)
    trainer = Trainer(
        encoder,
        heads,
        schedule=schedule,
        optimizer=model.make_optimizer,
        device=model.device.type,
        graph=graph,
        clip_norm=clip_norm,
    )
    run = trainer.begin(model.batches, epochs=ENDLESS_STEPS)
    return trainer, run.step


def graphed_step(model: StepModel, schedule: Schedule, steps: int = 8) -> tuple[Trainer, Step]:
    """`trainer_step` as a replay. Raises RuntimeError with the reason if the step is not captured."""
    trainer, step = trainer_step(model, schedule, graph=True)
    for _ in range(steps):
        step()
    if trainer.history.phases[-1].graph != "captured":
        raise RuntimeError(trainer.history.phases[-1].graph)
    return trainer, step


def eager_step(model: StepModel, tasks: Sequence[str], *, dense: bool = True, compiled: bool = False) -> Step:
    """The usual loop: one nn.Linear and one F.cross_entropy per task.

    dense: the encoder also has torch's own layers, and its whole table gets a gradient and a step; otherwise it is
    ours, trained by rows. compiled: encoder and losses are under torch.compile, on a GPU with its graphs.
    """
    encoder, linears = copy.deepcopy(model.encoder).train(), copy.deepcopy(_linears_of(model.heads, tasks))
    make_optimizer = model.make_optimizer
    if dense and model.make_dense_optimizer is not None:
        encoder.sparse, make_optimizer = False, model.make_dense_optimizer
        if isinstance(encoder, WindowEncoder) and encoder.rows_of_type is not None:
            encoder = plain_encoder(encoder)
    optimizer = make_optimizer([*encoder.parameters(), *linears.parameters()])
    batches, total = cycle(model.batches), _eager_total
    if compiled:
        torch.compiler.reset()
        mode = "reduce-overhead" if model.device.type == "cuda" else "default"
        total = torch.compile(_eager_total, mode=mode, dynamic=False)

    def step() -> None:
        inputs, targets = next(batches)
        if compiled:
            torch.compiler.cudagraph_mark_step_begin()
        total(encoder, linears, inputs, targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(5 if compiled else 0):
        step()
    return step


def gemms_step(model: StepModel, tasks: Sequence[str]) -> Step:
    """The matrix products of a window encoder's step by torch: hidden layer and all heads, forward and backward."""
    assert isinstance(model.encoder, WindowEncoder)
    assert model.encoder.hidden is not None
    N, hidden = len(model.batches[0][0]), model.encoder.hidden.weight.detach()
    heads = torch.cat([model.heads.linear(name).weight.detach() for name in tasks])
    windows, features = torch.randn(N, hidden.shape[1]), torch.randn(N, len(hidden))
    d_features, d_logits = torch.randn(N, len(hidden)), torch.randn(N, len(heads))

    def step() -> None:
        windows @ hidden.T
        features @ heads.T
        d_logits.T @ features
        d_logits @ heads
        d_features.T @ windows
        d_features @ hidden

    return step


def multi_and_single(
    model: StepModel,
    skip: Skip = lambda name, reason: None,
    compiled: Callable[[], bool] = lambda: True,
) -> dict[str, Step]:
    """Steps with all heads and with the main head only, by the Trainer, torch eager and compiled, and graphs on a GPU.

    skip: called with the name of a step that cannot be built here, and the reason. compiled: called at the end, returns
    whether there is time to compile.
    """
    tasks, main = tuple(model.heads.tasks), model.heads.main
    steps = {
        "ours multi": trainer_step(model, MultiTask())[1],
        "ours single": trainer_step(model, SingleTask())[1],
        "eager multi": eager_step(model, tasks),
        "eager single": eager_step(model, (main,)),
    }
    if model.make_dense_optimizer is not None:
        steps["eager multi, row-sparse"] = eager_step(model, tasks, dense=False)
    if isinstance(model.encoder, WindowEncoder) and model.device.type == "cpu":
        steps["gemms"] = gemms_step(model, tasks)
    if model.device.type == "cuda":
        _add(steps, "ours multi, graph", lambda: graphed_step(model, MultiTask())[1], skip)
        _add(steps, "ours single, graph", lambda: graphed_step(model, SingleTask())[1], skip)
    if compiled():
        _add(steps, "compiled multi", lambda: eager_step(model, tasks, compiled=True), skip)
    else:
        skip("compiled multi", "no time left for it in this case")
    return steps


def _add(steps: dict[str, Step], name: str, build: Callable[[], Step], skip: Skip) -> None:
    """Add a step; one that cannot be built here must not affect the others."""
    try:
        steps[name] = build()
    except Exception as error:
        skip(name, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}")


def step_ratios(device: torch.device) -> dict[str, tuple[str, str]]:
    """Return numerator and denominator of the ratio that is recorded with each step of `multi_and_single`."""
    ratios = {
        "ours multi": ("ours multi", "ours single"),
        "eager multi": ("eager multi", "ours multi"),
        "eager multi, row-sparse": ("eager multi, row-sparse", "ours multi"),
        "compiled multi": ("compiled multi", "ours multi"),
        "eager single": ("eager single", "ours single"),
        "gemms": ("ours multi", "gemms"),
    }
    if device.type == "cuda":
        ratios["ours multi, graph"] = ("eager multi", "ours multi, graph")
        ratios["compiled multi"] = ("compiled multi", "ours multi, graph")
    return ratios


SWITCHED_PEERS = {
    "after switch": ("after switch", "stl"),
    "after switch, graph": ("after switch, graph", "stl, graph"),
}


def switched_and_stl(model: StepModel, skip: Skip = lambda name, reason: None) -> dict[str, Step]:
    """A step after the switch, and one of a run that never had another task; on a GPU also with graphs."""
    trainer, after_switch = trainer_step(model, Switch(at_step=2))
    for _ in range(4):
        after_switch()
    _check_switched(trainer, model)
    steps = {"after switch": after_switch, "stl": trainer_step(model, SingleTask())[1]}
    if model.device.type == "cuda":
        _add(steps, "after switch, graph", lambda: _graphed_after_switch(model), skip)
        _add(steps, "stl, graph", lambda: graphed_step(model, SingleTask())[1], skip)
    return steps


def _graphed_after_switch(model: StepModel) -> Step:
    # Captured before the switch as well, so that the second capture is the one that is timed.
    trainer, step = graphed_step(model, Switch(at_step=6), steps=14)
    _check_switched(trainer, model)
    return step


def _check_switched(trainer: Trainer, model: StepModel) -> None:
    if trainer.heads.active != (model.heads.main,):
        raise RuntimeError(f"the switch has not happened: {', '.join(trainer.heads.active)} are active")


# --- correctness -----------------------------------------------------------------------------------------


def check_step(model: StepModel) -> None:
    """Check loss and all gradients of one step by the accuracy rule, without dropout.

    Raises InaccurateError.
    """
    inputs, targets = model.batches[0]
    tasks = tuple(model.heads.tasks)

    def by_heads(
        encoder: nn.Module, heads: MultiTaskHeads, dtype: torch.dtype
    ) -> tuple[Tensor, nn.ModuleDict]:
        return heads(encoder(_in_dtype(inputs, dtype)), targets).total, _linears_of(heads, tasks)

    def by_torch(
        encoder: nn.Module, heads: MultiTaskHeads, dtype: torch.dtype
    ) -> tuple[Tensor, nn.ModuleDict]:
        linears = _linears_of(heads, tasks)
        return _eager_total(encoder, linears, _in_dtype(inputs, dtype), targets), linears

    check_as_accurate_as_torch(
        "the training step",
        _results(model, torch.float32, by_heads),
        _results(model, torch.float32, by_torch),
        _results(model, torch.float64, by_torch),
    )


def _in_dtype(inputs: Any, dtype: torch.dtype) -> Any:
    """Return inputs that are features in this dtype, and others, which name words, as they are."""
    return inputs.to(dtype) if isinstance(inputs, Tensor) and inputs.is_floating_point() else inputs


def _results(model: StepModel, dtype: torch.dtype, run: Callable[..., Any]) -> dict[str, Tensor]:
    encoder = copy.deepcopy(model.encoder).to(dtype).eval()
    total, linears = run(encoder, copy.deepcopy(model.heads).to(dtype), dtype)
    total.backward()
    # The heads are checked together, as in the packed layout of test_heads: the bias gradient of one small
    # head is a sum that may cancel almost completely, so that torch's own error means little.
    heads = list(linears.values())
    return {
        "total": total.detach(),
        "d_weight": torch.cat([linear.weight.grad for linear in heads]),
        "d_bias": torch.cat([linear.bias.grad for linear in heads]),
        **{
            f"gradient of {name}": p.grad.to_dense() if p.grad.is_sparse else p.grad
            for name, p in encoder.named_parameters()
            if p.grad is not None
        },
    }


def _linears_of(heads: MultiTaskHeads, tasks: Sequence[str]) -> nn.ModuleDict:
    return nn.ModuleDict({_module_name(name): heads.linear(name) for name in tasks})


def _eager_total(
    encoder: nn.Module, linears: nn.ModuleDict, inputs: Any, targets: dict[str, Tensor]
) -> Tensor:
    features_nd = encoder(inputs)
    losses = []
    for name, target in targets.items():
        module = _module_name(name)
        if module in linears:
            losses.append(F.cross_entropy(linears[module](features_nd), target))
    return sum(losses)  # type: ignore[return-value]


def _module_name(task: str) -> str:
    # A module's name may not contain a dot, but a task's may: feats.Number.
    return task.replace(".", "__")

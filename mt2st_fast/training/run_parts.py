"""The parts of a run's steps: the modules that train, their optimizer, and how a step is taken."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mt2st_fast.errors import InputError
from mt2st_fast.huge_pages import move_to_huge_pages
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.sharded import is_dtensor, let_go_of_gathered
from mt2st_fast.model.task_adapted import TaskAdaptedEncoder, adapted_in
from mt2st_fast.training.checkpoints.resuming import named_parameters
from mt2st_fast.training.engines import StepParts, StepState
from mt2st_fast.training.given_parts import kind_of
from mt2st_fast.training.optimizers.row_sparse import LazyAdam, RuleOptimizer
from mt2st_fast.training.optimizers.upkeep import (
    group_of,
    row_sparse_tables,
    step_mixed_groups_singly,
    undecayed,
)
from mt2st_fast.training.processes.group import Processes
from mt2st_fast.training.run_options import DEFAULT_LR, RunOptions
from mt2st_fast.training.schedules.abilities import Ability, abilities_of, check_allowed

logger = logging.getLogger(__name__)

# What a schedule may do where every task has features of its own: whatever needs no shared ones.
WITH_OWN_FEATURES = frozenset(
    {
        Ability.LEARNS_WEIGHTS,
        Ability.WEIGHS_BY_LOSSES,
        Ability.OBSERVES_LOSSES,
        Ability.OBSERVES_HELD_OUT,
    }
)


def modules_of(encoder: nn.Module, heads: MultiTaskHeads, learnt: nn.Module | None) -> dict[str, nn.Module]:
    """Return the modules with parameters, by their names in a checkpoint."""
    let_go_of_gathered(encoder)
    return {"encoder": encoder, "heads": heads, **({} if learnt is None else {"schedule": learnt})}


def make_parts(
    encoder: nn.Module,
    heads: MultiTaskHeads,
    options: RunOptions,
    learnt: nn.Module | None,
    processes: Processes,
    *,
    fixed_batches: bool,
) -> StepParts:
    """Make the parts of a new run, with a fresh optimizer of all parameters that are not frozen.

    learnt: the schedule, if it learns its weights.

    Raises InputError for options that do not go together: weights from a step's losses if a step is several backward
    passes; moments per task, or features per task, with anything that needs shared ones.
    """
    abilities = abilities_of(options.schedule)
    if Ability.WEIGHS_BY_LOSSES in abilities and options.accumulate > 1:
        raise InputError(
            f"{type(options.schedule).__name__} weighs a step by its losses, which accumulate={options.accumulate} "
            "knows only at its end: leave accumulate at 1"
        )
    by_task = Ability.MOMENTS_PER_TASK in abilities
    for adapted in adapted_in(encoder):
        _check_adapted(adapted, heads, options, processes)
    named = named_parameters(modules_of(encoder, heads, learnt))
    # An encoder may hold the heads as well: they are trained once.
    trainable = {name: p for name, p in named.items() if p.requires_grad}
    if not trainable:
        raise InputError(
            "every parameter of encoder and heads is frozen, so nothing would train; unfreeze some"
        )
    optimizer = _make_optimizer([*trainable.values()], options, encoder, heads)
    _check_holds(optimizer, trainable)
    if isinstance(optimizer, RuleOptimizer) and any(map(is_dtensor, trainable.values())):
        raise InputError(
            f"{type(optimizer).__name__} updates whole parameters in its own kernels, but some are sharded (FSDP); "
            "use LazyAdam, SGD or a torch optimizer"
        )
    if by_task:
        _check_by_task(options, optimizer)
    return StepParts(
        encoder=encoder,
        heads=heads,
        learnt=learnt,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(options.device.type, enabled=options.precision == "float16"),
        options=options,
        fixed_batches=fixed_batches,
        state=StepState(torch.empty(0, dtype=torch.float32, device=options.device)),
        by_task=by_task,
        processes=processes,
    )


def _make_optimizer(
    parameters: list[nn.Parameter], options: RunOptions, encoder: nn.Module, heads: MultiTaskHeads
) -> torch.optim.Optimizer:
    """Return the optimizer of a run, and log a weight decay that some of its parameters do not have."""
    tables = [*row_sparse_tables(encoder), *row_sparse_tables(heads)]
    move_to_huge_pages(*tables)  # those that were made elsewhere, such as copies
    if options.optimizer is not None:
        optimizer = options.optimizer(parameters)
        _check_is_optimizer(optimizer, options)
    else:
        adam = LazyAdam if tables else torch.optim.AdamW
        # torch's fused kernel takes no complex numbers.
        fused = not any(p.is_complex() for p in parameters)
        optimizer = adam(parameters, lr=options.lr, weight_decay=options.weight_decay, fused=fused)
    _check_steps_alone(optimizer)
    step_mixed_groups_singly(optimizer)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", float(group["lr"]))
    if decay := undecayed(optimizer, tables):
        logger.warning(
            "weight_decay=%g acts on dense parameters only: the rows of a row-sparse table (sparse=True, as the "
            "command line's word vectors are) are moved by their own batches alone, and are not decayed",
            decay,
        )
    return optimizer


def _check_is_optimizer(made: Any, options: RunOptions) -> None:
    """Raises InputError for something else than an optimizer, and logs an lr that was given beside one with another.

    The default of lr is not told from none. A rate of its own for some groups is no contradiction.
    """
    if not isinstance(made, torch.optim.Optimizer):
        raise InputError(
            f"optimizer must return a torch.optim.Optimizer, not {kind_of(made)}: pass lambda parameters: "
            "AdamW(parameters, lr=...)"
        )
    rates = [float(group["lr"]) for group in made.param_groups if "lr" in group]
    if options.lr not in (DEFAULT_LR, *rates):
        logger.warning(
            "lr=%g is of the default optimizer and has no effect: the given optimizer was made with %s; set the rate "
            "there, and leave lr out",
            options.lr,
            ", ".join(f"{rate:g}" for rate in dict.fromkeys(rates)) or "no lr",
        )


def _check_steps_alone(optimizer: torch.optim.Optimizer) -> None:
    """Raises InputError for an optimizer that computes the loss itself, as LBFGS does."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputError(
            f"{type(optimizer).__name__} has to compute the loss several times in a step (step(closure)), which "
            "Trainer does not do; use another optimizer, or your own loop with PhaseController"
        )


def _check_holds(optimizer: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter]) -> None:
    """Raises InputError for an optimizer without some of the parameters that train.

    Their gradients would pile up, count in `clip_norm`, and not be told from those of parameters that a callback adds
    later, which the optimizer takes up.
    """
    held = group_of(optimizer)
    left_out = [name for name, p in trainable.items() if id(p) not in held]
    if left_out:
        others = f" and {len(left_out) - 1} other parameters" if len(left_out) > 1 else ""
        raise InputError(
            f"the optimizer leaves out {left_out[0]}{others}: make it of all parameters that the function gets, or "
            "freeze what is not to train, by requires_grad_(False) before fit"
        )


def _check_adapted(
    encoder: TaskAdaptedEncoder, heads: MultiTaskHeads, options: RunOptions, processes: Processes
) -> None:
    """Raises InputError for a task without features of its own, and for options that need shared features."""
    unknown = [n for n in heads.names if not heads.is_word_task(n) and n not in encoder.tasks]
    if unknown:
        raise InputError(
            f"the TaskAdaptedEncoder was made for {', '.join(encoder.tasks)}, and has no layers of {unknown[0]}: make "
            "it for heads.names"
        )
    check_allowed(
        options.schedule,
        WITH_OWN_FEATURES,
        why_not="but a TaskAdaptedEncoder has separate features per task; leave one of them out",
    )
    for given, what in (
        (processes.are_several, "several processes exchange the gradients of one pass"),
        (options.backward == "fused", 'backward="fused" steps a table that is read once a step'),
    ):
        if given:
            raise InputError(
                f"{what}, but a TaskAdaptedEncoder has separate features per task; leave one of them out"
            )


def _check_by_task(options: RunOptions, optimizer: torch.optim.Optimizer) -> None:
    """Raises InputError for options that do not work with one optimizer step per task."""
    name = type(options.schedule).__name__
    for given, option, fix in (
        (options.accumulate > 1, f"accumulate={options.accumulate}", "use accumulate=1"),
        (options.clip_norm is not None, f"clip_norm={options.clip_norm}", "leave it out"),
        (options.precision == "float16", "precision float16", "use float32 or bfloat16"),
        (options.backward == "fused", 'backward="fused"', 'use backward="auto"'),
        (
            any(group.get("weight_decay") for group in optimizer.param_groups),
            "weight_decay",
            "use weight_decay=0",
        ),
    ):
        if given:
            raise InputError(
                f"{name} steps the shared parameters once per task, which rules out {option}; {fix}"
            )

"""What a checkpoint and the run that resumes from it must have in common, and what may have changed since."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.module_state import plain_name
from mt2st_fast.training.optimizers.upkeep import IMPLEMENTATIONS

logger = logging.getLogger(__name__)

OR_ANEW = "or start a new run without resume"
FIXES = {
    "tasks": "use heads of the same tasks, or start a new run from the weights that match: trainer.load(checkpoint, "
    "partial=True)",
    "held-out data": f"pass the original held-out batches, because the best evaluation compares all of them, {OR_ANEW}",
    "steps an epoch": f"use the original data and batch size, {OR_ANEW}",
}


def check_settings(stored: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises InputError, naming the first setting that differs from the checkpoint, and the fix.

    A layer that a callback has added since then does not count as a setting.
    """
    for name, value in own.items():
        if (then := stored.get(name, value)) != value:
            fix = FIXES.get(name, f"use {name} {then} again, {OR_ANEW}")
            raise InputError(f"the checkpoint was made with {name} {then}, this run has {value}; {fix}")


def check_end(
    step: int, end: int, new_end: int, steps_per_epoch: int, *, rate_falls: bool, is_stream: bool
) -> None:
    """Log what a different end of the run means. Raises InputError if it has already been passed."""
    if new_end == end:
        return
    epochs = new_end / steps_per_epoch
    if new_end < step:
        done = step / steps_per_epoch
        at, ends, least = f"epoch {done:g}", f"{epochs:g}", f"epochs={math.ceil(done)}"
        if is_stream:  # which has steps only
            at, ends, least = f"step {step:,}", f"{new_end:,}", f"steps={step}"
        raise InputError(
            f"the checkpoint is at {at}, but this run ends at {ends}; use {least} or more, {OR_ANEW}"
        )
    rate = (
        f"; the rate falls to 0 over all steps, so it continues at {1 - step / new_end:.0%} of its initial value "
        f"instead of {1 - step / end:.0%}"
        if rate_falls and step < new_end
        else ""
    )
    logger.warning(
        "the run continues from step %d to %d (%g epochs) instead of %d; points that the schedule sets as a "
        "fraction of the run move with it, and retired tasks stay retired%s",
        step, new_end, epochs, end, rate,
    )  # fmt: skip


def named_parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return all parameters, each once and under its first name: "encoder/0.weight"."""
    named: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for part, module in modules.items():
        for name, parameter in module.named_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                named[f"{part}/{plain_name(name)}"] = parameter
    return named


def trained(named: Mapping[str, nn.Parameter]) -> list[str]:
    """Return the names of parameters that are not frozen."""
    return [name for name, parameter in named.items() if parameter.requires_grad]


def freeze_as_then(
    named: Mapping[str, nn.Parameter],
    then: Mapping[str, Sequence[str]],
    trained_at_start: Sequence[str],
) -> None:
    """Freeze and unfreeze parameters as in the checkpoint, since callbacks may have changed that during its run.

    then: names {"at_start", "now"}. trained_at_start: of this run, before tasks that had retired by then were released.
    Raises InputError if this run begins with other trained parameters than the checkpoint's began or ended with.
    """
    own = set(trained(named))
    retired = set(trained_at_start) - own
    start, now = set(then["at_start"]) - retired, set(then["now"]) - retired
    if own not in (start, now):
        name = sorted(own ^ start)[0]
        ways = ("is trained", "was frozen", "False") if name in own else ("is frozen", "was trained", "True")
        raise InputError(
            f"{name} {ways[0]} in this run, and {ways[1]} where the checkpoint's began: call "
            f"requires_grad_({ways[2]}) on it before fit, {OR_ANEW}"
        )
    for name, parameter in named.items():
        if name not in retired and parameter.requires_grad != (name in now):
            parameter.requires_grad_(name in now)


def group_names(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]
) -> list[list[str]] | None:
    """Return the names of the parameters in each group; None if the optimizer also holds other parameters."""
    name_of = {id(parameter): name for name, parameter in named.items()}
    groups = [[name_of.get(id(p), "") for p in group["params"]] for group in optimizer.param_groups]
    return None if any("" in group for group in groups) else groups


def hold_groups(
    optimizer: torch.optim.Optimizer, groups: list[list[str]] | None, named: Mapping[str, nn.Parameter]
) -> None:
    """Arrange the optimizer's parameters in the groups of the checkpoint, whose options are about to be loaded.

    Groups grow when a callback unfreezes or adds parameters, and shrink when tasks retire.
    """
    own = group_names(optimizer, named)
    if groups is None or own is None or groups == own:
        return
    first = optimizer.param_groups[0]
    for place, names in enumerate(groups):
        if place == len(optimizer.param_groups):
            optimizer.param_groups.append(dict(first))
        optimizer.param_groups[place]["params"] = [named[name] for name in names]
    del optimizer.param_groups[len(groups) :]


def optimizer_options(optimizer: torch.optim.Optimizer, names: list[list[str]] | None) -> dict[str, Any]:
    """Return the class of an optimizer and its options, JSON-able.

    {"class": name, "groups": [{option: value}], "names": the parameters in each group, if they have names}.
    """
    plain = (bool, int, float, str)
    groups = []
    for group in optimizer.param_groups:
        told = {name: list(v) if isinstance(v, tuple) else v for name, v in group.items()}
        groups.append(
            {
                name: value
                for name, value in told.items()
                # lr may change during a run; initial_lr is the configured value.
                if name not in ("params", "lr", *IMPLEMENTATIONS)
                and (value is None or isinstance(value, plain) or (name == "betas"))
            }
        )
    return {"class": type(optimizer).__name__, "groups": groups, "names": names}


def check_optimizer(stored: dict[str, Any], own: dict[str, Any]) -> None:
    """Raises InputError if an optimizer, or one of its options, differs from the stored one (`optimizer_options`)."""
    if own["class"] != stored["class"]:
        raise InputError(
            f"the checkpoint was made with {stored['class']}, this run has {own['class']}; use the same optimizer"
        )
    for before, now in _same_groups(stored, own):
        for name in sorted(before.keys() & now.keys()):
            if before[name] != now[name]:
                shown = "lr" if name == "initial_lr" else name
                raise InputError(
                    f"the checkpoint was made with {shown} {before[name]}, this run has {now[name]}; use the same, "
                    "or start a new run"
                )


def _same_groups(
    stored: dict[str, Any], own: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the options of groups that share a parameter; in order of the groups if parameters have no names."""
    if stored["names"] is None or own["names"] is None:
        yield from zip(stored["groups"], own["groups"], strict=False)
        return
    for before, names in zip(stored["groups"], stored["names"], strict=True):
        for now, own_names in zip(own["groups"], own["names"], strict=True):
            if not set(names).isdisjoint(own_names):
                yield before, now

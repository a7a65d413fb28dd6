"""What a schedule that observes is shown, measured: mean losses, evaluations, and the tasks' gradients.

What it may ask for, `schedules/abilities.py` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mt2st_fast.compiling import stopwatch
from mt2st_fast.kernels import HeadSpec
from mt2st_fast.model.modes import evaluating
from mt2st_fast.model.sharded import has_sharded, let_go_of_gathered
from mt2st_fast.training.engines import StepParts
from mt2st_fast.training.evaluation import Shortcuts
from mt2st_fast.training.history import Evaluation
from mt2st_fast.training.inputs.batch import Batch, materialised, some_rows, tasks_of, to_device
from mt2st_fast.training.inputs.encoding import encode_shared
from mt2st_fast.training.inputs.shapes import length_of
from mt2st_fast.training.schedules.abilities import Ability, Observing, ObservingHeldOut, abilities_of
from mt2st_fast.training.schedules.shown import HeldOut, Observation, TaskGradient


def look_at_losses(
    schedule: object,
    parts: StepParts,
    step: int,
    epoch: float,
    losses: Mapping[str, float],
    last_step: Sequence[Batch],
) -> None:
    """Show the mean losses to a schedule that observes them; last_step: the batches to compute gradients on."""
    if isinstance(schedule, Observing):
        gradients = task_gradients(parts, last_step) if last_step else None
        schedule.observe(Observation(step, losses, gradients, epoch))


def look_at_held_out(
    schedule: object,
    parts: StepParts,
    evaluation: Evaluation,
    batches: Iterable[Batch],
    n_before: int,
    last_step: Sequence[Batch],
    *,
    rate_left: float | None = None,
    share_done: float | None = None,
    self_training: bool = False,
    labelled_by: tuple[str, ...] = (),
    shortcuts: Shortcuts | None = None,
) -> float:
    """Show an evaluation to a schedule that observes them; return the seconds that it took, 0 for others.

    n_before: the number of earlier evaluations. shortcuts: an engine that may be faster than the encoder.
    """
    if not isinstance(schedule, ObservingHeldOut):
        return 0.0
    seconds = stopwatch()
    gradients, freshness, main = None, None, parts.heads.main
    if Ability.SEES_HELD_OUT_GRADIENTS in abilities_of(schedule):
        chosen = islice(batches, n_before % (length_of(batches) or 1), None)
        looked_at = [some_rows(batch) for batch in islice(chosen, 1)]
        gradients = task_gradients(parts, looked_at, what_is_learnt=True, shortcuts=shortcuts)
        trained = [some_rows(batch) for batch in last_step if main in tasks_of(batch)]
        own = task_gradients(parts, trained[:1], (main,), shortcuts=shortcuts)
        if own and gradients and gradients[main].row_norm > 0:
            freshness = own[main].row_norm / gradients[main].row_norm
    step, metrics, epoch = evaluation.step, evaluation.metrics, evaluation.epoch
    schedule.observe_held_out(
        HeldOut(
            step,
            main,
            metrics,
            gradients,
            freshness,
            epoch,
            rate_left,
            share_done,
            self_training,
            labelled_by,
        )
    )
    return seconds()


def task_gradients(
    parts: StepParts,
    batches: Sequence[Batch],
    tasks: Sequence[str] | None = None,
    *,
    what_is_learnt: bool = False,
    shortcuts: Shortcuts | None = None,
) -> dict[str, TaskGradient] | None:
    """Return the gradients of all tasks with a head (or of `tasks`, which include the main one), by task.

    They are computed on the first batch that has targets of the main task; None if there is none. With several
    processes, all get what process 0 has found on its batches.
    """
    if not parts.processes.are_several:
        return _own_gradients(parts, batches, tasks, what_is_learnt, shortcuts)
    if has_sharded(parts.encoder):  # all must pass through it together, or none
        none_here = not any(parts.heads.main in tasks_of(batch) for batch in batches)
        passes = not any(parts.processes.any_of_all(none_here))
    else:
        passes = parts.processes.rank == 0
    own = _own_gradients(parts, batches, tasks, what_is_learnt, shortcuts) if passes else None
    told = {name: astuple(gradient) for name, gradient in (own or {}).items()}
    found = parts.processes.from_first(told)
    return {name: TaskGradient(*numbers) for name, numbers in found.items()} or None


def _own_gradients(
    parts: StepParts,
    batches: Sequence[Batch],
    tasks: Sequence[str] | None,
    what_is_learnt: bool,
    shortcuts: Shortcuts | None,
) -> dict[str, TaskGradient] | None:
    heads = parts.heads
    found = next((batch for batch in batches if heads.main in tasks_of(batch)), None)
    if found is None:
        return None
    inputs, targets = (to_device(part, parts.device) for part in materialised(found))
    features, mask = _features(parts, inputs, shortcuts)
    seen = {name: targets[name] for name in tasks or heads.active if name in targets}
    losses, gradients = _losses_and_gradients(features, mask, seen, parts)
    learnt = _learnt(losses, features, mask, seen, parts) if what_is_learnt else {}
    main = gradients[heads.main]
    return {
        name: TaskGradient(
            float(gradient.norm()),
            float(nn.functional.cosine_similarity(gradient, main, dim=0)),
            _row_norm(gradient, features.shape[-1]),
            learnt.get(name),
        )
        for name, gradient in gradients.items()
    }


def _features(parts: StepParts, inputs: Any, shortcuts: Shortcuts | None) -> tuple[Tensor, Tensor | None]:
    """Return the shared features of inputs, and their mask if they have one, without dropout.

    Dropout would draw random numbers, and so change those of training.
    """
    known = None if shortcuts is None or parts.adapted else shortcuts.features(inputs)
    if known is not None:
        return known, None
    try:
        with evaluating(parts.encoder), torch.no_grad(), parts.autocast():
            return encode_shared(parts.encoder, inputs)
    finally:
        let_go_of_gathered(parts.encoder)


def _row_norm(gradient: Tensor, D: int) -> float:
    n_rows = int(gradient.view(-1, D).any(1).sum())  # an unlabelled row has no gradient
    return float(gradient.norm()) * n_rows**0.5


def _learnt(
    losses: Mapping[str, float],
    features: Tensor,
    mask: Tensor | None,
    targets: Mapping[str, Tensor],
    parts: StepParts,
) -> dict[str, float]:
    """Return `learnt` of the tasks with a head that it is known of: any other loss may depend on anything."""
    heads = parts.heads
    moved = {
        name: _labels_of_others(target, heads.tasks[name].head)
        for name, target in targets.items()
        if name in heads.tasks
    }
    others = {name: target for name, target in moved.items() if target is not None}
    if not others:
        return {}
    with torch.no_grad(), parts.autocast():
        found = heads(features, others, mask=mask).losses.tolist()
    among_others = {name: found[heads.active.index(name)] for name in others}
    return {name: (loss - losses[name]) / loss for name, loss in among_others.items() if loss > 0}


def _labels_of_others(target: Tensor, head: HeadSpec) -> Tensor | None:
    """Return the targets with each label moved to another labelled row; None for fewer than two labels."""
    if head.kind.takes_classes:
        labelled = head.is_labelled(target)
    else:
        labelled = ~target.isnan()
        if head.size > 1:  # any label in a row
            labelled = labelled.any(-1)
    n = int(labelled.sum())
    if n < 2:
        return None
    places = torch.randperm(n, generator=torch.Generator().manual_seed(0), device="cpu").to(target.device)
    labels, moved, others = target[labelled], target[labelled], target.clone()
    moved[places] = labels[places.roll(1)]
    others[labelled] = moved
    return others


def _losses_and_gradients(
    features: Tensor, mask: Tensor | None, targets: Mapping[str, Tensor], parts: StepParts
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return each task's own loss, and its gradient (N * D,) float32."""
    leaf = features.detach().requires_grad_()
    with torch.enable_grad(), parts.autocast():
        losses = parts.heads.task_losses(leaf, targets, mask=mask)
        gradients = {name: torch.autograd.grad(loss, leaf)[0] for name, loss in losses.items()}
    return (
        {name: float(loss.detach()) for name, loss in losses.items()},
        {name: gradient.float().flatten() for name, gradient in gradients.items()},
    )

"""Task weights that are learned: a schedule that is an nn.Module.

As for any schedule, `task_weights` says which tasks are active; the numbers in it are not read. The schedule has

    prepare(heads)              optional, called before the first step of every run: it makes what it learns per task,
                                anew (a resumed run then loads what was learned)
    weights(tasks)              (K,) for these tasks, with the gradient by which they are learned: in a step the active
                                ones that its batches have labels of, for a record of the history all active ones
    penalty(tasks)              optional, () to add to the total loss for the tasks that a step's batches have
                                labels of (like the logarithms of uncertainty weighting, Kendall et al. 2018,
                                equation 10)

On a GPU, where looking for labels would wait, a task counts in a step if its batches have targets of it. The schedule's
parameters join the optimizer. A schedule that weighs a step by that step's own losses also has the methods
below; `weights` then gives the weights of the last step without a gradient:

    weigh(active, losses)       (K,) from the losses (K,) of the step's batches, 0 for a task without a label in them
    learn(active, before, after)    called after the step, with the losses (K,) of the same batches before and after it

Both compute on the device and do not wait. This costs a second forward pass before each step (of the heads alone,
if autograd keeps the features), and one of the whole model after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.schedules.abilities import Ability, WeighsByLosses, abilities_of


def learnt_schedule(schedule: object, heads: MultiTaskHeads, device: torch.device) -> nn.Module | None:
    """Return the schedule, prepared for these heads and moved to `device`, if it learns its weights; else None.

    Raises TypeError for a module without `weights`, and for a schedule that weighs by losses and is no module.
    """
    if not isinstance(schedule, nn.Module):
        if Ability.WEIGHS_BY_LOSSES in abilities_of(schedule):
            raise TypeError(
                f"the schedule {type(schedule).__name__} weighs by losses (weigh, learn), so it must be an nn.Module"
            )
        return None
    if not callable(getattr(schedule, "weights", None)):
        raise TypeError(
            f"the schedule {type(schedule).__name__} is a module, and so needs weights(tasks) -> (K,) tensor"
        )
    prepare = getattr(schedule, "prepare", None)
    if prepare is not None:
        prepare(heads)
    return schedule.to(device)


def learnt_weights(schedule: nn.Module, active: Sequence[str]) -> Tensor:
    """(K,) float32 with gradient. Raises ValueError for another shape."""
    return _checked(schedule.weights(tuple(active)), active)  # type: ignore[operator,arg-type]


def weights_by_losses(schedule: WeighsByLosses, active: Sequence[str], losses: Tensor) -> Tensor:
    """(K,) float32 for a step with these losses (K,). Raises ValueError for another shape."""
    return _checked(schedule.weigh(tuple(active), losses), active)


def _checked(weights: Tensor, active: Sequence[str]) -> Tensor:
    if weights.shape != (len(active),):
        raise ValueError(f"the schedule's weights must be ({len(active)},), not {tuple(weights.shape)}")
    return weights.float()


def penalty(schedule: nn.Module, present: Sequence[str]) -> Tensor | None:
    """() the amount to add to the total loss, or None."""
    own = getattr(schedule, "penalty", None)
    return None if own is None else own(tuple(present))

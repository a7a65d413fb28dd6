"""Features of each task's own, and what an encoder may return."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class TaskFeatures(Mapping[str, Tensor]):
    """The features of every task, (N, D) or (N, T, D); those of a task are computed when first requested.

    They are computed with gradients and under autocast if the encoder was called that way, wherever they are read.
    """

    def __init__(self, tasks: Sequence[str], compute: Callable[[str], Any], device: torch.device) -> None:
        self._tasks, self._compute = tuple(tasks), compute
        self._with_gradient = torch.is_grad_enabled()
        kind = device.type
        self._autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        self._found: dict[str, tuple[Tensor, Tensor | None]] = {}

    def __getitem__(self, task: str) -> Tensor:
        return self.with_mask(task)[0]

    def with_mask(self, task: str) -> tuple[Tensor, Tensor | None]:
        """Return the features, and the mask of what is real in them if the encoder returns one.

        Raises KeyError for an unknown task, and TypeError if the encoder returns something else.
        """
        if task not in self._tasks:
            raise KeyError(task)
        if task not in self._found:
            with torch.set_grad_enabled(self._with_gradient), torch.autocast(*self._autocast):
                features, mask = features_and_mask(self._compute(task))
            if isinstance(features, TaskFeatures):
                raise TypeError(
                    "an encoder with features per task is nested in another one; leave one of them out"
                )
            self._found[task] = features, mask
        return self._found[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def __repr__(self) -> str:
        return f"TaskFeatures({', '.join(self._tasks)})"


def features_of(
    features: Tensor | TaskFeatures, task: str, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the features of one task and their mask: `mask`, or the encoder's own if `mask` is None.

    Raises ValueError for a task without features.
    """
    if not isinstance(features, TaskFeatures):
        return features, mask
    if task not in features:
        raise ValueError(
            f"the encoder has no features of the task {task}; it was made for {', '.join(features)}"
        )
    own, own_mask = features.with_mask(task)
    return own, own_mask if mask is None else mask


def features_and_mask(encoded: Any) -> tuple[Tensor | TaskFeatures, Tensor | None]:
    """Split what an encoder returned: features alone, or with the mask of what is real in them.

    Raises TypeError for anything else.
    """
    if isinstance(encoded, Tensor) or isinstance(encoded, TaskFeatures):  # noqa: SIM101 (in every step)
        return encoded, None
    if isinstance(encoded, tuple | list) and len(encoded) == 2:
        features, mask = encoded
        if isinstance(features, Tensor) and (mask is None or isinstance(mask, Tensor)):
            return features, mask
    shown = type(encoded).__name__
    if isinstance(encoded, tuple | list):
        shown += f" ({', '.join(type(part).__name__ for part in encoded)})"
    raise TypeError(f"an encoder must return features, a tensor, or (features, mask), not {shown}")

"""The models that kernels read, one for every combination of tasks that batches of a phase have labels for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from mt2st_fast.kernels import HeadLayout

Model = TypeVar("Model")

MOST_MODELS = 64  # with K tasks there may be 2^K combinations


class KeptModels(Generic[Model]):
    """At most `most` models, from the oldest to the newest; a new one replaces the oldest."""

    def __init__(self, most: int = MOST_MODELS) -> None:
        self._most = most
        self._models: dict[tuple[str, ...], Model] = {}

    def __len__(self) -> int:
        return len(self._models)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def of(self, layout: HeadLayout, make: Callable[[HeadLayout], Model]) -> Model:
        """Return the model for batches of these tasks, making it if it is not there."""
        if layout.names not in self._models:
            while len(self._models) >= self._most:
                del self._models[next(iter(self._models))]
            self._models[layout.names] = make(layout)
        return self._models[layout.names]

"""Where each head's rows lie in the packed weight, and how each head's loss is defined."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from functools import lru_cache
from itertools import accumulate


class Kind(IntEnum):
    """Loss of a head; the values are what the kernels branch on."""

    SOFTMAX = 0  # cross-entropy over C classes, integer targets (N,)
    BINARY = 1  # binary cross-entropy per label, float targets (N, C), NaN = missing
    SQUARED = 2  # (z - y)^2, float targets (N, C), NaN = missing
    HUBER = 3  # Huber with threshold delta, float targets (N, C), NaN = missing


@dataclass(frozen=True)
class HeadSpec:
    """One head: its kind, its number of outputs C and the options of its loss.

    label_smoothing, class_weights (C values) and ignore_index belong to SOFTMAX, pos_weight (C values)
    to BINARY, delta to HUBER; they mean what torch's loss of that name means by them.

    Raises ValueError for an option out of range, and for weights that the kind does not know.
    """

    kind: Kind
    size: int
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    ignore_index: int = -100
    pos_weight: tuple[float, ...] | None = None
    delta: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing must lie in [0, 1], not {self.label_smoothing}")
        if not self.delta > 0.0:
            raise ValueError(f"delta must be positive, not {self.delta}")
        self._check_columns("class_weights", self.class_weights, Kind.SOFTMAX)
        self._check_columns("pos_weight", self.pos_weight, Kind.BINARY)

    def _check_columns(self, option: str, values: Sequence[float] | None, kind: Kind) -> None:
        if values is None:
            return
        if self.kind is not kind:
            raise ValueError(f"{option} belongs to {kind.name} heads, this one is {self.kind.name}")
        if len(values) != self.size:
            raise ValueError(f"{option} needs {self.size} values, one per output, not {len(values)}")
        if any(not value >= 0.0 for value in values):
            raise ValueError(f"{option} must not be negative or NaN: {values}")
        # A list or a tensor would make the layout unhashable.
        object.__setattr__(self, option, tuple(float(value) for value in values))

    @property
    def column_weights(self) -> tuple[float, ...]:
        """(C,) class_weights or pos_weight, ones where neither is set."""
        return self.class_weights or self.pos_weight or (1.0,) * self.size


@dataclass(frozen=True)
class HeadLayout:
    """The heads of one packed weight (S, D) in the order of their rows; hashable, so it can key a cache.

    `names` are used in messages only. Raises ValueError without heads or with another number of names.
    """

    heads: tuple[HeadSpec, ...]
    names: tuple[str, ...] = ()
    # Made at once: torch.compile cannot trace a cached_property.
    offsets: tuple[int, ...] = field(init=False, repr=False, compare=False)  # (K,) first row of each head
    width: int = field(init=False, repr=False, compare=False)  # S, the outputs of all heads together
    widest: int = field(init=False, repr=False, compare=False)  # outputs of the widest head
    key: str = field(init=False, repr=False, compare=False)  # as text: what a custom op can carry

    def __post_init__(self) -> None:
        if not self.heads:
            raise ValueError("a layout needs at least one head")
        if not self.names:
            object.__setattr__(self, "names", tuple(f"task {k}" for k in range(len(self.heads))))
        if len(self.names) != len(self.heads):
            raise ValueError(f"{len(self.names)} names for {len(self.heads)} heads")
        ends = tuple(accumulate(head.size for head in self.heads))
        object.__setattr__(self, "offsets", (0, *ends[:-1]))
        object.__setattr__(self, "width", ends[-1])
        object.__setattr__(self, "widest", max(head.size for head in self.heads))
        key = json.dumps({"heads": [asdict(head) for head in self.heads], "names": self.names})
        object.__setattr__(self, "key", key)

    def __hash__(self) -> int:
        # A string keeps its hash, nested tuples hash anew at every look-up: several times a step.
        return hash(self.key)

    def __len__(self) -> int:
        return len(self.heads)

    def __iter__(self) -> Iterator[tuple[int, int, HeadSpec]]:
        """(first row, one past the last row, spec) of each head."""
        for offset, head in zip(self.offsets, self.heads, strict=True):
            yield offset, offset + head.size, head

    @staticmethod
    @lru_cache(maxsize=1024)
    def from_key(key: str) -> HeadLayout:
        """The layout that wrote `key`."""
        stored = json.loads(key)
        heads = tuple(
            HeadSpec(
                **{
                    **head,
                    "kind": Kind(head["kind"]),
                    "class_weights": head["class_weights"] and tuple(head["class_weights"]),
                    "pos_weight": head["pos_weight"] and tuple(head["pos_weight"]),
                }
            )
            for head in stored["heads"]
        )
        return HeadLayout(heads, tuple(stored["names"]))

"""Where the rows of each head lie in the packed weight."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate

from .kind import HeadSpec, Kind


@dataclass(frozen=True)
class HeadLayout:
    """The heads of one packed weight (S, D), in the order of their rows; hashable, so it can be a cache key.

    `names` are used in messages only. Raises ValueError if there are no heads, or if the number of names differs.
    """

    heads: tuple[HeadSpec, ...]
    names: tuple[str, ...] = ()
    # Computed eagerly: torch.compile cannot trace a cached_property.
    offsets: tuple[int, ...] = field(init=False, repr=False, compare=False)  # (K,) first row of each head
    sizes: tuple[int, ...] = field(init=False, repr=False, compare=False)  # (K,) rows of each head
    width: int = field(init=False, repr=False, compare=False)  # S, the outputs of all heads together
    widest: int = field(init=False, repr=False, compare=False)  # outputs of the widest head
    takes_classes: tuple[bool, ...] = field(
        init=False, repr=False, compare=False
    )  # (K,) whether targets are integers
    has_values: bool = field(init=False, repr=False, compare=False)  # whether any head's targets are floats
    key: str = field(init=False, repr=False, compare=False)  # the layout as text, which a custom op can take

    def __post_init__(self) -> None:
        if not self.heads:
            raise ValueError("a layout needs at least one head")
        if not self.names:
            object.__setattr__(self, "names", tuple(f"task {k}" for k in range(len(self.heads))))
        if len(self.names) != len(self.heads):
            raise ValueError(f"{len(self.names)} names for {len(self.heads)} heads")
        sizes = tuple(head.size for head in self.heads)
        ends = tuple(accumulate(sizes))
        object.__setattr__(self, "offsets", (0, *ends[:-1]))
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "width", ends[-1])
        object.__setattr__(self, "widest", max(sizes))
        takes_classes = tuple(head.kind.takes_classes for head in self.heads)
        object.__setattr__(self, "takes_classes", takes_classes)
        object.__setattr__(self, "has_values", not all(takes_classes))
        heads = [(head.kind.name, head.size, dict(vars(head.options))) for head in self.heads]
        # Not JSON, which torch.compile cannot trace.
        object.__setattr__(self, "key", repr((heads, [str(name) for name in self.names])))

    def __hash__(self) -> int:
        # A string caches its hash; nested tuples would be hashed again at every look-up, several times a step.
        return hash(self.key)

    def __len__(self) -> int:
        return len(self.heads)

    def __iter__(self) -> Iterator[tuple[int, int, HeadSpec]]:
        """Yield (first row, one past the last row, spec) of each head."""
        for offset, head in zip(self.offsets, self.heads, strict=True):
            yield offset, offset + head.size, head

    @staticmethod
    @lru_cache(maxsize=1024)
    def from_key(key: str) -> HeadLayout:
        """Return the layout that wrote `key`."""
        heads, names = literal_eval(key)
        specs = tuple(HeadSpec(Kind.named(kind), size, **options) for kind, size, options in heads)
        return HeadLayout(specs, tuple(names))

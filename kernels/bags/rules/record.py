"""The definition of a row-sparse optimizer rule, and a rule together with its numbers as kernels take it.

A rule updates a row w (D,) of a table by its gradient g (D,), and nothing else. Its state is at most one number per row
and two tables (V, D), in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

MOST_NUMBERS = 7  # that kernels take of a rule, besides the rate
MOST_TABLES = 2


class RowState(NamedTuple):
    """A rule's state for a table (V, D), in float32; updated in place. None: the rule does not keep it."""

    per_row: Tensor | None = None  # (V,)
    first: Tensor | None = None  # (V, D)
    second: Tensor | None = None  # (V, D)


@dataclass(frozen=True, eq=False)
class RowRuleKind:
    """One rule: its formula for the oracle, Numba and Triton, and its state.

    A row's update has two parts: two numbers of the row, step and scale, which may depend on mean(g^2) and on the
    number stored per row; then every column by itself, given those two.
    Kernel functions are plain Python, which a backend compiles on loading. They may use `np` (Numba) and `tl` (Triton),
    and no other name of their module. Triton's must not have annotations: Triton would resolve those names.

    Raises ValueError for more numbers or tables than kernels take.
    """

    name: str
    # (rule, w (U, D), g (U, D), state of these rows (U,), (U, D)) -> (w, state), in plain torch.
    oracle: Callable[[RowRule, Tensor, Tensor, RowState], tuple[Tensor, RowState]]
    numbers: Mapping[str, float] = field(default_factory=dict)  # besides the rate: name -> default
    per_row: str | None = None  # the name of the number kept per row
    tables: tuple[str, ...] = ()  # the names of the tables (V, D)
    uses_mean_square: bool = False  # else kernels pass 0
    uses_table_steps: bool = False  # whether it reads `RowRule.table_steps`; else kernels pass 0
    # (rule record, mean(g^2), per_row (V,), row) -> (step, scale), float32; updates per_row[row]. Without it: (lr, 1).
    numba_row: Callable[..., Any] | None = None
    # (w, g, first, second, step, scale, numbers) -> (w, first, second): columns of a row, as vectors of machine/simd.py
    # or as numbers. Without it: w - step * g.
    numba_move: Callable[..., Any] | None = None
    # (lr, table_steps, numbers, mean(g^2), remembered) -> (step, scale, remembered): scalars of a row. Without it:
    # (lr, 1, remembered).
    triton_row: Callable[..., Any] | None = None
    # (w, g, first, second, step, scale, numbers) -> (w, first, second): columns of a row. Without it: w - step * g.
    triton_move: Callable[..., Any] | None = None
    # The numbers, in order -> what kernels take instead, for values that float32 could not derive from them.
    derived: Callable[..., tuple[float, ...]] | None = None

    def __post_init__(self) -> None:
        if len(self.kernel_numbers(tuple(self.numbers.values()))) > MOST_NUMBERS:
            raise ValueError(
                f"kernels support at most {MOST_NUMBERS} numbers per rule, but {self.name} has more"
            )
        if len(self.tables) > MOST_TABLES:
            raise ValueError(
                f"kernels support at most {MOST_TABLES} tables per rule, but {self.name} has {self.tables}"
            )
        if self.tables and (self.numba_move is None or self.triton_move is None):
            raise ValueError(f"{self.name} keeps tables, so it needs numba_move and triton_move")

    @property
    def one_call_obstacle(self) -> str | None:
        """Why a single-kernel training step cannot update rows by this rule, or None."""
        if self.tables:
            return f"its kernel keeps at most one number per row, but {self.name} keeps {' and '.join(self.tables)}"
        return None

    def kernel_numbers(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """Return what kernels take for these numbers."""
        return numbers if self.derived is None else self.derived(*numbers)

    def new_state(self, make: Callable[[str, tuple[int, ...]], Tensor], V: int, D: int) -> RowState:
        """Make the rule's state for a table (V, D), each part by make(name, shape)."""
        per_row = None if self.per_row is None else make(self.per_row, (V,))
        return RowState(per_row, *(make(name, (V, D)) for name in self.tables))


@dataclass(frozen=True, init=False, slots=True)
class RowRule:
    """A rule with its rate and its numbers; numbers not given take the kind's defaults.

    table_steps: how many steps the whole table has taken, including this one; 0 if not counted.

    Raises ValueError for a number that the kind does not have.
    """

    kind: RowRuleKind
    lr: (
        float | Tensor
    )  # (), float32 on the table's device: read when a row is updated, so that a CUDA graph sees changes
    numbers: tuple[float, ...]  # in the kind's order
    table_steps: float | Tensor  # (), float32 on the table's device, like the rate

    def __init__(
        self, kind: RowRuleKind, lr: float | Tensor, *, table_steps: float | Tensor = 0.0, **numbers: float
    ) -> None:
        unknown = numbers.keys() - kind.numbers.keys()
        if unknown:
            known = ", ".join(kind.numbers) or "none besides lr"
            raise ValueError(f"{kind.name} has no {', '.join(sorted(unknown))}; its numbers are {known}")
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "lr", lr)
        object.__setattr__(self, "table_steps", table_steps if kind.uses_table_steps else 0.0)
        object.__setattr__(self, "numbers", tuple({**kind.numbers, **numbers}.values()))

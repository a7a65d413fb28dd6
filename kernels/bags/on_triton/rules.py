"""The row rules as compiled by Triton: functions that a kernel takes as compile-time arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..rules import RowRuleKind


@triton.jit
def _constant_rate(lr, table_steps, numbers, mean_square, remembered):
    return lr, 1.0, remembered


@triton.jit
def _by_step(w, g, first, second, step, scale, numbers):
    return w - step * g, first, second


class RuleFunctions(NamedTuple):
    """A rule in the form that `update_kernel` takes."""

    row: Any
    move: Any
    kind: RowRuleKind

    @property
    def constexprs(self) -> dict[str, Any]:
        """The compile-time arguments."""
        return {
            "ROW": self.row,
            "MOVE": self.move,
            "USES_MEAN_SQUARE": self.kind.uses_mean_square,
            "PER_ROW": self.kind.per_row is not None,
            "TABLES": len(self.kind.tables),
        }


@lru_cache
def functions_of(kind: RowRuleKind) -> RuleFunctions:
    """Return the functions of a rule. Raises ValueError for one that has only a CPU form."""
    if kind.numba_row is not None and kind.triton_row is None:
        raise ValueError(f"the row rule {kind.name} has no triton_row, so it only runs on a CPU")
    if kind.numba_move is not None and kind.triton_move is None:
        raise ValueError(f"the row rule {kind.name} has no triton_move, so it only runs on a CPU")
    row = _constant_rate if kind.triton_row is None else _compiled(kind.triton_row)
    return RuleFunctions(row, _by_step if kind.triton_move is None else _compiled(kind.triton_move), kind)


def _compiled(function: Callable) -> Any:
    """Compile a copy that sees `tl`: the rule's own module does not import Triton."""
    copy = FunctionType(function.__code__, {**function.__globals__, "tl": tl}, function.__name__)
    copy.__qualname__ = function.__qualname__
    return triton.jit(copy)

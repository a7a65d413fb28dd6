"""The row rules as compiled by Numba: functions that take the step named by a record."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...machine.jit import elementwise, helper
from ..rules import RULES, RowRuleKind, code_of

NOT_A_NUMBER, ONE = np.float32(np.nan), np.float32(1)


@helper
def _constant_rate(rule, mean_square, per_row, row):
    return rule["lr"], ONE


@helper
def _unknown_row(rule, mean_square, per_row, row):
    """Return NaN, which would show: no record has an unknown rule (`code_of` raises)."""
    return NOT_A_NUMBER, NOT_A_NUMBER


@elementwise
def _by_step(w, g, first, second, step, scale, numbers):
    return w - g * step, first, second


def _or_row(code: int, row_numbers: Any, others: Any) -> Any:
    @helper
    def chosen(rule, mean_square, per_row, row):  # type: ignore[no-untyped-def]
        if rule["kind"] == code:
            return row_numbers(rule, mean_square, per_row, row)
        return others(rule, mean_square, per_row, row)

    return chosen


def _or_move(code: int, move: Any, others: Any) -> Any:
    @elementwise
    def chosen(kind, w, g, first, second, step, scale, numbers):  # type: ignore[no-untyped-def]
        if kind == code:
            return move(w, g, first, second, step, scale, numbers)
        return others(kind, w, g, first, second, step, scale, numbers)

    return chosen


@elementwise
def _otherwise_by_step(kind, w, g, first, second, step, scale, numbers):  # type: ignore[no-untyped-def]
    return _by_step(w, g, first, second, step, scale, numbers)


def _compiled(kinds: list[RowRuleKind]) -> tuple[Any, Any]:
    """Return (row_numbers, move_columns), each a chain of comparisons: a table of functions could not be inlined."""
    row_numbers, move = _unknown_row, _otherwise_by_step
    for kind in reversed(kinds):
        own = _constant_rate if kind.numba_row is None else helper(kind.numba_row)
        row_numbers = _or_row(code_of(kind), own, row_numbers)
        if kind.numba_move is not None:
            move = _or_move(code_of(kind), elementwise(kind.numba_move), move)
    return row_numbers, move


# row_numbers: (step, scale) of a row, and its new stored number; move_columns: columns of a row, given those.
row_numbers, move_columns = _compiled(list(RULES.values()))

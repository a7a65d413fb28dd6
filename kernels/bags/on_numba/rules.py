"""The row rules as compiled by Numba: one function that takes the step named by a record."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from ...machine.jit import helper
from ..rules import RULES, RowRuleKind, code_of

NOT_A_NUMBER = np.float32(np.nan)


@helper
def _constant_rate(rule, mean_square, per_row, row):
    return rule["lr"]


@helper
def _unknown_step(rule, mean_square, per_row, row):
    """Return NaN, which would show: no record has an unknown rule (`code_of` raises)."""
    return NOT_A_NUMBER


@helper
def _unknown_move(rule, w, g, per_row, row, first, second):
    w[:] = NOT_A_NUMBER


def _or_step(code: int, step: Any, others: Any) -> Any:
    @numba.njit(error_model="numpy")
    def chosen(rule, mean_square, per_row, row):  # type: ignore[no-untyped-def]
        if rule["kind"] == code:
            return step(rule, mean_square, per_row, row)
        return others(rule, mean_square, per_row, row)

    return chosen


def _or_move(code: int, move: Any, others: Any) -> Any:
    @numba.njit(error_model="numpy")
    def chosen(rule, w, g, per_row, row, first, second):  # type: ignore[no-untyped-def]
        if rule["kind"] == code:
            move(rule, w, g, per_row, row, first, second)
        else:
            others(rule, w, g, per_row, row, first, second)

    return chosen


def _compiled(kinds: list[RowRuleKind]) -> tuple[Any, Any]:
    """Return (row_step, move_row), each a chain of comparisons: a table of functions could not be inlined."""
    step, move = _unknown_step, _unknown_move
    for kind in reversed(kinds):
        if kind.numba_move is not None:
            move = _or_move(code_of(kind), helper(kind.numba_move), move)
        else:
            own = _constant_rate if kind.numba_step is None else helper(kind.numba_step)
            step = _or_step(code_of(kind), own, step)
    return step, move


# row_step: the factor of a row's gradient, for rules with by_step in the record; move_row: a row's step, for others.
row_step, move_row = _compiled(list(RULES.values()))

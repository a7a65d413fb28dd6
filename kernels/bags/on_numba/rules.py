"""The row rules as Numba compiles them: one function that takes whichever step a record names."""

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
    """No record says so (`code_of` raises), and if one did it would show."""
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
    """(row_step, move_row): a chain of comparisons each, as a table of functions could not be inlined."""
    step, move = _unknown_step, _unknown_move
    for kind in reversed(kinds):
        if kind.numba_move is not None:
            move = _or_move(code_of(kind), helper(kind.numba_move), move)
        else:
            own = _constant_rate if kind.numba_step is None else helper(kind.numba_step)
            step = _or_step(code_of(kind), own, step)
    return step, move


# Of a rule whose record says by_step, what its row's gradient is multiplied by; of another one, the step of a row.
row_step, move_row = _compiled(list(RULES.values()))

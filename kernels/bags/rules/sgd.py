"""Stochastic gradient descent: w -= lr g. Keeps no state."""

from __future__ import annotations

from torch import Tensor

from .record import RowRule, RowRuleKind, RowState


def _oracle(rule: RowRule, w: Tensor, g: Tensor, state: RowState) -> tuple[Tensor, RowState]:
    return w - rule.lr * g, state


RULE = RowRuleKind("sgd", _oracle)

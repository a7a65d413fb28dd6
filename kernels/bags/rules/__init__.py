"""The rules of row-sparse optimizers, each in its own file with a `RULE`: to add a rule, add a file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .adagrad import RULE as ADAGRAD
from .adam import RULE as ADAM
from .record import MOST_NUMBERS, RowRule, RowRuleKind, RowState
from .sgd import RULE as SGD

__all__ = [
    "ADAGRAD",
    "ADAM",
    "MOST_NUMBERS",
    "RULES",
    "RULE_RECORD",
    "SGD",
    "RowRule",
    "RowRuleKind",
    "RowState",
    "code_of",
    "packed",
    "rule_kind",
]


def _found() -> dict[str, RowRuleKind]:
    names = sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name != "record")
    kinds = [importlib.import_module(f"{__name__}.{name}").RULE for name in names]
    return {kind.name: kind for kind in kinds}


RULES = _found()  # by name

# A rule in the form that compiled kernels read.
RULE_RECORD = np.dtype(
    [
        ("kind", np.int64),  # its index in RULES
        ("by_step", np.int64),  # 1: w -= step * g; 0: elementwise
        ("uses_mean_square", np.int64),
        ("lr", np.float32),
        ("table_steps", np.float32),
        ("numbers", np.float64, (MOST_NUMBERS,)),  # 1 - beta2 in float32 would be off in the fifth digit
    ]
)


def rule_kind(name: str) -> RowRuleKind:
    """Return the rule of this name. Raises ValueError for an unknown one."""
    if name not in RULES:
        raise ValueError(f"unknown row rule {name}; available: {', '.join(RULES)}")
    return RULES[name]


def code_of(kind: RowRuleKind) -> int:
    """Return the number by which compiled kernels know a rule. Raises ValueError for one that is not among RULES."""
    if RULES.get(kind.name) is not kind:
        raise ValueError(
            f"the row rule {kind.name} is not one of {', '.join(RULES)}, for which there are kernels"
        )
    return list(RULES).index(kind.name)


@lru_cache(maxsize=64)
def _records(rules: tuple[tuple[RowRuleKind, tuple[float, ...]], ...]) -> np.ndarray:
    """Return the records of rules (kind, numbers), without what may change at every step: rates and counts of steps."""
    records = np.zeros(len(rules), RULE_RECORD)
    for record, (kind, numbers) in zip(records, rules, strict=True):
        of_kernels = kind.kernel_numbers(numbers)
        record["kind"], record["by_step"] = code_of(kind), kind.numba_move is None
        record["uses_mean_square"] = kind.uses_mean_square
        record["numbers"][: len(of_kernels)] = of_kernels
    return records


def packed(rules: Sequence[RowRule] | np.ndarray) -> np.ndarray:
    """Pack the rules as (len(rules),) RULE_RECORD, if they are not packed yet. Raises as `code_of` does."""
    if isinstance(rules, np.ndarray):
        return rules
    records = _records(tuple([(rule.kind, rule.numbers) for rule in rules])).copy()
    records["lr"] = [float(rule.lr) for rule in rules]
    records["table_steps"] = [float(rule.table_steps) for rule in rules]
    return records

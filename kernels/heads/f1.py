"""F1 from counts of right and wrong predictions: over all classes together (micro), or as their mean (macro)."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

MICRO_F1, MACRO_F1 = "micro_f1", "macro_f1"  # names of metrics


def f1(hits: float, false_alarms: float, misses: float) -> float:
    """Return 2 hits / (2 hits + false alarms + misses), or NaN if the class neither occurs nor is predicted."""
    total = 2 * hits + false_alarms + misses
    return 2 * hits / total if total else nan


def macro_f1(hits: Sequence[float], false_alarms: Sequence[float], misses: Sequence[float]) -> float:
    """Return the mean F1 of the classes that occur or are predicted, each given by its counts; NaN without any.

    For classes, it is scikit-learn's f1_score(average="macro"). Of sets of labels, a label that neither occurs nor is
    predicted is left out; scikit-learn counts it as 0.
    """
    found = [f1(*counts) for counts in zip(hits, false_alarms, misses, strict=True)]
    defined = [value for value in found if value == value]
    return sum(defined) / len(defined) if defined else nan

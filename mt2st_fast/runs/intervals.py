"""Medians, quartiles, and intervals for the difference between two arms, by a paired bootstrap over seeds.

Runs of one seed share their data, so seeds are drawn with replacement, and both arms' values of a seed are drawn
together. The percentiles of the statistic over many such draws are its interval (Efron and Tibshirani 1993, "An
Introduction to the Bootstrap", chapters 8 and 13).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from mt2st_fast.runs.comparison_schema import Difference, Spread

LEAST_SEEDS = 3  # fewer get no interval
FEW_SEEDS = 6  # from here on, a sign test at LEVEL is passed if all seeds are on one side
LEVEL = 0.95
RESAMPLES = 10_000

# Maps values (..., n) of both arms, paired along the last axis, to (...).
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def spread(values: Sequence[float | None]) -> Spread:
    """Return median and quartiles; None is a run that never arrived, later than any other."""
    ordered = sorted(math.inf if value is None else value for value in values)
    q1, middle, q3 = (_quantile(ordered, share) for share in (0.25, 0.5, 0.75))
    return {"q1": q1, "median": middle, "q3": q3}


def median(values: Sequence[float | None]) -> float | None:
    """Return the median; a run that never arrived counts as later than any other."""
    found = statistics.median(math.inf if value is None else value for value in values)
    return None if math.isinf(found) else found


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return a quantile, interpolated between neighbours; None where one that is needed is infinite."""
    place = share * (len(ordered) - 1)
    low, part = int(place), place % 1.0
    high = ordered[low + 1] if part else ordered[low]
    return None if math.isinf(high) else ordered[low] + part * (high - ordered[low])


def change_of_medians(own: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Return how much higher (+) or lower (-) the median is than the baseline's, as a share of the latter."""
    return np.median(own, axis=-1) / np.median(base, axis=-1) - 1.0


def median_of_differences(own: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Return the median over seeds of the differences to the baseline."""
    return np.median(own - base, axis=-1)


def difference(statistic: Statistic, own: Sequence[float | None], base: Sequence[float | None]) -> Difference:
    """Return the value and the interval of a statistic of both arms' values, in the order of seeds.

    The value is None where either median is, as most of an arm's runs never arrived. The interval is None if any run
    never arrived, and for fewer than LEAST_SEEDS seeds.
    """
    unknown: Difference = {"value": None, "low": None, "high": None}
    if median(own) is None or median(base) is None:
        return unknown
    paired = np.array([[math.inf if v is None else v for v in values] for values in (own, base)])
    with np.errstate(divide="ignore", invalid="ignore"):  # a baseline of zero seconds
        value = float(statistic(*paired))
        if not math.isfinite(value):
            return unknown
        if len(own) < LEAST_SEEDS or not np.isfinite(paired).all():
            return {**unknown, "value": value}
        # The draws depend only on the number of seeds, so the same runs give the same interval.
        drawn = np.random.default_rng(0).integers(len(own), size=(RESAMPLES, len(own)))
        low, high = np.quantile(statistic(*paired[:, drawn]), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": value, "low": float(low), "high": float(high)}

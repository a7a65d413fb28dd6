"""Medians, quartiles, and how sure a difference between two arms is: a paired bootstrap over seeds.

Runs of one seed share their data, so seeds are drawn with replacement, and both arms' values of a seed together; the
percentiles of the statistic over many such draws are its interval (Efron and Tibshirani 1993, "An Introduction to the
Bootstrap", chapters 8 and 13).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np

LEAST_SEEDS = 3  # of which an interval is shown
FEW_SEEDS = 6  # from here on, all seeds on one side are rare enough by chance for a sign test at LEVEL
LEVEL = 0.95
RESAMPLES = 10_000

# From values (..., n) of both arms, paired by the last axis, to (...).
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Median and quartiles, {"q1", "median", "q3"}; None stands for a run that never arrived, later than any other."""
    ordered = sorted(math.inf if value is None else value for value in values)
    return {name: _quantile(ordered, share) for name, share in (("q1", 0.25), ("median", 0.5), ("q3", 0.75))}


def median(values: Sequence[float | None]) -> float | None:
    """The median, a run that never arrived counting as later than any other."""
    found = statistics.median(math.inf if value is None else value for value in values)
    return None if math.isinf(found) else found


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """Between neighbours where it falls between them; None where one that counts is infinite."""
    place = share * (len(ordered) - 1)
    low, part = int(place), place % 1.0
    high = ordered[low + 1] if part else ordered[low]
    return None if math.isinf(high) else ordered[low] + part * (high - ordered[low])


def change_of_medians(own: np.ndarray, base: np.ndarray) -> np.ndarray:
    """How much more (+) or less (-) the median is than the baseline's, as a share of that."""
    return np.median(own, axis=-1) / np.median(base, axis=-1) - 1.0


def median_of_differences(own: np.ndarray, base: np.ndarray) -> np.ndarray:
    """The median over seeds of how much more it is than the baseline's."""
    return np.median(own - base, axis=-1)


def difference(
    statistic: Statistic, own: Sequence[float | None], base: Sequence[float | None]
) -> dict[str, float | None]:
    """{"value", "low", "high"} of a statistic of both arms' values, in the order of seeds.

    The value is None where either median is, as most of an arm's runs never arrived. The interval is None where any
    run did not, and of fewer than LEAST_SEEDS seeds.
    """
    unknown: dict[str, float | None] = {"value": None, "low": None, "high": None}
    if median(own) is None or median(base) is None:
        return unknown
    paired = np.array([[math.inf if v is None else v for v in values] for values in (own, base)])
    with np.errstate(divide="ignore", invalid="ignore"):  # a baseline of zero seconds
        value = float(statistic(*paired))
        if not math.isfinite(value):
            return unknown
        if len(own) < LEAST_SEEDS or not np.isfinite(paired).all():
            return unknown | {"value": value}
        # The same draws for the same number of seeds: the same runs give the same interval.
        drawn = np.random.default_rng(0).integers(len(own), size=(RESAMPLES, len(own)))
        low, high = np.quantile(statistic(*paired[:, drawn]), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": value, "low": float(low), "high": float(high)}

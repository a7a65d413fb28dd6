"""Cosines of vectors, and the rows of a table that are nearest to a query."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors (..., D) to length 1; those of length 0 stay 0."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def nearest_rows(
    query_d: np.ndarray, unit_vd: np.ndarray, k: int, without: Collection[int] = ()
) -> list[tuple[int, float]]:
    """Return (row, cosine) of the k rows (-1: all) nearest to a unit vector (D,), nearest first, then by row.

    without: rows that are left out.
    """
    cosines_v = unit_vd @ query_d
    order = _largest(cosines_v, len(cosines_v) if k == -1 else k + len(without))
    found = [(row, float(cosines_v[row])) for row in order.tolist() if row not in without]
    return found if k == -1 else found[:k]


def _largest(values_v: np.ndarray, n: int) -> np.ndarray:
    """Return the places of the n largest values, the largest first, then by place; NaN comes last."""
    least = np.partition(values_v, -n)[-n] if n < len(values_v) else np.nan
    if np.isnan(least):  # all are wanted, or NaN, which partition takes for the largest, is among them
        return np.argsort(-values_v, kind="stable")[:n]
    places = np.flatnonzero(values_v >= least)  # sorting these alone takes a tenth of the time
    return places[np.argsort(-values_v[places], kind="stable")][:n]

"""The oracle of `fit_log_linear`: its steps in NumPy, in float64."""

from __future__ import annotations

import numpy as np

from .fitting import SMALLEST_SQUARES


def fit_log_linear(
    ids_nk: np.ndarray, classes_n: np.ndarray, n_ids: int, n_classes: int, *, rate: float, passes: int
) -> np.ndarray:
    """As the function of the same name in `fitting`, but float64."""
    weights_vc = np.zeros((n_ids, n_classes))
    squares_vc = np.full((n_ids, n_classes), SMALLEST_SQUARES)
    orders = np.random.default_rng(0)
    for _ in range(passes):
        for row in orders.permutation(len(ids_nk)):
            logits = weights_vc[ids_nk[row]].sum(0)
            slopes = np.exp(logits - logits.max())
            slopes /= slopes.sum()
            slopes[classes_n[row]] -= 1
            for i in ids_nk[row]:  # one after the other: a row may have an id twice
                squares_vc[i] += slopes**2
                weights_vc[i] -= rate * slopes / np.sqrt(squares_vc[i])
    return weights_vc

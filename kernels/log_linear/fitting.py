"""Fit a log-linear model to rows of ids."""

from __future__ import annotations

import numpy as np

SMALLEST_SQUARES = 1e-6  # that a step begins with, so that none divides by zero


def fit_log_linear(
    ids_nk: np.ndarray, classes_n: np.ndarray, n_ids: int, n_classes: int, *, rate: float, passes: int
) -> np.ndarray:
    """Return weights (V, C), float32, of log p(c | row) = sum_k weights[ids[row, k], c] - log Z: passes of AdaGrad.

    ids_nk: int64 (N, K), in [0, V). classes_n: int64 (N,), in [0, C). Every pass has the rows in another order, the
    same in every call. Ids that no row has keep the weight 0.
    """
    from .on_numba.adagrad import adagrad_pass

    weights_vc = np.zeros((n_ids, n_classes), np.float32)
    squares_vc = np.full((n_ids, n_classes), SMALLEST_SQUARES, np.float32)
    orders = np.random.default_rng(0)
    for _ in range(passes):
        adagrad_pass(
            ids_nk, classes_n, orders.permutation(len(ids_nk)), weights_vc, squares_vc, np.float32(rate)
        )
    return weights_vc

"""AdaGrad on a multinomial log-linear model, one row after the other: log p(c | row) = sum_k W[ids[row, k], c] - log Z.

Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", JMLR 2011,
figure 1 with the diagonal: every weight moves by rate * gradient / sqrt(the sum of its squared gradients). So those of
a rare id keep large steps.
"""

from __future__ import annotations

import numpy as np

from ...machine.jit import entry


@entry
def adagrad_pass(ids_nk, classes_n, order, weights_vc, squares_vc, rate):
    """Train weights_vc, float32 (V, C), on rows of ids_nk, int64 (N, K); squares_vc: the sums so far."""
    K, C = ids_nk.shape[1], weights_vc.shape[1]
    slopes = np.empty(C, np.float32)
    for row in order:
        slopes[:] = 0
        for k in range(K):
            own = weights_vc[ids_nk[row, k]]
            for c in range(C):
                slopes[c] += own[c]
        highest = slopes.max()
        total = np.float32(0)
        for c in range(C):
            slopes[c] = np.exp(slopes[c] - highest)
            total += slopes[c]
        for c in range(C):
            slopes[c] /= total
        slopes[classes_n[row]] -= np.float32(1)
        for k in range(K):
            own, squares = weights_vc[ids_nk[row, k]], squares_vc[ids_nk[row, k]]
            for c in range(C):
                squares[c] += slopes[c] * slopes[c]
                own[c] -= rate * slopes[c] / np.sqrt(squares[c])

"""Elementary functions on vectors of float32: exponential, logarithm, hyperbolic tangent, softplus with sigmoid."""

from __future__ import annotations

import numpy as np

from .jit import elementwise
from .simd import absolute, exponent_of, mantissa_of, power_of_two, select, truncate

f32 = np.float32
ZERO, ONE, TWO, HALF = f32(0), f32(1), f32(2), f32(0.5)
LOG2_E, LN2_HIGH, LN2_LOW = f32(1.44269504), f32(0.693145752), f32(1.42860677e-6)
LN2 = f32(0.693147181)
# Below this, exp returns 0: the value would be lost next to the maximum's 1, and times 1/N it would become subnormal,
# which slows a GEMM down several times.
EXP_UNDERFLOW = f32(-64.0)
EXP_OVERFLOW, INFINITY = f32(88.0), f32(np.inf)
SQRT2 = f32(1.41421356)
LARGEST = f32(3.4e38)
E2, E3, E4, E5, E6 = f32(0.5), f32(0.166666667), f32(0.0416666667), f32(0.00833333333), f32(0.00138888889)
EXPM1_BOUND = f32(-0.34)  # within half of log(2), where the polynomial of exp is
# tanh(x) = x + x^3 P(x^2) for |x| < 0.625 (Moshier's Cephes).
TANH_BOUND = f32(0.625)
T1, T2, T3 = f32(-3.33332819422e-1), f32(1.33314422036e-1), f32(-5.37397155531e-2)
T4, T5 = f32(2.06390887954e-2), f32(-5.70498872745e-3)
A3, A5, A7, A9, A11, A13 = f32(1 / 3), f32(0.2), f32(1 / 7), f32(1 / 9), f32(1 / 11), f32(1 / 13)


@elementwise
def exp32(x):
    """exp(x) for vectors of x <= 0, as 2^n times a polynomial."""
    n = truncate(x * LOG2_E - HALF)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = ONE + r * (ONE + r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * E6)))))
    return select(x < EXP_UNDERFLOW, ZERO, p * power_of_two(n))


@elementwise
def exp_of_any(x):
    """exp(x) for vectors of any x: infinite from 88 on, the limit of float32."""
    n = truncate(x * LOG2_E + select(x < ZERO, -HALF, HALF))
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = ONE + r * (ONE + r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * E6)))))
    inside = select(x < EXP_UNDERFLOW, ZERO, p * power_of_two(n))
    return select(x >= EXP_OVERFLOW, INFINITY, inside)


@elementwise
def log32(x):
    """log(x) for vectors of normal x > 0: exponent, plus the atanh series of a mantissa in [sqrt(1/2), sqrt(2))."""
    mantissa = mantissa_of(x)
    large = mantissa > SQRT2
    m = select(large, mantissa * HALF, mantissa)
    n = exponent_of(x) + select(large, ONE, ZERO)
    t = (m - ONE) / (m + ONE)
    q = t * t
    log_m = TWO * t * (ONE + q * (A3 + q * (A5 + q * (A7 + q * A9))))
    # The bit tricks do not handle NaN or infinity; a diverged row must stay visible.
    return select(x < LARGEST, n * LN2 + log_m, x)


@elementwise
def softplus_and_sigmoid(u):
    """(log(1 + u), 1 / (1 + u)) for vectors of u in [0, 1], with one division.

    The logarithm is the atanh series of u / (2 + u).
    """
    reciprocal = ONE / ((ONE + u) * (TWO + u))
    t = u * reciprocal * (ONE + u)
    q = t * t
    series = ONE + q * (A3 + q * (A5 + q * (A7 + q * (A9 + q * (A11 + q * A13)))))
    return TWO * t * series, reciprocal * (TWO + u)


@elementwise
def tanh32(x):
    """tanh(x)."""
    size = absolute(x)
    square = x * x
    small = x + x * square * (T1 + square * (T2 + square * (T3 + square * (T4 + square * T5))))
    left = exp32(size * -TWO)
    large = (ONE - left) / (ONE + left) * select(x < ZERO, -ONE, ONE)
    return select(size < TANH_BOUND, small, large)


@elementwise
def expm1_32(x):
    """exp(x) - 1 for vectors of x <= 0."""
    small = x * (ONE + x * (E2 + x * (E3 + x * (E4 + x * (E5 + x * E6)))))
    return select(x > EXPM1_BOUND, small, exp32(x) - ONE)

"""Elementary functions on blocks of float32 in Triton kernels."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401 (the interpreter demands it of every file with a kernel function)


@triton.jit
def log1p(b_u):
    """log(1 + u) for u in [0, 1] as 2 atanh(u / (2 + u)): keeps the low bits that float32's 1 + u drops."""
    b_s = b_u / (2.0 + b_u)
    b_q = b_s * b_s
    b_p = 1.0 / 15.0
    b_p = b_p * b_q + 1.0 / 13.0
    b_p = b_p * b_q + 1.0 / 11.0
    b_p = b_p * b_q + 1.0 / 9.0
    b_p = b_p * b_q + 1.0 / 7.0
    b_p = b_p * b_q + 1.0 / 5.0
    b_p = b_p * b_q + 1.0 / 3.0
    return 2.0 * b_s + 2.0 * b_s * b_q * b_p

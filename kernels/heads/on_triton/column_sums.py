"""Column sums of a matrix on a GPU: the bias gradient from the gradient of the logits.

This is another pass over the logits. In the loss kernel it would be a sum across programs: each row's program would
have to read and write the sums of every column, which doubles its traffic. As a product with a row of ones it would be
a GEMM of one row, for which cuBLAS has no fast kernel known to sum in a fixed order. Here a program adds some rows of a
block of columns, in order, and the parts are added in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...machine.launch import Sample, Variant, cdiv, types_of

ROWS, COLUMNS, WARPS = 8, 512, 8  # per program step: 16 elements per thread, 8 of them adjacent in a row
PROGRAMS = 1056  # eight per multiprocessor of a large GPU
LEAST_ROWS = 64  # per program: the parts are at most a thirtieth of what is read


@triton.jit(do_not_specialize=["n_rows", "row_stride", "n_columns", "n_blocks", "per_part"])
def column_sum_kernel(
    p_matrix,  # (n_rows, row_stride)
    p_parts,  # (n_parts, n_columns) float32
    n_rows,
    row_stride,
    n_columns,
    n_blocks,  # blocks of columns
    per_part,  # rows per part
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: per_part rows of a block of columns. row_stride is a multiple of 16, n_columns of 8."""
    # No change in value, but it proves divisibility to the compiler, which widens an access only then.
    row_stride = row_stride // 16 * 16
    m_end = n_columns // 8 * 8
    i_part = tl.program_id(0) // n_blocks
    o_c = tl.program_id(0) % n_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < m_end
    first = i_part * per_part
    last = first + tl.minimum(per_part, n_rows - first)
    b_sum = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for o_first in range(first, last, BLOCK_N):
        o_n = o_first + tl.arange(0, BLOCK_N)
        p_rows = p_matrix + o_n.to(tl.int64)[:, None] * row_stride + o_c[None, :]
        b_sum += tl.load(p_rows, mask=(o_n < last)[:, None] & m_c[None, :], other=0.0).to(tl.float32)
    tl.store(p_parts + i_part.to(tl.int64) * n_columns + o_c, tl.sum(b_sum, axis=0), mask=m_c)


def column_sums(matrix: Tensor) -> Tensor:
    """Sum the columns of a matrix (n_rows, n_columns) whose row stride is a multiple of 16 elements.

    Returns (n_columns,) float32. Raises ValueError for other strides, and for a number of columns that is not a
    multiple of 8.
    """
    n_rows, n_columns = matrix.shape
    row_stride = matrix.stride(0)
    if row_stride % 16 or n_columns % 8 or matrix.stride(1) != 1:
        raise ValueError(
            f"rows of a multiple of 8 columns must start at multiples of 16, not {tuple(matrix.shape)} with strides "
            f"{matrix.stride()}"
        )
    n_blocks = cdiv(n_columns, COLUMNS)
    n_parts = max(1, min(cdiv(PROGRAMS, n_blocks), cdiv(n_rows, LEAST_ROWS)))
    parts = torch.empty(n_parts, n_columns, dtype=torch.float32, device=matrix.device)
    per_part = cdiv(n_rows, n_parts)
    _variant().launch(
        n_parts * n_blocks, (matrix, parts), (n_rows, row_stride, n_columns, n_blocks, per_part)
    )
    return parts[0] if n_parts == 1 else parts.sum(0)


@cache
def _variant() -> Variant:
    return Variant(column_sum_kernel, {"BLOCK_N": ROWS, "BLOCK_C": COLUMNS}, {"num_warps": WARPS})


def samples() -> Iterator[Sample]:
    """Yield variants that `column_sums` launches."""
    for dtype in ("fp32", "bf16", "fp16"):
        types = types_of(
            f"*{dtype} p_matrix", "*fp32 p_parts", "i32 n_rows row_stride n_columns n_blocks per_part"
        )
        yield Sample(dtype, _variant(), types)

"""Register-blocked matrix kernels for a CPU, written as LLVM vectors, which a loop in Numba would not compile to.

A block of MR x NV vectors of the product stays in registers over the whole depth; both factors come from cache.
Everything else (panels, tiles, threads) is ordinary Numba around it.

Operands are addresses and strides in elements of float32:
    c[m, n] (+)= sum_k a[m, k] b[k, n]     b and c row-major with strides ldb and ldc;
a row-major with stride lda (`*_by_row`), or transposed, a[m, k] at a + k lda + m (`*_by_column`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from .intrinsics import intrinsic_of
from .simd import FLOAT_BYTES, WIDTH, broadcast, load_vector, store_vector

# Rows of a block, with two vectors per row: 16 accumulators hide the latency of two multiply-adds a cycle and fit 32
# registers; AVX2 has 16. Never more than WIDTH: scratch has room for whole vectors of rows, but not beyond.
BLOCK_ROWS: int = 8 if WIDTH == 16 else 4
HALF_ROWS: int = BLOCK_ROWS // 2
PANEL: int = 2 * WIDTH

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_F32, WIDTH)
# Fused into one instruction if the processor has it; elsewhere a call to fma() would cost 50 times more.
_CONTRACT = ("contract",)


def _i64(value: int) -> Any:
    return ir.Constant(_I64, value)


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _F32.as_pointer())


def _element(builder: Any, base: Any, index: Any) -> Any:
    return builder.gep(base, [index if isinstance(index, ir.Value) else _i64(index)])


def _of_addresses(count: int) -> Callable[[Callable[..., Any]], Any]:
    """Make a function for kernels that takes `count` addresses and integers and returns nothing."""
    return intrinsic_of(types.void, *[types.int64] * count)


def _product(rows: int, vectors: int, *, by_row: bool, accumulate: bool) -> Callable[..., None]:
    """Generate code for c (rows, vectors * WIDTH) = or += a b; arguments a, lda, b, ldb, c, ldc, depth >= 1."""

    def build(builder: Any, a: Any, lda: Any, b: Any, ldb: Any, c: Any, ldc: Any, depth: Any) -> None:
        pointer_a, pointer_b, pointer_c = (_pointer(builder, address) for address in (a, b, c))
        c_rows = [_element(builder, pointer_c, builder.mul(ldc, _i64(m))) for m in range(rows)]
        a_rows = [
            _element(builder, pointer_a, builder.mul(lda, _i64(m)) if by_row else m) for m in range(rows)
        ]
        zero = ir.Constant(_VECTOR, [0.0] * WIDTH)
        entry = builder.block
        block = [(m, n) for m in range(rows) for n in range(vectors)]
        loop = builder.function.append_basic_block("depth")
        done = builder.function.append_basic_block("product")
        builder.branch(loop)

        builder.position_at_end(loop)
        k, index_a, index_b = (builder.phi(_I64) for _ in range(3))
        sums = {at: builder.phi(_VECTOR) for at in block}
        b_k = [
            load_vector(builder, _element(builder, pointer_b, builder.add(index_b, _i64(n * WIDTH))))
            for n in range(vectors)
        ]
        a_k = [broadcast(builder, builder.load(_element(builder, row, index_a), align=4)) for row in a_rows]
        added = {
            (m, n): builder.fadd(builder.fmul(a_k[m], b_k[n], flags=_CONTRACT), sums[m, n], flags=_CONTRACT)
            for m, n in block
        }
        next_k = builder.add(k, _i64(1))
        next_a = builder.add(index_a, _i64(1) if by_row else lda)
        next_b = builder.add(index_b, ldb)
        for phi, after in ((k, next_k), (index_a, next_a), (index_b, next_b)):
            phi.add_incoming(_i64(0), entry)
            phi.add_incoming(after, loop)
        for at in block:
            sums[at].add_incoming(zero, entry)
            sums[at].add_incoming(added[at], loop)
        builder.cbranch(builder.icmp_signed("<", next_k, depth), loop, done)

        builder.position_at_end(done)
        for m, n in block:
            target = _element(builder, c_rows[m], n * WIDTH)
            total = added[m, n]
            if accumulate:
                # Added at the end, not at the start of the sum: short sums of products lose less to rounding.
                total = builder.fadd(load_vector(builder, target), total)
            store_vector(builder, total, target)

    return build


def _multiply(rows: int, vectors: int, *, by_row: bool, accumulate: bool) -> Any:
    """Make the product as an intrinsic."""
    return _of_addresses(7)(_product(rows, vectors, by_row=by_row, accumulate=accumulate))


multiply_by_row = _multiply(BLOCK_ROWS, 2, by_row=True, accumulate=False)
multiply_by_row_1 = _multiply(BLOCK_ROWS, 1, by_row=True, accumulate=False)
multiply_by_column = _multiply(BLOCK_ROWS, 2, by_row=False, accumulate=False)
multiply_by_column_1 = _multiply(BLOCK_ROWS, 1, by_row=False, accumulate=False)
add_by_row = _multiply(BLOCK_ROWS, 2, by_row=True, accumulate=True)
add_by_row_1 = _multiply(BLOCK_ROWS, 1, by_row=True, accumulate=True)
add_half_by_row = _multiply(HALF_ROWS, 2, by_row=True, accumulate=True)
add_half_by_row_1 = _multiply(HALF_ROWS, 1, by_row=True, accumulate=True)
add_by_column = _multiply(BLOCK_ROWS, 2, by_row=False, accumulate=True)
add_by_column_1 = _multiply(BLOCK_ROWS, 1, by_row=False, accumulate=True)


def weighted_rows(most: int, *, accumulate: bool) -> Any:
    """Make a kernel for c (n * WIDTH,) = or += sum_k a[k lda] b[k]: a weighted sum of rows of b, held in registers.

    Arguments a, lda, b, ldb, c, n in 1..most, depth >= 1.
    """
    builds = {n: _product(1, n, by_row=False, accumulate=accumulate) for n in range(1, most + 1)}

    @_of_addresses(7)
    def weighted(builder: Any, a: Any, lda: Any, b: Any, ldb: Any, c: Any, n: Any, depth: Any) -> None:
        done = builder.function.append_basic_block("summed")
        by_n = builder.switch(n, done)
        for vectors, build_sum in builds.items():
            case = builder.function.append_basic_block(f"vectors_{vectors}")
            by_n.add_case(_i64(vectors), case)
            builder.position_at_end(case)
            build_sum(builder, a, lda, b, ldb, c, ldb, depth)
            builder.branch(done)
        builder.position_at_end(done)

    return weighted


@_of_addresses(4)
def transpose_block(builder: Any, source: Any, lds: Any, target: Any, ldt: Any) -> None:
    """target (WIDTH, WIDTH) = the transpose of source."""
    pointer_s, pointer_t = _pointer(builder, source), _pointer(builder, target)
    rows = [
        load_vector(builder, _element(builder, pointer_s, builder.mul(lds, _i64(i)))) for i in range(WIDTH)
    ]
    half = WIDTH // 2
    lanes = ir.VectorType(_I32, WIDTH)
    low = ir.Constant(lanes, [i // 2 + (i % 2) * WIDTH for i in range(WIDTH)])
    high = ir.Constant(lanes, [half + i // 2 + (i % 2) * WIDTH for i in range(WIDTH)])
    # Each pass zips row i with row i + WIDTH/2: one bit of the row index becomes one of the column index.
    for _ in range(WIDTH.bit_length() - 1):
        pairs = [(rows[i], rows[i + half]) for i in range(half)]
        rows = [builder.shuffle_vector(x, y, mask) for x, y in pairs for mask in (low, high)]
    for i, row in enumerate(rows):
        store_vector(builder, row, _element(builder, pointer_t, builder.mul(ldt, _i64(i))))


@_of_addresses(3)
def copy_floats(builder: Any, source: Any, target: Any, count: Any) -> None:
    """target (count,) = source (count,). A loop over possibly negative indices would not vectorize."""
    size = _i64(FLOAT_BYTES)
    cgutils.raw_memcpy(builder, _pointer(builder, target), _pointer(builder, source), count, size)

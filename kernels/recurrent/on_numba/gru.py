"""The cell of a GRU on a CPU: a row of one step, forward and backward.

r = sigmoid(x_r + W_r h + b_r), z = sigmoid(x_z + W_z h + b_z), c = W_n h + b_n, n = tanh(x_n + r c),
h' = n + z (h - n); x are the products with the inputs, with their bias. Arguments: as `layer.py` has them; extra is c,
and the gradients d_gates are of x_n, r, z and c.
"""

from __future__ import annotations

from ...machine.elementary import ONE, ZERO, tanh32
from ...machine.jit import inlined
from ...machine.simd import FLOAT_BYTES, WIDTH, load, splat, store
from ...machine.team import Kernel
from .layer import backward_layer, forward_layer
from .rows import sigmoid32


@inlined
def _forward_row(row_bytes, x, w, b, memory, extra, state, output, kept):
    for at in range(0, row_bytes, FLOAT_BYTES * WIDTH):
        at_z, at_n = row_bytes + at, 2 * row_bytes + at
        before = load(memory + at)
        r = sigmoid32(load(x + at) + (load(w + at) + load(b + at)))
        z = sigmoid32(load(x + at_z) + (load(w + at_z) + load(b + at_z)))
        c = load(w + at_n) + load(b + at_n)
        n = tanh32(load(x + at_n) + r * c)
        after = n + z * (before - n)
        store(r, x + at)
        store(z, x + at_z)
        store(n, x + at_n)
        store(c, extra + at)
        store(after, state + at)
        store(after, output + at)
        store(after, kept + at)


@inlined
def _backward_row(row_bytes, gates, extra, earlier, d_output, d_state_of, carried, d, d_gates, sums):
    for at in range(0, row_bytes, FLOAT_BYTES * WIDTH):
        at_z, at_n, at_c = row_bytes + at, 2 * row_bytes + at, 3 * row_bytes + at
        r, z, n = load(gates + at), load(gates + at_z), load(gates + at_n)
        before = splat(ZERO)
        if earlier:
            before = load(earlier + at)
        d_state = load(carried + at) + load(d_state_of + at)
        if d_output:
            d_state = d_state + load(d_output + at)
        d_n = d_state * (ONE - z) * (ONE - n * n)
        d_z = d_state * (before - n) * z * (ONE - z)
        d_c = d_n * r
        d_r = d_n * load(extra + at) * r * (ONE - r)
        store(d_state * z, carried + at)
        store(d_r, d + at)
        store(d_z, d + at_z)
        store(d_c, d + at_n)
        store(d_n, d_gates + at)
        store(d_r, d_gates + at_z)
        store(d_z, d_gates + at_n)
        store(d_c, d_gates + at_c)
        store(load(sums + at) + d_n, sums + at)
        store(load(sums + at_z) + d_r, sums + at_z)
        store(load(sums + at_n) + d_z, sums + at_n)
        store(load(sums + at_c) + d_c, sums + at_c)


def _gru_forward(team, sizes, arguments):
    forward_layer(team, _forward_row, sizes, arguments)


def _gru_backward(team, sizes, arguments):
    backward_layer(team, _backward_row, sizes, arguments)


forward, backward = Kernel(_gru_forward, beside_torch=True), Kernel(_gru_backward, beside_torch=True)

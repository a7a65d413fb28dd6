"""The cell of an LSTM on a CPU: a row of one step, forward and backward.

i = sigmoid(x_i + W_i h + b_i), f = sigmoid(...), g = tanh(...), o = sigmoid(...), c' = f c + i g, h' = o tanh(c'); x
are the products with the inputs, with their bias. Arguments: as `layer.py` has them; extra is c', and so is memory.
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
        at_f, at_g, at_o = row_bytes + at, 2 * row_bytes + at, 3 * row_bytes + at
        taken = sigmoid32(load(x + at) + (load(w + at) + load(b + at)))
        held = sigmoid32(load(x + at_f) + (load(w + at_f) + load(b + at_f)))
        fresh = tanh32(load(x + at_g) + (load(w + at_g) + load(b + at_g)))
        shown = sigmoid32(load(x + at_o) + (load(w + at_o) + load(b + at_o)))
        now = held * load(memory + at) + taken * fresh
        after = shown * tanh32(now)
        store(taken, x + at)
        store(held, x + at_f)
        store(fresh, x + at_g)
        store(shown, x + at_o)
        store(now, memory + at)
        store(now, extra + at)
        store(after, state + at)
        store(after, output + at)
        store(after, kept + at)


@inlined
def _backward_row(row_bytes, gates, extra, earlier, d_output, d_state_of, carried, d, d_gates, sums):
    for at in range(0, row_bytes, FLOAT_BYTES * WIDTH):
        at_f, at_g, at_o = row_bytes + at, 2 * row_bytes + at, 3 * row_bytes + at
        taken, held, fresh, shown = (
            load(gates + at),
            load(gates + at_f),
            load(gates + at_g),
            load(gates + at_o),
        )
        before = splat(ZERO)
        if earlier:
            before = load(earlier + at)
        d_state = load(d_state_of + at)
        if d_output:
            d_state = d_state + load(d_output + at)
        out = tanh32(load(extra + at))
        d_now = load(carried + at) + d_state * shown * (ONE - out * out)
        d_i = d_now * fresh * taken * (ONE - taken)
        d_f = d_now * before * held * (ONE - held)
        d_g = d_now * taken * (ONE - fresh * fresh)
        d_o = d_state * out * shown * (ONE - shown)
        store(d_now * held, carried + at)
        store(d_i, d + at)
        store(d_f, d + at_f)
        store(d_g, d + at_g)
        store(d_o, d + at_o)
        store(d_i, d_gates + at)
        store(d_f, d_gates + at_f)
        store(d_g, d_gates + at_g)
        store(d_o, d_gates + at_o)
        store(load(sums + at) + d_i, sums + at)
        store(load(sums + at_f) + d_f, sums + at_f)
        store(load(sums + at_g) + d_g, sums + at_g)
        store(load(sums + at_o) + d_o, sums + at_o)


def _lstm_forward(team, sizes, arguments):
    forward_layer(team, _forward_row, sizes, arguments)


def _lstm_backward(team, sizes, arguments):
    backward_layer(team, _backward_row, sizes, arguments)


forward, backward = Kernel(_lstm_forward, beside_torch=True), Kernel(_lstm_backward, beside_torch=True)

"""What the kernels of a convolution share: its sizes, and where a position's window lies.

Rows of positions are kept together, (B, L, E): the window of an output is then one run of numbers, of which none is
copied to make a product. Arrays: B sequences, L positions of E channels; T outputs of C channels, each of K positions.
"""

from __future__ import annotations

from typing import NamedTuple

from ...machine.jit import helper


class Sizes(NamedTuple):
    """The sizes of a convolution, as plain tuples that are passed to kernels have them."""

    B: int
    E: int
    L: int
    C: int
    T: int
    K: int
    stride: int
    padding: int


@helper
def window(sizes, t):
    """Return the positions of output t: the first one, and from which to which of its K they are in the sequence."""
    first = t * sizes.stride - sizes.padding
    return first, max(0, -first), min(sizes.K, sizes.L - first)

"""Where kernels find the heads' targets: by address, so that no launch has to put them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layout import HeadLayout
from .constants import KIND, N_CONSTANTS, SOFTMAX, TARGET

# Most targets that a launch takes by separate addresses; with more heads, they are put side by side first.
MOST_ADDRESSES = 16
# Parameters of their own, not one tuple: whatever `do_not_specialize` says, Triton (3.6, 3.7) compiles anew for every
# other alignment of a tuple's integers.
ADDRESSES = tuple(f"address_{i}" for i in range(MOST_ADDRESSES))  # the names of the kernels' parameters
# Kernels count rows in 32 bits, with room for the last block of rows; offsets into tensors have 64.
MOST_ROWS = (1 << 31) - (1 << 12)


class Targets(NamedTuple):
    """How a kernel finds K targets: integers (N,) int64 or floats (N, C) float32, all contiguous.

    side_by_side: there are two addresses, of all classes (classification heads, N) and of all floats (N, row_floats).
    """

    addresses: tuple[int, ...]  # always MOST_ADDRESSES of them
    side_by_side: bool
    row_floats: int
    held: tuple[Tensor, ...]  # the tensors that the addresses point into


class PackedTargets(NamedTuple):
    """All heads' targets side by side; None if no head has targets of that type."""

    classes: Tensor | None  # (classification heads, N) int64
    dense: Tensor | None  # (N, columns of the other heads) float32


def pack_targets(targets: Sequence[Tensor], layout: HeadLayout) -> PackedTargets:
    """Pack the targets of `layout`, in its order."""
    both = list(zip(layout.takes_classes, targets, strict=True))
    classes = [target.to(torch.int64) for takes_classes, target in both if takes_classes]
    dense = [target.to(torch.float32) for takes_classes, target in both if not takes_classes]
    return PackedTargets(
        torch.stack(classes) if classes else None, torch.cat(dense, dim=1) if dense else None
    )


def locate_targets(targets: Sequence[Tensor], layout: HeadLayout, N: int) -> Targets:
    """Locate the targets of `layout`, already checked by the op, in its order; convert those of another dtype.

    Raises ValueError for more than MOST_ROWS rows.
    """
    if N > MOST_ROWS:
        raise ValueError(f"a call on a GPU has at most {MOST_ROWS:,} rows, not {N:,}: split the batch")
    if len(targets) > MOST_ADDRESSES:
        classes, dense = pack_targets(targets, layout)
        held = tuple(t for t in (classes, dense) if t is not None)
        some = held[0].data_ptr()
        of_classes = some if classes is None else classes.data_ptr()
        of_dense = some if dense is None else dense.data_ptr()
        rest = (some,) * (MOST_ADDRESSES - 2)
        return Targets((of_classes, of_dense, *rest), True, 0 if dense is None else dense.shape[1], held)
    found: list[Tensor] = []
    for takes_classes, target in zip(layout.takes_classes, targets, strict=True):
        dtype = torch.int64 if takes_classes else torch.float32
        # Checking costs the host less than a conversion that does nothing.
        is_read = target.dtype is dtype and target.is_contiguous()
        found.append(target if is_read else target.to(dtype).contiguous())
    own = [target.data_ptr() for target in found]
    # A small number in place of an address would have another argument type, and so need another kernel.
    return Targets((*own, *[own[0]] * (MOST_ADDRESSES - len(own))), False, 0, tuple(found))


@triton.jit
def target_of(k: tl.constexpr, addresses, N, HEADS: tl.constexpr, SIDE_BY_SIDE: tl.constexpr):
    """Return the address of a head's first target."""
    # One return: after a branch that returns, Triton still compiles what follows, where k may be out of range.
    if SIDE_BY_SIDE:
        target: tl.constexpr = HEADS[k * N_CONSTANTS + TARGET]
        if HEADS[k * N_CONSTANTS + KIND] == SOFTMAX:
            address = addresses[0] + N.to(tl.int64) * 8 * target
        else:
            address = addresses[1] + target * 4
    else:
        address = addresses[k]
    return address


@triton.jit
def load_classes(address, o_n, m_n, C: tl.constexpr, ignore_index: tl.constexpr):
    """Load classes of rows: (class, -1 unless valid; used = not ignored; valid), (BLOCK_N,) each."""
    # An address below 2^31, as a heap may have where kernels are interpreted, is an int32 to Triton.
    p_classes = address.to(tl.int64).to(tl.pointer_type(tl.int64))
    b_y = tl.load(p_classes + o_n, mask=m_n, other=0)
    m_used = m_n & (b_y != ignore_index)
    m_valid = m_used & (b_y >= 0) & (b_y < C)
    return tl.where(m_valid, b_y, -1).to(tl.int32), m_used, m_valid


@triton.jit
def load_values(address, stride, o_n, o_c, m_inside):
    """Load float targets (BLOCK_N, BLOCK_S), NaN outside; o_c counts the head's own columns."""
    p_values = address.to(tl.int64).to(tl.pointer_type(tl.float32)) + o_n.to(tl.int64)[:, None] * stride
    return tl.load(p_values + o_c[None, :], mask=m_inside, other=float("nan"))

"""Weight and bias given as one tensor per head: read in place if the tensors are adjacent in memory.

A module has one parameter per head; the kernels read one weight (S, D). Parameters placed by `lay_adjacent` already
form that weight, so a step neither concatenates them nor splits their gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .layout import HeadLayout

Rows = Tensor | Sequence[Tensor]  # rows of all heads: consecutive in one tensor, or one tensor per head


class Parameters(NamedTuple):
    """The tensors that the kernels read, and those that the gradient belongs to."""

    weight: Tensor  # (S, D)
    bias: Tensor | None  # (S,)
    # K weights, then K biases if any; empty if weight and bias get the gradient themselves.
    parts: tuple[Tensor, ...]

    @property
    def needs(self) -> tuple[bool, bool]:
        """Whether the weight and the bias need a gradient."""
        if not self.parts:
            return self.weight.requires_grad, self.bias is not None and self.bias.requires_grad
        K = len(self.parts) if self.bias is None else len(self.parts) // 2
        wanted = [part.requires_grad for part in self.parts]
        return True in wanted[:K], True in wanted[K:]

    def by_autograd(self) -> Parameters:
        """The same parameters, concatenated so that autograd records it."""
        if not self.parts:
            return self
        K = len(self.parts) if self.bias is None else len(self.parts) // 2
        bias = None if self.bias is None else torch.cat(self.parts[K:])
        return Parameters(torch.cat(self.parts[:K]), bias, ())


def take_parameters(weight: Rows, bias: Rows | None, layout: HeadLayout) -> Parameters:
    """Return weight (S, D) and bias (S,) from one tensor or from one per head.

    Raises ValueError if head sizes differ.
    """
    if isinstance(weight, Tensor):
        if bias is not None and not isinstance(bias, Tensor):
            raise ValueError("bias must be one tensor, as weight is")
        return Parameters(weight, bias, ())
    if isinstance(bias, Tensor):
        raise ValueError("bias must be one tensor per head, as weight is")
    if len(weight) == 1:
        _check("weight", weight, layout)
        if bias is not None:
            _check("bias", bias, layout)
        return Parameters(weight[0], None if bias is None else bias[0], ())
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    rows = _together("weight", weight, layout, traced)
    biases = None if bias is None else _together("bias", bias, layout, traced)
    return Parameters(rows, biases, () if traced else (*weight, *(bias or ())))


def take_known_parameters(weight: Rows, bias: Rows | None, layout: HeadLayout) -> Parameters:
    """`take_parameters` for tensors whose shapes, dtypes and classes an earlier call has checked."""
    if isinstance(weight, Tensor) or len(weight) == 1:
        return take_parameters(weight, bias, layout)
    rows = _rows_in_place(weight, layout)
    biases = None if bias is None else _rows_in_place(bias, layout)  # type: ignore[arg-type]
    if rows is None or (biases is None and bias is not None):
        return take_parameters(weight, bias, layout)
    return Parameters(rows, biases, (*weight, *(bias or ())))


def _rows_in_place(parts: Sequence[Tensor], layout: HeadLayout) -> Tensor | None:
    """Return what `_side_by_side` does, for parts of the layout's sizes and of one dtype."""
    first = parts[0].detach()
    row_floats = 1 if first.dim() == 1 else first.shape[1]
    row_bytes, pointers = row_floats * first.itemsize, list(map(Tensor.data_ptr, parts))
    start = pointers[0]
    if pointers != [start + row_bytes * offset for offset in layout.offsets]:
        return None
    if not all(map(Tensor.is_contiguous, parts)):
        return None
    try:
        if first.dim() == 1:
            return first.as_strided((layout.width,), (1,))
        return first.as_strided((layout.width, row_floats), (row_floats, 1))
    except RuntimeError:  # neighbours in memory by chance, of which each has a storage of its own
        return None


def gradient_parts(gradient: Tensor | None, layout: HeadLayout) -> tuple[Tensor | None, ...]:
    """Split the gradient into the rows of each head, each a view."""
    if len(layout) == 1:
        return (gradient,)
    return (None,) * len(layout) if gradient is None else gradient.split_with_sizes(layout.sizes)


def lay_adjacent(parameters: Sequence[Tensor]) -> bool:
    """Move parameters into one piece of memory, one after another; return whether they are adjacent now.

    They remain the same parameters, but a tensor that shared memory with one no longer does. Parameters that are not
    plain tensors, or that are shared with another process, stay where they are.
    """
    if len(parameters) < 2:
        return bool(parameters)
    if _side_by_side(parameters, [p.shape[0] for p in parameters]) is not None:
        return True
    first = parameters[0]
    for parameter in parameters:
        plain = type(parameter) is nn.Parameter and type(parameter.data) is Tensor
        if not plain or parameter.is_meta or not parameter.is_contiguous():
            return False
        if not parameter.is_cuda and parameter.is_shared():
            return False
        if (parameter.device, parameter.dtype) != (first.device, first.dtype):
            return False
    together = torch.cat([parameter.data for parameter in parameters])
    for parameter, rows in zip(parameters, together.split([len(p) for p in parameters]), strict=True):
        parameter.data = rows
    return True


def _together(argument: str, parts: Sequence[Tensor], layout: HeadLayout, traced: bool) -> Tensor:
    """Return the rows of all parts: a view or a copy without a gradient; if `traced`, a copy with it."""
    rows = None if traced else _side_by_side(parts, layout.sizes)
    if rows is not None:  # nearly always, and all that _check would look at is as it should be
        return rows
    _check(argument, parts, layout)
    return torch.cat([part if traced else part.detach() for part in parts])


def _check(argument: str, parts: Sequence[Tensor], layout: HeadLayout) -> None:
    if len(parts) != len(layout):
        raise ValueError(f"{argument} has {len(parts)} tensors, but there are {len(layout)} heads")
    for name, size, part in zip(layout.names, layout.sizes, parts, strict=True):
        if len(part) != size:
            raise ValueError(f"{argument} of {name} has {len(part)} rows, but its head has {size} outputs")


def _side_by_side(parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor | None:
    """Return a view of parts of these numbers of rows as one tensor, without a gradient; None if they are not that.

    They are if they follow each other in one storage, and so do the rows of each.
    """
    first = parts[0].detach()
    if len(parts) != len(sizes) or type(first) is not Tensor or first.dim() not in (1, 2):
        return None
    row, dtype, pointer = first.shape[1:], first.dtype, first.data_ptr()
    row_floats = row.numel()
    row_bytes = row_floats * first.element_size()
    for part, size in zip(parts, sizes, strict=True):
        if (
            part.data_ptr() != pointer
            or part.shape != (size, *row)
            or part.dtype is not dtype
            or not part.is_contiguous()
        ):
            return None
        pointer += size * row_bytes
    # Memory that begins where another tensor's ends may be another storage.
    storage = first.untyped_storage()
    if pointer > storage.data_ptr() + storage.nbytes():
        return None
    # Not first's own strides: that of a single row may be anything.
    return first.as_strided((sum(sizes), *row), (row_floats, 1) if row else (1,))

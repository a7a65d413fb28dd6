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
        return any(p.requires_grad for p in self.parts[:K]), any(p.requires_grad for p in self.parts[K:])

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
    _check(weight, bias, layout)
    if len(weight) == 1:
        return Parameters(weight[0], None if bias is None else bias[0], ())
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return Parameters(torch.cat(list(weight)), None if bias is None else torch.cat(list(bias)), ())
    return Parameters(_joined(weight), None if bias is None else _joined(bias), (*weight, *(bias or ())))


def gradient_parts(gradient: Tensor | None, layout: HeadLayout) -> tuple[Tensor | None, ...]:
    """Split the gradient into the rows of each head, each a view."""
    return (None,) * len(layout) if gradient is None else gradient.split(layout.sizes)


def lay_adjacent(parameters: Sequence[Tensor]) -> bool:
    """Move parameters into one piece of memory, one after another; return whether they are adjacent now.

    They remain the same parameters, but a tensor that shared memory with one no longer does. Parameters that are not
    plain tensors, or that are shared with another process, stay where they are.
    """
    if len(parameters) < 2 or _adjacent(parameters):
        return bool(parameters)
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


def _check(weight: Sequence[Tensor], bias: Sequence[Tensor] | None, layout: HeadLayout) -> None:
    for argument, parts in (("weight", weight), ("bias", bias)):
        if parts is None:
            continue
        if len(parts) != len(layout):
            raise ValueError(f"{argument} has {len(parts)} tensors, but there are {len(layout)} heads")
        for name, size, part in zip(layout.names, layout.sizes, parts, strict=True):
            if len(part) != size:
                raise ValueError(
                    f"{argument} of {name} has {len(part)} rows, but its head has {size} outputs"
                )


@torch.no_grad()
def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Return the rows of all parts: a view if they are adjacent, else a copy."""
    if not _adjacent(parts):
        return torch.cat(list(parts))
    first = parts[0].detach()
    n_rows = sum(len(part) for part in parts)
    return first.as_strided((n_rows, *first.shape[1:]), first.stride())


def _adjacent(parts: Sequence[Tensor]) -> bool:
    """Whether the parts are consecutive in one storage, and so are the rows of one tensor."""
    first = parts[0]
    if type(first.data) is not Tensor:
        return False
    storage, pointer = first.untyped_storage().data_ptr(), first.data_ptr()
    for part in parts:
        alike = part.dtype == first.dtype and part.is_contiguous() and part.shape[1:] == first.shape[1:]
        if not alike or part.data_ptr() != pointer or part.untyped_storage().data_ptr() != storage:
            return False
        pointer += part.numel() * part.element_size()
    return True

"""The inputs of a captured step: what distinguishes graphs, and the memory that a graph reads.

Steps whose inputs agree in shape, dtype and place share one graph; inputs of a replay are copied into the buffers that
the graph was captured on.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mt2st_fast.data.resident import ResidentBatch
from mt2st_fast.training.inputs.batch import map_tensors

ALIGNMENT_BYTES = 256
STAGES = 4  # steps that the host may run ahead of the copies to the device


class UncapturableError(Exception):
    """A step cannot be captured; the message says why."""


def signature(value: Any) -> Hashable:
    """Return everything that a graph over `value` depends on, except the contents of tensors.

    Raises UncapturableError for something that can neither be copied into a buffer nor compared.
    """
    if isinstance(value, ResidentBatch):
        return value.key
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise UncapturableError(f"inputs contain a tensor of layout {value.layout}")
        return ("tensor", tuple(value.shape), value.dtype, value.device.type, value.requires_grad)
    if isinstance(value, (tuple, list)):
        return (type(value), tuple([signature(item) for item in value]))
    if isinstance(value, Mapping):
        return (type(value), tuple([(key, signature(item)) for key, item in value.items()]))
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return (type(value), value)
    raise UncapturableError(
        f"inputs contain {type(value).__name__}, which cannot be copied into a static buffer"
    )


class StaticInputs:
    """Tensors on `device`, nested like `value`, into which batches of the same signature are copied.

    Tensors in host memory are gathered in one pinned stage and cross in one transfer, however many
    targets a batch has. A stage is written again only when its last transfer is over.
    """

    def __init__(self, value: Any, device: torch.device) -> None:
        tensors = tensors_of(value)
        self._from_host = [t.device.type == "cpu" for t in tensors]
        host = [t for t, from_host in zip(tensors, self._from_host, strict=True) if from_host]
        spans, n_bytes = _spans(host)
        pinned = device.type == "cuda"
        self._block = torch.empty(n_bytes, dtype=torch.uint8, device=device)
        self._stages = [
            _Stage.make(torch.empty(n_bytes, dtype=torch.uint8, pin_memory=pinned), host, spans)
            for _ in range(STAGES if pinned else 1)
            if host
        ]
        self._next = 0
        views = iter(_views(self._block, host, spans))
        self._device_buffers: list[Tensor] = []
        self.value = map_tensors(value, lambda t: self._buffer(t, views, device))

    def _buffer(self, like: Tensor, views: Iterator[Tensor], device: torch.device) -> Tensor:
        if like.device.type == "cpu":
            return next(views)
        buffer = torch.empty(like.shape, dtype=like.dtype, device=device)
        self._device_buffers.append(buffer)
        return buffer

    def copy_from(self, value: Any) -> None:
        """Copy in a batch of the same signature, without waiting for the device."""
        tensors = tensors_of(value)
        if len(tensors) == 1 and len(self._device_buffers) == 1:  # the rows of a resident batch
            self._device_buffers[0].copy_(tensors[0], non_blocking=True)
            return
        host = [t for t, from_host in zip(tensors, self._from_host, strict=True) if from_host]
        on_device = [t for t, from_host in zip(tensors, self._from_host, strict=True) if not from_host]
        if host:
            stage = self._stages[self._next]
            self._next = (self._next + 1) % len(self._stages)
            stage.fill(host)
            self._block.copy_(stage.block, non_blocking=True)
            stage.transferring(self._block.device)
        if on_device:
            torch._foreach_copy_(self._device_buffers, on_device, non_blocking=True)


class _Stage:
    """Host memory for one step's inputs on their way to the device."""

    def __init__(self, block: Tensor, views: list[Tensor]) -> None:
        self.block, self._views = block, views
        self._transferred: torch.cuda.Event | None = None

    @classmethod
    def make(cls, block: Tensor, like: list[Tensor], spans: list[tuple[int, int]]) -> _Stage:
        return cls(block, _views(block, like, spans))

    def fill(self, tensors: list[Tensor]) -> None:
        if self._transferred is not None:
            self._transferred.synchronize()
        for view, tensor in zip(self._views, tensors, strict=True):
            view.copy_(tensor)

    def transferring(self, device: torch.device) -> None:
        if device.type == "cuda":
            self._transferred = self._transferred or torch.cuda.Event()
            self._transferred.record(torch.cuda.current_stream(device))


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in `value`, in the order of `map_tensors`, which is several times slower."""
    if isinstance(value, ResidentBatch):
        return [value.rows]
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [tensor for item in value for tensor in tensors_of(item)]


def _spans(tensors: list[Tensor]) -> tuple[list[tuple[int, int]], int]:
    """(first byte, one past the last) of each tensor in one block, and the size of the block."""
    spans, end = [], 0
    for tensor in tensors:
        first = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        end = first + tensor.numel() * tensor.element_size()
        spans.append((first, end))
    return spans, end


def _views(block: Tensor, like: list[Tensor], spans: list[tuple[int, int]]) -> list[Tensor]:
    return [
        block[first:last].view(tensor.dtype).view(tensor.shape)
        for tensor, (first, last) in zip(like, spans, strict=True)
    ]

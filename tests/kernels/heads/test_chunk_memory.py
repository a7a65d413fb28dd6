"""Memory that a vocabulary's head needs on a GPU, counted without one: of shapes alone, on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mt2st_fast import HeadLayout, HeadSpec, Kind
from mt2st_fast.kernels.heads.call import HeadsCall
from mt2st_fast.kernels.heads.on_triton import chunked, packed
from mt2st_fast.kernels.machine.launch import Variant

V, D = 151_936, 4096


class Memory(TorchDispatchMode):
    """Counts the bytes of all memory that is allocated within the block; `peak` is the most that was held at a time."""

    def __init__(self, *own: torch.Tensor) -> None:
        super().__init__()
        self.peak = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        self._own = [StorageWeakRef(tensor.untyped_storage()) for tensor in own]  # not allocated within

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        result = func(*args, **(kwargs or {}))
        own = {ref.cdata for ref in self._own}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                ref = StorageWeakRef(storage)
                if ref.cdata not in own:
                    self._held.setdefault(ref.cdata, (ref, storage.nbytes()))
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return result


def peak_bytes(N: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Forward and backward of a vocabulary and four small heads in bfloat16; includes all gradients."""
    layout = HeadLayout(tuple(HeadSpec(Kind.SOFTMAX, size) for size in (V, 17, 9, 5, 2)))
    features, weight, bias = (
        torch.empty(shape, dtype=torch.bfloat16, device="meta")
        for shape in ((N, D), (layout.width, D), (layout.width,))
    )
    targets = [torch.empty(N, dtype=torch.int64, device="meta") for _ in layout.heads]
    task_weights, one = torch.ones(5, device="meta"), torch.ones((), device="meta")
    call = HeadsCall(features, weight, bias, targets, task_weights, layout, (True, True, True))

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a.new_empty(a.shape[0], b.shape[1], dtype=torch.float32)

    monkeypatch.setattr(Variant, "launch", lambda *_, **__: None)
    for module in (chunked, packed):  # on a CPU it would take copies of both factors
        monkeypatch.setattr(module, "mm_float32", product)
    with Memory(features, weight, bias, *targets, task_weights, one) as memory:
        residual = chunked.forward(call).residual
        gradients = chunked.backward(call, residual, one, own=True)
    assert [gradient.shape for gradient in gradients if gradient is not None] == [t.shape for t in call[:3]]
    return memory.peak


def test_a_vocabulary_takes_four_gigabytes_at_most_and_its_rows_one_chunk(monkeypatch):
    assert chunked.chunk_rows(8192, 151_984, 2) == 8192
    least = 2 * (8192 * V + V * D + 8192 * D)  # logits and gradients
    assert least < peak_bytes(8192, monkeypatch) <= 4e9


def test_the_logits_are_gone_when_the_sum_of_the_chunks_is_rounded(monkeypatch):
    """Of two chunks: the gradient's sum in float32, a slab that is added to it, and the logits; not the rounded sum."""
    logits, of_weight, of_features = 8192 * 151_984 * 2, 151_976 * D * 4, 16384 * D * 2
    slab = chunked.SLAB_ROWS * D * 4
    assert peak_bytes(16384, monkeypatch) <= 1.01 * (logits + of_weight + of_features + slab)

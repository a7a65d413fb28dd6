"""Tasks on words beside rows for one kernel call: autograd reaches only the vectors of their words, if it is needed.

Such a task reads vectors and does not know where they come from. So their gradients are passed to the kernel, which
adds them to those of the rows before it moves the table: one step, as for one loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from mt2st_fast.kernels import ExtraGradients
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.engines.engine import StepParts
from mt2st_fast.training.engines.kernel_calls.context_gradients import ContextGradients
from mt2st_fast.training.inputs.batch import Batch, PlainBatch, tasks_of

AnyBatch = TypeVar("AnyBatch", bound=Batch)


class OnWords(NamedTuple):
    """Losses (K,) of the tasks on words in a step, and the gradients of their words' vectors."""

    losses_k: Tensor
    extra: ExtraGradients | None


class WordGradients:
    """Computes losses of tasks on words; their own parameters get a `.grad`, and their words' vectors a gradient.

    context: computes some of the tasks without autograd. Their parameters get no `.grad`, but move with `move`.
    """

    def __init__(
        self,
        encoder: WindowEncoder | BagEncoder,
        heads: MultiTaskHeads,
        context: ContextGradients | None = None,
    ) -> None:
        self._encoder, self._heads, self._context = encoder, heads, context
        # Types (n,), and their vectors (n, D), whose gradient is kept.
        self._read: list[tuple[Tensor, Tensor]] = []
        self._by_autograd = False  # whether the current step has a task that is

    def __call__(self, batches: Sequence[PlainBatch], weights_k: Tensor) -> OnWords:
        """Run batches of such tasks. Raises what the tasks raise, with nothing moved."""
        active = self._heads.active
        losses_k, self._read = torch.zeros(len(active), dtype=torch.float32, device="cpu"), []
        self._by_autograd, extra = False, []
        if self._context is not None:
            self._context.begin()
        for inputs, targets in batches:
            name = next(iter(targets))  # the only one in its batch: heads refuse other tasks beside it
            if self._context is not None and self._context.takes(name):
                k = active.index(name)
                losses_k[k], of_words = self._context(name, inputs, weights_k[k].item())
                extra += [] if of_words is None else [of_words]
                continue
            self._by_autograd = True
            out = self._heads.word_loss(name, self._vectors_of, inputs, targets[name], weights_k)
            if out.total.requires_grad:
                out.total.backward()
            losses_k += out.losses
        return OnWords(losses_k, _joined([*extra, *self._extra()]))

    def move(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the step of what the tasks have of their own, once nothing can fail any more."""
        if self._context is not None:
            self._context.move()
        if self._by_autograd:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _vectors_of(self, types: Tensor) -> Tensor:
        """(..., D) vectors of word types (...), which keep their gradient."""
        flat = types.reshape(-1)
        with torch.no_grad():
            vectors = self._encoder.pool_each(flat)
        vectors.requires_grad_(self._encoder.table.requires_grad)
        self._read.append((flat, vectors))
        return vectors.view(*types.shape, -1)

    def _extra(self) -> list[ExtraGradients]:
        found = [
            ExtraGradients(types, vectors.grad) for types, vectors in self._read if vectors.grad is not None
        ]
        self._read = []
        return found


def _joined(found: Sequence[ExtraGradients]) -> ExtraGradients | None:
    if len(found) < 2:
        return found[0] if found else None
    return ExtraGradients(*map(torch.cat, zip(*found, strict=True)))


def words_obstacle(parts: StepParts) -> str | None:
    """Return why gradients of active tasks on words cannot be made separately from those of the rows, or None."""
    if parts.learnt is not None:
        return "the weights of tasks on words are learned"
    if parts.state.part != "all":
        return "tasks on words take turns"
    heads, of_encoder = parts.heads, set(map(id, parts.encoder.parameters()))
    for name in filter(heads.is_word_task, heads.active):
        if any(id(p) in of_encoder for p in heads.word_tasks[name].parameters()):
            return f"the task {name} holds a parameter of the encoder"
    return None


def split_by_words(
    heads: MultiTaskHeads, batches: Sequence[AnyBatch]
) -> tuple[list[AnyBatch], list[AnyBatch]]:
    """Split a micro-step into batches that go through the encoder, and those of tasks on words."""
    if not heads.word_tasks:  # asked at every step
        return list(batches), []
    on_words = [any(map(heads.is_word_task, tasks_of(batch))) for batch in batches]
    rows = [batch for batch, is_on_words in zip(batches, on_words, strict=True) if not is_on_words]
    words = [batch for batch, is_on_words in zip(batches, on_words, strict=True) if is_on_words]
    return rows, words

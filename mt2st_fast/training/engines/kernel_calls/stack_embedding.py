"""The table of words before a stack of layers: `nn.EmbeddingBag`, or `nn.Embedding` with an `nn.Flatten` after it."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from mt2st_fast.kernels.step.embedding import MOST_ROWS, How

Table = nn.EmbeddingBag | nn.Embedding


class StackEmbedding(NamedTuple):
    """A module with a table, how the vectors of a row's words are combined, and its padding: as in `EmbeddingTable`."""

    module: Table
    how: How
    padding: int | None


def is_table(module: nn.Module) -> bool:
    """Whether a module is one of those that may come before the layers."""
    return type(module) in (nn.EmbeddingBag, nn.Embedding)


def stack_embedding(module: nn.Module) -> StackEmbedding | str:
    """Return how a stack begins with such a module, or why it cannot."""
    assert isinstance(module, Table)
    name = type(module).__name__
    for option in ("sparse", "scale_grad_by_freq"):
        if getattr(module, option):
            return f"its kernel does not support {option}=True of {name}"
    if len(module.weight) > MOST_ROWS:
        return f"its kernel takes tables of at most {MOST_ROWS:,} rows"
    if module.max_norm is not None:
        return f"its kernel does not support max_norm of {name}"
    V, padding = len(module.weight), module.padding_idx
    if padding is not None:
        if not -V <= padding < V:  # torch raises an error
            return f"padding_idx={padding} of {name} is no row of its table"
        padding %= V
    if isinstance(module, nn.Embedding):
        return StackEmbedding(module, "concat", padding)
    if module.mode not in ("sum", "mean"):
        return f"its kernel does not support mode={module.mode!r} of {name}"
    if module.include_last_offset:
        return f"its kernel does not support include_last_offset=True of {name}"
    return StackEmbedding(module, "sum" if module.mode == "sum" else "mean", padding)

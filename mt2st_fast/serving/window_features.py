"""Fast features of a window encoder outside of training, as sums of what each word contributes at each place.

    h = ReLU(b + sum_w A_w v(t_w))        A_w (H, D) the columns of the hidden weight for place w, v(t) a type's vector

Without dropout a word contributes the same to every window that has it at the same place. A_w v(t) is computed when a
type first occurs and kept, so that a window costs reading and adding W rows of H numbers.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt2st_fast.model.encoders import WindowEncoder

TYPES_AT_ONCE = 4096


class WindowFeatures:
    """Features of windows, without dropout and gradients, from the encoder's current parameters."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()  # identifies the parameters behind the contributions
        self._of: tuple[Tensor, ...] = ()  # kept alive, as another tensor could get the same id
        self._contributions = torch.empty(0)  # ((T + 1) W, H); those of padding are zero
        self._known = np.zeros(0, bool)  # (T + 1,)

    def __call__(self, encoder: WindowEncoder, types: Tensor, times_forgotten: int = 0) -> Tensor:
        """Return features (N, out_features) of windows of types (N, W).

        times_forgotten: how often type numbers were reassigned before.
        """
        if not _is_plain(encoder) or not len(types):
            features: Tensor = encoder(types)
            return features
        self._begin(encoder, times_forgotten)
        W, none = encoder.width, len(self._known) - 1
        places = types.numpy().astype(np.int32)  # a copy
        places[places < 0] = none
        self._learn(encoder, places)
        places *= W
        places += np.arange(W, dtype=np.int32)
        return F.embedding_bag(torch.from_numpy(places), self._contributions, mode="sum").relu_()

    def _begin(self, encoder: WindowEncoder, times_forgotten: int) -> None:
        """Drop contributions that were computed from other parameters."""
        hidden = encoder.hidden
        assert hidden is not None  # a plain encoder has one
        of = tuple(
            t for t in (encoder.table, hidden.weight, hidden.bias, encoder.rows_of_type) if t is not None
        )
        key = (times_forgotten, *((id(tensor), tensor._version) for tensor in of))
        if key == self._key:
            return
        self._key, self._of = key, of
        # Pages that are never written take no memory.
        self._contributions = torch.empty((encoder.num_types + 1) * encoder.width, hidden.out_features)
        self._known = np.zeros(encoder.num_types + 1, bool)
        self._known[-1] = True
        last = self._contributions[-encoder.width :]
        last.zero_()

    @torch.no_grad()
    def _learn(self, encoder: WindowEncoder, types: np.ndarray) -> None:
        """Compute the contributions of types that did not occur before."""
        new = types[~self._known[types]]
        if not len(new):
            return
        hidden, W, D = encoder.hidden, encoder.width, encoder.dim
        assert hidden is not None
        by_place = hidden.weight.view(-1, W, D).permute(2, 1, 0).reshape(D, -1)  # (D, W H)
        contributions = self._contributions.view(-1, W, hidden.out_features)
        for some in torch.from_numpy(np.unique(new)).split(TYPES_AT_ONCE):
            made = (_vectors(encoder, some) @ by_place).view(len(some), W, -1)
            if hidden.bias is not None:  # added to the middle word, which every window has
                made[:, W // 2] += hidden.bias
            contributions[some] = made
            self._known[some.numpy()] = True


def _vectors(encoder: WindowEncoder, types: Tensor) -> Tensor:
    """Return vectors (n, D) of types, by torch, so that no kernels need to be loaded for a few words."""
    if encoder.rows_of_type is None:
        return encoder.table[types]
    rows = encoder.rows_of_type[types]
    real = rows >= 0
    counts = real.sum(1)
    return F.embedding_bag(rows[real], encoder.table, counts.cumsum(0) - counts, mode="mean")


def _is_plain(encoder: WindowEncoder) -> bool:
    """Whether the encoder computes just what its class defines: no subclass, no hooks, float32 on a CPU."""
    if type(encoder) is not WindowEncoder or type(encoder.hidden) is not nn.Linear:
        return False
    parameters = (encoder.table, encoder.hidden.weight)
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in parameters):
        return False
    return not any(module._forward_hooks or module._forward_pre_hooks for module in encoder.modules())

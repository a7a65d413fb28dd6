"""What a window encoder makes of windows when it is not trained: by the kernel of its training step, where that can."""

from __future__ import annotations

from torch import Tensor, nn

from mt2st_fast.kernels import (
    Dense,
    HeadLayout,
    Trained,
    WindowModel,
    window_features,
    window_step_obstacle,
)
from mt2st_fast.kernels.bags.rules import RowState
from mt2st_fast.model.encoders import WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads


class WindowFeatures:
    """Features of windows, without dropout and without gradients."""

    def __init__(self, heads: MultiTaskHeads) -> None:
        self._heads = heads
        self._of: tuple[Tensor | None, ...] = ()  # where what the model was made of lay
        self._model: WindowModel | None = None

    def __call__(self, encoder: WindowEncoder, types: Tensor) -> Tensor:
        """(N, out_features) of windows of types (N, W)."""
        # The tensors themselves: an address alone may be somebody else's by now.
        of = (encoder.table, encoder.rows_of_type, *_parameters(encoder))
        if len(of) != len(self._of) or any(a is not b for a, b in zip(of, self._of, strict=True)):
            self._of, self._model = of, _model(encoder, self._heads)
        if self._model is None or not len(types):
            features: Tensor = encoder(types)
            return features
        return window_features(self._model, types)


def _parameters(encoder: WindowEncoder) -> list[Tensor | None]:
    return [] if encoder.hidden is None else [encoder.hidden.weight, encoder.hidden.bias]


def _model(encoder: WindowEncoder, heads: MultiTaskHeads) -> WindowModel | None:
    """The encoder as the kernel takes it; None where it has to be asked itself."""
    if type(encoder) is not WindowEncoder or type(encoder.hidden) is not nn.Linear:
        return None
    hidden = [encoder.hidden.weight, encoder.hidden.bias]
    if any(module._forward_hooks or module._forward_pre_hooks for module in encoder.modules()):
        return None
    if window_step_obstacle(encoder.table, hidden, [1], encoder.backend) is not None:
        return None
    weight, bias = hidden
    # A model has a head; that of the main task is never asked.
    head, spec = heads.linear(heads.main), heads.tasks[heads.main].head
    return WindowModel(
        Trained(encoder.table.detach(), RowState(), 0),
        encoder.rows_of_type,
        (_still(weight), None if bias is None else _still(bias)),
        [(_still(head.weight), None)],
        HeadLayout((spec,), (heads.main,)),
    )


def _still(parameter: Tensor) -> Dense:
    """A parameter that no rule moves."""
    return Dense(parameter.detach(), RowState(), 0, False)

"""Gradients of a window encoder and its heads by one kernel call a batch, for steps that need them as such.

Clipping, a step of several batches and several processes do: what they do with gradients lies between the backward pass
and the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mt2st_fast.kernels import (
    EVERYTHING,
    FROZEN,
    Gradient,
    HeadLayout,
    Moves,
    RowState,
    Trained,
    WindowModel,
    gradient_model,
    window_gradients,
)
from mt2st_fast.training.engines.window_calls import WindowCalls


class WindowGradients(WindowCalls):
    """Makes the gradients that autograd would make of encoder and heads, up to rounding: adds up, then hands out."""

    def __call__(
        self, types: Tensor, targets: Mapping[str, Tensor], weights: Tensor, moves: Moves = EVERYTHING
    ) -> Tensor:
        """Add the gradients of N windows of types (N, W); the losses (K,) of the active tasks, 0 without a target here.

        Raises what `window_step` and the heads raise.
        """
        batch = self._heads.batch(targets, types.shape[:1], weights, types.device)
        found = window_gradients(
            self._model_of(batch.layout), types, batch.targets, batch.weights, self._dropout(), moves
        )
        if moves.shared:
            self._reached += self._hidden
            if self._held.moved[0]:
                self._rows.append((found.rows, found.d_rows))
        if moves.heads:
            self._reached += [p for name in batch.layout.names for p in self._heads.linear(name).parameters()]
        return self._heads.over_active(found.losses, batch)

    def hand_out(self) -> None:
        """Put what was added up since `begin` into `.grad` of what a batch has reached."""
        for parameter in dict.fromkeys(self._reached):
            parameter.grad = self._gradients.get(parameter)
        table = self._encoder.table
        if self._rows:
            rows, d_rows = map(torch.cat, zip(*self._rows, strict=True))
            is_one = len(self._rows) == 1
            table.grad = torch.sparse_coo_tensor(
                rows.unsqueeze(0), d_rows, table.shape, is_coalesced=is_one, check_invariants=False
            )

    def begin(self) -> None:
        """From nothing; what was handed out may be written over."""
        self._reached: list[nn.Parameter] = []
        self._rows: list[tuple[Tensor, Tensor]] = []
        for gradient in self._gradients.values():
            gradient.zero_()

    def _hold(self) -> None:
        super()._hold()
        dense = zip(self._parameters[1:], self._held.moved[1:], strict=True)
        self._gradients: dict[Tensor, Tensor] = {
            p: torch.zeros_like(p, memory_format=torch.contiguous_format) for p, is_moved in dense if is_moved
        }
        hidden = self._encoder.hidden
        assert hidden is not None
        self._hidden: list[nn.Parameter] = list(hidden.parameters())
        self.begin()

    def _new_model(self, layout: HeadLayout) -> WindowModel:
        encoder = self._encoder
        assert encoder.hidden is not None
        linears = [encoder.hidden, *(self._heads.linear(name) for name in layout.names)]
        hidden, *heads = [
            (
                self._with_gradient(linear.weight),
                None if linear.bias is None else self._with_gradient(linear.bias),
            )
            for linear in linears
        ]
        rule = 0 if self._held.moved[0] else FROZEN
        table = Trained(encoder.table.detach(), RowState(), rule)
        frozen_rows = self._optimizer.frozen_rows(encoder.table)
        return gradient_model(table, encoder.rows_of_type, hidden, heads, layout, frozen_rows)

    def _with_gradient(self, parameter: Tensor) -> Gradient:
        return Gradient(parameter.detach(), self._gradients.get(parameter))

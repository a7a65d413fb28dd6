"""Gradients of a word encoder and its heads by one kernel call per batch, for steps that need the gradients.

A step of several batches, several processes, and clipping beside tasks on words do: they work on gradients between
the backward pass and the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from mt2st_fast.kernels import (
    EVERYTHING,
    FROZEN,
    ExtraGradients,
    Gradient,
    HeadLayout,
    Moves,
    RowState,
    TextStepModel,
    Trained,
    gradient_model,
    places_of,
    text_gradients,
)
from mt2st_fast.training.engines.kernel_calls.text_calls import Inputs, TextCalls, hidden_layer, words_of


class TextGradients(TextCalls):
    """Makes the gradients that autograd would make of encoder and heads, up to rounding: sums, then hands out."""

    def __call__(
        self,
        inputs: Inputs,
        targets: Mapping[str, Tensor],
        weights: Tensor,
        moves: Moves = EVERYTHING,
        *,
        extra: ExtraGradients | None = None,
        room: np.ndarray | None = None,
    ) -> Tensor:
        """Add the gradients of N rows; returns the losses (K,) of the active tasks, 0 for a task without a target here.

        extra: words whose vectors have gradients from elsewhere, which are added too. room: (n,) float32, where those
        of the table's rows go, if they fit.

        Raises what `text_step` and the heads raise.
        """
        words = words_of(inputs)
        batch = self._heads.batch(targets, torch.Size([words.n_rows]), weights, words.types.device)
        self._keep_rows()
        found = text_gradients(
            self._models.of(batch.layout, self._new_model),
            words,
            batch.targets,
            batch.weights,
            self._dropout(),
            moves,
            extra,
            room,
        )
        if moves.shared:
            self._reached += self._hidden
            if self.moves_table:
                self._rows.append((found.rows, found.d_rows))
        if moves.heads:
            self._reached += self._of_heads(batch.layout)
        return self._heads.over_active(found.losses, batch)

    def _of_heads(self, layout: HeadLayout) -> list[nn.Parameter]:
        """Return the parameters of some heads."""
        if layout.names not in self._head_parameters:
            self._head_parameters[layout.names] = [
                p for name in layout.names for p in self._heads.linear(name).parameters()
            ]
        return self._head_parameters[layout.names]

    def _keep_rows(self) -> None:
        """Copy the last gradients of rows, which the next call may overwrite."""
        if self._rows:
            rows, d_rows = self._rows[-1]
            self._rows[-1] = rows, d_rows.clone()

    def hand_out(self) -> None:
        """Put the sums since `begin` into `.grad` of every parameter that a batch has reached."""
        for parameter in dict.fromkeys(self._reached):
            parameter.grad = self._gradients.get(parameter)
        table = self.encoder.table
        if self._rows:
            is_one = len(self._rows) == 1
            rows, d_rows = self._rows[0] if is_one else map(torch.cat, zip(*self._rows, strict=True))
            table.grad = torch.sparse_coo_tensor(
                rows.long().unsqueeze(0),
                d_rows,
                table.shape,
                is_coalesced=is_one,
                device=table.device,
                check_invariants=False,
            )

    @property
    def moves_table(self) -> bool:
        """Whether the table has gradients."""
        return self._held.moved[0]

    @property
    def moved_dense(self) -> list[Tensor]:
        """The dense parameters that have gradients, in the order of these in `dense`."""
        return list(self._gradients)

    @property
    def n_dense(self) -> int:
        """How many these are."""
        return len(self._gradients)

    def present(self) -> bytes:
        """Return, for the table and each of `moved_dense`, whether a batch since `begin` has reached it."""
        reached = set(map(id, self._reached))
        return bytes([bool(self._rows), *[id(p) in reached for p in self._gradients]])

    def rows_so_far(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the table's rows (R,) int32 with a gradient from the only batch since `begin`, and gradients (R, D).

        Both stay until the next batch.
        """
        if not self._rows:
            return np.zeros(0, np.int32), np.zeros((0, self.encoder.table.shape[1]), np.float32)
        ((rows, d_rows),) = self._rows
        return rows.numpy(), d_rows.numpy()

    def let_go_of_rows(self) -> None:
        """Forget the gradients of rows, which may lie in memory of somebody else."""
        self._rows.clear()

    def begin(self) -> None:
        """Start from zero; gradients that were handed out may be overwritten."""
        self._reached: list[nn.Parameter] = []
        self._rows: list[tuple[Tensor, Tensor]] = []
        self.dense.zero_()

    def _hold(self) -> None:
        super()._hold()
        of_dense = zip(self._parameters[1:], self._held.moved[1:], strict=True)
        moved = [p for p, is_moved in of_dense if is_moved]
        starts, n_floats = places_of(moved)
        # The gradients of all dense parameters, each at its place (`places_of`).
        self.dense = torch.zeros(n_floats, dtype=torch.float32, device="cpu")
        self._gradients: dict[Tensor, Tensor] = {
            p: self.dense[start : start + p.numel()].view(p.shape)
            for p, start in zip(moved, starts, strict=True)
        }
        self._head_parameters: dict[tuple[str, ...], list[nn.Parameter]] = {}
        hidden = hidden_layer(self.encoder)
        self._hidden: list[nn.Parameter] = [] if hidden is None else list(hidden.parameters())
        self.begin()

    def _new_model(self, layout: HeadLayout) -> TextStepModel:
        table = Trained(self.encoder.table.detach(), RowState(), 0 if self.moves_table else FROZEN)
        return gradient_model(table, *self._beside_table(layout))

    def _dense(self, parameter: Tensor) -> Gradient:
        return Gradient(parameter.detach(), self._gradients.get(parameter))

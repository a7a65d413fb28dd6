"""The oracle of recurrent layers: their steps in plain torch, as torch.nn.GRU and torch.nn.LSTM define them."""

from __future__ import annotations

import torch
from torch import Tensor


def gru(
    inputs: Tensor,
    first: Tensor | None,
    weight_inputs: Tensor,
    weight_states: Tensor,
    bias_inputs: Tensor | None,
    bias_states: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the states (T, N, H) of all steps, and the last one (N, H). inputs: (T, N, F). first: (N, H) or zeros.

    weight_inputs: (3 H, F). weight_states: (3 H, H). bias_inputs, bias_states: (3 H,).
    """
    H = weight_states.shape[1]
    state = inputs.new_zeros(inputs.shape[1], H) if first is None else first
    states = []
    for given in torch.nn.functional.linear(inputs, weight_inputs, bias_inputs):
        own = torch.nn.functional.linear(state, weight_states, bias_states)
        reset = torch.sigmoid(given[:, :H] + own[:, :H])
        update = torch.sigmoid(given[:, H : 2 * H] + own[:, H : 2 * H])
        candidate = torch.tanh(given[:, 2 * H :] + reset * own[:, 2 * H :])
        state = candidate + update * (state - candidate)
        states.append(state)
    return torch.stack(states), state


def lstm(
    inputs: Tensor,
    first: Tensor | None,
    first_cell: Tensor | None,
    weight_inputs: Tensor,
    weight_states: Tensor,
    bias_inputs: Tensor | None,
    bias_states: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states (T, N, H) of all steps, and the last state and cell (N, H). Arguments: as for `gru`."""
    H = weight_states.shape[1]
    state = inputs.new_zeros(inputs.shape[1], H) if first is None else first
    cell = torch.zeros_like(state) if first_cell is None else first_cell
    states = []
    for given in torch.nn.functional.linear(inputs, weight_inputs, bias_inputs):
        own = given + torch.nn.functional.linear(state, weight_states, bias_states)
        taken, held, fresh, shown = own.chunk(4, dim=1)
        cell = torch.sigmoid(held) * cell + torch.sigmoid(taken) * torch.tanh(fresh)
        state = torch.sigmoid(shown) * torch.tanh(cell)
        states.append(state)
    return torch.stack(states), state, cell

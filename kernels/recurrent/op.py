"""Layers of torch.nn.GRU and torch.nn.LSTM over whole sequences as ops.

torch's own on a CPU are a dozen operators for each step of a sequence, and as many again in the backward pass: for
small batches nearly all of their time is spent between these. Here the steps of a layer are one kernel call, and what
does not depend on the step before it is a few products of large matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..machine.registry import REFERENCE
from . import reference
from .layer import OP, Cell, computed

GRU = Cell("gru", reference.gru, gates=3, states=1)
LSTM = Cell("lstm", reference.lstm, gates=4, states=2)


def recurrent_obstacle(backend: str = "auto") -> str | None:
    """Return why no kernel computes recurrent layers on a CPU, or None."""
    chosen = OP.choose("cpu", torch.float32, backend)
    return chosen.reason if chosen.name == REFERENCE else None


def gru(
    inputs: Tensor,
    first: Tensor | None,
    weight_inputs: Tensor,
    weight_states: Tensor,
    bias_inputs: Tensor | None,
    bias_states: Tensor | None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return the states (T, N, H) of all steps, and the last one (N, H).

    inputs: (T, N, F). first: (N, H); None: zeros. weight_inputs: (3 H, F). weight_states: (3 H, H). bias_inputs and
    bias_states: (3 H,), both or neither. With kernels all are float32 on a CPU. A second derivative is computed by
    torch's own operators.
    """
    given = inputs, first, weight_inputs, weight_states, bias_inputs, bias_states
    states, last = computed(GRU, given, backend)
    return states, last


def lstm(
    inputs: Tensor,
    first: Tensor | None,
    first_cell: Tensor | None,
    weight_inputs: Tensor,
    weight_states: Tensor,
    bias_inputs: Tensor | None,
    bias_states: Tensor | None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states (T, N, H) of all steps, and the last state and cell (N, H).

    inputs: (T, N, F). first, first_cell: (N, H), both or neither; None: zeros. weight_inputs: (4 H, F). weight_states:
    (4 H, H). bias_inputs and bias_states: (4 H,), both or neither. With kernels all are float32 on a CPU. A
    second derivative is computed by torch's own operators.
    """
    given = inputs, first, first_cell, weight_inputs, weight_states, bias_inputs, bias_states
    states, last, cell = computed(LSTM, given, backend)
    return states, last, cell

"""The end of a step of processes that share memory: each posts its gradients once, and all step by those of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.kernels import (
    EVERY_ROW,
    FROZEN,
    Decay,
    Dense,
    Piece,
    RowState,
    Share,
    SummedModel,
    Trained,
    shares_of_rows,
    summed_step,
    take_rows,
)
from mt2st_fast.training.batch import PlainBatch
from mt2st_fast.training.dense_rules import option_obstacle, rules_of, state_obstacle, state_of
from mt2st_fast.training.engines.engine import StepParts
from mt2st_fast.training.engines.held_parameters import group_of
from mt2st_fast.training.engines.text_gradients import TextGradients
from mt2st_fast.training.engines.word_gradients import split_by_words
from mt2st_fast.training.optim import RowSparseOptimizer
from mt2st_fast.training.processes.board import padded
from mt2st_fast.training.processes.shared_state import SharedState

COUNT_BYTES = 8  # of the number of rows, which begins a message


class Posted(NamedTuple):
    """One process's message: how many rows, which parameters have a gradient, losses (K,) and dense gradients (P,)."""

    n_rows: int
    present: bytes  # a byte for the table, then one for each dense parameter
    losses: np.ndarray
    dense: np.ndarray
    rest: np.ndarray  # bytes: the rows, and their gradients


class PostedSteps:
    """Takes the place of the sums of gradients and the optimizer's step, if all processes can take a step this way.

    No sum of gradients is stored: one kernel call reads the messages of all, in the order of the processes, and moves
    what they are for. So weights and states have the same bits in all.
    """

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts
        self._model: SummedModel | None = None
        self._made_for: Tensor | None = None
        self._group = 0  # of the table
        self._state: SharedState | None = None  # of the table, if it moves

    def can_take(self, gradients: TextGradients | None, micro_steps: list[list[PlainBatch]]) -> bool:
        """Return whether this process can take a step with these batches of its own so, if the others can."""
        parts = self._parts
        if gradients is None or not parts.processes.most_bytes:
            return False
        if parts.state.part != "all" or parts.options.clip_norm is not None or len(micro_steps) > 1:
            return False
        for batches in micro_steps:
            rows, on_words = split_by_words(parts.heads, batches)
            if len(rows) != 1 or on_words:
                return False
        if option_obstacle(parts.optimizer) is not None:
            return False
        if (
            self._made_for is not gradients.dense
        ):  # it is another one whenever something about parameters has changed
            self._model, self._made_for = self._new_model(gradients), gradients.dense
        return self._model is not None

    @property
    def shares_state(self) -> bool:
        """Whether this process holds one copy of the table's state with the others."""
        return self._state is not None and self._state.is_shared

    def _share(self, gradients: TextGradients, *, all_share: bool) -> Share:
        """Return the share of the rows that this process moves; begins to share the table's state, if that is worth it.

        all_share: whether all hold one copy of it.
        """
        processes, state = self._parts.processes, self._state
        if state is None or not state.is_wanted:
            return EVERY_ROW
        if not all_share:
            state.take_back()
            if not state.share():
                return EVERY_ROW
            self._model = self._new_model(gradients)
        return Share(processes.rank, processes.count)

    def __call__(self, gradients: TextGradients, losses_k: Tensor, *, all_share: bool) -> Tensor:
        """Take the step with the gradients since `begin`; returns the sums of the losses (K,) over all processes.

        all_share: whether `shares_state` in all of them.
        """
        share = self._share(gradients, all_share=all_share)
        assert self._model is not None
        rows, d_rows = gradients.rows_so_far()
        present = gradients.present()
        head = np.frombuffer(len(rows).to_bytes(COUNT_BYTES, "little") + present, np.uint8)
        whole = [head, losses_k.numpy(), gradients.dense.numpy(), rows, d_rows]
        found = self._exchanged(whole, len(present))
        optimizer = self._parts.optimizer
        rules, decays = rules_of(optimizer)
        of_table = gradients.encoder.table
        pieces = [self._piece(each, of_table.shape[1]) for each in found]
        moved = summed_step(
            self._model,
            [*rules, rules[self._group]],
            [*decays, Decay()],
            pieces,
            bytes(map(max, *(each.present for each in found))),
            share,
        )
        losses = found[0].losses.copy()
        for each in found[1:]:
            losses += each.losses
        if share.total > 1:
            self._take_rows(moved, share)
        return torch.from_numpy(losses)

    def _exchanged(self, whole: Sequence[np.ndarray], n_present: int) -> list[Posted]:
        """Return the messages of all; rows of any process that do not fit beside the rest follow in parts."""
        processes = self._parts.processes
        K, P = len(whole[1]), len(whole[2])
        if (messages := processes.gather_arrays(whole)) is not None:
            return [_posted(message, n_present, K, P) for message in messages]
        messages = processes.gather_arrays(whole[:3])
        assert messages is not None
        # As the next message may replace these.
        found = [_posted(message.copy(), n_present, K, P) for message in messages]
        D = whole[4].shape[1]

        def write(into: Tensor) -> None:
            bytes_of_rows, begin = into.numpy(), 0
            for each in whole[3:]:
                bytes_of_rows[begin : begin + each.nbytes] = each.reshape(-1).view(np.uint8)
                begin += padded(each.nbytes)

        lengths = [padded(4 * each.n_rows) + padded(4 * each.n_rows * D) for each in found]
        rest = processes.gather_written(write, lengths, torch.device("cpu"))
        return [each._replace(rest=own.numpy()) for each, own in zip(found, rest, strict=True)]

    def _take_rows(self, moved: np.ndarray, share: Share) -> None:
        """Exchange the rows that every process has moved (n, D)."""
        assert self._model is not None
        processes, D = self._parts.processes, moved.shape[1]
        messages = processes.gather_arrays([moved])
        if messages is None:
            lengths = [n * moved.itemsize * D for n in shares_of_rows(self._model)]

            def write(into: Tensor) -> None:
                into.numpy()[:] = moved.reshape(-1).view(np.uint8)

            found = processes.gather_written(write, lengths, torch.device("cpu"))
            messages = [message.numpy() for message in found]
        rows = [
            message[: n * moved.itemsize * D].view(np.float32).reshape(n, D)
            for n, message in zip(shares_of_rows(self._model), messages, strict=True)
        ]
        take_rows(self._model, rows, share)

    @staticmethod
    def _piece(posted: Posted, D: int) -> Piece:
        n, first = posted.n_rows, padded(4 * posted.n_rows)
        rows, d_rows = posted.rest[: 4 * n], posted.rest[first : first + 4 * n * D]
        return Piece(posted.dense, rows.view(np.int32), d_rows.view(np.float32).reshape(n, D))

    def _new_model(self, gradients: TextGradients) -> SummedModel | None:
        """Return None if something else trains than what has such gradients, or another rule moves it."""
        parts, optimizer = self._parts, self._parts.optimizer
        assert isinstance(optimizer, RowSparseOptimizer)
        table, dense, groups = gradients.encoder.table, gradients.moved_dense, group_of(optimizer)
        moves_table = gradients.moves_table
        moved = {id(p) for p in [*([table] if moves_table else []), *dense]}
        if moved != {id(p) for p in parts.trainable() if id(p) in groups}:
            return None
        sizes = COUNT_BYTES + 1 + len(dense), 4 * len(parts.heads.active), gradients.dense.nbytes
        if sum(map(padded, sizes)) > parts.processes.most_bytes:
            return None
        if state_obstacle(optimizer, dense) is not None:
            return None
        self._group = groups.get(id(table), 0)
        if moves_table and self._state is None:
            self._state = SharedState(parts.processes, optimizer, table)
        of_table = (
            Trained(table.detach(), optimizer.row_state(table), len(optimizer.param_groups))
            if moves_table
            else Trained(table.detach(), RowState(), FROZEN)
        )
        steps = optimizer.table_steps(table) if moves_table else None
        found = []
        for parameter in dense:
            state = state_of(optimizer, parameter)
            assert state is not None
            found.append(Dense(parameter.detach(), state[0], groups[id(parameter)], state[1]))
        return SummedModel(of_table, found, steps)


def _posted(message: np.ndarray, n_present: int, K: int, P: int) -> Posted:
    """Read a message of K losses and P dense gradients."""
    head = message[: COUNT_BYTES + n_present].tobytes()
    losses = padded(len(head))
    dense = losses + padded(4 * K)
    return Posted(
        int.from_bytes(head[:COUNT_BYTES], "little"),
        head[COUNT_BYTES:],
        message[losses : losses + 4 * K].view(np.float32),
        message[dense : dense + 4 * P].view(np.float32),
        message[dense + padded(4 * P) :],
    )

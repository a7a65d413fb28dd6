"""The end of a step of processes that share memory: each posts its gradients once, and all step by those of all."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.kernels import (
    EVERY_ROW,
    FROZEN,
    Decay,
    Piece,
    Share,
    SummedModel,
    shares_of_rows,
    summed_step,
    take_rows,
)
from mt2st_fast.training.engines.engine import StepParts
from mt2st_fast.training.engines.kernel_calls.text_gradients import TextGradients
from mt2st_fast.training.engines.kernel_calls.word_gradients import split_by_words
from mt2st_fast.training.inputs.batch import PlainBatch
from mt2st_fast.training.optimizers.dense_rules import (
    dense_of,
    option_obstacle,
    rules_of,
    state_obstacle,
    table_of,
)
from mt2st_fast.training.optimizers.row_sparse import RowSparseOptimizer
from mt2st_fast.training.optimizers.upkeep import group_of
from mt2st_fast.training.processes.board import padded
from mt2st_fast.training.processes.shared_state import SharedState

COUNT_BYTES = 8  # of the number of rows, which begins a message


class Told(IntFlag):
    """What a process tells the others of itself before a step."""

    CAN_POST = 1  # it can take the step by one message
    WOULD_SHARE = 2  # it would hold one copy of the table's state with the others
    SHARES = 4  # it does


class Posted(NamedTuple):
    """One process's message: how many rows, which parameters have a gradient, losses (K,) and dense gradients (P,).

    What comes before the gradients of rows has a length that is known before they are made: so a kernel can put them
    where the message goes.
    """

    n_rows: int
    present: bytes  # a byte for the table, then one for each dense parameter
    losses: np.ndarray
    dense: np.ndarray
    rest: np.ndarray  # bytes: the gradients of rows, and the rows


class PostedSteps:
    """Takes the place of the sums of gradients and the optimizer's step, if all processes can take a step this way.

    No sum of gradients is stored: one kernel call reads the messages of all, in the order of the processes, and moves
    what they are for. So weights and states have the same bits in all.
    """

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts
        self._model: SummedModel | None = None
        self._made_for: Tensor | None = None
        self._obstacle: str | None = None  # to the model
        self._group = 0  # of the table
        self._state: SharedState | None = None  # of the table, if it moves
        self._share_of_step = EVERY_ROW
        self._begin_for, self._begin_of_rows = (0, 0, 0), 0  # where rows begin in a message of such sizes

    def obstacle(self, gradients: TextGradients, micro_steps: list[list[PlainBatch]]) -> str | None:
        """Return why this process cannot take a step with these batches of its own so, or None."""
        parts = self._parts
        if parts.processes.without_memory:
            return parts.processes.without_memory
        if parts.state.part != "all":
            return "shared and task parameters take turns"
        if parts.options.clip_norm is not None:
            return "clip_norm needs the sums of gradients"
        if len(micro_steps) > 1:
            return "a step consists of several batches"
        for batches in micro_steps:
            rows, on_words = split_by_words(parts.heads, batches)
            if on_words:
                return "a step has a task on words"
            if len(rows) > 1:
                return "a step has the batches of several loaders"
        if (reason := option_obstacle(parts.optimizer)) is not None:
            return reason
        # It is another one whenever something about parameters has changed.
        if self._made_for is not gradients.dense:
            self._model, self._made_for = None, gradients.dense
            self._obstacle = self._found_obstacle(gradients)
            if self._obstacle is None:
                self._model = self._new_model(gradients)
        return self._obstacle

    def told(self) -> Told:
        """Return what this process tells the others, if it has no obstacle."""
        state, told = self._state, Told.CAN_POST
        if state is not None and state.obstacle is None:
            told |= Told.WOULD_SHARE
        if state is not None and state.is_shared:
            told |= Told.SHARES
        return told

    @property
    def sharing_obstacle(self) -> str | None:
        """Why this process would not hold one copy of the table's state with the others, or None."""
        return "the table is frozen" if self._state is None else self._state.obstacle

    def _share(self, told: Told) -> Share:
        """Return the share of the rows that this process moves; begins to share the table's state, if all would."""
        processes, state = self._parts.processes, self._state
        if state is None:
            return EVERY_ROW
        if Told.WOULD_SHARE not in told:
            state.take_back()
            return EVERY_ROW
        if Told.SHARES in told or state.share():
            return Share(processes.rank, processes.count)
        return EVERY_ROW

    def begin(self, gradients: TextGradients, told: Told) -> np.ndarray:
        """Begin a step that all can take so, before its gradients; return where those of rows go in the message.

        told: what all processes have told. No other message may come between.
        """
        self._share_of_step = self._share(told)
        key = gradients.n_dense, len(self._parts.heads.active), gradients.dense.nbytes
        if key != self._begin_for:
            sizes = COUNT_BYTES + 1 + key[0], 4 * key[1], key[2]
            self._begin_for, self._begin_of_rows = key, sum(map(padded, sizes))
        begin = self._begin_of_rows
        return self._parts.processes.room()[begin // 4 :]

    def __call__(self, gradients: TextGradients, losses_k: Tensor) -> Tensor:
        """Take the step with the gradients since `begin`; returns the sums of the losses (K,) over all processes."""
        share = self._share_of_step
        assert self._model is not None
        rows, d_rows = gradients.rows_so_far()
        present = gradients.present()
        head = np.frombuffer(len(rows).to_bytes(COUNT_BYTES, "little") + present, np.uint8)
        whole = [head, losses_k.numpy(), gradients.dense.numpy(), d_rows, rows]
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
            self._parts.processes.room() if share.total > 1 else None,
        )
        gradients.let_go_of_rows()
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
        # It may lie where the next messages go.
        rest = [whole[3].copy(), whole[4]]
        messages = processes.gather_arrays(whole[:3])
        assert messages is not None
        # As the next message may replace these.
        found = [_posted(message.copy(), n_present, K, P) for message in messages]
        D = whole[3].shape[1]

        def write(into: Tensor) -> None:
            bytes_of_rows, begin = into.numpy(), 0
            for each in rest:
                bytes_of_rows[begin : begin + each.nbytes] = each.reshape(-1).view(np.uint8)
                begin += padded(each.nbytes)

        lengths = [padded(4 * each.n_rows) + padded(4 * each.n_rows * D) for each in found]
        of_all = processes.gather_written(write, lengths, torch.device("cpu"))
        return [each._replace(rest=own.numpy()) for each, own in zip(found, of_all, strict=True)]

    def _take_rows(self, moved: np.ndarray, share: Share) -> None:
        """Exchange the rows that every process has moved (n, D)."""
        assert self._model is not None
        processes, D = self._parts.processes, moved.shape[1]
        messages, sizes = processes.gather_arrays([moved]), shares_of_rows(self._model)
        if messages is None:
            lengths = [n * moved.itemsize * D for n in sizes]

            def write(into: Tensor) -> None:
                into.numpy()[:] = moved.reshape(-1).view(np.uint8)

            found = processes.gather_written(write, lengths, torch.device("cpu"))
            messages = [message.numpy() for message in found]
        rows = [
            message[: n * moved.itemsize * D].view(np.float32).reshape(n, D)
            for n, message in zip(sizes, messages, strict=True)
        ]
        take_rows(self._model, rows, share)

    @staticmethod
    def _piece(posted: Posted, D: int) -> Piece:
        n, first = posted.n_rows, padded(4 * posted.n_rows * D)
        d_rows, rows = posted.rest[: 4 * n * D], posted.rest[first : first + 4 * n]
        return Piece(posted.dense, rows.view(np.int32), d_rows.view(np.float32).reshape(n, D))

    def _found_obstacle(self, gradients: TextGradients) -> str | None:
        parts, dense = self._parts, gradients.moved_dense
        moved = {id(p) for p in [*([gradients.encoder.table] if gradients.moves_table else []), *dense]}
        groups = group_of(parts.optimizer)
        if moved != {id(p) for p in parts.trainable() if id(p) in groups}:
            return "more trains than the table, the hidden layer and the heads"
        sizes = COUNT_BYTES + 1 + len(dense), 4 * len(parts.heads.active), gradients.dense.nbytes
        if sum(map(padded, sizes)) > parts.processes.most_bytes:
            return f"dense gradients of more than {parts.processes.most_bytes >> 20} MB take several messages"
        return state_obstacle(parts.optimizer, dense)

    def _new_model(self, gradients: TextGradients) -> SummedModel:
        optimizer, table, dense = self._parts.optimizer, gradients.encoder.table, gradients.moved_dense
        assert isinstance(optimizer, RowSparseOptimizer)
        groups, moves_table = group_of(optimizer), gradients.moves_table
        self._group = groups.get(id(table), 0)
        self._hold_state_of(table if moves_table else None)
        of_table = table_of(optimizer, table, len(optimizer.param_groups) if moves_table else FROZEN)
        steps = optimizer.table_steps(table) if moves_table else None
        return SummedModel(of_table, [dense_of(optimizer, p, groups[id(p)]) for p in dense], steps)

    def _hold_state_of(self, table: Tensor | None) -> None:
        """Let go of the state of a table that no longer moves."""
        if self._state is not None and self._state.table is not table:
            self._state.take_back()
            self._state = None
        if self._state is None and table is not None:
            assert isinstance(self._parts.optimizer, RowSparseOptimizer)
            self._state = SharedState(self._parts.processes, self._parts.optimizer, table)


def _posted(message: np.ndarray, n_present: int, K: int, P: int) -> Posted:
    """Read a message of K losses and P dense gradients."""
    head = message[: COUNT_BYTES + n_present].tobytes()
    losses = padded(len(head))
    dense = losses + padded(4 * K)
    rest = dense + padded(4 * P)
    numbers, first = message[losses:rest].view(np.float32), (dense - losses) // 4
    return Posted(
        int.from_bytes(head[:COUNT_BYTES], "little"),
        head[COUNT_BYTES:],
        numbers[:K],
        numbers[first : first + P],
        message[rest:],
    )

"""Steps by gradients in several pieces, against the sums and steps that they consist of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mt2st_fast.kernels import (
    EVERY_ROW,
    ROW_RULES,
    Decay,
    Dense,
    Piece,
    RowRule,
    RowState,
    Share,
    SummedModel,
    Trained,
    shares_of_rows,
    sum_pieces,
    summed_step,
    take_rows,
    update_rows,
)

V, RATE, DECAY = 500, 0.01, 0.1
RULES = [RowRule(ROW_RULES["adam"], RATE)] * 2


class Parts:
    """A table (V, D) with Adam's state, two dense parameters with AdamW's, and gradients in pieces."""

    def __init__(self, D: int, n_pieces: int) -> None:
        self.table = torch.randn(V, D)
        self.state = RowState(torch.zeros(V), torch.zeros(V, D), torch.zeros(V, D))
        self.steps = torch.zeros(())
        self.dense = [torch.randn(70, 130), torch.randn(70)]
        states = [RowState(torch.zeros(1), torch.zeros_like(p), torch.zeros_like(p)) for p in self.dense]
        dense = [Dense(p, state, 0, True) for p, state in zip(self.dense, states, strict=True)]
        self.model = SummedModel(Trained(self.table, self.state, 1), dense, self.steps)
        sizes = [0, 1, *torch.randint(50, 200, (n_pieces,)).tolist()][-n_pieces:]
        self.pieces = [
            Piece(
                torch.randn(self.model.n_floats).numpy(),
                torch.randperm(V)[:n].sort()[0].int().numpy(),
                torch.randn(n, D).numpy(),
            )
            for n in sizes
        ]

    def step(
        self, present: bytes = bytes([1, 1, 1]), share: Share = EVERY_ROW, room: np.ndarray | None = None
    ) -> np.ndarray:
        decays = [Decay(1 - RATE * DECAY), Decay()]
        return summed_step(self.model, RULES, decays, self.pieces, present, share, room)

    def sum_of_dense(self, n: int) -> torch.Tensor:
        start = self.model.starts[n]
        total = sum(torch.from_numpy(piece.dense.copy()) for piece in self.pieces)
        assert isinstance(total, torch.Tensor)
        return total[start : start + self.dense[n].numel()].view(self.dense[n].shape)

    def expected_table(self) -> tuple[torch.Tensor, RowState]:
        """The first step by the ops that a step consists of."""
        table, state = (
            self.table.clone(),
            RowState(*(part.clone() for part in self.state if part is not None)),
        )
        pieces = [(torch.from_numpy(p.rows), torch.from_numpy(p.d_rows)) for p in self.pieces]
        rows, sums = sum_pieces(pieces, V)
        gradient = torch.sparse_coo_tensor(
            rows.unsqueeze(0), sums, table.shape, is_coalesced=True, check_invariants=False
        )
        update_rows(RowRule(ROW_RULES["adam"], RATE, table_steps=1.0), table, gradient, state)
        return table, state


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


@pytest.mark.parametrize("D", [1, 7, 16, 40, 64])
@pytest.mark.parametrize("n_pieces", [1, 2, 3])
def test_rows_move_as_by_their_sums_and_dense_parameters_as_by_torch(D: int, n_pieces: int) -> None:
    parts = Parts(D, n_pieces)
    table, state = parts.expected_table()
    dense = [parameter.clone().requires_grad_() for parameter in parts.dense]
    optimizer = torch.optim.AdamW(dense, lr=RATE, weight_decay=DECAY)
    for n, parameter in enumerate(dense):
        parameter.grad = parts.sum_of_dense(n)
    optimizer.step()
    parts.step()
    assert torch.equal(parts.table, table)
    for own, expected in zip(parts.state, state, strict=True):
        assert torch.equal(own, expected)  # type: ignore[arg-type]
    for own, expected in zip(parts.dense, dense, strict=True):
        torch.testing.assert_close(own, expected.detach(), rtol=1e-6, atol=1e-6)
    assert parts.steps == 1


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n_pieces", [2, 3])
def test_shares_together_move_what_one_step_moves(n_pieces: int, threads: int) -> None:
    whole = Parts(24, n_pieces)
    shares = [Share(number, n_pieces) for number in range(n_pieces)]
    each: list[Any] = []
    for _ in shares:
        torch.manual_seed(3)
        each.append(Parts(24, n_pieces))
    for other in each[1:]:  # one state for all, as processes of one machine share it
        other.model.table = other.model.table._replace(state=each[0].state)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(3):
            whole.step()
            moved = [parts.step(share=share).copy() for parts, share in zip(each, shares, strict=True)]
            assert [len(rows) for rows in moved] == shares_of_rows(each[0].model)
            assert all(len(rows) for rows in moved)
            for parts, share in zip(each, shares, strict=True):
                take_rows(parts.model, moved, share)
    finally:
        torch.set_num_threads(before)
    for parts in each:
        assert torch.equal(parts.table, whole.table)
        assert all(map(torch.equal, parts.dense, whole.dense))
    assert all(map(torch.equal, each[0].state, whole.state))


@pytest.mark.parametrize("missing", [0, 1])
def test_moved_rows_lie_in_the_room_that_is_given_if_they_fit(missing: int) -> None:
    share, parts = Share(1, 2), Parts(24, 2)
    expected = parts.step(share=share).copy()
    torch.manual_seed(3)
    parts, room = Parts(24, 2), np.full(expected.size - missing + 9, -7, np.float32)
    moved = parts.step(share=share, room=room[:-9])
    np.testing.assert_array_equal(moved, expected)
    assert np.may_share_memory(moved, room) == (not missing)
    assert (room[expected.size :] == -7).all()
    assert (room == -7).all() == bool(missing)


def test_what_has_no_gradient_in_any_piece_is_not_moved() -> None:
    parts = Parts(8, 2)
    before = [parts.table.clone(), *(parameter.clone() for parameter in parts.dense)]
    parts.step(bytes([0, 0, 1]))
    assert torch.equal(parts.table, before[0])
    assert torch.equal(parts.dense[0], before[1])
    assert not torch.equal(parts.dense[1], before[2])
    assert parts.steps == 0


def test_pieces_that_do_not_fit_are_refused() -> None:
    parts = Parts(8, 2)
    first = parts.pieces[0]
    for wrong, said in (
        (first._replace(dense=first.dense[1:]), "a piece has gradients"),
        (first._replace(d_rows=first.d_rows[:, 1:]), "a piece has gradients"),
        (first._replace(rows=first.rows.astype(np.int64)), "must be float32, and its rows int32"),
    ):
        parts.pieces[0] = wrong
        with pytest.raises(ValueError, match=said):
            parts.step()
    parts.pieces[0] = first
    moved = parts.step(share=Share(0, 2))
    with pytest.raises(ValueError, match="do not fit the shares of the last step"):
        take_rows(parts.model, [moved, moved[:0]], Share(0, 2))

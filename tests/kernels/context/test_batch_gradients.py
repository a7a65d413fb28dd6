"""Gradients of batches in one call: those of autograd through the means of rows and the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mt2st_fast.kernels.context.batch import SPLIT_WORDS, draw_batch, local_words, stream_key, word_sampler
from mt2st_fast.kernels.context.batch_gradients import GradientsOfBatches, gradients_obstacle
from mt2st_fast.kernels.context.reference import reference_loss

T, V, M = 90, 130, 3


def batch_of(n, mode="skipgram", *, seed=0, window=3, shared=8):
    tokens = np.random.default_rng(seed).integers(0, T, n).astype(np.int32)
    sampler = word_sampler(np.bincount(tokens, minlength=T), 0)
    drawn = draw_batch(
        tokens,
        np.array([*range(0, n, 25), n]),
        0,
        n,
        sampler,
        stream_key(3, seed),
        mode=mode,
        window=window,
        shared=shared,
    )
    return local_words(drawn)


def tables(D):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-1, V, (T + 1, M), generator=generator, dtype=torch.int32)
    rows[7] = -1  # a type without rows has the zero vector
    table, outputs = (torch.randn(n, D, generator=generator) / 3 for n in (V, T))
    return table, rows, outputs


def wanted(batch, weight, table, rows, outputs):
    """Loss and gradients by autograd, in float64."""
    types = batch.types
    if rows is None:
        vectors = table.double()[types[: batch.n_kept]]
    else:
        of_type = rows.long()[types[: batch.n_kept]]
        there = (of_type >= 0).unsqueeze(2).double()
        vectors = (table.double()[of_type] * there).sum(1) / there.sum(1).clamp(min=1)
    vectors, out = vectors.requires_grad_(), outputs.double()[types].requires_grad_()
    loss = reference_loss(vectors, out, batch)
    (weight * loss).backward()
    return loss.item(), vectors.grad, out.grad


@pytest.mark.parametrize("D", [5, 16, 24, 64, 100])
@pytest.mark.parametrize(
    ("n", "mode"), [(1, "skipgram"), (70, "skipgram"), (70, "cbow"), (2 * SPLIT_WORDS, "skipgram")]
)
@pytest.mark.parametrize("with_rows", [True, False])
def test_they_are_those_of_autograd(D, n, mode, with_rows):
    table, rows, outputs = tables(D)
    batch, rows = batch_of(n, mode), rows if with_rows else None
    loss, d_inputs, d_outputs = wanted(batch, 0.7, table, rows, outputs)
    found = GradientsOfBatches()(batch, 0.7, table, rows, outputs)
    assert found.loss == pytest.approx(loss, rel=1e-5, abs=1e-7)
    torch.testing.assert_close(found.d_inputs.double(), d_inputs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.d_outputs.double(), d_outputs, rtol=1e-4, atol=1e-6)


def test_memory_is_kept_and_grows():
    table, rows, outputs = tables(24)
    gradients = GradientsOfBatches()
    for n, window, shared in [(100, 3, 8), (30, 3, 8), (400, 3, 8), (30, 5, 16), (30, 3, 8)]:
        batch = batch_of(n, window=window, shared=shared)
        alone = GradientsOfBatches()(batch, 1.0, table, rows, outputs)
        found = gradients(batch, 1.0, table, rows, outputs)
        assert found.loss == alone.loss
        assert torch.equal(found.d_inputs, alone.d_inputs)
        assert torch.equal(found.d_outputs, alone.d_outputs)


def test_the_same_bits_on_any_number_of_threads():
    table, rows, outputs = tables(64)
    batch, found = batch_of(3 * SPLIT_WORDS), []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(GradientsOfBatches()(batch, 1.0, table, rows, outputs))
    torch.set_num_threads(before)
    assert found[0].loss == found[1].loss
    assert torch.equal(found[0].d_inputs, found[1].d_inputs)
    assert torch.equal(found[0].d_outputs, found[1].d_outputs)


@pytest.mark.parametrize("wrong", [-1, T])
def test_a_type_that_there_is_not_is_refused(wrong):
    table, rows, outputs = tables(24)
    batch = batch_of(50)
    batch.types[4] = wrong
    with pytest.raises(ValueError, match=f"word type {wrong}; valid are 0 to {T - 1}"):
        GradientsOfBatches()(batch, 1.0, table, rows, outputs)


def test_tables_that_it_cannot_read():
    table, _, outputs = tables(24)
    assert gradients_obstacle(table, outputs) is None
    assert gradients_obstacle(table, outputs[:, :8].contiguous()) is not None
    assert gradients_obstacle(table.T.contiguous().T, outputs) is not None
    assert gradients_obstacle(table, outputs, "reference") is not None

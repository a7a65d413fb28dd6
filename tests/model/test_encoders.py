"""Text encoders against the mean of rows computed by hand."""

from __future__ import annotations

import pytest
import torch

from mt2st_fast import BagEncoder, WindowEncoder

BAGS = torch.tensor([0, 2])
ROWS = torch.tensor([[1, 4], [2, 0], [3, 5]])  # three types: own row and one subword row, 0 = padding


def subwords(encoder, *args, **options):
    torch.manual_seed(0)
    return encoder(3, *args, rows_of_type=ROWS, num_rows=6, **options)


def test_window_vectors_are_means_of_rows_side_by_side():
    encoder = subwords(WindowEncoder, 4, window=1, hidden=None)
    t = encoder.table
    expected = torch.cat([torch.zeros(4), (t[1] + t[4]) / 2, t[2]])
    assert encoder.out_features == 12
    torch.testing.assert_close(encoder(torch.tensor([[-1, 0, 1]], dtype=torch.int32))[0], expected)


def test_a_hidden_layer_follows_the_window():
    encoder = subwords(WindowEncoder, 4, window=2, hidden=7)
    features = encoder(torch.tensor([[-1, 0, 1, 2, -1]]))
    assert features.shape == (1, encoder.out_features) == (1, 7)
    assert (features >= 0).all()


@pytest.mark.parametrize("mode", ["mean", "sum"])
def test_bags_are_pooled_and_empty_ones_are_zero(mode):
    encoder = subwords(BagEncoder, 4, mode=mode)
    types, offsets = torch.tensor([0, 1, 2, 2], dtype=torch.int32), torch.tensor([0, 3, 3, 4])
    v = encoder.vectors()
    first = v[[0, 1, 2]].mean(0) if mode == "mean" else v[[0, 1, 2]].sum(0)
    torch.testing.assert_close(encoder((types, offsets)), torch.stack([first, torch.zeros(4), v[2]]))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_it_is_asked_in_inference_mode(backend):
    encoder = subwords(BagEncoder, 4, backend=backend)
    bags = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 3, 4])
    with torch.inference_mode():
        found = encoder(bags)
        made_there = subwords(BagEncoder, 4, backend=backend)(bags)
    assert torch.equal(found, encoder(bags))
    assert torch.equal(made_there, found)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("M", [1, 2])
def test_in_the_mean_of_a_bag_a_word_without_rows_counts_and_none_does_not(M, compiled):
    rows = torch.tensor([[0], [1], [2]]).expand(3, M)  # the first word has only padding
    encoder = BagEncoder(3, 4, mode="mean", rows_of_type=rows, num_rows=3)
    bags = torch.tensor([1, 2, -1, 1, 2, 0]), torch.tensor([0, 3, 6])
    # Traced without making kernels: what counts is which path is taken.
    found = (torch.compile(encoder, backend="eager", fullgraph=True) if compiled else encoder)(bags)
    of_both = encoder.table[1] + encoder.table[2]
    torch.testing.assert_close(found, torch.stack([of_both / 2, of_both / 3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_batch_without_any_word_is_zeros_with_a_gradient_of_zeros(dtype, sparse):
    encoder = subwords(WindowEncoder, 4, window=1, hidden=None, sparse=sparse).to(dtype)
    found = encoder(torch.full((2, 3), -1))
    assert torch.equal(found, torch.zeros(2, 12, dtype=dtype))
    found.sum().backward()
    assert not encoder.table.grad.to_dense().any()


def test_padding_stays_zero_and_gets_no_gradient():
    encoder = subwords(WindowEncoder, 4, window=1, hidden=None)
    encoder(torch.tensor([[-1, 1, 1]])).sum().backward()
    assert (encoder.table[0] == 0).all()
    assert encoder.table.grad[0].eq(0).all()
    assert encoder.table.grad[2].eq(2).all()


def test_without_subwords_every_type_has_a_row():
    encoder = WindowEncoder(5, 3, window=0, hidden=None)
    assert encoder.table.shape == (5, 3)
    torch.testing.assert_close(encoder.vectors(), encoder.table.detach())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WindowEncoder(3, 4, rows_of_type=ROWS), "rows_of_type requires num_rows"),
        (lambda: WindowEncoder(2, 4, rows_of_type=ROWS, num_rows=6), r"must be \(T, M\) = \(2, M\)"),
        (lambda: WindowEncoder(3, 4, rows_of_type=ROWS, num_rows=5), "outside the table's 5 rows"),
        (lambda: WindowEncoder(3, 4)(torch.zeros(2, 4, dtype=torch.int32)), r"inputs must be \(N, 5\)"),
        (lambda: WindowEncoder(3, 4)((BAGS, BAGS)), r"inputs must be \(N, 5\) word types, not a tuple"),
        # Of two rows, it would come apart into types and offsets.
        (lambda: BagEncoder(3, 4)(torch.tensor([[0, 1, 2], [0, 1, 3]])), r"pair .*, not one tensor \(2, 3\)"),
        (lambda: BagEncoder(3, 4)(torch.zeros(9, 3).int()), r"pair .*, not one tensor \(9, 3\); .*flatten"),
        (lambda: BagEncoder(3, 4)((BAGS,)), "pair of types and offsets, not 1 parts"),
        (lambda: BagEncoder(3, 4)({"types": BAGS}), "pair of types and offsets, not a dict"),
        (lambda: BagEncoder(3, 4, mode="max"), "mode must be mean or sum, not max"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

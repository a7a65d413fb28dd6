"""Wide heads of the chunked plan in the interpreter: as accurate as torch, the same bits, aligned products."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from mt2st_fast.kernels.heads.on_triton import chunked, column_sums
from tests.kernels.heads.interpreted_heads import (
    CHANGES_NOTHING,
    KEPT,
    PROMISING,
    RESULTS,
    assert_result_is_as_accurate_as_torchs,
)
from tests.kernels.interpreter import run_shares

CASES = (
    "between",
    "between-float16",
    "one-block",
    "two-rows",
    "copied",
    "chunks",
    "chunks-float16",
    "no-bias",
    "values",
    "values-last",
    "nothing-valid",
    "many",
    "tail-1",
    "tail-7",
)


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Everything that the workers store, computed once."""
    folder = tmp_path_factory.mktemp("interpreter")
    return run_shares("tests.kernels.heads.interpret_wide_heads", folder, [("first",), ("second",)])


@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("case", CASES)
def test_it_is_as_accurate_as_torch(computed, case, result):
    assert_result_is_as_accurate_as_torchs(computed, case, result)


@pytest.mark.parametrize("what", KEPT)
@pytest.mark.parametrize("case", CASES)
def test_it_keeps_what_a_plan_promises(computed, case, what):
    assert computed[f"{case}/{what}"]


@pytest.mark.parametrize("what", CHANGES_NOTHING)
@pytest.mark.parametrize("case", sorted(PROMISING & set(CASES)))
def test_what_nobody_needs_changes_nothing_of_the_rest(computed, case, what):
    assert computed[f"{case}/{what}"]


def test_class_outside_the_head_makes_its_loss_nan_and_no_other(computed):
    losses = computed["outside/losses"]
    assert np.isnan(losses[0])
    np.testing.assert_allclose(losses[1], computed["outside/of-second"], rtol=1e-6)
    np.testing.assert_allclose(
        computed["outside/d_features"], computed["outside/true-d_features"], rtol=1e-5, atol=1e-6
    )
    assert np.isfinite(computed["outside/d_weight"]).all()


@pytest.mark.parametrize("columns", [32, 256])
@pytest.mark.parametrize("where", ["first", "inner", "edge", "tie"])
def test_infinite_logits_and_maxima_anywhere(computed, where, columns):
    case = f"infinite-{where}-{columns}"
    ours, true, total = computed[f"{case}/losses"]
    np.testing.assert_allclose([ours, total], true, rtol=1e-6)
    assert computed[f"{case}/correct"] == 1, "the first maximum alone counts"
    ours, true = computed[f"{case}/d_bias"]
    np.testing.assert_allclose(ours, true, rtol=1e-5, atol=1e-7)
    assert (ours[20:35] == 0).all()


@pytest.mark.parametrize("columns", [32, 256])
def test_logits_beyond_the_range_of_exp(computed, columns):
    ours, true = computed[f"large-{columns}/losses"]
    np.testing.assert_allclose(ours, true, rtol=1e-6)
    assert computed[f"large-{columns}/finite"]


@pytest.mark.parametrize("chunks", ["one", "two"])
def test_parameters_of_another_dtype_get_gradients_in_theirs(computed, chunks):
    assert computed[f"autocast-{chunks}/dtypes"]
    # A rounding of the logits, of their gradient and of what is handed out.
    assert (computed[f"autocast-{chunks}/errors"] < 3 * 2.0**-11).all()


# Counting, scales, zeroed sums, the weight's padding, GEMMs (three, and two of the last rows where they alone are
# padded), two loss kernels, the bias, means, and one look at the upstream gradient for all gradients. A test's few rows
# are one part of the bias: of more, a second launch adds the parts.
@pytest.mark.parametrize(("case", "most"), [("vocabulary", 16), ("classes", 13)])
def test_launches_of_a_call(computed, case, most):
    names = computed[f"launches/{case}"].tolist()
    assert len(names) <= most, names
    assert names.count("wide_softmax_kernel") == names.count("row_loss_kernel") == 1


def test_columns_are_summed(computed):
    ours, truth = computed["column-sums/ours"], computed["column-sums/truth"]
    np.testing.assert_allclose(ours, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("matrix", [torch.zeros(4, 24), torch.zeros(4, 32)[:, :20], torch.zeros(32, 4).t()])
def test_columns_that_do_not_lie_aligned_are_refused(matrix):
    with pytest.raises(ValueError, match="at multiples of 16"):
        column_sums.column_sums(matrix)


@pytest.mark.parametrize("S", range(152, 160))
def test_of_a_large_weight_only_the_last_rows_are_copied(monkeypatch, S):
    monkeypatch.setattr(chunked, "COPIED_BYTES", 0)
    weight = torch.randn(S, 6)
    n_columns = chunked.padded_width(S)
    pieces = chunked.weight_pieces(weight, torch.float32, n_columns)
    assert all(piece.columns.start % 8 == piece.columns.stop % 8 == 0 for piece in pieces)
    padded = torch.full((n_columns, 6), torch.nan)
    for piece in pieces:
        padded[piece.columns] = piece.weight
    assert torch.equal(padded[:S], weight)
    assert (padded[S:] == 0).all()
    assert pieces[-1].weight.data_ptr() == weight.data_ptr(), "no copy"
    assert len(pieces) == (1 if S % 8 == 0 else 2)


def test_a_vocabulary_is_one_chunk_within_four_gigabytes():
    N, D, S, itemsize = 8192, 4096, 151_969, 2
    stride = -(-S // chunked.STRIDE) * chunked.STRIDE
    assert chunked.chunk_rows(N, stride, itemsize) == N
    assert itemsize * (N * stride + chunked.padded_width(S) * D + N * D) < 3.9e9

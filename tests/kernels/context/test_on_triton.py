"""The Triton kernels of context prediction in the interpreter: as accurate as torch, the same bits."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton")

from mt2st_fast.kernels.context.batch import TILE
from mt2st_fast.kernels.context.on_triton import context as triton_context
from tests.kernels.interpreter import run_shares

MODES = ("skipgram", "cbow")
SHARES = [("skipgram",), ("cbow", "sums")]
CASES = ("ragged", "few words", "one tile", "many negatives", "wide window", "no pairs", "large")
# What our error may exceed torch's by, relative to the norm: a few roundings of a float32 sum in another order.
MARGIN = 5e-7


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Everything that the workers store, computed once: the interpreter takes a minute, so two share it."""
    return run_shares(
        "tests.kernels.context.interpreter_worker", tmp_path_factory.mktemp("interpreter"), SHARES
    )


@pytest.mark.parametrize("result", ["loss", "d_inputs", "d_outputs"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradients_are_as_accurate_as_torch(computed, mode, case, result):
    ours, by_torch, truth = (
        computed[f"{mode}/{case}/{result}/{kind}"] for kind in ("ours", "torch", "truth")
    )
    assert ours.shape == truth.shape
    scale = np.linalg.norm(truth)
    assert scale > 0 or case == "no pairs"
    error, torch_error = np.linalg.norm(ours - truth), np.linalg.norm(by_torch - truth)
    # Written so that a NaN of ours fails.
    assert error <= 1.5 * torch_error + MARGIN * scale, (
        f"{error / scale:.3g}, torch's {torch_error / scale:.3g}"
    )


@pytest.mark.parametrize("case", CASES[:-1])
@pytest.mark.parametrize("mode", MODES)
def test_three_runs_give_the_same_bits_and_write_to_no_argument(computed, mode, case):
    assert computed[f"{mode}/{case}/same-bits"]


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_without_words_has_no_loss(computed, mode):
    assert computed[f"{mode}/empty"]


def test_sums_by_row_know_rows_without_a_gradient_and_gradients_without_a_row(computed):
    assert computed["sums"]


@pytest.mark.parametrize("D", [1, 37, 100, 300, 1024])
@pytest.mark.parametrize("M", [8, 16, 24, 64, 128])
@pytest.mark.parametrize("window", [1, 5, 8, 9, 24])
def test_blocks_hold_a_tile_and_are_what_a_product_takes(D, M, window):
    blocks = triton_context.choose_blocks(D, M, window)
    assert blocks.around >= TILE + 2 * window
    assert blocks.negatives >= M
    for size in blocks[:3]:
        assert size >= 16
        assert size & (size - 1) == 0

"""The Triton embedding kernels in the interpreter: as accurate as torch, the same bits, nothing outside the table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from mt2st_fast.kernels import ROW_RULES, choose_embedding_backend
from mt2st_fast.kernels.bags.on_triton import bags as triton_embedding
from mt2st_fast.kernels.bags.on_triton import blocks as triton_blocks
from tests.kernels.interpreter import assert_as_accurate_as_torch, run_shares

CASES = ("1", "5-float16", "37-blocks", "37-blocks-float16", "100", "100-blocks", "5-hot")
STEPPED = ("1", "5-float16", "37-blocks", "100")
RULES = {
    name: [*(["per_row"] if kind.per_row else []), *("first", "second")[: len(kind.tables)]]
    for name, kind in ROW_RULES.items()
}

# What our largest error may exceed torch's by, relative to the largest true value: a few roundings of a float32
# sum in another order; one rounding of the largest value to float16.
MARGIN = {"float32": 5e-7, "float16": 2.0**-11}


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Everything that the workers store, computed once: the interpreter takes minutes, so two share them."""
    folder = tmp_path_factory.mktemp("interpreter")
    return run_shares("tests.kernels.bags.interpreter_worker", folder, [("0", "2"), ("1", "2")])


def margin_of(case: str) -> float:
    return MARGIN["float16" if case.endswith("float16") else "float32"]


@pytest.mark.parametrize("result", ["bags", "gradient"])
@pytest.mark.parametrize("case", CASES)
def test_bags_and_gradients_are_as_accurate_as_torch(computed, case, result):
    assert_as_accurate_as_torch(computed, f"{case}/{result}", margin_of(case))


@pytest.mark.parametrize("case", CASES)
def test_four_runs_give_the_same_bits_sparse_or_dense_and_write_to_no_argument(computed, case):
    assert computed[f"{case}/same-bits"]


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_holds_each_row_of_the_batch_once(computed, case):
    assert computed[f"{case}/form"]


@pytest.mark.parametrize("fused", ["fused", "unfused"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", STEPPED)
def test_three_steps_are_as_accurate_as_torch(computed, case, rule, fused):
    for result in ("table", "steps", *RULES[rule]):
        # States are float32, of float16 gradients.
        assert_as_accurate_as_torch(computed, f"{case}/{rule}/{result}", margin_of(case), fused)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", STEPPED)
def test_a_step_gives_the_same_bits_fused_or_not_and_touches_only_the_rows_of_the_batch(computed, case, rule):
    assert computed[f"{case}/{rule}/same-bits"]
    assert computed[f"{case}/{rule}/untouched"]


def test_repeated_rows_of_a_gradient_are_added_up_before_a_step(computed):
    assert computed["repeated"]


def test_ids_outside_the_table_and_positions_outside_the_bags_count_as_none(computed):
    assert computed["outside"]
    assert computed["no-bag"]
    assert computed["wrapped"]


def test_starts_past_the_ids_read_nothing(computed):
    assert computed["beyond"]


def test_an_update_counts_itself_once_with_or_without_rows_and_pieces(computed):
    assert computed["counted"].tolist() == [41.0] * 3


@pytest.mark.parametrize("case", ["no-ids", "all-none", "no-bags"])
def test_batches_without_rows_are_zeros_and_step_nothing(computed, case):
    assert computed[case]


@pytest.mark.parametrize("largest", [0, 70_000, 2**31 - 2])
def test_unique_ids_and_back(computed, largest):
    assert computed[f"unique/{largest}"]


@pytest.mark.parametrize("kernel", ["pool", "update"])
def test_rows_past_two_billion_elements_are_reached(computed, kernel):
    assert computed[f"long-table/{kernel}"]


def test_a_table_on_a_cpu_is_refused_without_the_interpreter():
    with pytest.raises(RuntimeError, match="backend=triton cannot be honoured: it runs on cuda"):
        choose_embedding_backend(torch.device("cpu"), "triton")


def test_a_strided_table_is_not_stepped():
    from mt2st_fast.kernels import RowRule, RowState

    table = torch.zeros(4, 6)[:, ::2]
    with pytest.raises(ValueError, match="must be contiguous"):
        triton_embedding.update_rows(
            RowRule(ROW_RULES["sgd"], 0.1), table, torch.tensor([1]), torch.zeros(1, 3), RowState()
        )


@pytest.mark.parametrize("D", [1, 16, 37, 100, 128, 300, 1024, 5000])
@pytest.mark.parametrize("most", [triton_blocks.SHARED_COLUMNS, triton_blocks.WHOLE_COLUMNS])
def test_every_thread_of_a_block_has_columns(D, most):
    """A grid of columns within CUDA's limit, and no more than 16 sums a thread."""
    blocks = triton_blocks.choose_blocks(D, most)
    assert blocks.columns >= min(D, most)
    assert blocks.columns & (blocks.columns - 1) == 0
    assert blocks.warps == 1 or blocks.columns == 128 * blocks.warps
    assert blocks.columns * blocks.rows <= 16 * 32 * blocks.warps

"""How much a GPU is told to do in a call of the fused heads and in a whole step of the tagger."""

from __future__ import annotations

import json
from collections import Counter

import pytest

pytest.importorskip("triton")

from tests.kernels.interpreter import run_interpreted


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Names of all launches, by case; counted by a process whose Triton interprets."""
    out = tmp_path_factory.mktemp("launches") / "found.json"
    run_interpreted("tests.training.interpret_steps", str(out))
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    ("case", "most"),
    [
        ("5 small heads", 4),
        ("8 heads, S=256", 7),
        ("tagger", 25),
        ("tagger, after the switch", 21),
        ("tagger, shared turn", 23),
        ("tagger, task turn", 14),
    ],
)
def test_no_more_launches_than(launches, case, most):
    assert len(launches[case]) <= most, launches[case]


def test_kernels_are_ours_and_heads_are_not_concatenated(launches):
    for names in launches.values():
        assert "aten::cat" not in names
        assert names.count("mean_kernel") == 1
    assert "tile_forward_kernel" in launches["5 small heads"]
    assert "row_loss_kernel" in launches["tagger"]
    assert "update_kernel" in launches["tagger"], "the row update is in the backward pass"


ENCODER_BACKWARD = (
    "aten::threshold_backward",
    "aten::native_dropout_backward",
    "rank_kernel",
    "merge_kernel",
    "piece_kernel",
    "update_kernel",
)


def test_a_shared_turn_leaves_out_the_weight_gradient_of_heads_and_nothing_else(launches):
    left_out = Counter(launches["tagger"]) - Counter(launches["tagger, shared turn"])
    assert left_out == {"aten::mm": 1, "weight_gradient_kernel": 1}
    assert not Counter(launches["tagger, shared turn"]) - Counter(launches["tagger"])


def test_a_task_turn_has_no_backward_pass_of_the_encoder(launches):
    names = launches["tagger, task turn"]
    assert not set(names) & set(ENCODER_BACKWARD)
    assert set(ENCODER_BACKWARD) < set(launches["tagger"])
    # Logits and the heads' weight gradient: neither the features' gradient, nor those of the hidden layer.
    assert names.count("aten::mm") == 2
    assert launches["tagger"].count("aten::mm") == 5

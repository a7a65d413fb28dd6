"""Two processes learn what one learns from the same batches, and both the same to the bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.processes import runs
from tests.training.processes.together import run_together

DIVIDED = [
    "of_a_list",
    "clipped_and_accumulated",
    "with_moments",
    "evaluated",
    "adaptive",
    "windows",
    "bags",
    "with_similarity",
    "with_own_labels",
    "in_turns",
]
DIVIDED += ["learnt_weights", "tables_of_torch", "halves", "doubles", "scaled"]
OWN = ["own_parts", "stopped_by_one", "uncounted"]
OTHERS = ["alike", "unrecorded", "distributed_sampler", "stopped_then_resumed", "left_for_others"]
# Sums are made in another order: float32 and some dozen steps.
RTOL, ATOL = 1e-5, 1e-5
# Half types round what is added up.
COARSE = {"halves": 0.03, "scaled": 0.01}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Any]]]:
    folder = tmp_path_factory.mktemp("two")
    runs.left_for_others(folder)  # by one process, for two
    return folder, run_together("runs", [*DIVIDED, *OWN, *OTHERS, "taken_over"], folder)


def test_data_that_is_the_same_in_all_is_told_of(of_two: Any) -> None:
    first, second = of_two[1]["alike"]
    assert [message.startswith("all 2 processes begin with the same rows") for message in first["same"]] == [
        True
    ]
    assert not first["other"]
    assert not second["same"] + second["other"]


def assert_bits(one: Any, other: Any) -> None:
    for name, value in one["weights"].items():
        assert torch.equal(value, other["weights"][name]), name
    assert len(one["moments"]) == len(other["moments"])
    for ours, theirs in zip(one["moments"], other["moments"], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(moment, theirs[name]) for name, moment in ours.items())


def plain(history: dict[str, Any]) -> dict[str, Any]:
    """Without what was measured in seconds, and how it was computed."""
    history = copy.deepcopy(history)
    for record in (*history["steps"], *history["evaluations"]):
        del record["train_seconds"]
        record.pop("step_ms", None)
    for selection in history["selections"]:
        del selection["seconds"]
    for phase in history["phases"]:
        for name in ("engine", "passed_over", "graph", "reasons"):
            phase.pop(name)
    return history


def assert_close(one: Any, other: Any, where: str = "", coarse: float = 0.0) -> None:
    """coarse: the error allowed beside RTOL and ATOL."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_close(one[name], other[name], f"{where}/{name}", coarse)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_close(a, b, f"{where}/{i}", coarse)
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=RTOL, abs=ATOL + coarse, nan_ok=True), where
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(
            other, one, rtol=RTOL, atol=ATOL + coarse, msg=lambda text: f"{where}: {text}"
        )
    else:
        assert one == other, where


BY_KERNEL = (
    "windows",
    "bags",
    "with_similarity",
    "with_own_labels",
)  # whose encoder is one of words, and row-sparse


@pytest.mark.parametrize("name", [*DIVIDED, *OWN])
def test_two_processes_learn_what_one_learns(name: str, of_two: Any) -> None:
    folder, found = of_two
    first, second = found[name]
    assert "error" not in first, first
    alone = getattr(runs, name)(folder)
    if name == "stopped_by_one":
        assert alone["step"] == first["step"] == second["step"] == 5
    engine = "gradients in one kernel call" if name in BY_KERNEL else "eager"
    assert {phase["engine"] for phase in first["history"]["phases"]} == {engine}
    assert_bits(first, second)
    coarse = COARSE.get(name, 0.0)
    assert_close(plain(alone["history"]), plain(first["history"]), coarse=coarse)
    assert plain(first["history"]) == plain(second["history"])
    assert_close(alone["weights"], first["weights"], coarse=coarse)


@pytest.mark.long
def test_four_processes_learn_what_one_learns(tmp_path: Path) -> None:
    for name, (first, *others) in run_together("runs", [*DIVIDED, *OWN], tmp_path, count=4).items():
        assert "error" not in first, first
        for other in others:
            assert_bits(first, other)
        alone = getattr(runs, name)(tmp_path)
        coarse = COARSE.get(name, 0.0)
        assert_close(plain(alone["history"]), plain(first["history"]), name, coarse)
        assert_close(alone["weights"], first["weights"], name, coarse)


def test_every_pass_of_a_distributed_sampler_has_an_order_of_its_own(of_two: Any) -> None:
    first, second = of_two[1]["distributed_sampler"]
    assert_bits(first, second)
    for found in (first, second):
        one, other = found["seen"][:4], found["seen"][4:]
        assert one != other
    both = [value for batch in first["seen"][:4] + second["seen"][:4] for value in batch]
    assert sorted(both) == sorted(runs.rows(0)[0][:, 0].tolist())


@pytest.mark.parametrize("name", ["windows", "own"])
def test_a_stopped_run_goes_on_bit_for_bit(name: str, of_two: Any) -> None:
    for found in of_two[1]["stopped_then_resumed"]:
        assert "error" not in found, found
        assert_bits(found[name]["whole"], found[name]["resumed"])
        assert plain(found[name]["whole"]["history"]) == plain(found[name]["resumed"]["history"])
    first, second = of_two[1]["stopped_then_resumed"]
    assert_bits(first[name]["resumed"], second[name]["resumed"])


def test_unrecorded_losses_do_not_keep_the_gradients_of_their_steps(of_two: Any) -> None:
    assert [found["bytes"] for found in of_two[1]["unrecorded"]] == [4 * len(runs.TASKS)] * 2


def test_a_run_goes_on_with_another_number_of_processes(of_two: Any) -> None:
    folder, found = of_two
    assert "error" not in found["left_for_others"][0], found["left_for_others"]
    alone = runs.windows(folder)
    assert_close(alone["weights"], runs.taken_over(folder)["weights"])
    first, second = found["taken_over"]
    assert "error" not in first, first
    assert_bits(first, second)
    assert_close(alone["weights"], first["weights"])


def test_data_of_each_process_s_own_does_not_go_on_with_another_number(of_two: Any) -> None:
    with pytest.raises(
        ValueError, match="made by 2 processes, this run has one process, and train is separate for each"
    ):
        runs.own_taken_over(of_two[0])

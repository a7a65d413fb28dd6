"""Encoders sharded by FSDP2 learn in the Trainer what whole ones learn in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.processes import sharded
from tests.training.processes.test_together import assert_bits, assert_close, plain
from tests.training.processes.together import run_together

LEARN = [
    "over_a_switch",
    "clipped_and_accumulated",
    "with_moments",
    "by_default",
    "evaluated",
    "adaptive",
    "beside_a_table",
    "frozen_then_trained",
    "seen_before",
    "with_learnt_weights",
]
CHECKPOINTS = ["resumed", "left_for_others"]
REFUSED = {
    "sharded_heads": "heads.linears.classes.weight is sharded",
    "sharded_table": "encoder.table.weight is row-sparse, and sharded",
    "not_over_all": "and 1 processes train",
    "half_precision": "precision float16 checks whole gradients for overflow",
    "in_turns": "AlternateSteps trains the encoder and the tasks in turns",
    "other_val": "process 1 of 2 has a val of 2 batches, process 0 has 1 batch: all pass together",
    "endless_val": "val has no known number of batches",
    "own_loss_of_nothing": "a process has no row of a batch, but must pass through the sharded encoder",
    "moved_by_a_rule": "RowwiseAdagrad updates whole parameters in its own kernels, but some are sharded",
    "tensor_parallel": "encoder.out.weight is divided by something else than fully_shard",
}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Any]]]:
    folder = tmp_path_factory.mktemp("sharded")
    sharded.left_for_others(folder)  # by one process, for two
    loaded = sharded.loaded(folder)
    names = [*LEARN, *CHECKPOINTS, *REFUSED, "loaded", "taken_over"]
    return folder, run_together("sharded", names, folder) | {"loaded alone": [loaded]}


def assert_learns_the_same(alone: Any, of_all: list[Any], name: str) -> None:
    first, *others = of_all
    assert "error" not in first, first
    for other in others:
        assert_bits(first, other)
        assert plain(first["history"]) == plain(other["history"])
    assert_close(plain(alone["history"]), plain(first["history"]), name)
    assert_close(alone["weights"], first["weights"], name)
    assert_close(alone["moments"], first["moments"], name)


@pytest.mark.parametrize("name", LEARN)
def test_two_processes_learn_what_one_learns(name: str, of_two: Any) -> None:
    folder, found = of_two
    assert_learns_the_same(getattr(sharded, name)(folder), found[name], name)
    assert {phase["engine"] for phase in found[name][0]["history"]["phases"]} == {"eager"}


def test_each_holds_its_part(of_two: Any) -> None:
    for name in ("with_moments", "frozen_then_trained", "seen_before"):
        shares = [of_one["share"] for of_one in of_two[1][name]]
        assert sum(shares) == pytest.approx(1.0), name
        assert all(0.35 < share < 0.65 for share in shares), name


@pytest.mark.long
def test_four_processes_learn_what_one_learns(tmp_path: Path) -> None:
    for name, found in run_together("sharded", LEARN, tmp_path, count=4).items():
        assert_learns_the_same(getattr(sharded, name)(tmp_path), found, name)


def assert_goes_on(of_all: list[Any], at: int) -> None:
    """From a stop after so many steps, bit for bit."""
    for found in of_all:
        assert "error" not in found, found
        assert_bits(found["whole"], found[f"resumed {at}"])
        assert plain(found["whole"]["history"]) == plain(found[f"resumed {at}"]["history"])


@pytest.mark.parametrize("at", [5, 17])
def test_a_stopped_run_goes_on_bit_for_bit(at: int, of_two: Any) -> None:
    assert_goes_on(of_two[1]["resumed"], at)


def test_a_run_goes_on_with_another_number_of_processes_and_whole(of_two: Any) -> None:
    folder, found = of_two
    learnt = found["resumed"][0]["whole"]
    assert_close(learnt["weights"], sharded.taken_over(folder)["weights"])
    for name, expected in ("loaded", found["loaded alone"][0]), ("taken_over", learnt):
        first, second = found[name]
        assert "error" not in first, first
        assert_close(first["weights"], second["weights"], name)
        assert_close(expected["weights"], first["weights"], name)


@pytest.mark.parametrize(("name", "line"), REFUSED.items())
def test_what_does_not_go_with_a_sharded_encoder_is_refused(name: str, line: str, of_two: Any) -> None:
    for found in of_two[1][name]:
        assert line in found["error"]

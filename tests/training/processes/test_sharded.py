"""Encoders sharded by FSDP2 learn in the Trainer what whole ones learn in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mt2st_fast.model.row_shards import RowShard
from tests.training.processes import sharded
from tests.training.processes.test_together import assert_bits, assert_close, plain
from tests.training.processes.together import run_together

DIVIDED = ["divided_windows", "divided_bags", "divided_types"]
LEARN = [
    *DIVIDED,
    "over_a_switch",
    "clipped_and_accumulated",
    "with_moments",
    "by_default",
    "evaluated",
    "adaptive",
    "beside_a_table",
]
CHECKPOINTS = ["resumed", "left_for_others", "divided_resumed", "divided_left_for_others", "never_whole"]
REFUSED = {
    "sharded_heads": "heads.linears.classes.weight is sharded",
    "words_beside_divided_rows": "a task on words reads the table outside of a forward pass",
    "divided_alone": "divided among 2 processes, and 1 trains: let all of them",
    "dense_rows": "a BagEncoder cannot be divided by rows: give a BagEncoder or WindowEncoder with sparse=True",
    "copied": "copy the encoder before shard_rows",
    "sharded_table": "encoder.table.weight is row-sparse, and sharded",
    "not_over_all": "and 1 processes train",
    "half_precision": "precision float16 looks for overflows in whole gradients",
    "in_turns": "AlternateSteps trains encoder and tasks in turns",
    "other_val": "process 1 of 2 has val of 2 batches, process 0 has 1 batches",
    "endless_val": "val does not know how many batches it has",
}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Any]]]:
    folder = tmp_path_factory.mktemp("sharded")
    return folder, run_together("sharded", [*LEARN, *CHECKPOINTS, *REFUSED], folder)


def assert_learns_the_same(alone: Any, of_all: list[Any], name: str) -> None:
    first, *others = of_all
    assert "error" not in first, first
    for other in others:
        assert_bits(first, other)
        assert plain(first["history"]) == plain(other["history"])
    assert_close(plain(alone["history"]), plain(first["history"]), name)
    assert_close(alone["weights"], first["weights"], name)
    assert_close(alone["moments"], first["moments"], name)


@pytest.mark.parametrize(
    ("count", "bounds"), [(2, [0, 3, 5]), (4, [0, 2, 4, 5, 5]), (7, [0, 1, 2, 3, 4, 5, 5, 5])]
)
def test_rows_are_divided_as_torch_chunks_them(count: int, bounds: list[int]) -> None:
    shards = [RowShard(5, rank, count) for rank in range(count)]
    assert all(shard.bounds == bounds for shard in shards)
    whole = torch.arange(5)
    own = [whole[shard.own] for shard in shards]
    assert [part.tolist() for part in own if len(part)] == [part.tolist() for part in whole.chunk(count)]
    assert shards[0].owned(torch.tensor([0, 1, 4])) == [
        int((part[:, None] == torch.tensor([0, 1, 4])).sum()) for part in own
    ]


def test_a_table_need_never_be_whole(of_two: Any) -> None:
    first, second = of_two[1]["never_whole"]
    assert torch.equal(first["whole"], torch.cat([first["own"], second["own"]]))
    assert torch.equal(first["whole"], second["whole"])
    assert not first["own"][0].any()  # the padding row
    assert not (first["own"][1:] == second["own"][1:]).any()
    assert first["whole"][1:].std() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("name", DIVIDED)
def test_vectors_of_a_divided_table_are_those_of_the_whole_one(name: str, of_two: Any) -> None:
    folder, found = of_two
    for of_one in found[name]:
        torch.testing.assert_close(
            of_one["vectors"], getattr(sharded, name)(folder)["vectors"], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name", LEARN)
def test_two_processes_learn_what_one_learns(name: str, of_two: Any) -> None:
    folder, found = of_two
    assert_learns_the_same(getattr(sharded, name)(folder), found[name], name)
    assert {phase["engine"] for phase in found[name][0]["history"]["phases"]} == {"eager"}


@pytest.mark.parametrize("name", ["with_moments", "divided_windows"])
def test_each_holds_its_part(name: str, of_two: Any) -> None:
    assert sum(of_one["share"] for of_one in of_two[1][name]) == pytest.approx(1.0)
    assert all(0.35 < of_one["share"] < 0.65 for of_one in of_two[1][name])


@pytest.mark.long
def test_four_processes_learn_what_one_learns(tmp_path: Path) -> None:
    for name, found in run_together("sharded", LEARN, tmp_path, count=4).items():
        assert_learns_the_same(getattr(sharded, name)(tmp_path), found, name)


@pytest.mark.parametrize(
    ("name", "at"), [("resumed", 5), ("resumed", 17), ("divided_resumed", 11), ("divided_resumed", 50)]
)
def test_a_stopped_run_goes_on_bit_for_bit(name: str, at: int, of_two: Any) -> None:
    for found in of_two[1][name]:
        assert "error" not in found, found
        assert_bits(found["whole"], found[f"resumed {at}"])
        assert plain(found["whole"]["history"]) == plain(found[f"resumed {at}"]["history"])


def test_a_run_goes_on_with_another_number_of_processes_and_whole(of_two: Any) -> None:
    folder, found = of_two
    expected = {
        "taken_over": found["resumed"][0]["whole"],
        "divided_taken_over": found["divided_resumed"][0]["whole"],
    }
    for name, learnt in expected.items():
        assert_close(learnt["weights"], getattr(sharded, name)(folder)["weights"], name)
    sharded.left_for_others(folder)
    sharded.divided_left_for_others(folder)
    expected["loaded"] = sharded.loaded(folder)
    for name, of_all in run_together(
        "sharded", ["loaded", "taken_over", "divided_taken_over"], folder
    ).items():
        assert "error" not in of_all[0], of_all[0]
        assert_close(of_all[0]["weights"], of_all[1]["weights"], name)
        assert_close(expected[name]["weights"], of_all[0]["weights"], name)


@pytest.mark.parametrize(("name", "line"), REFUSED.items())
def test_what_does_not_go_with_a_sharded_encoder_is_refused(name: str, line: str, of_two: Any) -> None:
    for found in of_two[1][name]:
        assert line in found["error"]

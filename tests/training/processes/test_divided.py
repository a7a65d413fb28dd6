"""Encoders whose table is divided by rows learn in the Trainer what whole ones learn in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from mt2st_fast import BagEncoder, InputError, gather_rows, shard_rows
from mt2st_fast.model.row_shards import RowShard
from mt2st_fast.training.checkpoints.parts import folder_of
from tests.training.processes import divided
from tests.training.processes.test_sharded import assert_goes_on, assert_learns_the_same
from tests.training.processes.test_together import assert_close
from tests.training.processes.together import run_together

OF_WORDS = ["windows", "bags", "a_row_a_type", "adaptive"]
LEARN = [*OF_WORDS, "few_rows"]
REFUSED = {
    "words_beside": "a task on words reads the table outside a forward pass",
    "trained_alone": "divided among 2 processes, and 1 trains: let all of them",
    "dense_rows": "a BagEncoder cannot be divided by rows; use a BagEncoder or WindowEncoder with sparse=True",
    "divided_twice": "the encoder's table is already divided by rows",
    "never_divided": 'table_device="meta" and has no rows yet; call shard_rows(encoder)',
    "copied": "copy the encoder before shard_rows",
    "copied_and_trained": "does not know which rows it holds; copy it before shard_rows",
    "kept_in_parts": "every process has only a part of this encoder, so it cannot be saved as a model: "
    "call gather_rows",
}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Any]]]:
    folder = tmp_path_factory.mktemp("divided")
    divided.left_for_others(folder)  # by one process, for two
    names = [*LEARN, "resumed", "left_for_others", "taken_over", "never_whole", *REFUSED]
    return folder, run_together("divided", names, folder)


@pytest.mark.parametrize(
    ("count", "bounds"), [(2, [0, 3, 5]), (4, [0, 2, 4, 5, 5]), (7, [0, 1, 2, 3, 4, 5, 5, 5])]
)
def test_rows_are_divided_as_torch_chunks_them(count: int, bounds: list[int]) -> None:
    shards = [RowShard(5, rank, count) for rank in range(count)]
    assert all(shard.bounds == bounds for shard in shards)
    whole = torch.arange(5)
    own = [whole[shard.own].tolist() for shard in shards]
    assert [part for part in own if part] == [part.tolist() for part in whole.chunk(count)]
    wanted = [0, 1, 4]
    assert shards[0].owned(torch.tensor(wanted)) == [len({*part} & {*wanted}) for part in own]


@pytest.mark.parametrize("name", LEARN)
def test_two_processes_learn_what_one_learns(name: str, of_two: Any) -> None:
    folder, found = of_two
    assert_learns_the_same(getattr(divided, name)(folder), found[name], name)


@pytest.mark.parametrize("name", OF_WORDS)
def test_each_holds_its_part_and_gives_the_vectors_of_all(name: str, of_two: Any) -> None:
    folder, found = of_two
    shares = [of_one["share"] for of_one in found[name]]
    assert sum(shares) == pytest.approx(1.0)
    assert all(0.45 < share < 0.55 for share in shares)
    vectors = getattr(divided, name)(folder)["vectors"]
    for of_one in found[name]:
        torch.testing.assert_close(of_one["vectors"], vectors, rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_four_processes_learn_what_one_learns(tmp_path: Path) -> None:
    for name, found in run_together("divided", [*LEARN, "resumed"], tmp_path, count=4).items():
        if name == "resumed":
            found = [of_one["resumed 50"] for of_one in found]
            assert_learns_the_same(divided.of_words("token"), found, name)
        else:
            assert_learns_the_same(getattr(divided, name)(tmp_path), found, name)


@pytest.mark.parametrize("at", [11, 50])
def test_a_stopped_run_goes_on_bit_for_bit(at: int, of_two: Any) -> None:
    assert_goes_on(of_two[1]["resumed"], at)


def test_a_run_goes_on_with_another_number_of_processes_and_whole(of_two: Any) -> None:
    folder, found = of_two
    learnt = found["resumed"][0]["whole"]
    assert_close(learnt["weights"], divided.taken_over(folder)["weights"])
    first, second = found["taken_over"]
    assert "error" not in first, first
    assert_close(first["weights"], second["weights"])
    assert_close(learnt["weights"], first["weights"])


def test_each_process_keeps_its_rows_in_a_file_of_its_own(of_two: Any) -> None:
    folder, _ = of_two
    n_rows = 0
    for part in folder_of(folder / "divided-11.safetensors").iterdir():
        with safe_open(part, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (no mapping)
        assert {key.split("/")[-1] for key in shapes} == {
            "table",
            "row_exp_avg",
            "row_exp_avg_sq",
            "row_steps",
        }
        assert len({shape[0] for shape in shapes.values()}) == 1
        n_rows += shapes["encoder/table"][0]
    with safe_open(folder / "divided-11.safetensors", framework="pt") as file:
        assert all(n_rows not in file.get_slice(key).get_shape() for key in file.keys())  # noqa: SIM118


def test_a_table_need_never_be_whole(of_two: Any) -> None:
    first, second = of_two[1]["never_whole"]
    assert torch.equal(first["whole"], torch.cat([first["own"], second["own"]]))
    assert torch.equal(first["whole"], second["whole"])
    assert not first["own"][0].any()  # the padding row
    assert not (first["own"][1:] == second["own"][1:]).any()
    assert first["whole"][1:].std() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(("name", "line"), REFUSED.items())
def test_what_does_not_go_with_a_divided_table_is_refused(name: str, line: str, of_two: Any) -> None:
    for found in of_two[1][name]:
        assert line in found["error"]


def test_without_a_group_of_processes_nothing_is_divided() -> None:
    encoder = BagEncoder(9, 8, sparse=True)
    with pytest.raises(InputError, match="can only be divided among the processes of a group"):
        shard_rows(encoder)
    with pytest.raises(ValueError, match="this BagEncoder has no table that was divided by shard_rows alone"):
        gather_rows(encoder)

"""Rows of divided tensors lie in files of their own beside a checkpoint, and are found in them for any division."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.row_shards import RowShard
from mt2st_fast.training.checkpoints.checkpoint import Checkpoint, save_checkpoint
from mt2st_fast.training.checkpoints.parts import delete_other_parts, folder_of, stored_parts, write_parts
from mt2st_fast.training.processes.group import Processes

TABLE = torch.arange(5 * 3, dtype=torch.bfloat16).view(5, 3)
COUNTS = torch.arange(5)


def write(path: Path, count: int) -> dict[str, dict[str, Any]]:
    """What `count` processes write one after another, and what the checkpoint would say of it."""
    said: dict[str, dict[str, Any]] = {}
    for rank in range(count):
        shard = RowShard(5, rank, count)
        divided = {"table": (shard, TABLE[shard.own]), "counts": (shard, COUNTS[shard.own])}
        for key, found in write_parts(path, divided, Processes()).items():
            said.setdefault(key, {**found, "pieces": []})["pieces"] += found["pieces"]
    return said


@pytest.mark.parametrize("written", [1, 2, 4, 7])
@pytest.mark.parametrize("read", [1, 2, 3, 5, 6])
def test_rows_are_found_for_any_division(tmp_path: Path, written: int, read: int) -> None:
    stored = stored_parts(tmp_path / "c", write(tmp_path / "c", written))
    for key, whole in (("table", TABLE), ("counts", COUNTS)):
        assert stored[key].shape == whole.shape
        parts = [stored[key][RowShard(5, rank, read).own] for rank in range(read)]
        assert all(part.dtype is whole.dtype for part in parts)
        assert torch.equal(torch.cat(parts), whole)
        assert torch.equal(stored[key][:], whole)


def test_only_the_parts_with_wanted_rows_are_read(tmp_path: Path) -> None:
    said = write(tmp_path / "c", 2)
    (folder_of(tmp_path / "c") / said["table"]["pieces"][1]["file"]).unlink()
    stored = stored_parts(tmp_path / "c", said)["table"]
    assert torch.equal(stored[0:3], TABLE[0:3])
    with pytest.raises(
        InputError, match=r"a part of the checkpoint .* is missing; copy c\.parts along with it"
    ):
        stored[2:4]


@pytest.mark.parametrize("place", [-1, -5, 12])
def test_a_wrong_byte_in_a_part_is_refused(tmp_path: Path, place: int) -> None:
    said = write(tmp_path / "c", 1)
    (part,) = folder_of(tmp_path / "c").iterdir()
    content = bytearray(part.read_bytes())
    content[place] ^= 1
    part.write_bytes(content)
    stored = stored_parts(tmp_path / "c", said)
    with pytest.raises(InputError, match="is damaged"):
        assert [tensor[:] for tensor in stored.values()]


def test_old_parts_go_when_new_ones_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c"
    write(path, 3)  # and killed before the checkpoint was written
    (folder_of(path) / ".half.safetensors.123").mkdir()
    said = write(path, 2)
    delete_other_parts(path, said)
    assert {p.name for p in folder_of(path).iterdir()} == {piece["file"] for piece in said["table"]["pieces"]}
    delete_other_parts(path, {})
    assert not folder_of(path).exists()


def test_a_checkpoint_of_whole_tensors_has_no_parts_and_takes_old_ones_away(tmp_path: Path) -> None:
    path = tmp_path / "c"
    write(path, 2)
    encoder = nn.Linear(2, 2)
    save_checkpoint(path, {"encoder": encoder}, torch.optim.SGD(encoder.parameters()), {"step": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    assert Checkpoint(path).state == {"step": 1}


class Elsewhere(Processes):
    """Two processes on machines that share no folder, of which this is the first."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 2

    def gather_json(self, value: Any) -> list[Any]:
        """The other has written a file that is not here."""
        other = {key: {**piece, "file": "there"} for key, piece in value.items()} if value else None
        return [value, other]

    def from_first(self, value: Any) -> Any:
        """This is the first."""
        return value


def test_a_folder_that_processes_do_not_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"process 1 has written .* that process 0 cannot see"):
        write_parts(tmp_path / "c", {"table": (RowShard(5, 0, 2), TABLE[:3])}, Elsewhere())

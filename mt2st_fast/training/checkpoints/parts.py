"""Tensors in a checkpoint that are divided by rows: one file per process, without ever gathering them.

The files are in a folder beside the checkpoint, NAME.parts. Each process writes its own under a new name; then process
0 writes the checkpoint, which names them and the checksum of every tensor in them; then it deletes the older ones. So
a reader finds the old parts or the new ones, wherever in this a process is killed.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mt2st_fast.errors import InputError
from mt2st_fast.files import delete
from mt2st_fast.model.row_shards import RowShard
from mt2st_fast.tensor_files import digest_of, on_cpu_apart, write_tensors
from mt2st_fast.training.processes.group import Processes

Parts = Mapping[str, Mapping[str, Any]]  # by tensor: shape, dtype and pieces, as JSON


def folder_of(checkpoint: Path) -> Path:
    """Return the folder with the parts of a checkpoint."""
    return checkpoint.with_name(f"{checkpoint.name}.parts")


def write_parts(
    checkpoint: Path, divided: Mapping[str, tuple[RowShard, Tensor]], processes: Processes
) -> dict[str, dict[str, Any]]:
    """Write this process's rows of every divided tensor, and return the parts of all for the checkpoint; all call it.

    divided: by name, as from `rows_of`. Raises InputError if process 0 does not see the file of another process.
    """
    if not divided:
        return {}
    name = f"{processes.from_first(secrets.token_hex(8))}.{processes.rank}-of-{processes.count}.safetensors"
    own = on_cpu_apart({key: rows for key, (_, rows) in divided.items()})
    write_tensors(folder_of(checkpoint) / name, own)
    pieces = {
        key: {
            "file": name,
            "rows": [shard.own.start, shard.own.stop],
            "sha256": digest_of(own[key], key).hexdigest(),
        }
        for key, (shard, _) in divided.items()
    }
    of_all = processes.gather_json(pieces)
    if processes.writes:
        _check_seen(folder_of(checkpoint), [next(iter(found.values()))["file"] for found in of_all])
    return {
        key: {
            "shape": [shard.n_rows, *rows.shape[1:]],
            "dtype": str(rows.dtype).removeprefix("torch."),
            "pieces": [found[key] for found in of_all],
        }
        for key, (shard, rows) in divided.items()
    }


def delete_other_parts(checkpoint: Path, parts: Parts) -> None:
    """Delete parts beside a checkpoint that earlier checkpoints, or killed saves, have left."""
    folder = folder_of(checkpoint)
    named = {piece["file"] for of_one in parts.values() for piece in of_one["pieces"]}
    if not folder.is_dir():
        return
    for found in folder.glob("*.safetensors*"):
        if found.name not in named:
            delete(found)
    with suppress(OSError):  # it is not empty
        folder.rmdir()


def stored_parts(checkpoint: Path, parts: Parts) -> dict[str, PartedTensor]:
    """Return the tensors that a checkpoint stores in these parts."""
    return {key: PartedTensor(checkpoint, key, said) for key, said in parts.items()}


class PartedTensor:
    """A tensor (V, ...) whose rows are in several files; they are read, and checked, on demand."""

    def __init__(self, checkpoint: Path, key: str, said: Mapping[str, Any]) -> None:
        self.shape: tuple[int, ...] = tuple(said["shape"])
        self.dtype: torch.dtype = getattr(torch, said["dtype"])
        self._checkpoint, self._key = checkpoint, key
        self._pieces: Sequence[Mapping[str, Any]] = said["pieces"]

    def __getitem__(self, rows: slice) -> Tensor:
        """(n, ...) these rows, in new memory. Raises InputError if a part is missing or damaged."""
        first, last, _ = rows.indices(self.shape[0])
        found = torch.empty(max(0, last - first), *self.shape[1:], dtype=self.dtype, device="cpu")
        for piece in self._pieces:
            start, stop = max(first, piece["rows"][0]), min(last, piece["rows"][1])
            if start < stop:
                found[start - first : stop - first] = self._read(piece)[
                    start - piece["rows"][0] : stop - piece["rows"][0]
                ]
        return found

    def _read(self, piece: Mapping[str, Any]) -> Tensor:
        path = folder_of(self._checkpoint) / piece["file"]
        if not path.is_file():
            raise InputError(
                f"{path}, a part of the checkpoint {self._checkpoint}, is missing; copy {path.parent.name} along "
                "with it"
            )
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(self._key)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{path} is damaged and cannot be read: {' '.join(str(error).split())}"
            ) from None
        if digest_of(tensor, self._key).hexdigest() != piece["sha256"]:
            raise InputError(
                f"{path} is damaged: its checksum does not match; use an intact copy, or train again"
            )
        return tensor


def _check_seen(folder: Path, names: Sequence[str]) -> None:
    for rank, name in enumerate(names):
        if not (folder / name).is_file():
            raise InputError(
                f"process {rank} has written its part of the checkpoint to a {folder} that process 0 cannot see; put "
                "the checkpoint in a folder that all processes share"
            )

"""Checkpoints: one file, written whole or not at all, read without executing anything.

A safetensors file holds every tensor (parameters, optimizer, random states) under a path-like name; everything
else is stored as JSON in its metadata, beside a checksum of all of it. Tensors that processes have divided by
rows are in files beside it (parts.py), which it names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mt2st_fast.errors import InputError
from mt2st_fast.folder_lock import check_can_write
from mt2st_fast.model.module_state import state_of, under_own_names
from mt2st_fast.model.sharded import StoredTensor, divided_as, divided_as_all, gathered, rows_of
from mt2st_fast.numbers import plain
from mt2st_fast.tensor_files import digest_of, on_cpu_apart, write_tensors
from mt2st_fast.training.checkpoints.parts import delete_other_parts, stored_parts, write_parts
from mt2st_fast.training.optimizers.upkeep import IMPLEMENTATIONS
from mt2st_fast.training.processes.group import Processes
from mt2st_fast.training.random_states import python_states, set_python_states, states_to_json

FORMAT = "mt2st-fast checkpoint 6"


def save_checkpoint(
    path: Path,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    processes: Processes | None = None,
) -> None:
    """Write modules, optimizer, random states and a JSON-able `state` to one file, atomically.

    With several processes, all call it: each writes its rows of sharded tensors, and process 0 everything else.
    """
    processes = Processes() if processes is None else processes
    tensors = {
        key: value
        for name, module in modules.items()
        for key, value in state_of(module, name, keep_vars=True).items()
    }
    optimizer_tensors, optimizer_state = _split_optimizer(optimizer)
    held = held_in_order(optimizer)
    of = {key: held[int(key.split("/")[1])] for key in optimizer_tensors}
    random_tensors, random_state = _random_states()
    whole, divided = {}, {}
    for key, tensor in {**tensors, **optimizer_tensors, **random_tensors}.items():
        by_rows = rows_of(tensor.detach(), of.get(key, tensor))
        if by_rows is None:
            whole[key] = gathered(tensor.detach())
        else:
            divided[key] = by_rows
    parts = write_parts(path, divided, processes)
    if not processes.writes:
        return
    content = {"format": FORMAT, "state": state, "optimizer": optimizer_state, "random": random_state}
    text = json.dumps(content | {"parts": parts}, default=plain)
    copies = on_cpu_apart(whole)
    write_tensors(path, copies, {"json": text, "sha256": _checksum(text, copies)})
    delete_other_parts(path, parts)


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint, of any version."""
    try:
        with safe_open(path, framework="numpy") as file:
            return "mt2st-fast checkpoint " in (file.metadata() or {}).get("json", "")
    except (OSError, SafetensorError):
        return False


def check_replaceable(path: Path) -> None:
    """Raise InputError for a folder, for a file with something else than a checkpoint, which would be lost, and for a
    place where nothing can be written.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; pass the name of a file as checkpoint")
    if path.is_file() and path.stat().st_size and not is_checkpoint(path):
        raise InputError(
            f"{path} is not a checkpoint and would be overwritten; choose another file, or remove it"
        )
    try:
        check_can_write(path.parent)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); choose another file"
        ) from None


class Checkpoint:
    """A checkpoint read from `path`: `state` first; the `restore` methods put everything else back.

    Raises InputError for a file that is missing, damaged or not a checkpoint.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"no checkpoint at {path}: train with --out first, or check the path")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                self._tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            content = json.loads(metadata.get("json", "{}"))
        # A wrong byte in the header can cause any of these errors in safetensors or json.
        except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise InputError(f"{path} is damaged and cannot be read: {_one_line(error)}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(
                f"{path} is not a checkpoint of this version ({FORMAT}); train again without resume"
            )
        if metadata.get("sha256") != _checksum(metadata["json"], self._tensors):
            raise InputError(
                f"{path} is damaged: its checksum does not match; use an intact copy, or train again"
            )
        self._content = content
        self.state: dict[str, Any] = content["state"]
        self._stored: dict[str, StoredTensor] = {**self._tensors, **stored_parts(path, content["parts"])}

    def restore_modules(self, modules: dict[str, nn.Module]) -> None:
        """Load the parameters of `modules`. Raises InputError if they do not fit."""
        for name, module in modules.items():
            try:
                stored = under_own_names(module, self._under(f"{name}/"))
                module.load_state_dict(divided_as_all(module.state_dict(keep_vars=True), stored))
            except RuntimeError as error:
                raise InputError(
                    f"the checkpoint does not match the {name}: {_one_line(error)}; pass the original {name}, "
                    "including anything a callback added, or start a new run from what matches: "
                    "trainer.load(checkpoint, partial=True)"
                ) from error

    def weights(self, parts: Iterable[str]) -> dict[str, StoredTensor]:
        """Return the tensors of modules, such as "encoder/0.weight" of the part encoder."""
        return {name: t for name, t in self._stored.items() if name.partition("/")[0] in parts}

    def restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Load the optimizer's state; it must hold the same parameters, in the same groups, as when it was saved."""
        stored = self._content["optimizer"]
        state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in stored["state"].items()}
        held = held_in_order(optimizer)
        for key, tensor in self._under("optimizer/").items():
            index, name = key.split("/")
            state.setdefault(int(index), {})[name] = divided_as(held.get(int(index)), tensor)
        groups = [
            {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}
            for group in stored["param_groups"]
        ]
        rates = [group["lr"] for group in optimizer.param_groups]
        own = [{name: g[name] for name in IMPLEMENTATIONS if name in g} for g in optimizer.param_groups]
        try:
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        except ValueError as error:
            raise InputError(f"the checkpoint does not match the optimizer: {_one_line(error)}") from error
        for group, rate, implementation in zip(optimizer.param_groups, rates, own, strict=True):
            group.update(implementation)
            if isinstance(rate, Tensor):  # on the device, where a captured step reads it
                group["lr"] = rate.fill_(group["lr"])

    def restore_random_states(self) -> None:
        """Restore the state of every random generator."""
        stored = self._content["random"]
        set_python_states(stored)
        torch.set_rng_state(self._tensors["random/cpu"])
        for index in range(torch.cuda.device_count()):
            if f"random/cuda{index}" in self._tensors:
                torch.cuda.set_rng_state(self._tensors[f"random/cuda{index}"], index)

    def _under(self, prefix: str) -> dict[str, StoredTensor]:
        return {key[len(prefix) :]: t for key, t in self._stored.items() if key.startswith(prefix)}


def held_in_order(optimizer: torch.optim.Optimizer) -> dict[int, Tensor]:
    """Return an optimizer's parameters by their indices in its state dict."""
    return dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))


def _split_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    stored = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[int, dict[str, Any]] = {}
    for index, values in stored["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                scalars.setdefault(index, {})[name] = value
    # A learning rate on the device is stored as a plain number.
    groups = [
        {key: float(value) if isinstance(value, Tensor) else value for key, value in group.items()}
        for group in stored["param_groups"]
    ]
    return tensors, {"state": scalars, "param_groups": groups}


def _random_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            tensors[f"random/cuda{index}"] = torch.cuda.get_rng_state(index)
    return tensors, states_to_json(python_states())


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the JSON and of every tensor, whatever their order in the file."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest_of(tensor, name, digest)
    return digest.hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

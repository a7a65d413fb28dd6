"""A trained model is a folder: its tensors in safetensors, all else in JSON. Reading one runs no code.

    model.json           format, kind, configuration (words, labels, options), the digest of both files
    tensors.safetensors  every tensor under its name

A byte that changed in either file is found before anything is made of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from mt2st_fast.errors import InputError
from mt2st_fast.files import left_behind, write_atomically
from mt2st_fast.tensor_files import on_cpu_apart, write_tensors

FORMAT = "mt2st-fast model 2"
DESCRIPTION, TENSORS = "model.json", "tensors.safetensors"
RUN_MODEL = "model"  # the folder's name within that of a run
RUN_CONFIG = "config.json"  # beside it, from the run's first step on
OF_COMPARISON = (
    "compare.json",
    "compare.progress.json",
)  # one of them is in a comparison's folder from its start on


def has_comparison(folder: Path) -> bool:
    """Whether `mt2st-fast compare` has written to a folder; what is there is no run of `train` then."""
    return any((folder / name).exists() for name in OF_COMPARISON)


def write_model(
    folder: str | Path, kind: str, configuration: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a model to `folder`, whole or not at all; a model that was there is replaced.

    configuration: JSON-able. Raises InputError where the folder holds something else or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not _may_be_replaced(folder):
        raise InputError(f"{folder}: is there already and is no model; give another folder")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        _sweep(folder)
        partial.mkdir(parents=True)
        write_tensors(partial / TENSORS, on_cpu_apart(tensors))
        described = _description(kind, dict(configuration), _digest_of_file(partial / TENSORS))
        write_atomically(partial / DESCRIPTION, described)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Put back the model, and delete the rest, that a process left which was killed as it wrote one here."""
    for left in left_behind(folder):
        if left.suffix == ".old" and not folder.exists():
            left.rename(folder)
        else:
            shutil.rmtree(left, ignore_errors=True)


def read_model(folder: str | Path, kind: str | None = None) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """(kind, configuration, tensors) of a model.

    Raises InputError for a folder that is missing, no model, damaged, or a model of another kind than `kind`.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    try:
        text, content = path.read_bytes(), (folder / TENSORS).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{folder}: is no model ({Path(error.filename).name} is missing); give the folder that one was saved to"
        ) from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror or error})") from None
    try:
        description = json.loads(text)
        named = (description["format"], description["kind"], description["configuration"])
        digest = _digest(content)
        expected = _description(named[1], named[2], digest)
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is damaged; save the model again") from None
    if named[0] != FORMAT:
        raise InputError(f"{path}: is written as '{named[0]}', this version reads '{FORMAT}'; train it again")
    if text != expected:
        what = DESCRIPTION if description.get("tensors_sha256") == digest else TENSORS
        raise InputError(f"{folder / what}: is damaged, its checksum is another; save the model again")
    if kind is not None and named[1] != kind:
        raise InputError(f"{folder}: is a model of the kind {named[1]}, not {kind}")
    try:
        return named[1], named[2], load(content)
    except SafetensorError as error:
        raise InputError(f"{folder / TENSORS}: is damaged ({error}); save the model again") from None


def kind_of(folder: str | Path) -> str:
    """The kind of the model in a folder, as far as its description says. Raises InputError where there is none."""
    path = model_in(folder) / DESCRIPTION
    try:
        return str(json.loads(path.read_bytes())["kind"])
    except (FileNotFoundError, NotADirectoryError):
        return read_model(path.parent)[0]  # says what is missing
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is damaged; save the model again") from None


def model_in(folder: str | Path) -> Path:
    """Where the model of a folder lies: there, or where a run leaves it.

    Raises InputError for a run that has none yet.
    """
    folder = Path(folder)
    if (folder / DESCRIPTION).exists():
        return folder
    if (folder / RUN_MODEL).is_dir():
        return folder / RUN_MODEL
    if has_comparison(folder):
        raise InputError(
            f"{folder}: is a comparison, which keeps no model; give the folder of a run of train"
        )
    if (folder / RUN_CONFIG).exists():
        raise InputError(
            f"{folder}: the run has not ended and left no model; finish it with: "
            f"mt2st-fast train --resume --out {folder}"
        )
    return folder


def files_of_model(folder: str | Path) -> tuple[Path, ...]:
    """The files of the model in a folder, there or where a run leaves it; raises InputError as `model_in` does."""
    found = model_in(folder)
    return found / DESCRIPTION, found / TENSORS


def foreign_to_model(folder: Path) -> list[str]:
    """What a folder holds, or the path itself is, that is no part of a model and no hidden file, by name."""
    if not folder.is_dir():
        return [folder.name] if folder.exists() else []
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if name not in (DESCRIPTION, TENSORS) and not name.startswith(".")]


def _description(kind: str, configuration: dict[str, Any], digest: str) -> bytes:
    """model.json, the same bytes for the same content: it is compared as a whole."""
    described: dict[str, Any] = {
        "format": FORMAT,
        "kind": kind,
        "configuration": configuration,
        "tensors_sha256": digest,
    }
    body = json.dumps(described, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass")
    return json.dumps(described | {"sha256": _digest(body)}, ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _may_be_replaced(folder: Path) -> bool:
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {DESCRIPTION, TENSORS}

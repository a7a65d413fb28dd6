"""A trained model is a folder with its tensors in safetensors and all else in JSON. Reading one runs no code.

    model.json           format, kind, configuration (words, labels, options), checksums of both files
    tensors.safetensors  every tensor under its name

A changed byte in either file is detected before anything is built from them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from mt2st_fast.errors import InputError
from mt2st_fast.files import delete, is_being_replaced, left_behind, partial_folder, write_atomically
from mt2st_fast.numbers import plain
from mt2st_fast.spelling import in_shell
from mt2st_fast.tensor_files import on_cpu_apart, write_tensors

FORMAT = "mt2st-fast model 2"
DESCRIPTION, TENSORS = "model.json", "tensors.safetensors"
SUPERVISED = "supervised"  # the kind of the models of train_supervised
RUN_MODEL = "model"  # the name of the model's folder inside the folder of a run
RUN_CONFIG = "config.json"  # beside it, from the first step of the run on
PATIENCE_SECONDS = 5.0  # for others that replace a model, which takes them less than a millisecond
# The folder of a comparison has one of them from the start on.
OF_COMPARISON = ("compare.json", "compare.progress.json")


def has_comparison(folder: Path) -> bool:
    """Whether `mt2st-fast compare` has written to a folder, which then holds no run of `train`."""
    return any((folder / name).exists() for name in OF_COMPARISON)


def write_model(
    folder: str | Path, kind: str, configuration: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a model to `folder`, whole or not at all, replacing a model that was there.

    configuration: values that JSON can hold. Raises InputError where the folder holds something else or cannot be
    written.
    """
    named = Path(folder)
    try:
        folder = named.resolve()  # through links, and without `..`, which is lost while a folder is renamed
        if not _may_be_replaced(folder):
            raise InputError(f"{named}: already exists and is not a model; choose another folder")
        if folder == Path.cwd():
            raise InputError(
                f"{named}: is the working directory, which cannot be replaced; choose a folder in it, such as ./model"
            )
        _write(folder, kind, configuration, tensors)
    except OSError as error:
        raise InputError(f"{named}: cannot be written ({error.strerror or error})") from None


def _write(folder: Path, kind: str, configuration: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    _sweep(folder)
    with partial_folder(folder) as partial:
        old = partial.with_name(f"{partial.name}.old")
        try:
            write_tensors(partial / TENSORS, on_cpu_apart(tensors))
            described = _description(kind, dict(configuration), _digest_of_file(partial / TENSORS))
            write_atomically(partial / DESCRIPTION, described)
            _put(partial, folder, old)
        except BaseException:  # also Ctrl-C
            _restore(old, folder)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _put(partial: Path, folder: Path, old: Path) -> None:
    """Rename `partial` to `folder`, and what is there to `old`, again and again if others write there meanwhile."""
    while True:
        with suppress(FileNotFoundError):
            folder.rename(old)
        try:
            partial.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        shutil.rmtree(old, ignore_errors=True)  # an older model than the one that has been put there just now


def _sweep(folder: Path) -> None:
    """Clean up after processes that were killed while writing a model here: restore the old model if there is none,
    delete the rest.
    """
    for left in left_behind(folder):
        if left.suffix == ".old":
            _restore(left, folder)
        if left.suffix != ".old" or folder.exists():
            delete(left)


def _restore(old: Path, folder: Path) -> None:
    """Rename `old` back to `folder` if nothing is there, also not since another writer has put its model there."""
    with suppress(OSError):
        if not folder.exists():
            old.rename(folder)


def read_model(folder: str | Path, kind: str | None = None) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Return (kind, configuration, tensors) of a model.

    Raises InputError for a folder that is missing, no model, damaged, or a model of another kind than `kind`.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    try:
        text, content = _read_files(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{folder}: is not a model ({Path(error.filename).name} is missing); pass the folder that a model was "
            "saved to"
        ) from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror or error})") from None
    try:
        description = _described(text, path)
        named = (description["format"], description["kind"], description["configuration"])
        digest = _digest(content)
        expected = _description(named[1], named[2], digest)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is damaged; save the model again") from None
    if text != expected:
        what = DESCRIPTION if description.get("tensors_sha256") == digest else TENSORS
        raise InputError(f"{folder / what}: is damaged (its checksum does not match); save the model again")
    if kind is not None and named[1] != kind:
        raise InputError(f"{folder}: is a model of the kind {named[1]}, not {kind}")
    try:
        return named[1], named[2], load(content)
    except SafetensorError as error:
        raise InputError(f"{folder / TENSORS}: is damaged ({error}); save the model again") from None


def _described(text: bytes, path: Path) -> dict[str, Any]:
    """Parse a description. Raises InputError for one in another format, which may have other keys and checksums, and
    ValueError, KeyError or TypeError for none.
    """
    description: dict[str, Any] = json.loads(text)
    if (form := description["format"]) != FORMAT:
        raise InputError(
            f"{path}: is in the format {str(form)!r}, but this version reads {FORMAT!r}; use the version of mt2st-fast "
            "that wrote it, or train the model again"
        )
    return description


def _read_files(folder: Path) -> tuple[bytes, bytes]:
    """Return the bytes of both files, of one model, also while others replace it."""
    path, end = folder / DESCRIPTION, time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            text, content = path.read_bytes(), (folder / TENSORS).read_bytes()
            if path.read_bytes() == text or time.monotonic() > end:
                return text, content
        except FileNotFoundError as error:
            if time.monotonic() > end or not (_is_moved(folder) or Path(error.filename).exists()):
                raise
            time.sleep(0.001)


def _is_moved(folder: Path) -> bool:
    """Whether another process is replacing this model, which may be missing for a moment."""
    return is_being_replaced(folder.resolve())


def kind_of(folder: str | Path) -> str:
    """Return the kind of the model in a folder, as its description says. Raises InputError where there is no model."""
    path = model_in(folder) / DESCRIPTION
    try:
        return str(_described(path.read_bytes(), path)["kind"])
    except (FileNotFoundError, NotADirectoryError):
        return read_model(path.parent)[0]  # raises an error that says what is missing
    except InputError:
        raise
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is damaged; save the model again") from None


def model_in(folder: str | Path) -> Path:
    """Return the folder of the model: `folder` itself, or where a run leaves its model.

    Raises InputError for a run that has no model yet, and for a comparison.
    """
    folder = Path(folder)
    if (folder / DESCRIPTION).exists():
        return folder
    model = folder / RUN_MODEL
    if model.is_dir() or _is_moved(model) or model.is_dir():  # again: it may just have been put there
        return model
    if has_comparison(folder):
        raise InputError(f"{folder}: is a comparison, which has no model; pass the folder of a training run")
    if (folder / RUN_CONFIG).exists():
        raise InputError(
            f"{folder}: the run is not finished and left no model; finish it with: "
            f"mt2st-fast train --resume --out {in_shell(folder)}"
        )
    return folder


def files_of_model(folder: str | Path) -> tuple[Path, ...]:
    """Return the files of the model in a folder or in that of a run; raises InputError as `model_in` does."""
    found = model_in(folder)
    return found / DESCRIPTION, found / TENSORS


def foreign_to_model(folder: Path) -> list[str]:
    """Return the names of files in a folder that are neither part of a model nor hidden; for a file, its own name."""
    if not folder.is_dir():
        return [folder.name] if folder.exists() else []
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if name not in (DESCRIPTION, TENSORS) and not name.startswith(".")]


def _description(kind: str, configuration: dict[str, Any], digest: str) -> bytes:
    """Return the bytes of model.json. The same content gives the same bytes, as they are compared as a whole.

    Raises InputError for a configuration with something that JSON cannot hold.
    """
    described: dict[str, Any] = {
        "format": FORMAT,
        "kind": kind,
        "configuration": configuration,
        "tensors_sha256": digest,
    }
    try:
        body = json.dumps(described, ensure_ascii=False, allow_nan=False, default=plain)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the model cannot be saved: {error}; describe it by numbers, strings, lists and dictionaries"
        ) from None
    of_body = _digest(body.encode("utf-8", "surrogatepass"))
    return f'{body[:-1]}, "sha256": "{of_body}"}}'.encode("utf-8", "surrogatepass")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _may_be_replaced(folder: Path) -> bool:
    try:
        return {path.name for path in folder.iterdir()} <= {DESCRIPTION, TENSORS}
    except FileNotFoundError:  # possibly since another process has begun to replace it
        return True
    except NotADirectoryError:
        return False

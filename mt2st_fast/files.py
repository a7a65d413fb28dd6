"""Files: written whole or not at all, read plain or packed with errors that a user can act on; JSON without NaN."""

from __future__ import annotations

import glob
import gzip
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from mt2st_fast.errors import InputError

_GZIP = b"\x1f\x8b"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where the block writes a file that becomes `path` at the end: a reader sees the old file or the new one, also
    after a power cut. Where the block raises (Ctrl-C too), nothing is left of it; what a process left that was killed
    (SIGKILL) is swept up by the next one that writes the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in left_behind(path):
        delete(left)
    # A folder, for whoever writes may have files of its own on the way.
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.mkdir(exist_ok=True)
        yield partial / path.name
        _sync(partial / path.name)
        (partial / path.name).replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def writing_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` at the end, as `replacing` does."""
    with replacing(path) as partial, partial.open("wb") as file:
        yield file


def delete(path: Path) -> None:
    """Delete a file, or a folder with all in it, where that can be done; where not, another user's say, it is left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def left_behind(path: Path) -> list[Path]:
    """What processes of this machine that live no more have left beside `path`: .name.PID, .name.PID.old."""
    beside = path.parent.glob(f".{glob.escape(path.name)}.*")
    return [
        found
        for found in beside
        if (process := found.name.removesuffix(".old").rpartition(".")[2]).isdecimal()
        and not _lives(int(process))
    ]


def _lives(process: int) -> bool:
    if os.name == "nt":  # where kill() of any signal ends the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # somebody else's, or no process of this system
    return True


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, whole or not at all."""
    with writing_atomically(path) as file:
        file.write(content)


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked where they are gzip, whatever the file is named.

    Raises InputError for a file that is missing, unreadable or no whole gzip file (also where it is named .gz and is
    none); the block must do nothing else that can raise OSError.
    """
    try:
        with path.open("rb") as file:
            start = peek(file, len(_GZIP))
            if start == _GZIP:
                with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                    yield cast(BinaryIO, unpacked)
            elif start and path.suffix.lower() == ".gz":
                raise InputError(
                    f"{path}: is named so and is not a whole gzip file; rename it, or compress it"
                )
            else:
                yield file
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the path") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: is not a whole gzip file ({error}); compress it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def peek(file: BinaryIO, n: int) -> bytes:
    """The next n bytes of a file that `reading` opened, fewer at its end; they are read again."""
    return bytes(cast(Any, file).peek(n)[:n])


def is_same_file(one: Path, other: Path) -> bool:
    """Whether both are one file, by whatever names and links; not where either is none yet, or no plain file."""
    try:
        return one.is_file() and one.samefile(other)
    except OSError:
        return False


def check_not_read(out: Path, inputs: Iterable[Path]) -> None:
    """Raise InputError where what is to be written is one of the files that are read for it."""
    for path in inputs:
        if is_same_file(out, path):
            raise InputError(
                f"--out {out}: is {path}, which is read and would be overwritten; give another --out"
            )


def is_packed(path: Path) -> bool:
    """Whether a file begins as gzip does. Raises InputError as `reading` does."""
    with reading(path) as file:
        return isinstance(file, gzip.GzipFile)


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON, which knows no NaN: what is not a finite number becomes null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value

"""Files: written whole or not at all, read plain or gzipped with errors that a user can act on; JSON without NaN."""

from __future__ import annotations

import errno
import glob
import gzip
import json
import math
import os
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from mt2st_fast.errors import InputError
from mt2st_fast.folder_lock import locked, trying
from mt2st_fast.numbers import plain

_GZIP = b"\x1f\x8b"
PACKING = 6  # as gzip's command; Python's default of 9 takes several times as long
# Numbers of what this process begins to write. The first is the time, so that an earlier process with the same id, as
# in containers, had lower ones.
_FIRST_NUMBER = time.time_ns()
_numbers = count(_FIRST_NUMBER)


def at_home(path: str | Path) -> Path:
    """Return a path that may begin with ~, which no shell expands in csv:~/x, --out=~/x or a configuration file."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises for an unknown user


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which replaces `path` at the end of the block; of a link, what it points to.

    A reader sees either the old or the new file, even after a power cut. If the block raises (also by Ctrl-C), nothing
    of the new file is left. Leftovers of a killed process (SIGKILL) are removed by the next one that writes the same
    file. A device or a pipe, such as /dev/null, cannot be replaced: it gets the content at the end of the block.

    Raises OSError, which names `path`, where it cannot be written.
    """
    if is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder, path.name)
            yield made
            with made.open("rb") as content, path.open("wb") as stream:
                shutil.copyfileobj(content, stream)
        return
    target = where_written(path)
    try:
        for left in left_behind(target):
            delete(left)
        # In a folder, as the block may need temporary files of its own.
        with partial_folder(target) as partial:
            yield partial / target.name
            _sync(partial / target.name)
            (partial / target.name).replace(target)
    except OSError as error:
        of_partial = error.filename is None or f"{_mark(target)}{os.getpid()}-" in str(error.filename)
        if error.errno is not None and of_partial:  # an error of the system's
            error.filename = str(path)  # the user knows nothing of partial files
        raise


def is_stream(path: Path) -> bool:
    """Whether a path is a device or a pipe, such as /dev/stdout: it can be written to, but not be replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


STANDARD_OUTPUT = "standard output"


@contextmanager
def naming(what: str | Path) -> Iterator[None]:
    """Let an error of the system's that names no file, as when a disk is full, name `what` is written in the block."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(what)
        raise


@contextmanager
def writing_atomically(path: Path) -> Iterator[BinaryIO]:
    """Yield an open file that replaces `path` at the end of the block, as `replacing` does."""
    with replacing(path) as partial, partial.open("wb") as file:
        yield file


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file as `writing_atomically` does, packed with gzip if its name ends in .gz: as `reading` unpacks it."""
    with writing_atomically(path) as file:
        if path.suffix.lower() != ".gz":
            yield file
            return
        # Without a name and a time, so that the same content gives the same file.
        with gzip.GzipFile("", "wb", PACKING, file, mtime=0) as packed:
            yield cast(BinaryIO, packed)


def delete(path: Path) -> None:
    """Delete a file, or a folder with its content; ignored where that is not possible, as for files of another user."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def _sync(path: Path) -> None:
    """Flush a file to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def where_written(path: Path) -> Path:
    """Return the path that a link leads to, if `path` is one: what is written replaces that, and the link stays."""
    return path.resolve() if path.is_symlink() else path


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside `path` for what will replace it, which no other process or thread writes to; remove what is
    left of it after the block.

    It is locked meanwhile: its name alone does not tell those in another container, or on another machine that shares
    the disk, that it is in use.
    """
    partial = path.with_name(f"{_mark(path)}{os.getpid()}-{next(_numbers)}")
    with locked(partial, wait=True):
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def left_behind(path: Path) -> Iterator[Path]:
    """Yield what processes that no longer run left beside `path`: .name.PID-N, .name.PID-N.old."""
    for found in path.parent.glob(f"{glob.escape(_mark(path))}*"):
        if _has_no_writer(*_writer_of(found)):
            with trying(found) as is_free:
                if is_free:
                    yield found


def is_being_replaced(path: Path) -> bool:
    """Whether a process writes what will replace `path`, which may therefore be missing for a moment."""
    for found in path.parent.glob(f"{glob.escape(_mark(path))}*"):
        process, number = _writer_of(found)
        if process.isdecimal():
            with trying(found) as is_free:
                if not (is_free and _has_no_writer(process, number)):
                    return True
    return False


def _mark(path: Path) -> str:
    return f".{path.name}."


def _writer_of(partial: Path) -> tuple[str, str]:
    """Return process and number from the name of a partial file, .name.PID-N or .name.PID-N.old."""
    process, _, number = partial.name.removesuffix(".old").rpartition(".")[2].partition("-")
    return process, number


def _has_no_writer(process: str, number: str) -> bool:
    if not process.isdecimal():
        return False  # no partial file
    if int(process) == os.getpid():
        return number.isdecimal() and int(number) < _FIRST_NUMBER
    return not _lives(int(process))


def _lives(process: int) -> bool:
    if os.name == "nt":  # where kill() ends the process, whatever the signal
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # another user's process, or an impossible number
    return True


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the content of `path`, whole or not at all."""
    with writing_atomically(path) as file:
        file.write(content)


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes; gzip is unpacked, whatever the name of the file.

    Raises InputError for a file that is missing, unreadable or a broken gzip file, or that is named .gz and is not one.
    The block must do nothing else that can raise OSError.
    """
    try:
        with path.open("rb") as file:
            start = peek(file, len(_GZIP))
            if start == _GZIP:
                with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                    yield cast(BinaryIO, unpacked)
            elif start and path.suffix.lower() == ".gz":
                raise InputError(
                    f"{path}: has the suffix .gz but is not a complete gzip file; rename it, or compress it"
                )
            else:
                yield file
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the path") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: is not a complete gzip file ({error}); compress it again") from None
    except OSError as error:
        if error.errno == errno.ESPIPE:
            raise InputError(
                f"{path}: is a pipe, and it is read more than once; write it to a file first"
            ) from None
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def peek(file: BinaryIO, n: int) -> bytes:
    """Return the next n bytes of a file that `reading` opened, fewer at its end, without consuming them."""
    return bytes(cast(Any, file).peek(n)[:n])


def is_same_file(one: Path, other: Path) -> bool:
    """Whether both paths are the same regular file, also through links; False where one does not exist."""
    try:
        return one.is_file() and one.samefile(other)
    except OSError:
        return False


def check_not_read(out: Path, inputs: Iterable[Path]) -> None:
    """Raise InputError if the output file is one of the inputs."""
    for path in inputs:
        if is_same_file(out, path):
            raise InputError(
                f"--out {out}: is {path}, which is read and would be overwritten; choose another --out"
            )


def is_packed(path: Path) -> bool:
    """Whether a file begins as gzip does. Raises InputError as `reading` does."""
    with reading(path) as file:
        return isinstance(file, gzip.GzipFile)


def json_text(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON, which has no NaN: numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, default=plain)


def _finite(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value

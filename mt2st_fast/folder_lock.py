"""Folders that something is written to: made for that, locked meanwhile, and removed again if nothing came of it."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mt2st_fast.errors import InputError

try:
    import fcntl
except ImportError:  # not available on Windows
    fcntl = None  # type: ignore[assignment]

HELD = "another process holds it"
MOST_TRIES = 9  # for file systems on which a folder seems to be another one each time

logger = logging.getLogger(__name__)


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder for the block, with those above it that are missing; of these, remove the empty ones afterwards.

    Raises OSError where it cannot be made.
    """
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for each in missing:
            with suppress(OSError):  # in use, or not made
                each.rmdir()


def check_can_write(folder: Path) -> None:
    """Raise OSError where no file can be written to a folder, or to the one in which it would be made."""
    while not _exists(folder):
        folder = folder.parent
    tempfile.TemporaryFile(dir=folder).close()  # without a name, which another process could have as well


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Lock `folder`, `made` if it is missing, against other processes. The lock ends with its process, however that
    ends.

    Raises InputError while another process holds it.
    """
    with locked(folder) as why_not:
        if why_not == HELD:
            raise InputError(
                f"another run is writing to {folder}; wait until it ends or choose another --out"
            )
        if why_not is not None:
            logger.warning(
                "%s cannot be locked (%s); do not start another run that writes to it", folder, why_not
            )
        yield


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[str | None]:
    """Make a folder as `made` does, and lock it for the block; yield None, or why it is not locked.

    wait: until nobody else holds it.
    """
    # The folder itself is locked: no lock file is left behind, and none can be deleted while another run needs it.
    with made(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            for _ in range(MOST_TRIES):
                why_not = _lock(descriptor, wait)
                if why_not == HELD or _is_at(descriptor, folder):
                    break
                # Another process removed it just before it was locked here.
                folder.mkdir(parents=True, exist_ok=True)
                gone, descriptor = descriptor, os.open(folder, os.O_RDONLY)
                os.close(gone)
            yield why_not
        finally:
            os.close(descriptor)


@contextmanager
def trying(path: Path) -> Iterator[bool]:
    """Lock a file or folder for the block if nobody holds it; yield whether that is certain."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # gone, or not ours
        yield False
        return
    try:
        yield fcntl is None or _lock(descriptor, wait=False) is None
    finally:
        os.close(descriptor)


def _lock(descriptor: int, wait: bool) -> str | None:
    if fcntl is None:
        return "this system has no file locks"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return HELD
    except OSError as error:  # a file system without locks
        return error.strerror
    return None


def _is_at(descriptor: int, folder: Path) -> bool:
    """Whether an open folder is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder))
    except FileNotFoundError:
        return False

"""Where compiled CPU kernels are cached: one folder for every state of the sources that they were made from.

Numba's own cache checks the file of a kernel, but not the files of what it calls. This one is stored under a digest of
all sources that Numba compiles here and of the compiler's versions, so any change makes older machine code unreachable.
If several processes need the same kernel at the same time, one compiles it; the others wait, then load it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, _CacheLocator

from .cache_folder import cache_folder
from .compiling import clock

try:
    import fcntl
except ImportError:  # on Windows every process compiles for itself
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("mt2st_fast")

FOLDER_VARIABLE = "NUMBA_CACHE_DIR"
# NUMBA_BOUNDSCHECK=1: an index out of bounds is an error.
BOUNDS_CHECKED = bool(config.BOUNDSCHECK)  # type: ignore[attr-defined]
SOURCES = Path(__file__).resolve().parents[1]
UNUSED_SECONDS = 30 * 86400  # after which the folder of another source state is removed
_STAMP = "used"
PATIENCE_SECONDS = 180.0  # for another process to compile a kernel: ten times what one takes


@lru_cache
def digest() -> str:
    """Digest of all sources that a CPU kernel may be made from, and of the compiler's versions."""
    state = hashlib.sha256(b"bounds are checked\n" if BOUNDS_CHECKED else b"")
    for package in ("numba", "llvmlite"):
        try:
            state.update(f"{package} {version(package)}\n".encode())
        except PackageNotFoundError:
            state.update(f"{package} of unknown version\n".encode())
    for source in sorted(SOURCES.rglob("*.py")):
        if "on_triton" not in source.parts:
            state.update(f"{source.relative_to(SOURCES)}\n".encode())
            state.update(source.read_bytes())
    return state.hexdigest()[:20]


@lru_cache
def folder() -> Path | None:
    """Return the folder for this state of the sources, creating it if needed.

    None, with one warning, if not writable.
    """
    root = _root()
    place = root / digest()
    try:
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()
        (place / _STAMP).touch()
    except OSError as error:
        _tell(error.strerror or str(error))
        return None
    _remove_unused(root, place)
    return place


@lru_cache(maxsize=1)
def _tell(why: str) -> None:
    """Warn, once, that nothing can be cached."""
    clock.is_kept = False
    log.warning(
        "compiled kernels cannot be cached in %s (%s), so every run compiles them again; set %s to a writable folder",
        _root(), why, FOLDER_VARIABLE,
    )  # fmt: skip


def has_none_of(function_name: str) -> bool:
    """Whether no kernel of this name is cached."""
    place = folder()
    return place is None or not any(place.glob(f"*.{function_name}-*.nbi"))


def _root() -> Path:
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen) / "mt2st-fast"
    return cache_folder() / "numba"


def _remove_unused(root: Path, current: Path) -> None:
    """Remove folders of other source states that have not been used for long."""
    for stamp in root.glob(f"*/{_STAMP}"):
        try:
            if stamp.parent != current and time.time() - stamp.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(stamp.parent, ignore_errors=True)
        except OSError:  # another process was faster
            continue


class _Locator(_CacheLocator):
    """A kernel's location in `folder`."""

    def __init__(self, function: Callable, place: Path) -> None:
        self._place, self._py_file = place, function.__code__.co_filename  # the latter for Numba's warnings
        self._name = f"{function.__module__}-{function.__code__.co_firstlineno}"

    def get_cache_path(self) -> str:
        return str(self._place)

    def get_source_stamp(self) -> str:
        return digest()

    def get_disambiguator(self) -> str:
        return self._name

    @classmethod
    def from_function(cls, py_func: Callable, py_file: str) -> _Locator | None:
        del py_file
        place = folder()
        return None if place is None else cls(py_func, place)


class _Storage(CompileResultCacheImpl):
    _locator_classes = [_Locator]  # noqa: RUF012 (a list, as Numba's own)


class _Files(IndexDataCacheFile):
    """Numba's files of a kernel: an index of signatures, and a file of machine code for each.

    Numba numbers the latter and writes the index first, so that a process without a lock, or a file that an earlier
    index knew, could make it load the code of another signature. Here, every file has a name that no other had.
    """

    def _data_name(self, number: int) -> str:
        return super()._data_name(number).replace(f".{number}.nbc", f".{uuid.uuid4().hex[:16]}.nbc")

    def discard(self) -> None:
        """Forget all signatures, as in a new folder."""
        with suppress(OSError):
            os.unlink(self._index_path)


class _Turn:
    """Lock by which processes take turns to compile a function. It is released if its process dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self, on_wait: Callable[[], object]) -> bool:
        """Wait for other processes, after calling `on_wait`; return whether there were any.

        Waits for PATIENCE_SECONDS only: one of them may have been stopped, as by Ctrl-Z.
        """
        if fcntl is None or self._descriptor is not None:
            return False
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # disk full or folder removed: compile without a lock, as a lone process would
            return False
        self._descriptor = descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            on_wait()
        except OSError:  # a file system without locks
            return False
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            time.sleep(0.02)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError:  # no locks left
                return False
            return True
        self.end()
        return True

    def end(self) -> None:
        if self._descriptor is not None:
            # Closing is not enough: a process forked in the meantime also holds it open.
            with suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None


class _Swallowed:
    """Keeps what is raised in a callback of LLVM's from `begin` to `end`: Python prints that, and goes on.

    Numba gets its machine code in such a callback, and what a signal's handler raises comes there, too: the signal has
    waited until LLVM returned to Python.
    """

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._before: Callable[[Any], object] | None = None
        self._thread = 0

    def begin(self) -> None:
        """Begin to listen, unless it does."""
        if self._before is None:
            self._error, self._thread = None, threading.get_ident()
            self._before, sys.unraisablehook = sys.unraisablehook, self._note

    def end(self) -> BaseException | None:
        """Return the first exception since `begin`, and listen no longer."""
        if self._before is not None:
            sys.unraisablehook, self._before = self._before, None
        error, self._error = self._error, None
        return error

    def _note(self, told: Any) -> None:
        is_callback = "ctypes callback" in (told.err_msg or "") and threading.get_ident() == self._thread
        if is_callback and self._error is None:
            self._error = told.exc_value
        elif self._before is not None:
            self._before(told)


class KernelCache(FunctionCache):
    """Numba's cache in this package's folder, with turns.

    Numba calls load_overload, compiles, then calls save_overload.
    """

    _impl_class = _Storage

    def __init__(self, py_func: Callable) -> None:
        super().__init__(py_func)
        base = self._impl.filename_base
        self._cache_file: _Files = _Files(self.cache_path, base, self._impl.locator.get_source_stamp())
        self._turn = _Turn(Path(self.cache_path, f"{base}.lock"))
        self._swallowed = _Swallowed()

    def _load(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except MemoryError:
            raise
        except Exception as error:  # whatever is raised for a damaged file, as a power cut leaves them
            log.info("the cached kernel %s cannot be read (%s), so it is compiled again", self._name, error)
            self._cache_file.discard()
            return None

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the machine code for a signature, or None if this process is to compile it."""
        clock.start(None)
        try:
            found = self._load(sig, target_context)
            if found is None and self._turn.take(lambda: clock.tell(self._py_func.__name__)):
                found = self._load(sig, target_context)
            if found is None:
                self._swallowed.begin()
            else:
                self._turn.end()
            return found
        except BaseException:  # Ctrl-C while waiting
            self._turn.end()
            raise
        finally:
            clock.stop()

    def save_overload(self, sig: Any, data: Any) -> None:
        """Store what was compiled; on a full disk, it serves this process alone.

        Raises what was raised in a callback meanwhile, such as KeyboardInterrupt.
        """
        failure, swallowed = None, None
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _tell(error.strerror or str(error))
        except RuntimeError as error:  # there is no machine code, if the callback that brings it has failed
            failure = error
        finally:
            swallowed = self._swallowed.end()
            self._turn.end()
        if swallowed is not None:
            raise swallowed from failure
        if failure is not None:
            raise failure

    def give_up(self) -> None:
        """Release the lock after a failed compilation."""
        self._swallowed.end()
        self._turn.end()


def kernel_cache(function: Callable) -> Any:
    """Return the cache for a function's machine code, or None if there is no folder for it."""
    return None if folder() is None else KernelCache(function)

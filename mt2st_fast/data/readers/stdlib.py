"""The reader `stdlib`: the running interpreter's standard library, with labels from its syntax trees."""

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
import sysconfig
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mt2st_fast.data.corpus import MISSING, Corpus, FileRead, ReadRecord, Splits, TargetColumn
from mt2st_fast.data.readers import python_source
from mt2st_fast.data.readers.request import Progress, Reader, ReadRequest, choose_tasks
from mt2st_fast.data.tokens import Tokens, bounds_of
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.environment import usable_cpus
from mt2st_fast.errors import InputError
from mt2st_fast.files import writing_atomically
from mt2st_fast.kernels.machine.cache_folder import cache_folder

DEFAULT_LABEL_FRACTION = 0.01  # of the training files: multi-task training is for few main labels

_DEFAULT_MAIN = "expression"
_TASKS = tuple(python_source.CLASS_NAMES)
# Tests, third-party packages, generated character tables, and packages that distributions install separately:
# what is left is nearly the same text on every machine.
_LEFT_OUT = frozenset(
    (
        "test",
        "tests",
        "idle_test",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "encodings",
        "tkinter",
        "turtledemo",
    )
)
_FILES_PER_WORKER_CALL = 24

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SourceFiles:
    """F read files: T tokens in logical lines; this is what the cache stores.

    modules         the F dotted names
    words           the types; tokens int32 (T,) are indices into them
    unit_lengths    int32 (U,), tokens of each logical line; units_per_file int32 (F,)
    labels          task -> uint8 (T,), class ids of python_source.CLASS_NAMES
    """

    modules: list[str]
    words: list[str]
    tokens: np.ndarray
    unit_lengths: np.ndarray
    units_per_file: np.ndarray
    labels: dict[str, np.ndarray]

    def __post_init__(self) -> None:
        T, F = len(self.tokens), len(self.modules)
        whole = self.unit_lengths.sum() == T and self.units_per_file.sum() == len(self.unit_lengths)
        if not whole or len(self.units_per_file) != F or self.labels.keys() != set(_TASKS):
            raise ValueError("the parts of the source files are inconsistent")
        if (T and self.tokens.max() >= len(self.words)) or any(len(ids) != T for ids in self.labels.values()):
            raise ValueError("the tokens of the source files do not match their words or labels")


def read(request: ReadRequest) -> Splits:
    """Read tasks expression (main by default), role, statement, scope, depth, next; rows are tokens, units logical
    lines.

    Files are the groups, and go to train, dev or test (80/10/10) by a hash of the module's name.
    """
    main, auxiliary = choose_tasks(request, _TASKS, _DEFAULT_MAIN, _TASKS, "stdlib")
    root = Path(sysconfig.get_path("stdlib"))
    paths = source_paths(root)
    source = _load_or_read(root, paths, request.progress)
    splits = make_splits(source, main.name, [task.name for task in auxiliary])
    unread = len(paths) - len(source.modules)
    left_out = {"files that this Python cannot parse": unread} if unread else {}
    units, rows = len(source.unit_lengths), len(source.tokens)
    library = FileRead(f"{len(source.modules):,} files of {root}", "train, dev, test", units, rows, left_out)
    return replace(splits, record=ReadRecord((library,)))


READER = Reader("stdlib", read, path="", label_fraction=DEFAULT_LABEL_FRACTION)


def source_paths(root: Path) -> list[Path]:
    """Return the files to read below the library's folder, in a fixed order.

    Raises InputError where there are none.
    """
    paths = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - _LEFT_OUT)
        paths += [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
    if not paths:
        raise InputError(
            f"{root}: the source files of this Python's standard library are missing; use conllu:PATH, columns:PATH "
            "or csv:PATH"
        )
    return paths


def read_files(root: Path, paths: Sequence[Path], progress: Progress | None = None) -> SourceFiles:
    """Read and label source files in parallel; files that this Python cannot parse are left out.

    Each worker runs python_source.py as a script (its docstring says why); the files of a worker that fails are read in
    this process.
    """
    # Largest first and distributed in turn, so that no worker gets all the big files.
    by_size = sorted(range(len(paths)), key=lambda i: (-paths[i].stat().st_size, i))
    n_calls = max(1, -(-len(paths) // _FILES_PER_WORKER_CALL))
    calls = [by_size[i::n_calls] for i in range(n_calls)]
    read_of: dict[int, dict | None] = {}
    with ThreadPoolExecutor(usable_cpus()) as pool:
        futures = {pool.submit(_read_in_worker, [str(paths[i]) for i in call]): call for call in calls}
        for future in as_completed(futures):
            read_of.update(zip(futures[future], future.result(), strict=True))
            if progress is not None:
                progress(len(read_of), len(paths))
    kept = {
        _module_name(paths[i].relative_to(root)): source for i, source in sorted(read_of.items()) if source
    }
    return _join(list(kept), list(kept.values()))


def make_splits(source: SourceFiles, main: str, auxiliary: Sequence[str]) -> Splits:
    """Divide the files into train, dev and test, and encode the requested tasks."""
    tasks = (main, *auxiliary)
    part_of_file = np.array([_part_of(module) for module in source.modules])
    unit_file = np.repeat(np.arange(len(source.modules)), source.units_per_file)
    token_file = np.repeat(unit_file, source.unit_lengths)
    in_train = part_of_file[token_file] == "train"
    counts = np.bincount(source.tokens[in_train], minlength=len(source.words))
    vocabulary = Vocabulary.from_counts(source.words, counts)
    id_of_word = vocabulary.ids_of(source.words)
    columns = {task: _column(task, source.labels[task]) for task in tasks}

    def corpus(part: str) -> Corpus:
        in_files = part_of_file == part
        in_tokens = in_files[token_file]
        return Corpus(
            tokens=id_of_word[source.tokens[in_tokens]],
            bounds=bounds_of(source.unit_lengths[in_files[unit_file]]),
            targets={
                task: TargetColumn(column.kind, column.class_names, column.values[in_tokens])
                for task, column in columns.items()
            },
            groups=bounds_of(source.units_per_file[in_files]),
        )

    return Splits(
        train=corpus("train"),
        dev=corpus("dev"),
        test=corpus("test"),
        vocabulary=vocabulary,
        name="stdlib",
        main=main,
        auxiliary=tuple(auxiliary),
        notes=(f"standard library of Python {platform.python_version()}, {len(source.modules)} files",),
    )


def save_cache(source: SourceFiles, path: Path) -> None:
    """Write the cache, whole or not at all; a failure only costs reading again."""
    arrays = {
        "modules": _to_bytes(source.modules),
        "words": _to_bytes(source.words),
        "tokens": source.tokens,
        "unit_lengths": source.unit_lengths,
        "units_per_file": source.units_per_file,
        **{f"labels.{task}": ids for task, ids in source.labels.items()},
    }
    try:
        with writing_atomically(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        _log.warning(
            "%s: cannot write the standard library cache (%s); the library is parsed again in every run",
            path,
            error.strerror or error,
        )


def load_cache(path: Path) -> SourceFiles | None:
    """Read what `save_cache` wrote; None where it is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return SourceFiles(
                modules=_from_bytes(arrays["modules"]),
                words=_from_bytes(arrays["words"]),
                tokens=arrays["tokens"],
                unit_lengths=arrays["unit_lengths"],
                units_per_file=arrays["units_per_file"],
                labels={task: arrays[f"labels.{task}"] for task in _TASKS},
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        _log.info("%s: the cache is damaged (%s) and will be rebuilt", path, error)
        return None


def _load_or_read(root: Path, paths: Sequence[Path], progress: Progress | None) -> SourceFiles:
    cache = _cache_path(root, paths)
    source = load_cache(cache)
    if source is None:
        source = read_files(root, paths, progress)
        save_cache(source, cache)
    return source


def _cache_path(root: Path, paths: Sequence[Path]) -> Path:
    """Return the cache file for this interpreter version, reader and state of the library's files."""
    digest = hashlib.sha256(sys.version.encode())
    for code in (Path(python_source.__file__), Path(__file__)):
        digest.update(code.read_bytes())
    for path in paths:
        status = path.stat()
        digest.update(
            f"{path.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n".encode(
                errors="surrogateescape"
            )
        )
    return cache_folder() / f"stdlib-{platform.python_version()}-{digest.hexdigest()[:16]}.npz"


def _read_in_worker(paths: list[str]) -> list[dict | None]:
    # -I and -S: no environment variables, and no site-packages, which would slow down the start.
    command = [sys.executable, "-I", "-S", python_source.__file__]
    try:
        result = subprocess.run(command, input=json.dumps(paths).encode(), capture_output=True, check=True)
        sources = [json.loads(line) for line in result.stdout.splitlines()]
        if len(sources) == len(paths):
            return sources
        _log.warning(
            "a reader process returned only %d of %d files; reading them in this process",
            len(sources),
            len(paths),
        )
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        _log.warning("a reader process failed (%s); reading its files in this process", error)
    return [python_source.read_file(path) for path in paths]


def _join(modules: list[str], sources: Sequence[dict]) -> SourceFiles:
    tokens = Tokens.of(_split(source["tokens"]) for source in sources)
    unit_lengths = [length for source in sources for length in source["unit_lengths"]]
    return SourceFiles(
        modules=modules,
        words=tokens.vocabulary.words,
        tokens=tokens.ids,
        unit_lengths=np.array(unit_lengths, dtype=np.int32),
        units_per_file=np.array([len(source["unit_lengths"]) for source in sources], dtype=np.int32),
        labels={
            task: np.frombuffer(
                b"".join(bytes.fromhex(source["labels"][task]) for source in sources), dtype=np.uint8
            )
            for task in _TASKS
        },
    )


def _column(task: str, ids: np.ndarray) -> TargetColumn:
    """Convert class ids to a target column of the classes that occur."""
    used = np.unique(ids)
    used = used[used != python_source.MISSING_ROLE]
    new_id = np.full(256, MISSING, dtype=np.int64)
    new_id[used] = np.arange(len(used))
    return TargetColumn("classes", tuple(python_source.CLASS_NAMES[task][i] for i in used), new_id[ids])


def _part_of(module: str) -> str:
    return {8: "dev", 9: "test"}.get(zlib.crc32(module.encode(errors="surrogateescape")) % 10, "train")


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _split(joined: str) -> list[str]:
    return joined.split("\n") if joined else []


def _to_bytes(lines: Sequence[str]) -> np.ndarray:
    return np.frombuffer("\n".join(lines).encode("utf-8", "surrogatepass"), dtype=np.uint8)


def _from_bytes(joined: np.ndarray) -> list[str]:
    return _split(joined.tobytes().decode("utf-8", "surrogatepass"))

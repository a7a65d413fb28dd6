"""Make a token file from text files of any size, which are read once, in parallel and in blocks.

Provisional word ids are written to a temporary file; when all words are counted, they are mapped to those of the
vocabulary. Memory only has to hold the different words and a few blocks for each process.
"""

from __future__ import annotations

import logging
import pickle
import re
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, cast

import numpy as np

from mt2st_fast.data.stream import write_stream
from mt2st_fast.data.text import block_words
from mt2st_fast.data.text.decoding import Found, Oddities
from mt2st_fast.data.text.lines import not_utf8, reading_text
from mt2st_fast.data.tokens import MISSING_WORD
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.environment import usable_cpus
from mt2st_fast.errors import InputError
from mt2st_fast.files import check_not_read, is_packed, is_same_file, naming
from mt2st_fast.folder_lock import made

log = logging.getLogger("mt2st_fast")
Progress = Callable[[str, int, int], None]

BLOCK_BYTES = 8 << 20
_LONGEST_WORD_BYTES = 1 << 20
_WORKER = "import sys; sys.path.append(sys.argv[1]); from text.block_words import main; main()"
_DROPPED, _END = MISSING_WORD, -2
_BREAK = re.compile(rb"[ \n\t\0]|\r(?=[^\r\n])")  # a block may end after one of these


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare`: what it read and wrote."""

    files: int
    bytes_read: int
    words_read: int
    words_kept: int
    types_read: int
    types_kept: int
    sentences: int


def prepare(
    corpus: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    lower: bool = False,
    min_count: int = 5,
    processes: int | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Write the token file `out` (see mt2st_fast.data.stream) from text files and folders, also from .gz files.

    A line is a sentence; its words are separated by white space. Files of a folder (except hidden ones) are read in the
    order of their paths. processes: one per usable CPU by default; the output does not depend on their number.
    progress: called with the pass ("read", "write"), bytes done and bytes in total.

    Raises InputError for a corpus that is missing, not UTF-8, or has no word that occurs `min_count` times. In this
    case, or if interrupted, an older `out` stays as it was.
    """
    out = Path(out)
    paths = [Path(path) for path in ([corpus] if isinstance(corpus, str | Path) else corpus)]
    if min_count < 1:
        raise InputError(f"min-count must be at least 1, not {min_count}")
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; use a file name in it")
    files = _files_of(paths, out)
    total = sum(path.stat().st_size for path in files)
    wanted = usable_cpus() if processes is None else processes
    if wanted < 1:
        raise InputError(f"processes must be at least 1, not {wanted}")
    workers = _Workers(min(wanted, -(-total // BLOCK_BYTES)) if processes is None else wanted)
    seen, found = _SeenWords(), _Oddities()
    with naming(out), made(out.parent), tempfile.TemporaryFile(dir=out.parent) as waiting:
        with workers:
            for block, worker, (encoded, new_words, odd) in workers.encode(_blocks_of(files), lower):
                ids = seen.add(worker, encoded, new_words)
                waiting.write(ids.tobytes())
                found.add(block, ids, odd)
                if progress is not None:
                    progress("read", block.done, total)
        vocabulary = seen.vocabulary(min_count, ", ".join(map(str, paths)))
        sentences = write_stream(out, _kept(waiting, seen.ids_in(vocabulary), progress), vocabulary)
    found.tell()
    return Prepared(
        files=len(files),
        bytes_read=total,
        words_read=seen.total,
        words_kept=int(vocabulary.counts.sum()),
        types_read=len(seen),
        types_kept=len(vocabulary),
        sentences=sentences,
    )


def _kept(
    waiting: BinaryIO, new_id: np.ndarray, progress: Progress | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the ids of a file in blocks, as those in new_id, with the ends of sentences."""
    size = waiting.tell()
    waiting.seek(0)
    while encoded := waiting.read(BLOCK_BYTES // 4 * 4):
        yield _kept_ids_and_ends(new_id[np.frombuffer(encoded, dtype=np.int32)])
        if progress is not None:
            progress("write", waiting.tell(), size)


class _SeenWords:
    """The different words so far: their common ids, their counts, and the ids that each worker uses for them."""

    def __init__(self) -> None:
        self._id_of = block_words.WordIds()
        self._counts = np.zeros(1, dtype=np.int64)
        self._common_id_of: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._id_of) - 1

    @property
    def total(self) -> int:
        """The number of words that were read."""
        return int(self._counts[block_words.END + 1 :].sum())

    def add(self, worker: int, encoded: bytes, new_words: list[str]) -> np.ndarray:
        """Map a block from a worker's ids to common ids, int32; `new_words` are those that the worker sends now."""
        known = self._common_id_of.get(worker, np.array([block_words.END], dtype=np.int32))
        new = np.fromiter(map(self._id_of.__getitem__, new_words), np.int32, len(new_words))
        self._common_id_of[worker] = known = np.concatenate([known, new])
        ids = known[np.frombuffer(encoded, dtype=np.int32)]
        counts = np.bincount(ids, minlength=len(self._id_of))
        counts[: len(self._counts)] += self._counts
        self._counts = counts
        return ids

    def vocabulary(self, min_count: int, where: str) -> Vocabulary:
        """Return the words read at least `min_count` times. Raises InputError where there are none."""
        if not self.total:
            raise InputError(f"{where}: contains no words; use a text with words")
        words = islice(self._id_of, 1, None)  # without the mark for line ends
        return Vocabulary.from_counts(words, self._counts[1:], min_count=min_count, where=where)

    def ids_in(self, vocabulary: Vocabulary) -> np.ndarray:
        """Return for each common id the vocabulary's id, _DROPPED or _END."""
        ids = vocabulary.lookup(self._id_of)
        ids[block_words.END] = _END
        return ids


class _Oddities:
    """Collects what is odd in each file, from the blocks in their order."""

    def __init__(self) -> None:
        self._of_file: dict[Path, Oddities] = {}
        self._line = 1  # number of the next block's first line

    def add(self, block: _Block, ids: np.ndarray, odd: Found) -> None:
        """Add a block; `ids` has END at every line end."""
        if block.offset == 0:
            self._line = 1
        self._of_file.setdefault(block.path, Oddities()).add(odd, self._line)
        self._line += int((ids == block_words.END).sum())

    def tell(self) -> None:
        """Log what was found."""
        for path, odd in self._of_file.items():
            for note in odd.notes():
                log.warning("%s: %s", path, note)


def _kept_ids_and_ends(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids that are kept, and for each line end how many of them precede it."""
    ids = ids[ids != _DROPPED]
    ends = np.flatnonzero(ids == _END)
    return ids[ids != _END], ends - np.arange(len(ends))


def _files_of(paths: Sequence[Path], out: Path) -> list[Path]:
    """Return the files to read, in order; never the output file."""
    files = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                file
                for file in path.rglob("*")
                if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
            )
            files += [file for file in inside if not is_same_file(out, file)]
        elif path.is_file():
            check_not_read(out, [path])
            files.append(path)
        else:
            raise InputError(f"{path}: no such file or folder; check the path")
    if not files:
        raise InputError(f"{', '.join(map(str, paths)) or 'the corpus'}: no files to read; check the path")
    return files


@dataclass(frozen=True)
class _Block:
    """A piece of a file: its bytes if the file is compressed, else None.

    `done` counts the bytes on disk of all files up to its end.
    """

    path: Path
    offset: int
    length: int
    begins_line: bool
    last: bool
    done: int
    content: bytes | None = None

    def request(self, lower: bool) -> tuple:
        """Return the arguments of Encoder.encode."""
        where = (str(self.path), self.offset, self.length) if self.content is None else self.content
        return where, self.begins_line, self.last, lower


def _blocks_of(files: Sequence[Path]) -> Iterator[_Block]:
    before = 0
    for path in files:
        yield from (_packed_blocks if is_packed(path) else _plain_blocks)(path, before)
        before += path.stat().st_size


def _plain_blocks(path: Path, before: int) -> Iterator[_Block]:
    with reading_text(path, may_be_empty=True) as file:
        size, start, begins_line = path.stat().st_size, 0, True
        while start < size:
            end, broken_by = start + BLOCK_BYTES, b""
            if end < size:
                file.seek(end)
                content = file.read(_LONGEST_WORD_BYTES)
                found = _BREAK.search(content)
                if found is None and end + _LONGEST_WORD_BYTES < size:
                    raise _no_text(path)
                end = size if found is None else end + found.end()
                broken_by = b"" if found is None else found[0]
            end = min(end, size)
            yield _Block(path, start, end - start, begins_line, end == size, before + end)
            start, begins_line = end, broken_by in (b"\n", b"\r")


def _packed_blocks(path: Path, before: int) -> Iterator[_Block]:
    with reading_text(path, may_be_empty=True) as file:
        on_disk = cast(Any, file).fileobj
        held, offset, begins_line = b"", 0, True
        while more := file.read(BLOCK_BYTES):
            held += more
            body = held.rstrip(b"\r")  # a line feed may follow
            end = 1 + max(body.rfind(sign) for sign in (b" ", b"\n", b"\r", b"\t", b"\0"))
            if not end and len(held) > _LONGEST_WORD_BYTES:
                raise _no_text(path)
            if end:
                yield _Block(path, offset, end, begins_line, False, before + on_disk.tell(), held[:end])
                begins_line = held[end - 1 : end] in (b"\n", b"\r")
            held, offset = held[end:], offset + end
        done = before + path.stat().st_size
        yield _Block(path, offset, len(held), begins_line, True, done, held)


def _no_text(path: Path) -> InputError:
    return InputError(
        f"{path}: contains a word longer than a million bytes; is this text with words separated by white space?"
    )


class _Workers:
    """Processes that run `block_words` as a script, or this process if one is enough. A context manager."""

    def __init__(self, count: int) -> None:
        self._count = max(1, count)
        self._processes: list[subprocess.Popen[bytes]] = []
        # Each thread talks to one worker, so that answers come in the order of the blocks.
        self._free: SimpleQueue[int] = SimpleQueue()
        self._mine = threading.local()
        self._threads = ThreadPoolExecutor(self._count, initializer=self._take_worker)

    def _take_worker(self) -> None:
        self._mine.worker = self._free.get()

    def __enter__(self) -> _Workers:
        # -I and -S: no environment variables, and no site-packages, which would slow down the start; the folder of
        # text/ is the only package there. Their own session shields them from Ctrl-C: this process ends them.
        command = [sys.executable, "-I", "-S", "-c", _WORKER, str(Path(block_words.__file__).parents[1])]
        pipe = subprocess.PIPE
        for worker in range(self._count if self._count > 1 else 0):
            self._processes.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True))
            self._free.put(worker)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):  # a request that was only sent in part
                    pipe.close()  # type: ignore[union-attr]

    def encode(self, blocks: Iterator[_Block], lower: bool) -> Iterator[tuple[_Block, int, Any]]:
        """Yield (block, worker, result of Encoder.encode) in order; at most two blocks per worker are in progress."""
        if not self._processes:
            encoder = block_words.Encoder()
            for block in blocks:
                yield block, 0, _checked(block, encoder.encode(*block.request(lower)))
            return
        pending: deque[tuple[_Block, Future[tuple[int, tuple[bool, Any]]]]] = deque()

        def first() -> tuple[_Block, int, Any]:
            block, future = pending.popleft()
            worker, answer = future.result()
            return block, worker, _checked(block, answer)

        for block in blocks:
            pending.append((block, self._threads.submit(self._ask, block.request(lower))))
            if len(pending) >= 2 * self._count:
                yield first()
        while pending:
            yield first()

    def _ask(self, request: tuple) -> tuple[int, tuple[bool, Any]]:
        worker = self._mine.worker
        stdin, stdout = self._processes[worker].stdin, self._processes[worker].stdout
        assert stdin is not None
        assert stdout is not None
        try:
            pickle.dump(request, stdin, pickle.HIGHEST_PROTOCOL)
            stdin.flush()
            return worker, pickle.load(stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise InputError(
                "a process reading the corpus was killed; free some memory or use fewer --processes"
            ) from None


def _checked(block: _Block, answered: tuple[bool, Any]) -> Any:
    good, result = answered
    if good:
        return result
    if isinstance(result, str):
        raise InputError(f"{block.path}: cannot be read ({result})")
    before = block.offset + result
    with reading_text(block.path) as file:
        sizes = (min(BLOCK_BYTES, before - start) for start in range(0, before, BLOCK_BYTES))
        raise not_utf8(str(block.path), 1, map(file.read, sizes))

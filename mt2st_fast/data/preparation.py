"""From text files of any size to a token file: count the words, then write their ids, in parallel and in blocks.

What is in memory at a time: the counts of the different words, and for each process a few blocks.
"""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import numpy as np

from mt2st_fast.data import block_words
from mt2st_fast.data.stream import frequent_enough, write_stream
from mt2st_fast.environment import usable_cpus
from mt2st_fast.errors import InputError
from mt2st_fast.files import reading

Progress = Callable[[str, int, int], None]

BLOCK_BYTES = 8 << 20
_LONGEST_WORD_BYTES = 1 << 20
_BREAK = re.compile(rb"[ \n\r\t]")


@dataclass(frozen=True)
class Prepared:
    """What `prepare` read and wrote."""

    files: int
    bytes_read: int
    words_read: int
    words_kept: int
    types_read: int
    types_kept: int
    sentences: int


def prepare(
    corpus: Sequence[str | Path],
    out: str | Path,
    *,
    lower: bool = False,
    min_count: int = 5,
    processes: int | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Write the token file `out` (see mt2st_fast.data.stream) from text files and folders, .gz too.

    A line is a sentence, its words stand between white space. The words of a folder's files (all but hidden ones) are
    taken in the order of their paths. The file written does not depend on `processes`, by default one a usable
    CPU. `progress` is called with the pass ("count", "write"), bytes done and bytes in all.

    Raises InputError for a corpus that is missing, not UTF-8, or has no word that occurs `min_count` times; then, and
    when it is interrupted, an older `out` stays as it was.
    """
    out = Path(out)
    if min_count < 1:
        raise InputError(f"min-count must be 1 or more, not {min_count}")
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; name a file in it")
    files = _files_of([Path(path) for path in corpus], out)
    total = sum(path.stat().st_size for path in files)
    wanted = usable_cpus() if processes is None else processes
    if wanted < 1:
        raise InputError(f"processes must be 1 or more, not {wanted}")
    workers = _Workers(min(wanted, -(-total // BLOCK_BYTES)) if processes is None else wanted)

    def run(name: str, stage: str) -> Iterator[Any]:
        for block, result in workers.map(name, _blocks_of(files), lower):
            yield result
            if progress is not None:
                progress(stage, block.done, total)

    with workers:
        count_of: Counter[str] = Counter()
        for counts in run("count", "count"):
            count_of.update(counts)
        vocabulary = frequent_enough(count_of, min_count, ", ".join(map(str, corpus)))
        words_read, types_read = count_of.total(), len(count_of)
        count_of.clear()
        workers.tell("know", vocabulary.words)
        sentences = write_stream(out, map(_kept_ids_and_ends, run("encode", "write")), vocabulary)
    return Prepared(
        len(files), total, words_read, int(vocabulary.counts.sum()), types_read, len(vocabulary), sentences
    )


def _kept_ids_and_ends(encoded: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The ids of known words, and how many of them stand before each end of a sentence."""
    ids = np.frombuffer(encoded, dtype=np.int32)
    ids = ids[ids != block_words.UNKNOWN]
    ends = np.flatnonzero(ids == block_words.END)
    return ids[ids != block_words.END], ends - np.arange(len(ends))


def _files_of(paths: Sequence[Path], out: Path) -> list[Path]:
    """The files to read, in order; never the one that is written."""
    files = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                file
                for file in path.rglob("*")
                if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
            )
            files += [file for file in inside if file.resolve() != out.resolve()]
        elif path.is_file():
            if path.resolve() == out.resolve():
                raise InputError(
                    f"{path}: is the corpus; give another --out, or the text would be overwritten"
                )
            files.append(path)
        else:
            raise InputError(f"{path}: there is no such file or folder; check the path")
    if not files:
        raise InputError(f"{', '.join(map(str, paths)) or 'the corpus'}: there are no files to read")
    return files


@dataclass(frozen=True)
class _Block:
    """A piece of a file: its bytes where the file is packed, else None. `done` counts the bytes of all files up to
    its end as they lie on disk."""

    path: Path
    offset: int
    length: int
    last: bool
    done: int
    content: bytes | None = None

    def request(self, lower: bool) -> tuple:
        """The arguments of Blocks.count and Blocks.encode."""
        where = (str(self.path), self.offset, self.length) if self.content is None else self.content
        return where, self.offset == 0, self.last, lower


def _blocks_of(files: Sequence[Path]) -> Iterator[_Block]:
    before = 0
    for path in files:
        yield from (_packed_blocks if path.suffix == ".gz" else _plain_blocks)(path, before)
        before += path.stat().st_size


def _plain_blocks(path: Path, before: int) -> Iterator[_Block]:
    with reading(path) as file:
        size, start = path.stat().st_size, 0
        while start < size:
            end = start + BLOCK_BYTES
            if end < size:
                file.seek(end)
                found = _BREAK.search(file.read(_LONGEST_WORD_BYTES))
                if found is None and end + _LONGEST_WORD_BYTES < size:
                    raise _no_text(path)
                end = size if found is None else end + found.end()
            end = min(end, size)
            yield _Block(path, start, end - start, end == size, before + end)
            start = end


def _packed_blocks(path: Path, before: int) -> Iterator[_Block]:
    with reading(path) as file:
        on_disk = cast(Any, file).fileobj
        held, offset = b"", 0
        while more := file.read(BLOCK_BYTES):
            held += more
            end = 1 + max(held.rfind(sign) for sign in (b" ", b"\n", b"\r", b"\t"))
            if not end and len(held) > _LONGEST_WORD_BYTES:
                raise _no_text(path)
            if end:
                yield _Block(path, offset, end, False, before + on_disk.tell(), held[:end])
            held, offset = held[end:], offset + end
        yield _Block(path, offset, len(held), True, before + path.stat().st_size, held)


def _no_text(path: Path) -> InputError:
    return InputError(
        f"{path}: has a word of more than a million bytes; is it text with white space between words?"
    )


class _Workers:
    """Processes that run `block_words` as a script, or this one where one is enough. A context manager."""

    def __init__(self, count: int) -> None:
        self._own = block_words.Blocks()
        self._all: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._count = count
        self._threads = ThreadPoolExecutor(max(1, count))

    def __enter__(self) -> _Workers:
        # -I and -S: nothing of the environment, and no site-packages that would slow the start. A session of their
        # own keeps Ctrl-C from them: this process ends them.
        command = [sys.executable, "-I", "-S", block_words.__file__]
        for _ in range(self._count if self._count > 1 else 0):
            worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
            self._all.append(worker)
            self._idle.put(worker)
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._all:
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                with suppress(BrokenPipeError):  # a request that was not sent whole
                    pipe.close()  # type: ignore[union-attr]

    def tell(self, name: str, *arguments: Any) -> None:
        """Call a method in every process."""
        if not self._all:
            block_words.answer(self._own, name, arguments)
        for worker in self._all:
            _ask(worker, name, arguments)

    def map(self, name: str, blocks: Iterator[_Block], lower: bool) -> Iterator[tuple[_Block, Any]]:
        """Each block and what the method returned for it, in order; at most two blocks a process are under way."""
        if not self._all:
            for block in blocks:
                yield block, _checked(block, block_words.answer(self._own, name, block.request(lower)))
            return
        pending: deque[tuple[_Block, Future[tuple[bool, Any]]]] = deque()
        for block in blocks:
            pending.append((block, self._threads.submit(self._call, name, block.request(lower))))
            if len(pending) >= 2 * len(self._all):
                block, future = pending.popleft()
                yield block, _checked(block, future.result())
        for block, future in pending:
            yield block, _checked(block, future.result())

    def _call(self, name: str, arguments: tuple) -> tuple[bool, Any]:
        worker = self._idle.get()
        try:
            return _ask(worker, name, arguments)
        finally:
            self._idle.put(worker)


def _ask(worker: subprocess.Popen[bytes], name: str, arguments: tuple) -> tuple[bool, Any]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        pickle.dump((name, arguments), worker.stdin, pickle.HIGHEST_PROTOCOL)
        worker.stdin.flush()
        return pickle.load(worker.stdout)
    except (EOFError, OSError, pickle.UnpicklingError):
        raise InputError(
            "a process that read the corpus was killed; free memory, or use fewer --processes"
        ) from None


def _checked(block: _Block, answered: tuple[bool, Any]) -> Any:
    good, result = answered
    if good:
        return result
    if isinstance(result, str):
        raise InputError(f"{block.path}: cannot be read ({result})")
    number, before = 1, block.offset + result
    with reading(block.path) as file:
        while before > 0 and (piece := file.read(min(before, BLOCK_BYTES))):
            number, before = number + piece.count(b"\n"), before - len(piece)
    raise InputError(f"{block.path}:{number}: is not UTF-8; convert the file to UTF-8")

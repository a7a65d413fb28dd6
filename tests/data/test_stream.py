"""Token files: the same whatever the number of processes, whole or not there, and damage is named."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mt2st_fast.data import TokenStream, preparation, prepare, stream
from mt2st_fast.errors import InputError

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"
POLARITY = REAL_DATA / "sentence_polarity"


def some_text(lines: int, seed: int = 0) -> str:
    """Lines of ragged length, some empty, with white space and letters of many kinds."""
    chance = random.Random(seed)
    words = ["the", "The", "naïve", "слово", "語", "🙂", "a.b", *(f"w{i}" for i in range(300))]
    gaps = [" ", "  ", "\t", " \u00a0", "\u3000", "\r", "\x0b"]
    return "".join(
        "".join(chance.choice(words) + chance.choice(gaps) for _ in range(chance.randrange(0, 30)))
        + chance.choice(["\n", "\r\n"])
        for _ in range(lines)
    )


def sentences_of(tokens: TokenStream) -> list[list[str]]:
    words = [tokens.vocabulary.words[t] for t in tokens.ids]
    return [words[a:b] for a, b in zip(tokens.bounds[:-1], tokens.bounds[1:], strict=True)]


def expected(text: str, min_count: int) -> list[list[str]]:
    """The sentences by the plainest means."""
    lines = [line.split() for line in text.split("\n")]
    counts = Counter(word for line in lines for word in line)
    kept = [[word for word in line if counts[word] >= min_count] for line in lines]
    return [line for line in kept if line]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 300 bytes: borders fall into words, lines and files of a few kilobytes."""
    monkeypatch.setattr(preparation, "BLOCK_BYTES", 300)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder: a plain file without a line feed at its end, a packed one in a folder, a hidden and an empty one."""
    folder = tmp_path / "corpus"
    (folder / "deeper").mkdir(parents=True)
    (folder / "b.txt").write_bytes(
        "\ufefffirst line\n".encode() + some_text(200).encode() + b"the last words"
    )
    (folder / "deeper" / "c.txt.gz").write_bytes(gzip.compress(some_text(150, seed=1).encode()))
    (folder / "a.txt").write_bytes(b"")
    (folder / ".hidden").write_bytes(b"hidden hidden hidden hidden")
    return folder


def text_of(corpus: Path) -> str:
    packed = gzip.decompress((corpus / "deeper" / "c.txt.gz").read_bytes()).decode()
    return (corpus / "b.txt").read_bytes().decode("utf-8-sig") + "\n" + packed


@pytest.mark.parametrize("min_count", [1, 3, 22])
def test_the_file_holds_the_sentences(
    corpus: Path, min_count: int, tmp_path: Path, small_blocks: None
) -> None:
    out = tmp_path / "t.tokens"
    done = prepare([corpus], out, min_count=min_count, processes=1)
    tokens = TokenStream.open(out)
    wanted = expected(text_of(corpus), min_count)
    assert sentences_of(tokens) == wanted
    counts = Counter(word for sentence in wanted for word in sentence)
    assert dict(zip(tokens.vocabulary.words, tokens.vocabulary.counts, strict=True)) == counts
    assert (np.diff(tokens.vocabulary.counts) <= 0).all()
    assert (done.files, done.sentences, done.types_kept) == (3, len(wanted), len(counts))
    assert (done.words_kept, done.words_read) == (
        counts.total(),
        sum(map(len, expected(text_of(corpus), 1))),
    )
    assert isinstance(tokens.ids, np.memmap)
    assert isinstance(tokens.bounds, np.memmap)
    assert (tokens.ids.dtype, tokens.bounds.dtype) == (np.int32, np.int64)


def test_every_number_of_processes_and_size_of_blocks_writes_the_same(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = set()
    for size in (61, 1000, 1 << 20):
        monkeypatch.setattr(preparation, "BLOCK_BYTES", size)
        for processes in (1, 2, 3) if size == 1000 else (1,):
            prepare([corpus], tmp_path / "t", min_count=2, processes=processes)
            written.add((tmp_path / "t").read_bytes())
    assert len(written) == 1


def test_memory_and_file_agree(corpus: Path, tmp_path: Path) -> None:
    prepare([corpus], tmp_path / "t", min_count=3, lower=True)
    read = TokenStream.open(tmp_path / "t")
    text = text_of(corpus)
    for sentences in (text.split("\n"), (line.split() for line in text.split("\n"))):
        held = TokenStream.from_sentences(sentences, min_count=3, lower=True)
        assert np.array_equal(held.ids, read.ids)
        assert np.array_equal(held.bounds, read.bounds)
        assert held.ids.dtype == np.int32
        assert held.bounds.dtype == np.int64
        assert held.n_units == read.n_units
        assert held.vocabulary.words == read.vocabulary.words
        assert np.array_equal(held.vocabulary.counts, read.vocabulary.counts)
    assert "The" not in read.vocabulary
    assert "the" in read.vocabulary


def test_a_sentence_longer_than_many_blocks_stays_one(tmp_path: Path, small_blocks: None) -> None:
    words = [f"w{i % 50}" for i in range(5000)]
    (tmp_path / "one.txt").write_text(" ".join(words))
    prepare([tmp_path / "one.txt", tmp_path / "one.txt"], tmp_path / "t", min_count=1, processes=1)
    assert sentences_of(TokenStream.open(tmp_path / "t")) == [words, words]


def test_nul_is_white_space_and_a_mark_only_at_the_start_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("\ufeffa\0b \ufeffc\n\0\n".encode())
    prepare([tmp_path / "x.txt"], tmp_path / "t", min_count=1)
    assert sentences_of(TokenStream.open(tmp_path / "t")) == [["a", "b", "\ufeffc"]]


def test_the_format_is_the_documented_one(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("b a b\n\nc\n")
    prepare([tmp_path / "x.txt"], tmp_path / "t", min_count=1)
    content = (tmp_path / "t").read_bytes()
    magic, version, checksum, n, m, size, of_header = struct.unpack_from("<8sIIqqqI", content)
    assert (magic, version, n, m) == (b"MT2STTOK", 2, 4, 2)
    assert struct.unpack_from("<4i", content, 64) == (0, 1, 0, 2)
    assert struct.unpack_from("<3q", content, 80) == (0, 3, 4)
    assert json.loads(content[104:]) == {"words": ["b", "a", "c"], "counts": [2, 1, 1]}
    assert (size, checksum) == (len(content) - 104, zlib.crc32(content[64:]))
    assert of_header == zlib.crc32(content[:40])
    assert content[44:64] == bytes(20)


# What cannot be used


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        TokenStream.open(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_damaged_files_are_named(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "t"
    assert "no such file" in refused(path)
    prepare([corpus], path, min_count=1)
    whole = path.read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    for content, name in [
        (whole[:-1], "cut off"),
        (whole[: len(whole) // 2], "cut off"),
        (whole + b"x", "cut off"),
        (whole[:40], "no token file"),
        (b"", "no token file"),
        (b"plain text of some length " * 10, "no token file"),
        (whole[:8] + struct.pack("<I", 7) + whole[12:], "version 7"),
        (whole[:16] + struct.pack("<q", -5) + whole[24:], "damaged"),
        (flipped, "damaged"),
    ]:
        path.write_bytes(content)
        assert name in refused(path)


def test_no_byte_may_change_unseen(tmp_path: Path) -> None:
    path = tmp_path / "t"
    (tmp_path / "x.txt").write_text("a b c d e f g h\na c\n" * 40)
    prepare([tmp_path / "x.txt"], path, min_count=1)
    whole, chance = path.read_bytes(), random.Random(3)
    for _ in range(350):
        at, cut = chance.randrange(len(whole)), chance.random() < 0.1
        path.write_bytes(
            whole[:at]
            if cut
            else whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :]
        )
        refused(path)
    path.write_bytes(whole)
    assert len(TokenStream.open(path).ids) == 400


@pytest.mark.parametrize(
    ("at", "number", "value"),
    [
        (64 + 8, "<i", 8),
        (64 + 8, "<i", -1),
        (64 + 8, "<i", 2**30),
        (-16, "<q", 2**40),
        (-16, "<q", 0),
        (-8, "<q", 7),
    ],
)
def test_numbers_that_kernels_would_read_by_are_checked_whoever_wrote_them(
    at, number, value, tmp_path: Path
) -> None:
    path = tmp_path / "t"
    (tmp_path / "x.txt").write_text("a b c d\ne f g h\na b\n")
    prepare([tmp_path / "x.txt"], path, min_count=1)
    content = bytearray(path.read_bytes())
    struct.pack_into(number, content, at if at > 0 else 64 + 4 * 10 + 8 * 4 + at, value)
    seal(path, content)
    assert "damaged" in refused(path)


@pytest.mark.parametrize(
    "vocabulary",
    [
        "no JSON", "[]", '{"words": ["a", "b"]}', '{"words": ["a", "b"], "counts": [2]}', '{"words": 3, "counts": [3]}',
        '{"words": ["a", "a"], "counts": [2, 1]}', '{"words": ["a", 5], "counts": [2, 1]}',
        '{"words": ["a", "b"], "counts": [4, -1]}', '{"words": ["a", "b"], "counts": [2.5, 0.5]}',
        '{"words": ["a", "b"], "counts": [2, 2]}',
    ],
)  # fmt: skip
def test_a_vocabulary_that_is_none_is_named(vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "t"
    (tmp_path / "x.txt").write_text("a b a\n")
    prepare([tmp_path / "x.txt"], path, min_count=1)
    content = path.read_bytes()[: 64 + 16 + 16] + vocabulary.encode()
    seal(path, bytearray(content[:32] + struct.pack("<q", len(vocabulary)) + content[40:]))
    assert "damaged" in refused(path)


def seal(path: Path, content: bytearray) -> None:
    """Write a token file with the checksums that belong to its content."""
    struct.pack_into("<I", content, 12, zlib.crc32(content[64:]))
    struct.pack_into("<I", content, 40, zlib.crc32(content[:40]))
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"", ["no words"]),
        (b" \n\n\t\n", ["no words"]),
        (b"a b c a\n", ["no word occurs 5 times", "2 times"]),
        (b"fine\n" * 300 + b"not \xff utf\n", [":301", "UTF-8"]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_text_that_cannot_be_used(
    content: bytes, names: list[str], packed: bool, tmp_path: Path, small_blocks: None
) -> None:
    path = tmp_path / ("x.txt.gz" if packed else "x.txt")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError) as error:
        prepare([path], tmp_path / "t", processes=2)
    assert all(name in str(error.value) for name in (*names, str(path)))
    assert sorted(os.listdir(tmp_path)) == [path.name]


@pytest.mark.parametrize("packed", [False, True])
def test_a_word_without_end_is_no_text(packed: bool, tmp_path: Path, small_blocks: None) -> None:
    path = tmp_path / ("x.gz" if packed else "x.txt")
    content = b"word " + b"x" * 3_000_000
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError, match="million"):
        prepare([path], tmp_path / "t", min_count=1, processes=1)


def test_paths_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a b\n")
    (tmp_path / "empty").mkdir()
    for corpus, out, name in [
        ([tmp_path / "none"], "t", "none"),
        ([tmp_path / "empty"], "t", "no files"),
        ([], "t", "no files"),
        ([tmp_path / "x.txt"], "x.txt", "overwritten"),
        ([tmp_path / "x.txt"], "empty", "folder"),
    ]:
        with pytest.raises(InputError, match=name):
            prepare(corpus, tmp_path / out, min_count=1)
    assert (tmp_path / "x.txt").read_text() == "a b\n"


def test_a_packed_file_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "x.txt.gz"
    path.write_bytes(gzip.compress(some_text(500).encode())[:-20])
    with pytest.raises(InputError, match="gzip"):
        prepare([path], tmp_path / "t", min_count=1)


def test_the_output_in_the_corpus_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a b\n")
    for corpus in (tmp_path, str(tmp_path)):
        assert prepare(corpus, tmp_path / "t", min_count=1).words_kept == 2


def test_sentences_without_words_are_refused() -> None:
    for sentences in ([], [[]], ["  "]):
        with pytest.raises(InputError, match="no words"):
            TokenStream.from_sentences(sentences)
    with pytest.raises(InputError, match="2 times"):
        TokenStream.from_sentences(["a b"], min_count=2)


# Whole or not at all


@pytest.mark.parametrize("processes", [1, 2])
def test_interrupted_it_leaves_the_old_file_and_nothing_else(
    processes: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_blocks: None
) -> None:
    out = tmp_path / "out" / "t"
    prepare([corpus], out, min_count=1)
    before = out.read_bytes()

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "write" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([corpus], out, min_count=1, processes=processes, progress=stop)
    assert out.read_bytes() == before
    assert os.listdir(out.parent) == ["t"]


def test_a_killed_worker_is_one_line(corpus: Path, tmp_path: Path, small_blocks: None) -> None:
    def kill(stage: str, done: int, total: int) -> None:
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        for child in children:
            if "block_words" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), signal.SIGKILL)

    with pytest.raises(InputError, match="killed"):
        prepare([corpus], tmp_path / "t", min_count=1, processes=2, progress=kill)


def test_progress_reaches_the_end_in_both_passes(corpus: Path, tmp_path: Path, small_blocks: None) -> None:
    calls: dict[str, list[int]] = {"read": [], "write": []}
    done = prepare(
        [corpus], tmp_path / "t", processes=2, progress=lambda stage, read, total: calls[stage].append(read)
    )
    assert all(stage == sorted(stage) for stage in calls.values())
    assert calls["read"][-1] == done.bytes_read
    assert len(calls["write"]) > 10


def test_ctrl_c_in_a_real_process(tmp_path: Path) -> None:
    """Two worker processes, none of which says anything or outlives the command."""
    text = "".join(f"word{i % 5000} and more\n" for i in range(60_000))
    (tmp_path / "x.txt").write_text(text * 30)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mt2st_fast", "prepare", "x.txt", "--out", "out/t", "--processes", "2"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that a shell runs in the background inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while len(children.read_text().split()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = children.read_text().split()
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == ""
    assert os.listdir(out) == []
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


# Real text


@pytest.mark.skipif(not POLARITY.is_dir(), reason="../shared/data is absent")
def test_real_sentences(tmp_path: Path) -> None:
    lines = []
    for path in sorted(POLARITY.glob("rt-polarity.*")):
        lines += path.read_bytes().decode("latin-1").split("\n")
    (tmp_path / "x.txt").write_text("\n".join(lines), encoding="utf-8")
    prepare([tmp_path / "x.txt"], tmp_path / "t", min_count=5, processes=2)
    tokens = TokenStream.open(tmp_path / "t")
    assert tokens.n_units > 10_000
    assert sentences_of(tokens) == expected("\n".join(lines), 5)
    assert set(np.bincount(tokens.ids)) == set(tokens.vocabulary.counts)


def test_write_stream_is_checked(tmp_path: Path) -> None:
    vocabulary = TokenStream.from_sentences(["a b a"]).vocabulary
    with pytest.raises(ValueError, match="vocabulary"):
        stream.write_stream(tmp_path / "t", [(np.zeros(3, np.int32), np.array([2]))], vocabulary)
    assert os.listdir(tmp_path) == []

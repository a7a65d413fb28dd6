"""Preparing text: the same file whatever the size of blocks, and it is whole or not there."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mt2st_fast.data import TokenStream, preparation, prepare
from mt2st_fast.data.text import word_files
from mt2st_fast.errors import InputError
from tests.data.token_files import expected, sentences_of, some_text, text_of

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"
POLARITY = REAL_DATA / "sentence_polarity"


@pytest.mark.parametrize("min_count", [1, 3, 22])
def test_the_file_holds_the_sentences(
    corpus: Path, min_count: int, tmp_path: Path, small_blocks: None
) -> None:
    out = tmp_path / "t.tokens"
    done = prepare([corpus], out, min_count=min_count)
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


@pytest.mark.parametrize("lower", [False, True])
def test_every_size_of_blocks_and_number_of_cores_writes_the_same(
    lower: bool, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = set()
    for size in (61, 1000, 1 << 20):
        monkeypatch.setattr(preparation, "BLOCK_BYTES", size)
        monkeypatch.setattr(word_files, "BLOCK_BYTES", size)
        for processes in (None, 1, 3):
            prepare([corpus], tmp_path / "t", min_count=2, lower=lower, processes=processes)
            written.add((tmp_path / "t").read_bytes())
    assert len(written) == 1
    wanted = text_of(corpus).lower() if lower else text_of(corpus)
    assert sentences_of(TokenStream.open(tmp_path / "t")) == expected(wanted, 2)


def test_a_sentence_longer_than_many_blocks_stays_one(tmp_path: Path, small_blocks: None) -> None:
    words = [f"w{i % 50}" for i in range(5000)]
    (tmp_path / "one.txt").write_text(" ".join(words))
    prepare([tmp_path / "one.txt", tmp_path / "one.txt"], tmp_path / "t", min_count=1)
    assert sentences_of(TokenStream.open(tmp_path / "t")) == [words, words]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [4, 10, 1 << 20])
def test_lines_are_those_of_every_reader(
    packed: bool, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(word_files, "BLOCK_BYTES", size)
    content = "\ufeffa\0b \ufeffc\n\0\n\ufeffd e\rf\r\n\ufeff\ufeffg\r\r\nh\n".encode()
    path = tmp_path / "x.txt"  # packed or not, its name says nothing
    path.write_bytes(gzip.compress(content) if packed else content)
    prepare([path], tmp_path / "t", min_count=1)
    found = [["a", "b", "\ufeffc"], ["d", "e"], ["f"], ["g"], ["h"]]
    assert sentences_of(TokenStream.open(tmp_path / "t")) == found
    assert [record.getMessage().removeprefix(f"{path}: ") for record in caplog.records] == [
        "NUL characters read as spaces: 2, the first on line 1",
        "lines that end in a lone carriage return, where others end in a line feed: 1, the first is line 3",
        "byte order marks kept within lines: 1, the first on line 1; were files joined without a "
        "line feed between them?",
    ]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"", ["no words"]),
        (b" \n\n\t\n", ["no words"]),
        (b"a b c a\n", ["no word occurs at least 5 times", "2 times"]),
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
        prepare([path], tmp_path / "t")
    assert all(name in str(error.value) for name in (*names, str(path)))
    assert sorted(os.listdir(tmp_path)) == [path.name]


@pytest.mark.parametrize("packed", [False, True])
def test_a_word_without_end_is_no_text(packed: bool, tmp_path: Path, small_blocks: None) -> None:
    path = tmp_path / ("x.gz" if packed else "x.txt")
    content = b"word " + b"x" * 3_000_000
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError, match="million"):
        prepare([path], tmp_path / "t", min_count=1)


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


# Whole or not at all


def test_interrupted_it_leaves_the_old_file_and_nothing_else(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_blocks: None
) -> None:
    out = tmp_path / "out" / "t"
    prepare([corpus], out, min_count=1)
    before = out.read_bytes()

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "write" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([corpus], out, min_count=1, progress=stop)
    assert out.read_bytes() == before
    assert os.listdir(out.parent) == ["t"]


def test_progress_reaches_the_end_in_both_passes(corpus: Path, tmp_path: Path, small_blocks: None) -> None:
    calls: dict[str, list[int]] = {"read": [], "write": []}
    done = prepare([corpus], tmp_path / "t", progress=lambda stage, read, total: calls[stage].append(read))
    assert all(stage == sorted(stage) for stage in calls.values())
    assert calls["read"][-1] == done.bytes_read
    assert len(calls["write"]) > 10


def test_ctrl_c_in_a_real_process(tmp_path: Path) -> None:
    text = "".join(f"word{i % 5000} and more\n" for i in range(60_000))
    (tmp_path / "x.txt").write_text(text * 30)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "mt2st_fast", "prepare", "x.txt", "--out", "out/t"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that a shell runs in the background inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while _written_by(process.pid) < 1 << 20 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "mt2st-fast: interrupted\n"
    assert not out.exists()  # it was made for this


def _written_by(pid: int) -> int:
    return int(Path(f"/proc/{pid}/io").read_text().split("wchar: ")[1].split()[0])


# Real text


@pytest.mark.skipif(not POLARITY.is_dir(), reason="../shared/data is absent")
def test_real_sentences(tmp_path: Path) -> None:
    lines = []
    for path in sorted(POLARITY.glob("rt-polarity.*")):
        lines += path.read_bytes().decode("latin-1").split("\n")
    (tmp_path / "x.txt").write_text("\n".join(lines), encoding="utf-8")
    prepare([tmp_path / "x.txt"], tmp_path / "t", min_count=5)
    tokens = TokenStream.open(tmp_path / "t")
    assert tokens.n_units > 10_000
    assert sentences_of(tokens) == expected("\n".join(lines), 5)
    assert set(np.bincount(tokens.ids)) == set(tokens.vocabulary.counts)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of a file")
def test_a_full_disk_is_told_of_the_token_file(tmp_path: Path) -> None:
    """The ids that wait for the end of the first pass lie in a file without a name."""
    import resource

    (tmp_path / "text.txt").write_text("a b c d e f g h\n" * 20_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as error:
            prepare(tmp_path / "text.txt", tmp_path / "out.tokens", min_count=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.filename == str(tmp_path / "out.tokens")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]

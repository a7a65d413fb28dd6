"""Word vectors: every format gives back what was written, gensim reads it, and damage is named."""

from __future__ import annotations

import gzip
import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mt2st_fast.errors import InputError
from mt2st_fast.words import vector_formats
from mt2st_fast.words.vectors import (
    WordVectors,
    frequent_words,
    initial_table,
    standard_deviation,
    telling_neighbours,
)

KeyedVectors = pytest.importorskip("gensim.models").KeyedVectors

FORMATS = (".txt", ".vec", ".bin", ".safetensors")
EXTREMES = np.array(
    [0.0, -0.0, 1e-45, -1.1754944e-38, 3.4028235e38, 0.1, 1 / 3, 16777217.0, -9.999999e-5], dtype=np.float32
)


def some_vectors(T: int = 507, D: int = 123, seed: int = 0) -> WordVectors:
    """Ragged sizes, numbers of every magnitude, words of several scripts."""
    chance = np.random.default_rng(seed)
    bits = chance.integers(0, 2**32, (T, D), dtype=np.uint32).view(np.float32)
    numbers = np.where(np.isfinite(bits), bits, np.float32(0.1)).astype(np.float32)
    numbers.flat[: len(EXTREMES)] = EXTREMES[: numbers.size]
    stems = ["naïve", "слово", "語", "a%sb", "don't", "1.5", "-", "x\u200dy", "🙂"]
    words = [f"{stems[t % len(stems)]}{t}" for t in range(T)]
    return WordVectors(words, numbers, chance.integers(0, 1000, T))


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)


def message_of(path: Path) -> str:
    """The one line that a file is refused with; it names the file."""
    with pytest.raises(InputError) as refused:
        WordVectors.read(path)
    message = str(refused.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# Round trips


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("T", "D"), [(1, 1), (507, 123), (2500, 3), (3, 70_000)])
def test_every_format_gives_back_every_bit(suffix: str, T: int, D: int, tmp_path: Path) -> None:
    vectors = some_vectors(T, D)
    path = tmp_path / f"v{suffix}"
    assert vectors.write(path) == T
    read = WordVectors.read(path)
    assert read.words == vectors.words
    assert np.array_equal(bits(read.vectors), bits(vectors.vectors))
    assert (read.counts is None) == (suffix != ".safetensors")
    if read.counts is not None:
        assert np.array_equal(read.counts, vectors.counts)


@pytest.mark.parametrize("suffix", [".txt", ".bin"])
def test_gensim_reads_equal_vectors(suffix: str, tmp_path: Path) -> None:
    vectors = some_vectors()
    vectors.write(tmp_path / f"v{suffix}")
    with warnings.catch_warnings():
        keyed = KeyedVectors.load_word2vec_format(str(tmp_path / f"v{suffix}"), binary=suffix == ".bin")
    assert keyed.index_to_key == list(vectors.words)
    assert np.array_equal(bits(keyed.vectors), bits(vectors.vectors))


@pytest.mark.parametrize("binary", [False, True])
def test_what_gensim_writes_is_read(binary: bool, tmp_path: Path) -> None:
    vectors = some_vectors()
    path = tmp_path / ("v.bin" if binary else "v.txt")
    vectors.to_keyed_vectors().save_word2vec_format(str(path), binary=binary, sort_attr="none")
    read = WordVectors.read(path)
    assert read.words == vectors.words
    assert np.array_equal(bits(read.vectors), bits(vectors.vectors))


def test_safetensors_is_what_the_library_reads(tmp_path: Path) -> None:
    vectors = some_vectors(252, 7)
    vectors.write(tmp_path / "v.safetensors")
    tensors = load_file(tmp_path / "v.safetensors")
    assert np.array_equal(bits(tensors["vectors"]), bits(vectors.vectors))
    assert np.array_equal(tensors["counts"], vectors.counts)
    assert json.loads(tensors["words"].tobytes()) == list(vectors.words)


def test_words_that_cannot_stand_in_word2vec_are_left_out_and_counted(tmp_path: Path) -> None:
    words = ["a", "", "new york", "tab\t", "nb\u00a0sp", "\u0085", "\ud800", "b"]
    vectors = WordVectors(words, np.arange(16).reshape(8, 2))
    for name in ("v.txt", "v.bin"):
        assert vectors.write(tmp_path / name) == 2
        read = WordVectors.read(tmp_path / name)
        assert read.words == ("a", "b")
        assert read.vectors.tolist() == [[0, 1], [14, 15]]
    assert vectors.write(tmp_path / "v.safetensors") == 8
    assert WordVectors.read(tmp_path / "v.safetensors").words == tuple(words)


def test_glove_text_has_no_first_line_and_words_with_spaces(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_bytes("the 0.5 -1\n\u0085 2 3\n. . . 4 5e-1\n 6 7\n\nend  8  9 \r\n".encode())
    read = WordVectors.read(path)
    assert read.words == ("the", "\u0085", ". . .", "", "end")
    assert read.vectors.tolist() == [[0.5, -1], [2, 3], [4, 0.5], [6, 7], [8, 9]]


def test_glove_larger_than_a_block(tmp_path: Path) -> None:
    vectors = some_vectors(5000, 30)
    vectors.write(tmp_path / "v.txt")
    first, _, rest = (tmp_path / "v.txt").read_bytes().partition(b"\n")
    assert first == b"5000 30"
    (tmp_path / "glove.txt").write_bytes(rest)
    read = WordVectors.read(tmp_path / "glove.txt")
    assert read.words == vectors.words
    assert np.array_equal(bits(read.vectors), bits(vectors.vectors))


@pytest.mark.parametrize("suffix", [".txt", ".vec", ".bin", ".TXT"])
def test_gzip_is_read_and_written(suffix: str, tmp_path: Path) -> None:
    vectors = some_vectors(2000, 10)
    assert vectors.write(tmp_path / f"v{suffix}") == 2000
    packed = tmp_path / f"v{suffix}.gz"
    assert vectors.write(packed) == 2000
    content = packed.read_bytes()
    assert gzip.decompress(content) == (tmp_path / f"v{suffix}").read_bytes()
    other = tmp_path / "other" / f"name{suffix}.gz"
    vectors.write(other)
    assert other.read_bytes() == content  # without the name and the time
    assert np.array_equal(bits(WordVectors.read(packed).vectors), bits(vectors.vectors))
    packed.write_bytes(packed.read_bytes()[:-100])
    assert "gzip" in message_of(packed)


# Damage


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"", ["empty"]),
        (b"\n", [":1"]),
        (b"word\n", [":1"]),
        (b"2 3\na 1 2 3\nb 1 2\n", [":3", "2 numbers", "3"]),
        (b"2 3\na 1 2 3\nb 1 2 x\n", [":3", "3 numbers"]),
        (b"2 3\na 1 2 3\nb 1 2 nan\n", [":3", "finite"]),
        (b"2 3\na 1 2 3\nb 1 2 1e39\n", [":3", "finite"]),
        (b"2 3\na 1 2 3\n", ["1 of 2"]),
        (b"1 3\na 1 2 3\nb 1 2 3\n", [":3", "more words"]),
        (b"0 3\n", ["no words"]),
        (b"2 2\na 1 2\na 3 4\n", ["'a'", "twice"]),
        (b"a 1 2\nb 1\n", [":2", "1 number,"]),
        (b"a 1 2\n\xff 1 2\n", [":2", "UTF-8"]),
        (b"99999999 99999\na 1 2\n", ["too short"]),
    ],
)
def test_damaged_text_is_named(content: bytes, names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_bytes(content)
    message = message_of(path)
    assert all(name in message for name in names), message


def test_the_line_is_named_in_a_later_block(tmp_path: Path) -> None:
    lines = [f"w{i} {i} 0.25 0.125 {i / 7:.9g}" for i in range(60_000)]
    lines[55_555] = "w55555 1 2"
    path = tmp_path / "v.txt"
    path.write_text("60000 4\n" + "\n".join(lines) + "\n")
    assert f"{path}:55557:" in message_of(path)


def test_damaged_binary_is_named(tmp_path: Path) -> None:
    path = tmp_path / "v.bin"
    some_vectors(507, 12).write(path)
    whole = path.read_bytes()
    for content, name in [
        (whole[: len(whole) // 2], "of 507"),
        (whole[:-3], "word 507 of 507"),
        (whole[:8], "word 1 of 507"),
        (whole + b"more", "has more data"),
        (b"no header " * 30, "WORDS NUMBERS"),
        (b"", "WORDS NUMBERS"),
        (b"99999999 9999\nx", "too short"),
        (b"1 1\n\xff \0\0\0\0\n", "UTF-8"),
        (b"1 1\nw " + np.float32(np.nan).tobytes(), "'w'"),
        (b"3 1\n" + b"w" * 200_000, "word 1 of 3"),
    ]:
        path.write_bytes(content)
        assert name in message_of(path)


def test_damaged_safetensors_is_named(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    some_vectors(50, 12).write(path)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:20], b"", b"\xff" * 40):
        path.write_bytes(content)
        assert "safetensors" in message_of(path)
    foreign = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    path.write_bytes(len(foreign).to_bytes(8, "little") + foreign + b"x")
    assert "`words`" in message_of(path)


@pytest.mark.parametrize("name", ["none.txt", "none.bin", "none.safetensors", "v.docx", "v.safetensors.gz"])
def test_missing_and_foreign_files(name: str, tmp_path: Path) -> None:
    message_of(tmp_path / name)


def test_another_suffix_is_not_written(tmp_path: Path) -> None:
    for name in ("v.npy", "v.safetensors.gz", "v.gz", "v"):
        with pytest.raises(InputError, match=r"written as \.txt, \.vec and \.bin \(also with \.gz\)"):
            some_vectors(2, 2).write(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [*FORMATS, ".txt.gz"])
def test_an_interrupted_write_leaves_the_old_file(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"v{suffix}"
    some_vectors(3, 2).write(path)
    before = path.read_bytes()
    blocks = vector_formats._blocks

    def stop_after_one(*arguments):
        yield next(iter(blocks(*arguments)))
        raise KeyboardInterrupt

    monkeypatch.setattr(vector_formats, "_blocks", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        some_vectors(507, 2).write(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


# The class itself


def test_parts_must_fit() -> None:
    for parts in (
        (["a"], np.zeros((2, 3))),
        (["a", "a"], np.zeros((2, 3))),
        (["a"], np.zeros(3)),
        (["a"], np.zeros((1, 0))),
        (["a"], np.zeros((1, 2)), np.zeros(2)),
    ):
        with pytest.raises(ValueError, match=r"words|twice"):
            WordVectors(*parts)


def test_vectors_are_read_only_but_the_callers_array_is_not() -> None:
    array = np.zeros((1, 2), dtype=np.float32)
    vectors = WordVectors(["a"], array)
    with pytest.raises(ValueError, match="read-only"):
        vectors.vectors[0, 0] = 1
    array[0, 0] = 1
    assert vectors.vectors[0, 0] == 1


def test_keyed_vectors_are_gensims_own() -> None:
    vectors = some_vectors(50, 5)
    keyed = vectors.to_keyed_vectors()
    assert isinstance(keyed, KeyedVectors)
    assert keyed.get_vecattr(vectors.words[7], "count") == vectors.counts[7]
    assert np.array_equal(bits(keyed[vectors.words[7]]), bits(vectors.vectors[7]))
    small = WordVectors(["a", "b", "c"], [[1, 0], [1, 0.1], [0, 1]])
    assert small.to_keyed_vectors().most_similar("a", topn=1)[0][0] == "b"
    assert [word for word, _ in small.nearest(["a", "z"], 1)["a"]] == ["b"]


@pytest.mark.parametrize(
    ("python", "remedy"), [((3, 13), "pip install gensim"), ((3, 14), "use Python 3.13")]
)
def test_without_gensim_one_line_says_what_to_do(
    python: tuple[int, int], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    monkeypatch.setattr("mt2st_fast.words.vectors.sys.version_info", python)
    with pytest.raises(InputError, match=remedy):
        some_vectors(2, 2).to_keyed_vectors()


def test_neighbours_are_told_of_frequent_longer_words() -> None:
    words = ["of", "horse", "mares", "42nd", "chair", "rarest"]
    table = [[1, 1], [1, 0], [1, 0.1], [1, 0], [0, 1], [1, 0]]
    vectors = WordVectors(words, table, [9, 5, 4, 3, 2, 0])
    assert [words[t] for t in frequent_words(vectors, 10)] == ["of", "horse", "mares", "chair"]
    assert telling_neighbours(vectors, 1, 1) == {"horse": ["mares"]}


# Starting from a file


def test_initial_table_takes_words_then_lower_case_then_chance() -> None:
    chance = np.random.default_rng(3)
    vectors = WordVectors([f"w{i}" for i in range(400)], chance.normal(0.5, 0.37, (400, 50)))
    words = ["w3", "W7", "w9", *(f"unknown{i}" for i in range(500))]
    table, coverage = initial_table(vectors, words, seed=5)
    assert table.dtype == np.float32
    assert np.array_equal(table[:3], vectors.vectors[[3, 7, 9]])
    assert (coverage.words, coverage.exact, coverage.lowered) == (503, 2, 1)
    assert "3 of 503" in str(coverage)
    assert table[3:].std() == pytest.approx(float(vectors.vectors.std()), rel=0.02)
    assert abs(table[3:].mean()) < 0.01
    assert np.array_equal(table, initial_table(vectors, words, seed=5)[0])
    assert not np.array_equal(table[3:], initial_table(vectors, words, seed=6)[0][3:])


@pytest.mark.parametrize("shape", [(1, 1), (5000, 123), (3, 200_000)])
def test_standard_deviation_is_that_of_float64(shape: tuple[int, int]) -> None:
    table = np.random.default_rng(4).normal(-2.0, 0.25, shape).astype(np.float32)
    assert standard_deviation(table) == pytest.approx(table.astype(np.float64).std(), rel=1e-6)


def test_initial_table_prefers_the_exact_word() -> None:
    vectors = WordVectors(["Apple", "apple"], [[1, 2], [3, 4]])
    table, coverage = initial_table(vectors, ["Apple", "apple", "APPLE"])
    assert table.tolist() == [[1, 2], [3, 4], [3, 4]]
    assert coverage.share == 1


@pytest.mark.parametrize("header", ["2 2\n", ""])
def test_a_text_whose_last_line_has_no_end_is_told(
    header: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A number that was cut is a number still, so nothing else can show it."""
    (tmp_path / "cut.txt").write_text(header + "foo 1 2\nbar 3 4.2")
    (tmp_path / "whole.txt").write_text(header + "foo 1 2\nbar 3 4.25\n")
    assert WordVectors.read(tmp_path / "whole.txt").words == ("foo", "bar")
    assert caplog.messages == []
    assert WordVectors.read(tmp_path / "cut.txt").vectors[1, 1] == np.float32(4.2)
    assert caplog.messages == [
        f"{tmp_path / 'cut.txt'}: its last line has no end; if the file was cut off, so may be its last number"
    ]


@pytest.mark.parametrize("line", ["bar 1 2 3", "bar 1\t2 3", "5 1 2 3", "new york 1e3 2 3"])
def test_a_number_too_many_is_no_part_of_a_word(line: str, tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text(f"2 2\nfoo 1 2\n{line}\n")
    with pytest.raises(
        InputError, match=r"v.txt:3: has more than 2 numbers after its word; the file is damaged"
    ):
        WordVectors.read(tmp_path / "v.txt")
    (tmp_path / "v.txt").write_text("4 2\nfoo 1 2\nnew york 1 2\n5 th 1 2\nmy nan 1 2\n")
    assert WordVectors.read(tmp_path / "v.txt").words == ("foo", "new york", "5 th", "my nan")


def test_fasttexts_own_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(
        (793712314).to_bytes(4, "little") + (12).to_bytes(4, "little") + bytes(200)
    )
    with pytest.raises(
        InputError, match=r"m.bin: is a fastText model, not word2vec binary; use the .vec file"
    ):
        WordVectors.read(tmp_path / "m.bin")


def test_a_console_shows_the_size_and_a_few_words():
    words = ["x" * 1000, *map(str, range(99_999))]
    shown = repr(WordVectors(words, np.zeros((len(words), 2), dtype=np.float32)))
    assert shown.startswith("WordVectors(100,000 words of 2 numbers: 'xxxxx")
    assert shown.endswith("'0', '1', '2', '3', ...)")
    assert len(shown) < 120
    assert repr(WordVectors(["a"], np.zeros((1, 2)))) == "WordVectors(1 words of 2 numbers: 'a')"

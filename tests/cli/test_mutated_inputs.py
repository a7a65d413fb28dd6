"""Commands that are given files as they come: an answer for every line, or one line that names the file."""

from __future__ import annotations

import gzip
import random
import zlib
from pathlib import Path

import pytest

from mt2st_fast.cli import main
from tests.data.mutations import mutated, plain_lines
from tests.serving.test_text_model import made

TEXT = "die Katze\n\nschläft word1, word2\nword3\n" * 5
QUICK, LONG = 8, 60


def ends_well(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> bool:
    """Whether a command succeeded; where not, it ended in one line that names the file."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    if stop.value.code == 0:
        return True
    error = capsys.readouterr().err
    assert stop.value.code == 2, error
    assert error.startswith("mt2st-fast: ")
    assert str(path) in error
    assert len(error.splitlines()) == 1, error
    return False


def check(seeds: range, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("document").save(folder / "model")
    for seed in seeds:
        content = mutated(TEXT.encode(), random.Random(seed))
        path, out, tokens = folder / f"in{seed}.txt", folder / f"out{seed}", folder / f"tokens{seed}"
        path.write_bytes(content)
        try:
            lines = plain_lines(content)
        except (OSError, EOFError, zlib.error, UnicodeDecodeError):
            lines = None
        labelled = ends_well(
            capsys, path, "predict", str(folder / "model"), str(path), "--input", "text", "--out", str(out)
        )
        assert labelled == out.exists()
        assert lines is not None or not labelled, content
        if labelled:
            assert len(out.read_text().splitlines()) == len(lines or []), content
        prepared = ends_well(capsys, path, "prepare", str(path), "--min-count", "1", "--out", str(tokens))
        assert prepared == (bool(lines) and any(line.split() for line in lines or []) and tokens.exists()), (
            content
        )


def test_text_that_was_mutated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(range(QUICK), tmp_path, capsys)


@pytest.mark.long
def test_much_text_that_was_mutated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(range(QUICK, QUICK + LONG), tmp_path, capsys)


def test_packed_text_is_labelled_whatever_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made("document").save(tmp_path / "model")
    answers = []
    for name, content in (("a.txt", TEXT.encode()), ("b", gzip.compress(TEXT.encode()))):
        (tmp_path / name).write_bytes(content)
        out = tmp_path / f"{name}.out"
        assert ends_well(
            capsys,
            tmp_path / name,
            "predict",
            str(tmp_path / "model"),
            str(tmp_path / name),
            "--out",
            str(out),
        )
        answers.append(out.read_text())
    assert answers[0] == answers[1]
    assert len(answers[0].splitlines()) == 20

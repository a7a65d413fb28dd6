"""`mt2st-fast predict` and `test` at the edges: what is empty, too long, cut off, or names nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mt2st_fast import SupervisedModel, TextModel, train_supervised
from mt2st_fast.serving import text_model
from tests.cli.running import fails, run
from tests.serving.test_text_model import made

PROGRAM = [sys.executable, "-c", "from mt2st_fast.cli import main; main()"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for level in ("token", "document"):
        made(level).save(folder / level)
    lines = folder / "lines.txt"
    lines.write_text("__label__tone__up __label__a good nice\n__label__tone__down __label__b bad\n" * 40)
    train_supervised(lines, dim=8, epoch=5, batch_size=16, families=True).save(folder / "lines")
    return {path.name: path for path in folder.iterdir()}


def test_no_input_has_no_answer(models: dict[str, Path], answers: Callable[..., str]) -> None:
    for name in ("token", "document", "lines"):
        assert answers("", "predict", str(models[name])) == ""
    assert answers("\n\n", "predict", str(models["token"])) == ""  # no sentence
    assert len(answers("\n\n", "predict", str(models["document"])).splitlines()) == 2


@pytest.mark.parametrize("name", ["token", "document", "lines"])
def test_a_pipe_that_closes_early_says_nothing(models: dict[str, Path], name: str, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("die Katze\n" * 60_000)
    with subprocess.Popen(
        [*PROGRAM, "predict", str(models[name]), str(text)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline()
        program.stdout.close()
        assert program.stderr.read() == b""
        assert program.wait(60) == 141


def test_a_sentence_of_any_length_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model, unit = made("token"), ["die", "Katze", "unbekannt", "word3"] * 30
    whole = model.logits([["word1"], unit, ["die"]])
    monkeypatch.setattr(text_model, "MOST_ROWS", 7)  # windows reach over the borders of blocks
    in_blocks = model.logits([["word1"], unit, ["die"]])
    assert in_blocks.shape == whole.shape
    assert (in_blocks - whole).abs().max() < 1e-6


def test_labels_in_a_line_are_no_words_of_it(models: dict[str, Path], answers: Callable[..., str]) -> None:
    said = answers(
        "good\ngood __label__tone__down\n__label__a good __label__b\n", "predict", str(models["lines"]),
        "--format", "jsonl", "--k", "-1",
    )  # fmt: skip
    rows = [json.loads(line)["tone"] for line in said.splitlines()]
    assert rows[0] == rows[1] == rows[2]
    assert rows[0][0][0] == "up"


def test_options_that_name_nothing_are_refused(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["predict", str(models["token"])], ["test", str(models["token"]), "conllu:x"],
                    ["export", str(models["token"])]):  # fmt: skip
        assert "--tasks ',' names no task; leave it out" in fails(capsys, *command, "--tasks", ",")
    assert "is a folder; use a file name" in fails(
        capsys, "predict", str(models["token"]), "-o", str(tmp_path)
    )
    assert list(tmp_path.iterdir()) == []
    for wrong in ("0", "-2"):
        assert "--k must be at least 1" in fails(
            capsys, "predict", str(models["document"]), "--format", "jsonl", "--k", wrong
        )
    for wrong in ("nan", "-0.1", "1.5"):
        assert "--threshold is a probability" in fails(
            capsys, "predict", str(models["document"]), f"--threshold={wrong}"
        )


def test_lines_are_measured_by_their_labels(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "test.txt"
    file.write_text("__label__tone__up good\n__label__tone__down good __label__a\n__label__tone__down bad\n")
    model = SupervisedModel.load(models["lines"])
    run("test", str(models["lines"]), str(file), "--tasks", "tone")
    said = capsys.readouterr().out
    assert f"{model.test(file)['tone']:.4f}" in said
    for label, numbers in model.test_label(file, family="tone").items():
        row = next(line for line in said.splitlines() if f" {label} " in line)
        assert [f"{value:.4f}" for value in numbers.values()] == [
            cell.strip() for cell in row.split("│")[2:5]
        ]
    assert "unknown label family colour" in fails(
        capsys, "test", str(models["lines"]), str(file), "--tasks", "colour"
    )
    assert "leave out --part" in fails(capsys, "test", str(models["lines"]), str(file), "--part", "dev")


def test_a_model_of_words_is_read_as_one(models: dict[str, Path], answers: Callable[..., str]) -> None:
    said = answers("die Katze\n", "predict", str(models["token"]), "--format", "jsonl", "--k", "2")
    row = json.loads(said)
    probabilities = TextModel.load(models["token"]).probabilities([["die", "Katze"]])
    assert [pair[1] for pair in row["pos"][0]] == pytest.approx(sorted(probabilities[0])[:0:-1], abs=1e-5)


def test_a_family_of_labels_does_not_hide_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("__label__text__up good nice\n__label__text__down bad\n" * 40)
    train_supervised(lines, dim=4, epoch=1, families=True).save(tmp_path / "m")
    error = fails(capsys, "predict", str(tmp_path / "m"), str(lines), "--format", "jsonl", "--tasks", "text")
    assert "the input under the key 'text', and a task has this name, too; use --format labels" in error


@pytest.mark.parametrize("out", [".", "./", "..", "/", "to be made/"])
@pytest.mark.parametrize("command", ["predict", "export", "prepare"])
def test_a_folder_is_no_file_to_write(
    command: str, out: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_text("die Katze\n")
    of = {"predict": [str(models["token"]), "in"], "export": [str(models["token"])], "prepare": ["in"]}
    error = fails(capsys, command, *of[command], "--out", out)
    assert f"--out {out} is a folder; use a file name in it" in error
    assert [path.name for path in tmp_path.iterdir()] == ["in"]

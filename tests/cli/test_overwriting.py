"""No command writes over what it reads, nor over what is not its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mt2st_fast.cli.output import has_run
from tests.cli.running import QUICK, fails, make_treebank, run
from tests.serving.test_text_model import made

SHORT = [*QUICK, "--epochs", "1"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run("train", "--data", make_treebank(folder), *SHORT, "--out", str(folder / "out"))
    return folder / "out"


# --- what is read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["same", "dotted", "symbolic", "hard"])
def test_predict_does_not_write_over_its_input(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made("document").save(tmp_path / "model")
    text, out = tmp_path / "lines.txt", tmp_path / "other.txt"
    text.write_text("die Katze\n")
    if how == "same":
        out = text
    elif how == "dotted":
        out = tmp_path / "model" / ".." / "lines.txt"
    else:
        (os.symlink if how == "symbolic" else os.link)(text, out)
    error = fails(capsys, "predict", str(tmp_path / "model"), str(text), "--out", str(out))
    assert f"--out {out}: is {text}, which is read and would be overwritten; choose another --out" in error
    assert text.read_text() == "die Katze\n"


def test_predict_does_not_write_over_what_is_piped_in_nor_over_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made("document").save(tmp_path / "model")
    text = tmp_path / "lines.txt"
    text.write_text("die Katze\n")
    program = [
        sys.executable,
        "-c",
        "from mt2st_fast.cli import main; main()",
        "predict",
        str(tmp_path / "model"),
    ]
    with text.open("rb") as given:
        done = subprocess.run([*program, "--out", str(text)], stdin=given, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"which is read and would be overwritten" in done.stderr
    before = files(tmp_path)
    for command in (["predict", str(tmp_path / "model"), str(text)], ["export", str(tmp_path / "model")]):
        error = fails(capsys, *command, "--out", str(tmp_path / "model" / "tensors.safetensors"))
        assert "which is read and would be overwritten" in error
    error = fails(capsys, "export", str(tmp_path / "model"), "--out", str(tmp_path / "model" / "model"))
    assert "model.json, which is read" in error
    assert files(tmp_path) == before


def test_prepare_does_not_write_over_its_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "x.txt"
    text.write_text("a b\n")
    (tmp_path / "link").hardlink_to(text)
    error = fails(capsys, "prepare", str(text), "--min-count", "1", "--out", str(tmp_path / "link"))
    assert "which is read and would be overwritten" in error


def test_train_does_not_write_over_the_vectors_that_it_begins_with(
    ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(ended, out)
    before = files(out)
    data = make_treebank(tmp_path)
    error = fails(
        capsys, "train", "--data", data, *SHORT, "--init", str(out / "vectors.txt"), "--out", str(out)
    )
    assert f"--out {out / 'vectors.txt'}: is {out / 'vectors.txt'}, which is read" in error
    assert files(out) == before


# --- what is not its own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--precision", "float16"], "rules out precision float16; use float32 or bfloat16"),
        (["--clip-norm", "1"], "rules out --clip-norm 1.0; leave it out"),
        (["--accumulate", "2"], "rules out --accumulate 2; use --accumulate 1"),
        (["--weight-decay", "0.1"], "rules out --weight-decay; use --weight-decay 0"),
        (["--strategy", "alternate", "--shared-epochs", "2"], "use more epochs, or fewer --shared-epochs"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_run_that_cannot_begin_leaves_what_the_folder_has(
    ended: Path, arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ended, out := tmp_path / "out")
    before = files(out)
    data = ["--data", make_treebank(tmp_path), *SHORT, "--strategy", "adatask"]
    assert said in fails(capsys, "train", *data, *arguments, "--out", str(out))
    assert files(out) == before


@pytest.mark.parametrize(
    ("command", "mine"),
    [
        *(("train", name) for name in ("config.json", "vectors.txt", "model/weights.bin", "facts.json")),
        *(("compare", name) for name in ("config.json", "report.html", "compare.md")),
    ],
)
def test_what_no_run_has_written_is_left_alone(
    command: str, mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / mine).parent.mkdir(parents=True)
    (out / mine).write_text('{"model_type": "bert"}')
    data = make_treebank(tmp_path)
    error = fails(capsys, command, "--data", data, *SHORT, "--out", str(out))
    assert f"--out {out} contains " in error
    assert "would be lost" in error
    assert files(out) == {mine: b'{"model_type": "bert"}'}
    assert not has_run(out)


def test_a_folder_with_other_files_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    run("train", "--data", make_treebank(tmp_path), *SHORT, "--out", str(tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert has_run(tmp_path)


@pytest.mark.parametrize("lost", ["config.json", "facts.json", "checkpoint", None])
def test_a_run_is_known_by_what_is_left_of_it_and_trained_again(
    lost: str | None, ended: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(ended, out)
    if lost == "checkpoint":
        shutil.rmtree(out / lost)
    elif lost is not None:
        (out / lost).write_text('{"an option": "of another version"}')
    assert has_run(out)
    run("train", "--data", make_treebank(tmp_path), *SHORT, "--out", str(out))
    assert json.loads((out / "report.json").read_text())["epochs"] == 1


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_file_in_the_models_folder_is_not_lost(
    more: list[str], ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(ended, out)
    (out / "model" / "notes.txt").write_text("mine")
    data = [] if more else ["--data", make_treebank(tmp_path), *SHORT]
    error = fails(capsys, "train", *data, *more, "--out", str(out))
    assert "would be lost: model/notes.txt; choose" in error
    assert (out / "model" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["compare"],
        ["predict", "model"],
        ["export", "model"],
        ["evaluate", "v.txt"],
        ["prepare", "x.txt"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_empty_out_is_refused(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--out is empty; set a path" in fails(capsys, *arguments, "--out", "")
    assert list(tmp_path.iterdir()) == []

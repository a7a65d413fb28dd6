"""`mt2st-fast predict` and `test`: a run's model labels files and pipes, and is measured as the run measured it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mt2st_fast import train_supervised
from tests.cli.running import QUICK, fails, make_treebank, run

COLUMNS = 10


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    options = ("--aux", "xpos", "--strategy", "mtl", "--out", str(folder / "run"))
    run("train", "--data", make_treebank(folder), *QUICK, *options)
    return folder / "run"


@pytest.fixture
def trained(finished: Path, tmp_path: Path) -> Path:
    """A run of its own, which a test may damage."""
    return shutil.copytree(finished, tmp_path / "run")


def test_a_run_labels_files_and_pipes(trained: Path, treebank: str, tmp_path: Path) -> None:
    source = Path(treebank.partition(":")[2])
    source = next(source.rglob("*.conllu")) if source.is_dir() else source
    run("predict", str(trained), str(source), "--out", str(tmp_path / "out.conllu"))
    before, after = (path.read_text().splitlines() for path in (source, tmp_path / "out.conllu"))
    rows = [
        (a.split("\t"), b.split("\t"))
        for a, b in zip(before, after, strict=False)
        if a.partition("\t")[0].isdecimal()
    ]
    assert rows
    assert all(a[:3] == b[:3] and a[4:] == b[4:] for a, b in rows)
    right = sum(a[3] == b[3] for a, b in rows) / len(rows)
    assert right > 0.9
    piped = subprocess.run(
        [sys.executable, "-m", "mt2st_fast", "predict", str(trained), "--format", "jsonl"],
        input=" ".join(b[1] for _, b in rows[:3]), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(json.loads(piped.stdout)["upos"]) >= 3


def test_the_model_is_measured_as_the_run_was(
    trained: Path, treebank: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads((trained / "report.json").read_text())
    capsys.readouterr()
    run("test", str(trained), treebank, "--part", "test", "--tasks", "upos,xpos")
    said = capsys.readouterr().out
    for task in ("upos", "xpos"):
        assert f"{report['tasks'][task]['test']:.4f}" in said
    assert "precision" in said


def test_tables_are_labelled_and_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answers: Callable[..., str]
) -> None:
    rows = [
        f"{'good' if i % 2 else 'bad'} film number {i},{'pos' if i % 2 else 'neg'},{i % 2}.0"
        for i in range(200)
    ]
    table = tmp_path / "t.csv"
    table.write_text("text,label,score\n" + "\n".join(rows) + "\n")
    out = tmp_path / "run"
    options = ("--main", "label", "--aux", "score:regression", "--strategy", "mtl", "--epochs", "5")
    run("train", "--data", f"csv:{table}", "--out", str(out), *options)
    report = json.loads((out / "report.json").read_text())
    assert answers("good film\nbad film\n", "predict", str(out)) == "pos\nneg\n"
    run("test", str(out), f"csv:{table}", "--part", "test", "--tasks", "label,score")
    said = capsys.readouterr().out
    assert f"{report['tasks']['score']['test']:.4f}" in said


def test_lines_are_classified_as_fasttext_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answers: Callable[..., str]
) -> None:
    file = tmp_path / "t.txt"
    file.write_text(
        "__label__a__x __label__tone__up good nice\n__label__a__y __label__tone__down bad awful\n" * 40
    )
    model = train_supervised(file, dim=8, epoch=5, batch_size=16, main="tone", families=True)
    model.save(tmp_path / "m")
    text = "good nice film\n\nbad __label__tone__up\n"
    said = answers(text, "predict", str(tmp_path / "m"), "--tasks", "tone,a", "--probabilities")
    expected = []
    for line in text.split("\n")[:3]:
        parts = [(family, *model.predict(line, family=family)) for family in ("tone", "a")]
        expected.append(" ".join(f"__label__{f}__{names[0]} {ps[0]:.6g}" for f, names, ps in parts))
    assert said.splitlines() == expected
    rows = answers(text, "predict", str(tmp_path / "m"), "--format", "jsonl", "--k", "-1").splitlines()
    assert [[len(json.loads(row)["tone"]), json.loads(row)["text"]] for row in rows] == [
        [2, line] for line in text.split("\n")[:3]
    ]
    assert "unknown label family colour" in fails(
        capsys, "predict", str(tmp_path / "m"), str(file), "--tasks", "colour"
    )
    assert "leave out --input" in fails(
        capsys, "predict", str(tmp_path / "m"), str(file), "--input", "conllu"
    )


def test_what_cannot_be_done_is_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is not a model (model.json is missing)" in fails(capsys, "predict", str(tmp_path / "nothing"))
    assert "there is no such file" in fails(capsys, "predict", str(trained), str(tmp_path / "nothing.txt"))
    assert "the model has no task colour; available: upos, xpos" in fails(
        capsys, "predict", str(trained), "--tasks", "colour"
    )
    (trained / "model" / "tensors.safetensors").write_bytes(b"x" * 100)
    assert "is damaged (its checksum does not match)" in fails(capsys, "predict", str(trained))
    (trained / "model" / "tensors.safetensors").unlink()
    (trained / "model" / "model.json").unlink()
    (trained / "model").rmdir()
    assert "the run is not finished and left no model" in fails(capsys, "predict", str(trained))


def test_nothing_half_written_is_left(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"good\n" * 5000 + b"\xff\n")
    out = tmp_path / "out.txt"
    assert "bad.txt:5001: is not valid UTF-8" in fails(
        capsys, "predict", str(trained), str(bad), "--out", str(out)
    )
    assert not out.exists()

"""What `mt2st-fast train` says at its end where something was no number, or was left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mt2st_fast.words.vectors import WordVectors
from tests.cli.running import QUICK, QUICK_DOCUMENTS, fails, run


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_a_metric_that_was_never_a_number_is_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("text,stars\n" + "".join(f"good film {i % 7},3.5\n" for i in range(90)))
    data = ["--data", f"csv:{tmp_path / 't.csv'}", "--main", "stars:regression"]
    run("train", *data, *QUICK_DOCUMENTS, "--out", str(tmp_path / "out"))
    printed = said(capsys)
    never = "development r2 undefined (as where all values are equal), test r2 –"
    assert f"stars: {never}." in printed
    for text in (printed, *((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("md", "html"))):
        assert never in text
        assert "step None" not in text


def test_a_run_that_cannot_be_compared_is_whole_and_the_next_command_can_be_pasted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(
        "text,stars,mood\n" + "".join(f"film {i % 7},3.5,{i % 2}\n" for i in range(90))
    )
    out = tmp_path / "an out"
    data = ["--data", f"csv:{tmp_path / 't.csv'}", "--main", "stars:regression", "--aux", "mood"]
    asked = ["train", *data, *QUICK_DOCUMENTS, "--out", str(out)]
    error = fails(capsys, *asked, "--against", "stl")
    assert "no evaluation has a value for stars" in error
    assert f"the run itself is complete, in {out}, but nothing can be compared" in error
    assert (out / "report.html").exists()
    run(*asked)
    assert f"Label text with: mt2st-fast predict '{out}' FILE" in capsys.readouterr().out.replace("\n", " ")


def test_words_that_the_file_of_vectors_cannot_have_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = "{}\t{}\t_\t{}\t_\t_\t0\troot\t_\t_\n"
    sentence = "".join(
        row.format(i, *pair)
        for i, pair in enumerate([("1 000", "NUM"), ("10 000", "NUM"), ("the", "DET"), ("dogs", "NOUN")], 1)
    )
    (tmp_path / "t.conllu").write_text(f"{sentence}\n" * 40)
    out = tmp_path / "out"
    run("train", "--data", f"conllu:{tmp_path / 't.conllu'}", *QUICK, "--out", str(out))
    line = "vectors.txt leaves out 2 of 4 words because they contain white space"
    assert line in said(capsys)
    for kind in ("md", "html"):
        assert line in (out / f"report.{kind}").read_text()
    assert set(WordVectors.read(out / "vectors.txt").words) == {"the", "dogs"}
    assert json.loads((out / "report.json").read_text())["vectors"] == {
        "count": 2, "dimension": 8, "left_out": 2,
    }  # fmt: skip
    facts = json.loads((out / "facts.json").read_text())
    del facts["vectors"]["left_out"]  # as a version before left it
    (out / "facts.json").write_text(json.dumps(facts))
    run("report", str(out))
    assert "leaves out" not in (out / "report.md").read_text()


def test_steps_of_many_batches_count_the_rows_that_they_read(treebank: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = [*QUICK, "--epochs", "2", "--strategy", "mtl", "--accumulate", "100000"]
    run("train", "--data", treebank, *options, "--out", str(out))
    report, facts = (json.loads((out / f"{name}.json").read_text()) for name in ("report", "facts"))
    assert report["steps"] == 2
    batches = -(-report["data"]["rows"]["train"] // 64)
    assert facts["tokens"] == 2 * batches * 64


@pytest.mark.parametrize("options", [["--strategy", "stl"], ["--switch-at", "0"], ["--aux-weight", "0"]])
def test_heads_that_were_never_trained_are_left_out_of_the_model(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    out = str(tmp_path / "out")
    run("train", "--data", treebank, *QUICK, "--aux", "xpos,feats.Number", *options, "--out", out)
    assert "The model leaves out xpos, feats.Number, as no step of this run trained the head." in said(capsys)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["kept"] == ["upos"]
    text = tmp_path / "text.txt"
    text.write_text("the dog\n")
    refused = "the model has no task xpos; available: upos"
    assert refused in fails(capsys, "predict", out, str(text), "--tasks", "xpos")
    assert refused in fails(capsys, "test", out, treebank, "--tasks", "xpos")
    assert refused in fails(capsys, "export", out, "--tasks", "xpos")

"""What commands say of the data: on the terminal, in report.md and report.html; and which columns are what."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import QUICK_DOCUMENTS, fails, run

NASTY = "stars[/5] | $x$ :heart: <b>"


def reviews(path: Path, label: str, n: int = 60, names: str = NASTY) -> str:
    """A table of `n` reviews in the column v2 whose labels, `label` with 0 or 1 in it, follow from the words."""
    rows = "".join(f"{label.format(i % 2)};{'good' if i % 2 else 'bad'} film {i % 7}\n" for i in range(n))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{names};v2\n{rows}\n", encoding="utf-8")
    return f"csv:{path}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder [/old] of reviews, where development and test labels are written otherwise, and some are new."""
    path = tmp_path / "[" / "old]"
    reviews(path / "train.csv", "{}")
    reviews(path / "dev.csv", "{}.0")
    reviews(path / "test.csv", "{}0", 20)  # 00, 10
    return path


def test_a_run_says_what_it_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "[" / "bold]"
    text = ("--text-column", "V2")
    run(
        "train",
        "--data",
        f"csv:{folder}",
        *text,
        "--label-column",
        NASTY,
        "--out",
        str(out),
        *QUICK_DOCUMENTS,
    )
    shown, report = capsys.readouterr().out, (out / "report.md").read_text()
    alike = (
        f"{NASTY}: treated as one class, because the whole numbers are equal: 0.0 and 0, 1.0 and 1 (60 cells"
    )
    unseen = (
        f"{NASTY}: classes that do not occur in training, so they cannot be learned, in 20 test rows: 00, 10"
    )
    for line in (alike, unseen):
        assert line in shown
        assert line in report
    assert (
        ": 140 rows (train 60, dev 60, test 20); left out: 3 blank lines; text column: v2; between cells: semic"
        in (shown)
    )
    section = report.partition("## What was read")[2]
    name = NASTY.replace("|", r"\|")
    assert f"| {folder}/test.csv | test | 20 | 20 | 1 blank lines |" in section
    assert f"| {name} | main task, classes | 6 | 0 | 0 |" in section
    assert (
        "labels in train | in dev | in test | of classes unseen in training, in dev | of such, in test |"
        in section
    )
    assert f"| {name} | 4: 0, 00, 1, 10 | 60 | 60 | 20 | 0 | 20 |" in section
    page = (out / "report.html").read_text()
    assert "What was read" in page
    assert "stars[/5] | $x$ :heart: &lt;b&gt;" in page
    data = json.loads((out / "report.json").read_text())["data"]
    assert sum(file["rows"] for file in data["files"]) == sum(data["rows"].values()) == 140
    assert data["labels"][0]["unseen"] == {"dev": 0, "test": 20}

    # What the model knows of it: the column of the text, its classes as numbers, and those that training never saw.
    monkeypatch.setenv("COLUMNS", "200")
    run("test", str(out), reviews(tmp_path / "more.csv", "{}.0"))
    shown = capsys.readouterr().out
    assert f"{NASTY}: classes were matched to the model's as numbers: 0.0 as 0, 1.0 as 1" in shown
    assert "more.csv: 60 rows; left out: 1 blank lines" in shown
    run("test", str(out), reviews(tmp_path / "more.csv", "{}0", names=NASTY.upper()))
    unseen = f"{NASTY}: classes that do not occur in training, so they cannot be learned, in 60 rows: 00, 10"
    assert unseen in capsys.readouterr().out


def test_compare_says_it_too(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = (
        "--text-column",
        "v2",
        "--seeds",
        "1",
        "--strategies",
        "stl",
        "--out",
        str(out),
        *QUICK_DOCUMENTS,
    )
    run("compare", "--data", f"csv:{folder}", *options)
    line = "classes that do not occur in training, so they cannot be learned, in 20 test rows: 00, 10"
    assert line in capsys.readouterr().out
    assert line in (out / "compare.md").read_text().partition("## What was read")[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--label-column", "a", "--main", "a"],
            "--label-column names the main task and the auxiliary ones",
        ),
        (["--label-column", "modo"], "no task 'modo'; available: mood, stars (did you mean 'mood'?)"),
        (
            ["--label-column", "mood", "--label-column", "sters"],
            "no task 'sters'; available: mood, stars (did you mean 'stars'?)",
        ),
        (["--label-column", "mood", "--label-column", "mood"], "task 'mood' is both main and auxiliary"),
        (["--text-column", "txt"], "no column 'txt'; available: text, mood, stars (did you mean 'text'?)"),
        (
            ["--delimiter", ";"],
            "no column is named text, sentence, review, content; choose the text column from text,mood,stars",
        ),
    ],
)
def test_columns_are_refused_by_name(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("text,mood,stars\n" + "a,b,1\nb,c,2\n" * 20)
    data = ["train", "--data", f"csv:{tmp_path / 't.csv'}", "--out", str(tmp_path / "out")]
    assert message in fails(capsys, *data, *options)


def test_label_columns_are_for_tables(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = fails(
        capsys, "train", "--data", treebank, "--label-column", "upos", "--out", str(tmp_path / "out")
    )
    assert "--label-column is for csv:PATH and jsonl:PATH; use --main and --aux" in error


def test_label_columns_are_the_tasks_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "text,stars,id,mood\n" + "".join(f"a {i},{i}.5,{i},{i % 2}\n" for i in range(60))
    )
    data = ["train", "--data", f"csv:{tmp_path / 't.csv'}", "--out", str(tmp_path / "out"), *QUICK_DOCUMENTS]
    run(*data, "--label-column", "Mood", "--label-column", "stars:regression")
    assert list(json.loads((tmp_path / "out" / "report.json").read_text())["tasks"]) == ["mood", "stars"]


def test_bytes_that_are_no_utf8_in_names_end_no_run(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"f\xff[b]")
    data = reviews(odd / os.fsdecode(b"d\xe9.csv"), "{}", names="label")
    command = [
        sys.executable,
        "-m",
        "mt2st_fast",
        "train",
        "--data",
        data,
        "--text-column",
        "v2",
        *QUICK_DOCUMENTS,
    ]
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [*command, "--out", str(odd / "out")], env=os.environ | plain, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (odd / "out" / "report.html").exists()
    assert b"[b]/d?.csv" in (odd / "out" / "report.md").read_bytes()


def test_labels_that_were_completed_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        (i % 2, "up" if i % 2 else "down", f"film {i % 7} {'good' if i % 2 else 'bad'}") for i in range(400)
    ]
    table = "".join(
        f"{main if i % 4 < 2 else ''},{side},{text}\n" for i, (main, side, text) in enumerate(rows)
    )
    path, out = tmp_path / "train.csv", tmp_path / "out"
    path.write_text(f"tone,side,text\n{table}", encoding="utf-8")
    data = (
        "--data",
        f"csv:{path}",
        "--main",
        "tone",
        "--out",
        str(out),
        *QUICK_DOCUMENTS,
        "--complete-labels",
    )
    run("train", *data, "--aux", "side")
    told = "training rows got the label for 'tone' that the labels of side tell"
    assert told in capsys.readouterr().out
    assert told in (out / "report.md").read_text()
    assert json.loads((out / "report.json").read_text())["config"]["complete_labels"] is True
    report = json.loads((out / "report.json").read_text())["data"]
    (tone,) = [each for each in report["labels"] if each["task"] == "tone"]
    assert tone["labelled"]["train"] == report["rows"]["train"]
    assert tone["labelled"]["test"] < report["rows"]["test"]  # which are measured by their own labels

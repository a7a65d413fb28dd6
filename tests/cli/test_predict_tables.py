"""`mt2st-fast predict` labels what `train` reads: rows of tables and objects, and sentences in columns."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.running import QUICK, QUICK_DOCUMENTS, fails, run
from tests.test_files import files_of_at_most

TEXTS = ["good film", "bad\nfilm", "", 'a "good", good\n\nfilm', "bad bad film"]


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    rows = "".join(
        f"{'good' if i % 2 else 'bad'} film {i % 5},{'pos' if i % 2 else 'neg'}\n" for i in range(120)
    )
    (tmp_path / "train.csv").write_text(f"Said,tone\n{rows}")
    out = tmp_path / "run"
    columns = ["--data", f"csv:{tmp_path / 'train.csv'}", "--text-column", "Said", "--main", "tone"]
    run("train", *columns, *QUICK_DOCUMENTS, "--out", str(out))
    return out


@pytest.fixture
def tagger(tmp_path: Path) -> Path:
    sentence = "the DET\ncats NOUN\nsaw VERB\na DET\ntree NOUN\n"
    (tmp_path / "train.txt").write_text(f"{sentence}\n" * 60)
    run("train", "--data", f"columns:{tmp_path / 'train.txt'}", *QUICK, "--out", str(tmp_path / "tagger"))
    return tmp_path / "tagger"


def table(path: Path, header: list[str], rows: list[list[str]]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return f"csv:{path}"


def test_every_row_of_a_table_gets_an_answer_at_its_place(reviews: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers"
    alone = table(tmp_path / "alone.csv", ["said"], [[text] for text in TEXTS])
    among = table(tmp_path / "among.csv", ["id", "said", "tone"], [["", text, ""] for text in TEXTS])
    objects = tmp_path / "objects.jsonl"
    objects.write_text("".join(json.dumps({"said": text or None, "n": 1}) + "\n" for text in TEXTS))
    for data in (alone, among, f"jsonl:{objects}"):
        run("predict", str(reviews), data, "--out", str(answers))
        said = answers.read_text().split("\n")
        assert len(said) == len(TEXTS) + 1
        assert [said[i] for i in (0, 1, 3, 4)] == ["pos", "neg", "pos", "neg"]
    run("predict", str(reviews), alone, "--format", "jsonl", "--out", str(answers))
    assert [json.loads(line)["text"] for line in answers.read_text().splitlines()] == TEXTS
    named = table(tmp_path / "named.csv", ["x;body"], [["1;good"], ["2;bad"]])
    run("predict", str(reviews), named, "--text-column", "body", "--delimiter", ";", "--out", str(answers))
    assert answers.read_text() == "pos\nneg\n"


def test_sentences_in_columns_are_tagged_whatever_columns_they_have(tagger: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers"
    for cells in ("", " X", " X Y"):
        file = tmp_path / "new.conll"
        file.write_text(
            f"-DOCSTART-{cells}\n\n" + "".join(f"{w}{cells}\n" for w in ("a", "tree", "saw")) + "\n"
        )
        run("predict", str(tagger), f"columns:{file}", "--out", str(answers))
        rows = [line.split("\t") for line in answers.read_text().splitlines() if line[:1].isdigit()]
        assert [(row[1], row[-1]) for row in rows] == [
            ("a", "col1=DET"), ("tree", "col1=NOUN"), ("saw", "col1=VERB"),
        ]  # fmt: skip


def test_a_cell_of_several_lines_is_one_comment(tagger: Path, tmp_path: Path) -> None:
    data = table(tmp_path / "t.csv", ["text"], [["the cats\nsaw a tree"]])
    run("predict", str(tagger), data, "--out", str(tmp_path / "answers"))
    lines = (tmp_path / "answers").read_text().splitlines()
    assert lines[0] == "# text = the cats saw a tree"
    assert all(line[:1].isdigit() for line in lines[1:] if line)


def test_what_is_no_text_is_not_labelled_line_by_line_unasked(
    reviews: Path, tagger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(tmp_path / "new.csv", ["said"], [["good film"]])
    error = fails(capsys, "predict", str(reviews), str(tmp_path / "new.csv"))
    assert f"use csv:{tmp_path / 'new.csv'} to label what is in it, or --input text" in error
    run("predict", str(reviews), str(tmp_path / "new.csv"), "--input", "text")
    assert len(capsys.readouterr().out.splitlines()) == 2
    error = fails(capsys, "predict", str(tagger), str(tmp_path / "train.txt"))
    assert f"use columns:{tmp_path / 'train.txt'} to" in error
    for text in ("the cats\na tree\n\nthe tree saw\na cats\nthe tree\n", "a tree\n" * 9, "a tree\n\n" * 4):
        (tmp_path / "lines.txt").write_text(text)
        run("predict", str(tagger), str(tmp_path / "lines.txt"))


def test_what_contradicts_itself_is_refused(
    reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = table(tmp_path / "new.csv", ["said"], [["good film"]])
    for arguments, said in (
        ((data, "--input", "text"), "already names the kind csv; leave out --input text"),
        ((data, "--input", "csv"), "--input 'csv' is unknown; available: auto, conllu, text;"),
        ((data, "--text-column", "body"), "no column 'body'; available: said"),
        (
            ("lines.txt", "--text-column", "body"),
            "--text-column is for tables; use csv or jsonl:lines.txt, or leave it out",
        ),
        (("csv:",), "needs a path: csv:PATH"),
        ((f"csv:{tmp_path}",), "is a folder; use one of its files"),
    ):
        assert said in fails(capsys, "predict", str(reviews), *arguments)


def test_a_pipe_gets_the_answers_and_stays_a_pipe(reviews: Path, tmp_path: Path) -> None:
    data = table(tmp_path / "new.csv", ["said"], [["good film"], ["bad film"]])
    os.mkfifo(pipe := tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    run("predict", str(reviews), data, "--out", str(pipe))
    assert reader.communicate(timeout=60)[0] == "pos\nneg\n"
    assert pipe.is_fifo()


def test_a_graph_that_cannot_be_written_leaves_no_description(
    reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = tmp_path / "graph.pt2"
    with files_of_at_most(10_000):
        error = fails(capsys, "export", str(reviews), "--out", str(graph))
    assert error == f"mt2st-fast: {graph}: File too large; choose another --out or free some space there\n"
    assert not list(tmp_path.glob("*graph*"))


def test_an_output_named_gz_is_packed(reviews: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("good film\nbad film\n")
    run("predict", str(reviews), str(tmp_path / "lines.txt"), "--out", str(tmp_path / "answers.txt.gz"))
    assert gzip.decompress((tmp_path / "answers.txt.gz").read_bytes()) == b"pos\nneg\n"
    run("predict", str(reviews), str(tmp_path / "answers.txt.gz"), "--out", str(tmp_path / "again"))

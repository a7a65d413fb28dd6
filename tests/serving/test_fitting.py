"""What is written can be read back: names that would break a line or a cell, or hide the input, are refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from mt2st_fast.errors import InputError
from mt2st_fast.serving.fitting import check_keys
from mt2st_fast.serving.text_model import Labels
from tests.serving.test_reading_and_writing import renamed, written
from tests.serving.test_text_model import made

TEXT = b"die Katze\n\nword1 word2\nword3\n"
UNITS = [["die", "Katze"], [], ["word1", "word2"], ["word3"]]


def with_classes(level, *names, kind="classes", task="pos"):
    model = made(level)
    model.labels[task] = Labels(kind, names)
    return model


@pytest.mark.parametrize("name", ["a\nb", "c\td", "e\rf"])
@pytest.mark.parametrize("level", ["token", "document"])
def test_a_name_that_would_break_a_line_is_refused(level, name):
    model = with_classes(level, "x", name, "y")
    with pytest.raises(
        InputError, match=r"^the class '.*' of pos has a tab or a line end.*; use --format jsonl$"
    ):
        written(model, TEXT)
    rows = [json.loads(line) for line in written(model, TEXT, form="jsonl", k=-1).splitlines()]
    answers = rows[0]["pos"][0] if level == "token" else rows[0]["pos"]
    assert name in [label for label, _ in answers]


def test_each_of_several_tasks_has_its_cell():
    model = made("document")
    tasks = ("marks", "pos", "length")
    expected = [model.predict(UNITS, task) for task in tasks]
    lines = written(model, TEXT, tasks).split("\n")[:-1]
    assert len(lines) == len(UNITS)
    rows = list(csv.reader(lines, delimiter="\t"))
    assert [tuple(filter(None, row[0].split("|"))) for row in rows] == expected[0]
    assert [row[1] for row in rows] == expected[1]
    assert [np.float32(row[2]) for row in rows] == [np.float32(value) for (value,) in expected[2]]
    none = list(csv.reader(written(model, TEXT, tasks, threshold=1.0).splitlines(), delimiter="\t"))
    assert [row[:2] for row in none] == [["", ""]] * len(UNITS)
    both = list(
        csv.reader(written(model, TEXT, tasks, k=-1, probabilities=True).splitlines(), delimiter="\t")
    )
    assert [[len(cell.split("|")) for cell in row] for row in both] == [[2, 3, 1]] * len(UNITS)


def test_labels_of_one_task_are_separated_by_tabs():
    lines = written(made("document"), TEXT, ("marks",), threshold=0.0).split("\n")[:-1]
    assert [sorted(line.split("\t")) for line in lines] == [["a", "b"]] * len(UNITS)


def test_a_bar_in_a_name_is_refused_only_where_it_would_be_read_as_an_end():
    model = with_classes("document", "a|b", "c", "d")
    assert len(written(model, TEXT, ("pos", "marks")).splitlines()) == len(UNITS)
    with pytest.raises(InputError, match=r"the class 'a\|b' of pos has \|, which separates the labels"):
        written(model, TEXT, ("pos", "marks"), k=2)
    in_misc = with_classes("token", "a|b", "c", "d")
    with pytest.raises(
        InputError, match=r"the class 'a\|b' of pos has \|, which ends a value in FEATS and MISC"
    ):
        written(in_misc, TEXT)
    with pytest.raises(InputError, match=r"the task 'x\|y' has \|, which ends a value"):
        written(renamed(made("token"), "x|y"), TEXT, ("x|y",))


@pytest.mark.parametrize(
    ("level", "key", "other"), [("token", "words", "conllu"), ("document", "text", "labels")]
)
def test_no_task_hides_the_input_in_json_lines(level, key, other):
    model = renamed(made("token"), "words")
    if level == "token":
        with pytest.raises(InputError, match="under the key 'words', and a task has this name"):
            written(model, TEXT, ("words",), "jsonl")
        assert "words=" in written(model, TEXT, ("words",))
    with pytest.raises(InputError, match=f"under the key '{key}'.* use --format {other}"):
        check_keys(["pos", key], level)
    check_keys(["pos", {"words": "text", "text": "words"}[key]], level)


@pytest.mark.parametrize("option", [{"k": 2}, {"threshold": 0.9}, {"probabilities": True}])
def test_a_regression_alone_has_no_probabilities(option):
    flag = f"--{next(iter(option))}"
    with pytest.raises(
        InputError, match=f"^{flag} is for classes and labels.*; length is a regression: leave it"
    ):
        written(made("document"), TEXT, ("length",), "jsonl", **option)
    assert written(made("document"), TEXT, ("length", "pos"), "jsonl", **option)

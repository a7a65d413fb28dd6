"""JSON objects a line: what becomes a column, and what is wrong named by line."""

import json

import numpy as np
import pytest

from mt2st_fast.cli import main
from mt2st_fast.data import open_data
from mt2st_fast.data.readers import READERS
from mt2st_fast.data.readers.json_lines import read_objects
from mt2st_fast.data.readers.request import ReadRequest
from mt2st_fast.errors import InputError
from tests.data.readers.opened import labels, message_of, words

OBJECTS = [
    {
        "text": "Good, it's\nfine!",
        "label": "pos",
        "rating": 4.5,
        "tags": ["a", "b"],
        "meta": {"topic": {"name": "x"}},
    },
    {"text": "Bad.", "label": "neg", "rating": None, "tags": ["b", "c"], "meta": {}},
    {"text": "So so", "label": "", "rating": 2, "tags": []},
    {"text": "x", "label": "neg", "rating": 1.0, "meta": {"topic": {"name": "x"}}},
]


def lines(objects):
    return "".join(json.dumps(each) + "\n" for each in objects)


@pytest.fixture
def folder(write):
    return write(**{f"{part}.jsonl": lines(OBJECTS) for part in ("train", "dev", "test")})


def rows_of(write, text):
    read = read_objects(write(**{"x.jsonl": text}) / "x.jsonl")
    return read.header, read.rows


def test_objects_hold_classes_numbers_and_label_sets(folder):
    splits = open_data(f"jsonl:{folder}", main="rating:regression", auxiliary=["tags:multilabel", "label"])
    assert splits.name == f"jsonl:{folder}"
    assert (splits.tasks, splits.train.level) == (("rating", "tags", "label"), "document")
    nan = np.nan
    np.testing.assert_array_equal(splits.train.column("rating").values, [[4.5], [nan], [2], [1]])
    assert splits.train.column("tags").class_names == ("a", "b", "c")
    np.testing.assert_array_equal(
        splits.train.column("tags").values, [[1, 1, 0], [0, 1, 1], [nan] * 3, [nan] * 3]
    )
    assert labels(splits, "label") == ["pos", "neg", None, "neg"]
    assert words(splits) == ["good", ",", "it's", "fine", "!", "bad", ".", "so", "so", "x"]


def test_what_is_left_out_by_default_is_said(folder):
    splits = open_data(f"jsonl:{folder}")
    assert splits.tasks == ("label",)
    assert splits.notes[:3] == (
        "column 'rating' has 3 classes, so it is not used as an auxiliary task",
        "column 'tags' has lists, so it is not used as an auxiliary task (--aux tags:multilabel)",
        "column 'meta.topic.name' has 1 class, so it is not used as an auxiliary task",
    )
    assert splits.notes[3:4] == (
        "train.jsonl: not every object has the keys tags, meta.topic.name: 1 have no 'tags', the first on line 4",
    )
    assert splits.record.understood == {"text column": "text"}


def test_the_same_rows_are_the_same_corpus_as_by_a_table(write):
    rows = [(f"word{i} word{i % 4}", "ab"[i % 2], i % 3) for i in range(20)]
    table = "text,label,level\n" + "".join(f"{text},{label},{level}\n" for text, label, level in rows)
    objects = lines({"text": text, "label": label, "level": level} for text, label, level in rows)
    folder = write(**{"x.csv": table, "x.jsonl.gz": objects})
    by_table, by_objects = open_data(f"csv:{folder / 'x.csv'}"), open_data(f"jsonl:{folder / 'x.jsonl.gz'}")
    assert by_table.tasks == by_objects.tasks == ("label", "level")
    for part in ("train", "dev", "test"):
        assert words(by_table, part) == words(by_objects, part)
        for task in by_table.tasks:
            assert labels(by_table, task, part) == labels(by_objects, task, part)


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("1", "1"),
        ("1.0", "1"),
        ("-3.0", "-3"),
        ("1.5", "1.5"),
        ("1e300", "1e+300"),
        ("true", "true"),
        ("false", "false"),
        ("null", ""),
        ('""', ""),
        ("[]", ""),
        ("[null]", ""),
        ('["a", 1, null, 2.0, true]', "a|1|2|true"),
        ("NaN", "nan"),
        ('"\\u00e4\\u2028"', "ä\u2028"),
    ],
)
def test_a_value_becomes_a_cell(write, value, cell):
    header, rows = rows_of(write, f'{{"text": "t", "it": {value}}}\n')
    assert (header, rows) == (["text", "it"], [["t", cell]])


def test_keys_are_columns_in_order_of_appearance_and_lists_of_objects_are_left_out(write):
    text = '{"b": 1, "people": [{"name": "x"}]}\n\n{"a": 2, "b": {"c": 3}, "people": []}\n'
    path = write(**{"x.jsonl": text}) / "x.jsonl"
    read = read_objects(path)
    assert (read.header, read.rows, read.line_numbers) == (
        ["b", "a", "b.c"],
        [["1", "", ""], ["", "2", "3"]],
        [1, 3],
    )
    assert read.notes[0] == "left out because they hold lists of objects or of lists: people"
    assert read.left_out == {"blank lines": 1}
    assert read.lists == set()


def test_null_in_place_of_an_object_is_no_column_of_its_own(write):
    header, rows = rows_of(write, '{"text": "t", "o": null}\n{"text": "u", "o": {"k": 1}}\n')
    assert (header, rows) == (["text", "o.k"], [["t", ""], ["u", "1"]])


def test_lists_in_another_file_than_that_of_training_are_no_class(write):
    folder = write(
        **{
            "train.jsonl": lines({"text": "a", "tag": "xy"[i % 2]} for i in range(9)),
            "dev.jsonl": lines([{"text": "a", "tag": ["x", "z"]}]),
        }
    )
    assert message_of(f"jsonl:{folder}").endswith("dev.jsonl: 'tag' has lists of labels; use tag:multilabel")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"text": "a", "label": "b"}\n{"text": \n',
            "x.jsonl:2: '{\"text\": ' is not JSON (Expecting value at",
        ),
        (
            '{"text": "a"} {"text": "b"}\n',
            "is not JSON (Extra data at column 15); write one JSON object a line",
        ),
        ('[{"text": "a"}]\n', "x.jsonl:1: the file is one JSON list; write one JSON object a line"),
        ('[\n{"text": "a"}\n]\n', "x.jsonl:1: a JSON value goes over several lines; write one JSON object a"),
        ('{\n"text": "a"\n}\n', "x.jsonl:1: a JSON value goes over several lines"),
        ('{"text": "a"}\n7\n', "x.jsonl:2: '7' is no JSON object"),
        ('{"text": "a", "label": 1, "label": 2}\n', "x.jsonl:1: the key 'label' is there twice"),
        ('{"text": "a", "o": {"k": 1, "k": 1}}\n', "x.jsonl:1: the key 'k' is there twice"),
        ('{"o.k": 1, "o": {"k": 2}}\n', "x.jsonl:1: two values are called 'o.k'; rename one of them"),
        ('{"text": "a \\ud800"}\n', r"x.jsonl:1: \ud800 is half of a character"),
        (
            '{"text": "a", "tags": ["x|y"]}\n',
            "the label 'x|y' in 'tags' contains | or ;, which separate",
        ),
        (
            '{"text": "a", "t": ["x"]}\n{"text": "a", "t": "p|q"}\n',
            "x.jsonl:2: the label 'p|q' in 't' contains | or ;",
        ),
        (
            "".join(f'{{"text": "a", "m": {{"id{i}": 1}}}}\n' for i in range(1100)),
            "x.jsonl:1000: the objects have more than 1,000 different keys, such as 'm.id999'",
        ),
        ("{}\n", "x.jsonl: no object has a key with a text or a label"),
        ('{"people": [{}]}\n', "x.jsonl: no object has a key with a text or a label"),
        ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "is not JSON (nested too deeply)"),
    ],
)
def test_what_is_no_table_is_refused_by_its_line(write, text, message):
    path = write(**{"x.jsonl": text}) / "x.jsonl"
    with pytest.raises(InputError) as refused:
        read_objects(path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"main": "tags"}, "'tags' has lists of labels; use tags:multilabel"),
        ({"main": "text"}, "column 'text' is the text column and cannot be a task"),
        (
            {"main": "lable"},
            "no task 'lable'; available: label, rating, tags, meta.topic.name (did you mean 'label'?)",
        ),
        ({"main": "label:regression"}, "train.jsonl:1: 'pos' in column 'label' is not a number"),
        ({"delimiter": ";"}, "--delimiter applies to csv:PATH only; leave it out"),
        ({"text_column": "body"}, "no column 'body'; available: text, label"),
    ],
)
def test_a_request_that_the_objects_cannot_meet_is_refused(folder, settings, message):
    assert message in message_of(f"jsonl:{folder}", **settings)


def test_a_key_without_the_text_names_the_keys(write):
    folder = write(**{"x.jsonl": '{"body": "a", "label": "b"}\n'})
    told = message_of(f"jsonl:{folder / 'x.jsonl'}")
    assert told.endswith("choose the text column from body, label with --text-column")
    assert message_of(f"jsonl:{write(**{'y.jsonl': lines([{'text': 'a'}])}) / 'y.jsonl'}").endswith(
        "has no label column besides 'text'"
    )


def test_a_model_trains_on_objects_and_is_measured_on_them(write, tmp_path, capsys):
    rows = [{"body": f"{'ab'[i % 2]} w{i % 5}", "tone": "xy"[i % 2], "n": i % 7 + 0.5} for i in range(60)]
    data = f"jsonl:{write(**{'x.jsonl': lines(rows)}) / 'x.jsonl'}"
    out = str(tmp_path / "run")
    tasks = "--text-column body --label-column tone --label-column n:regression"
    for command in (
        f"train --data {data} {tasks} --epochs 2 --device cpu --out {out}",
        f"test {out} {data} --tasks tone,n",
    ):
        with pytest.raises(SystemExit) as ended:
            main(command.split())
        assert ended.value.code == 0, capsys.readouterr().err
    assert "r2" in capsys.readouterr().out.casefold().replace("²", "2")


def test_a_number_of_thousands_of_digits_is_named_by_its_line(write):
    text = '{"text": "a", "n": 1}\n{"text": "b", "n": ' + "1" * 5000 + "}\n"
    folder = write(**{"t.jsonl": text})
    assert "t.jsonl:2: " in (message := message_of(f"jsonl:{folder / 't.jsonl'}"))
    assert message.endswith("has a number of thousands of digits; write it as a text, or shorter")


def test_lists_are_no_texts(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": ["a", "b"], "label": "x"}\n' * 9)
    assert "'text' has lists, but is the text column; write a text as one string" in message_of(
        f"jsonl:{path}"
    )
    with pytest.raises(InputError, match="'text' has lists"):
        READERS["jsonl"].unlabelled(ReadRequest(path, None, None))


def test_lists_of_another_file_are_found_under_a_name_in_another_case(write):
    one = '{"text": "a", "tag": "x"}\n{"text": "b", "tag": "y"}\n' * 5
    for other, message in (
        ('{"Text": ["a", "b"], "tag": "x"}', "dev.jsonl: 'text' has lists, but is the text column"),
        ('{"text": ["a", "b"], "tag": "x"}', "dev.jsonl: 'text' has lists, but is the text column"),
        ('{"text": "a", "Tag": ["x", "y"]}', "dev.jsonl: 'tag' has lists of labels; use tag:multilabel"),
    ):
        folder = write(**{"train.jsonl": one, "dev.jsonl": f"{other}\n" * 4})
        assert message in message_of(f"jsonl:{folder}")


def test_rows_with_an_empty_list_are_said_to_be_unlabelled(write):
    objects = [
        {"text": "film", "tags": [["a"], ["a", "b"], []][i % 3], "tone": "up" if i % 2 else "down"}
        for i in range(30)
    ]
    data = f"jsonl:{write(**{'x.jsonl': lines(objects)}) / 'x.jsonl'}"
    assert open_data(data, main="tags:multilabel", auxiliary=[]).notes == (
        "column 'tags': 10 cells are empty, which is read as labels that are not known, not as rows without any; give "
        "those rows a label of their own, such as none",
    )
    assert (
        "column 'tags' has lists, so the main task is 'tone'; use --label-column to choose another one, or --main "
        "tags:multilabel"
    ) in open_data(data).notes

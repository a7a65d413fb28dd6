"""Text in, labels out: every line where it was, whatever pieces the bytes come in; what is no such text is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mt2st_fast.data import open_data
from mt2st_fast.data.text.tokenizers import TOKENIZERS
from mt2st_fast.errors import InputError
from mt2st_fast.serving import reading
from mt2st_fast.serving.reading import read_units
from mt2st_fast.serving.wanted import Wanted
from mt2st_fast.serving.writing import check_format, probabilities_of, write_units
from tests.serving.test_text_model import LABELS, made

CONLLU = """\
# sent_id = 1
# text = die Katze schläft.
1\tdie\tder\tDET\tART\tCase=Nom|Number=Sing\t2\tdet\t_\t_
2-3\tKatze-schläft\t_\t_\t_\t_\t_\t_\t_\t_
2\tKatze\tKatze\tNOUN\tNN\t_\t3\tnsubj\t_\t_
3\tschläft\tschlafen\tVERB\tVV\t_\t0\troot\t_\tSpaceAfter=No

# text = ohne Leerzeile am Ende
1\tword3\t_\t_\t_\t_\t_\t_\t_\t_
1.1\tleer\t_\t_\t_\t_\t_\t_\t_\t_
"""


def units_of(content, tokenizer="words", kind="auto", size=7):
    pieces = [content[i : i + size] for i in range(0, len(content), size)]
    return [unit for block in read_units(pieces, "in", TOKENIZERS[tokenizer], kind) for unit in block]


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize(
    "change", [lambda t: t, lambda t: "\ufeff" + t, lambda t: t.replace("\n", "\r\n"), lambda t: t[:-1]]
)
def test_conllu_is_read_whole(size, change):
    first, second = units_of(change(CONLLU).encode(), size=size)
    assert first.words == ["die", "Katze", "schläft"]
    assert [first.lines[at].split("\t")[0] for at in first.words_at] == ["1", "2", "3"]
    assert second.words == ["word3"]
    assert [*first.lines, "", *second.lines] == CONLLU.rstrip("\n").split("\n")


def test_text_is_cut_as_training_data_was():
    text = b"Die Katze, don't!\n\nzwei  Zeilen"
    assert [u.words for u in units_of(text)] == [["Die", "Katze", ",", "don't", "!"], [], ["zwei", "Zeilen"]]
    assert units_of(text, "lowered words")[0].words == ["die", "katze", ",", "don't", "!"]
    assert units_of(text, "blanks")[0].words == ["Die", "Katze,", "don't!"]
    assert units_of(CONLLU.encode(), "blanks", "text")[2].words[:2] == ["1", "die"]
    assert units_of(b"") == []


def test_what_cannot_be_read_is_named_by_its_line():
    with pytest.raises(InputError, match="in:3: is not valid UTF-8; convert"):
        units_of("gut\ngut\nnö".encode("latin-1"))
    with pytest.raises(
        InputError, match=r"in:4: a CoNLL-U line has 10 tab-separated columns, but this one has 9"
    ):
        units_of(CONLLU.replace("2-3\t", "", 1).encode())
    for form in ("", " "):
        with pytest.raises(InputError, match="in:5: there is no word in the second column; add it"):
            units_of(CONLLU.replace("2	Katze", f"2	{form}", 1).encode())
    with pytest.raises(InputError, match="input must be auto, conllu or text, not 'json'"):
        units_of(b"a", kind="json")


def test_sentences_without_a_blank_line_between_are_told_apart():
    first, second = (part + "\n" for part in CONLLU.rstrip("\n").split("\n\n"))
    joined = first + "# text = x\n" + second + "1-2\tz\t_\t_\t_\t_\t_\t_\t_\t_\n" + second
    units = units_of(joined.encode())
    assert [unit.words for unit in units] == [["die", "Katze", "schläft"], ["word3"], ["word3"]]
    assert [unit.lines[at].split("\t")[1] for unit in units[1:] for at in unit.words_at] == ["word3", "word3"]
    assert [unit.lines[0][:8] for unit in units] == ["# sent_i", "# text =", "1-2\tz\t_\t"]
    assert [line for unit in units for line in unit.lines] == joined.rstrip("\n").split("\n")


def test_blocks_are_bounded(monkeypatch):
    monkeypatch.setattr(reading, "WORDS_AT_ONCE", 10)
    blocks = list(read_units([b"a b c\n" * 100], "in", str.split, "text"))
    assert max(len(block) for block in blocks) <= 4
    assert sum(len(block) for block in blocks) == 100


def written(model, content, tasks=("pos",), form=None, tokenizer="blanks", **options):
    wanted = Wanted(tasks, check_format(model, form), **options)
    return "".join(write_units(model, read_units([content], "in", TOKENIZERS[tokenizer]), wanted))


def test_conllu_keeps_all_but_the_labels():
    model = made("token")
    model.labels["upos"], model.labels["feats.Case"] = LABELS["pos"], LABELS["pos"]
    tags = [tag for unit in model.predict([["die", "Katze", "schläft"], ["word3"]]) for tag in unit]
    lines = written(model, CONLLU.encode()).rstrip("\n").split("\n")
    before = CONLLU.rstrip("\n").split("\n")
    assert len(lines) == len(before)
    for old, new in zip(before, lines, strict=True):
        if old.partition("\t")[0].isdecimal():
            tag = tags.pop(0)
            misc = old.split("\t")[9]
            expected = f"pos={tag}" if misc == "_" else f"pos={tag}|{misc}"
            assert new.split("\t")[:9] == old.split("\t")[:9]
            assert new.split("\t")[9] == expected
        else:
            assert new == old
    assert not tags


@pytest.mark.parametrize(("task", "column"), [("upos", 3), ("xpos", 4), ("deprel", 7)])
def test_tags_stand_in_their_columns(task, column):
    model = renamed(made("token"), task)
    tags = [tag for unit in model.predict([["die", "Katze", "schläft"], ["word3"]], task) for tag in unit]
    in_table = written(model, CONLLU.encode(), (task,)).split("\n")
    from_text = written(model, b"die Katze schl\xc3\xa4ft\n\nword3\n", (task,)).split("\n")
    for lines in (in_table, from_text):
        rows = [line.split("\t") for line in lines if line.partition("\t")[0].isdecimal()]
        assert [row[column] for row in rows] == tags
        assert all(len(row) == 10 for row in rows)
    assert from_text[0] == "# text = die Katze schläft"
    assert from_text[4:6] == ["", "# text = word3"]


def renamed(model, task):
    """The model with its task of classes under another name."""
    from mt2st_fast import Classification, MultiTaskHeads
    from mt2st_fast.serving.text_model import TextModel

    heads = MultiTaskHeads(model.heads.linear("pos").in_features, {task: Classification(3)}, task)
    heads.linear(task).load_state_dict(model.heads.linear("pos").state_dict())
    parts = (model._trained, heads, model.vocabulary, model.table)
    return TextModel(*parts, {task: LABELS["pos"]}, "blanks")


def test_features_are_set_and_taken_out():
    model = renamed(made("token"), "feats.Case")
    model.labels["feats.Case"] = type(LABELS["pos"])("classes", ("_", "Acc", "Dat"))
    found = model.predict([["die", "Katze", "schläft"]])[0]
    rows = [line.split("\t") for line in written(model, CONLLU.encode(), ("feats.Case",)).split("\n")[2:6]]
    cells = [row[5] for row in rows if row[0].isdecimal()]
    case = ["" if tag == "_" else f"Case={tag}" for tag in found]
    assert cells == [f"{case[0]}|Number=Sing".strip("|"), case[1] or "_", case[2] or "_"]


def test_json_lines_hold_what_was_asked():
    model = made("token")
    text = b"die Katze\nword1\n"
    units = [["die", "Katze"], ["word1"]]
    rows = [
        json.loads(line) for line in written(model, text, ("pos", "marks", "length"), "jsonl").splitlines()
    ]
    assert [row["words"] for row in rows] == units
    for task in ("pos", "marks"):
        assert [row[task] for row in rows] == json.loads(json.dumps(model.predict(units, task)))
    np.testing.assert_array_equal(
        np.array([value for row in rows for value in row["length"]], np.float32),
        model.logits(units, "length").numpy()[:, 0],
    )
    rows = [json.loads(line) for line in written(model, text, form="jsonl", k=-1).splitlines()]
    probabilities = model.probabilities(units)
    answers = [answer for row in rows for answer in row["pos"]]
    for answer, expected in zip(answers, probabilities, strict=True):
        assert [name for name, _ in answer] == [LABELS["pos"].names[c] for c in np.argsort(-expected)]
        assert [p for _, p in answer] == pytest.approx(sorted(expected, reverse=True), rel=1e-4)
    one = [json.loads(line) for line in written(model, text, form="jsonl", threshold=0.34, k=-1).splitlines()]
    assert [len(a) for row in one for a in row["pos"]] == (probabilities >= 0.34).sum(1).tolist()


@pytest.mark.parametrize(
    "value", ["0.1", "3.0293787", "16777216.0", "-1e-45", "3.4028235e+38", "0.0", "1e+20", "123456.79"]
)
def test_a_number_is_written_in_the_fewest_digits_that_give_it_again(monkeypatch, value):
    found = torch.full((1, 1), float(np.float32(value)))
    for level in ("document", "token"):
        model = made(level)
        monkeypatch.setattr(model, "outputs", lambda units, tasks: dict.fromkeys(tasks, found))
        [line] = written(model, b"word1\n", ("length",), "jsonl").splitlines()
        written_out = line.rpartition(": ")[2].strip("[]}")
        assert written_out == repr(float(value))
        assert np.float32(written_out) == found.item()
    assert f"length={value}" in written(model, b"word1\n", ("length",))
    model = made("document")
    monkeypatch.setattr(model, "outputs", lambda units, tasks: dict.fromkeys(tasks, found))
    assert written(model, b"word1\n", ("length",)) == f"{value}\n"


def test_a_number_of_a_document_stands_alone_as_in_tables(tmp_path):
    rows = written(made("document"), b"die Katze\nword1\n", ("pos", "length"), "jsonl")
    assert all(isinstance(json.loads(row)["length"], float) for row in rows.splitlines())
    (tmp_path / "x.jsonl").write_text(rows * 20, encoding="utf-8")
    splits = open_data(f"jsonl:{tmp_path / 'x.jsonl'}", main="pos", auxiliary=("length:regression",))
    assert splits.train.targets["length"].kind == "values"


def test_a_logit_of_which_exp_overflows_is_a_probability_of_0():
    logits = np.array([[-1000.0, 0.0, 1000.0]], np.float32)
    np.testing.assert_array_equal(probabilities_of(logits, "labels"), [[0, 0.5, 1]])


def test_documents_get_a_line_each():
    model = made("document")
    text = b"die Katze\n\nword1 word2\n"
    units = [["die", "Katze"], [], ["word1", "word2"]]
    assert written(model, text).splitlines() == model.predict(units)
    lines = written(model, text, k=2, probabilities=True).splitlines()
    best = np.sort(model.probabilities(units), axis=1)[:, ::-1]
    for line, expected in zip(lines, best, strict=True):
        assert [float(cell.split()[1]) for cell in line.split("\t")] == pytest.approx(expected[:2], rel=1e-4)


def test_options_out_of_range_are_named():
    with pytest.raises(InputError, match="--k must be at least 1, or -1"):
        Wanted(("pos",), "jsonl", k=0)
    with pytest.raises(InputError, match="--threshold is a probability"):
        Wanted(("pos",), "jsonl", threshold=float("nan"))
    with pytest.raises(InputError, match="CoNLL-U has one label a word"):
        Wanted(("pos",), "conllu", k=2)
    with pytest.raises(InputError, match="a model of documents answers as labels or jsonl, not as 'conllu'"):
        check_format(made("document"), "conllu")


OBJECTS = b'{"text": "a soup", "tone": "good"}\n\n{"text": "b"}\n'


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (OBJECTS, "jsonl"),
        (b"id,Text,tone\n1,a soup,good\n", "csv"),
        (b'\xef\xbb\xbf"sentence"\t"tone"\na soup\tgood\n', "csv"),
        (b"a DET\nsoup NOUN\nis VERB\n\nb DET\nc NOUN\n", "columns"),
    ],
)
def test_what_other_commands_write_into_a_pipe_is_no_text(content, kind):
    for where, path in ((reading.STANDARD_INPUT, "/dev/stdin"), ("of-another-name", "FILE")):
        with pytest.raises(
            InputError, match=f"{where}: does not look like text .*; use {kind}:{path} to label"
        ):
            list(read_units([content], where, str.split))
    assert next(read_units([content], "x", str.split, "text"))


@pytest.mark.parametrize(
    "content",
    [
        OBJECTS + b"and a line of text\n",
        b"{}\n",
        b"{1, 2} is a set\n",
        b"text, sentence and review\n",
        b"text\n",
        b"tone,topic\n",
    ],
)
def test_lines_that_are_like_those_of_a_table_only_in_part_are_text(content):
    units = [unit for block in read_units([content], "x", str.split) for unit in block]
    assert len(units) == len(content.splitlines())

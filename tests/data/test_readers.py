"""The readers of files: what they read, how they split, and what they say about bad input."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest

from mt2st_fast.data import MISSING, open_data, readers
from mt2st_fast.errors import InputError

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="../shared/data is absent")

CONLLU = """\
# sent_id = 1
# text = Dogs don't bark
1\tDogs\tdog\tNOUN\tNNS\tNumber=Plur\t4\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\tdo\tAUX\tVBP\tNumber=Plur|VerbForm=Fin\t4\taux\t_\t_
3\tn't\tnot\tPART\tRB\t_\t4\tadvmod\t_\t_
4\tbark\tbark\tVERB\tVB\tVerbForm=Inf\t0\troot\t_\t_
4.1\tghost\tghost\tVERB\tVB\t_\t_\t_\t_\t_

# sent_id = 2
1\tYes\tyes\tINTJ\t_\t_\t0\troot\t_\t_
"""


@pytest.fixture
def write(tmp_path):
    """Write files (name -> text) below tmp_path and return that folder; names in .gz are compressed."""

    def write_files(**texts):
        for name, text in texts.items():
            path = tmp_path / name
            data = text.encode() if isinstance(text, str) else text
            path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return tmp_path

    return write_files


@pytest.fixture
def conllu_folder(write):
    return write(**{f"x-{part}.conllu": CONLLU for part in ("train", "dev", "test")})


def words(splits, part="train"):
    return [splits.vocabulary.words[i] for i in splits.parts[part].tokens]


def labels(splits, task, part="train"):
    column = splits.parts[part].column(task)
    return [None if c == MISSING else column.class_names[c] for c in column.values]


def message_of(spec, **settings):
    """The message of the InputError, which must be one line."""
    with pytest.raises(InputError) as raised:
        open_data(spec, **settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# CoNLL-U


def test_conllu_reads_words_features_and_leaves_ranges_and_empty_nodes_out(conllu_folder):
    splits = open_data(f"conllu:{conllu_folder}")
    assert (splits.main, splits.auxiliary) == ("upos", ("xpos", "deprel", "feats.Number", "feats.VerbForm"))
    assert words(splits) == ["Dogs", "do", "n't", "bark", "Yes"]
    assert splits.train.bounds.tolist() == [0, 4, 5]
    assert labels(splits, "upos") == ["NOUN", "AUX", "PART", "VERB", "INTJ"]
    assert labels(splits, "xpos") == ["NNS", "VBP", "RB", "VB", None]
    assert labels(splits, "feats.Number") == ["Plur", "Plur", "_", "_", "_"]
    assert labels(splits, "feats.VerbForm") == ["_", "Fin", "_", "Inf", "_"]


def test_conllu_takes_the_tasks_asked_for(conllu_folder):
    splits = open_data(f"conllu:{conllu_folder}", main="feats.Number", auxiliary=["deprel"])
    assert splits.tasks == ("feats.Number", "deprel")
    assert list(splits.train.targets) == ["feats.Number", "deprel"]
    assert open_data(f"conllu:{conllu_folder}", auxiliary=()).tasks == ("upos",)


def test_conllu_lists_the_columns_that_exist(conllu_folder):
    message = message_of(f"conllu:{conllu_folder}", main="feats.Case")
    assert message.endswith("no task 'feats.Case'; it has upos, xpos, deprel, feats.Number, feats.VerbForm")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "1\tonly\tthree",
            "x.conllu:3: a CoNLL-U line has 10 columns with tabs between them, this one has 3",
        ),
        ("one" + "\t_" * 9, "x.conllu:3: the word id 'one'"),
        ("1-x" + "\t_" * 9, "x.conllu:3: the word id '1-x'"),
    ],
)
def test_conllu_names_the_malformed_line(write, line, message):
    folder = write(**{"x.conllu": "# a\n1" + "\t_" * 9 + f"\n{line}\n"})
    assert message in message_of(f"conllu:{folder / 'x.conllu'}")


def test_classes_of_all_splits_are_in_the_inventory(write):
    folder = write(
        **{
            "train.conllu": CONLLU,
            "dev.conllu": CONLLU,
            "test.conllu": CONLLU.replace("INTJ", "X").replace("Yes", "No"),
        }
    )
    splits = open_data(f"conllu:{folder}")
    assert labels(splits, "upos", "test")[-1] == "X"
    assert splits.train.column("upos").class_names == ("AUX", "INTJ", "NOUN", "PART", "VERB", "X")
    assert splits.vocabulary.counts[splits.vocabulary.ids_of(["No"])].tolist() == [0]


def test_compressed_files_are_read_too(write):
    folder = write(**{"a-train.conllu.gz": CONLLU, "a-dev.conllu.gz": CONLLU, "a-test.conllu": CONLLU})
    assert [len(words(open_data(f"conllu:{folder}"), part)) for part in ("train", "dev", "test")] == [5, 5, 5]


def test_a_broken_gzip_file_is_named(write):
    folder = write(**{"a.conllu.gz": CONLLU * 50})
    path = folder / "a.conllu.gz"
    path.write_bytes(path.read_bytes()[:-20])
    assert "is not a whole gzip file" in message_of(f"conllu:{path}")
    path.write_bytes(b"plain")
    assert "is not a whole gzip file" in message_of(f"conllu:{path}")


# Splits


def sentences(n):
    return "".join(f"w{i} N{i % 3} B\n\n" for i in range(n))


def test_one_file_is_split_80_10_10_the_same_way_each_time(write):
    path = write(**{"x.txt": sentences(50)}) / "x.txt"
    splits = [open_data(f"columns:{path}", seed=seed) for seed in (1, 2)]
    assert [corpus.n_units for corpus in splits[0].parts.values()] == [40, 5, 5]
    assert sorted(words(splits[0]) + words(splits[0], "dev") + words(splits[0], "test")) == sorted(
        f"w{i}" for i in range(50)
    )
    for part in splits[0].parts:
        assert words(splits[0], part) == words(splits[1], part)


@pytest.mark.parametrize(("given", "taken"), [("test", "dev"), ("dev", "test")])
def test_a_missing_split_takes_a_tenth_of_the_training_text(write, given, taken):
    folder = write(**{"train.txt": sentences(50), f"{given}.txt": sentences(7)})
    sizes = {part: corpus.n_units for part, corpus in open_data(f"columns:{folder}").parts.items()}
    assert sizes == {"train": 45, given: 7, taken: 5}


def test_split_words_begin_a_word_of_the_name(write):
    folder = write(**{"train.txt": sentences(20), "latest.txt": "x", "valid.txt": sentences(4)})
    assert open_data(f"columns:{folder}").dev.n_units == 4


def test_ambiguous_missing_and_foreign_files_are_named(write, tmp_path):
    assert "no file in the folder ends in" in message_of(f"conllu:{write(**{'README.md': 'x'})}")
    write(**{"train-a.txt": "x", "train-b.txt": "x"})
    assert "several files look like train (train-a.txt, train-b.txt)" in message_of(f"columns:{tmp_path}")
    (tmp_path / "train-a.txt").unlink()
    (tmp_path / "train-b.txt").rename(tmp_path / "one.txt")
    write(**{"dev.txt": "x"})
    assert "no file has `train` in its name (found dev.txt, one.txt)" in message_of(f"columns:{tmp_path}")


@pytest.mark.parametrize("kind", ["conllu", "columns", "csv", "text"])
def test_missing_empty_and_undecodable_files_are_named(write, kind):
    folder = write(empty="", latin=b"text,a\nx,1\n\xe9,1\n")
    assert "gone: there is no such file" in message_of(f"{kind}:{folder / 'gone'}")
    assert "empty: the file is empty" in message_of(f"{kind}:{folder / 'empty'}")
    if kind in ("csv", "text"):
        assert "latin:3: is not UTF-8" in message_of(f"{kind}:{folder / 'latin'}")


def test_too_little_text_to_split_is_named(write):
    path = write(**{"x.txt": sentences(2)}) / "x.txt"
    assert "2 sentences or documents are too few to split" in message_of(f"columns:{path}")


# Columns


def test_columns_are_named_by_number(write):
    folder = write(**{f"{part}.txt": "a N B\nb V I\n\n\nc N B\n" for part in ("train", "dev", "test")})
    splits = open_data(f"columns:{folder}")
    assert splits.tasks == ("col2", "col1")
    assert labels(splits, "col1") == ["N", "V", "N"]
    assert splits.train.bounds.tolist() == [0, 2, 3]


def test_columns_are_named_by_a_header(write):
    text = "# columns: word pos chunk\n-DOCSTART- -X- O\n\na N B\nb V I\n"
    folder = write(**{f"{part}.txt": text for part in ("train", "dev", "test")})
    splits = open_data(f"columns:{folder}", main="pos")
    assert splits.tasks == ("pos", "chunk")
    assert words(splits) == ["a", "b"]
    assert message_of(f"columns:{folder}", main="col1").endswith("no task 'col1'; it has pos, chunk")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a N\nb\n", "x.txt:2: 1 columns where the lines before have 2"),
        ("a\n", "x.txt:1: a word without a label"),
        ("# columns: w p p\na N N\n", "x.txt:1: a column is named twice"),
        ("\n\n", "x.txt: the file has no words"),
    ],
)
def test_columns_name_the_malformed_line(write, text, message):
    assert message in message_of(f"columns:{write(**{'x.txt': text}) / 'x.txt'}")


# Tables

TABLE = """\
id,text,label,rating,tags
1,"Good, it's
fine!",pos,4.5,a|b
2,Bad.,neg,,b;c
3,So so,,2,
4,x,neg,1,
"""


@pytest.fixture
def table_folder(write):
    return write(**{f"{part}.csv": TABLE for part in ("train", "dev", "test")})


def test_tables_hold_classes_numbers_and_label_sets(table_folder):
    splits = open_data(
        f"csv:{table_folder}", main="rating:regression", auxiliary=["tags:multilabel", "label"]
    )
    assert splits.tasks == ("rating", "tags", "label")
    assert splits.train.level == "document"
    nan = np.nan
    np.testing.assert_array_equal(splits.train.column("rating").values, [[4.5], [nan], [2], [1]])
    assert splits.train.column("rating").kind == "values"
    assert splits.train.column("tags").class_names == ("a", "b", "c")
    np.testing.assert_array_equal(
        splits.train.column("tags").values, [[1, 1, 0], [0, 1, 1], [nan] * 3, [nan] * 3]
    )
    assert labels(splits, "label") == ["pos", "neg", None, "neg"]
    assert words(splits) == ["good", ",", "it's", "fine", "!", "bad", ".", "so", "so", "x"]
    assert splits.train.bounds.tolist() == [0, 5, 7, 9, 10]


def test_tables_default_to_the_column_after_the_text_and_leave_ids_out(table_folder):
    splits = open_data(f"csv:{table_folder}")
    assert splits.tasks == ("label", "tags")
    assert splits.notes == (
        "column 'id' is no auxiliary task: it has 4 classes",
        "column 'rating' is no auxiliary task: it has 3 classes",
    )


@pytest.mark.parametrize(
    ("name", "delimiter"), [("x.tsv", "\t"), ("x.csv", ";"), ("x.csv", "\t"), ("x.tsv.gz", "\t")]
)
def test_tables_with_other_delimiters(write, name, delimiter):
    rows = [("sentence", "label"), *((f"a{i}, b", "cd"[i % 2]) for i in range(10))]
    folder = write(**{name: "\n".join(map(delimiter.join, rows))})
    splits = open_data(f"csv:{folder / name}")
    assert (splits.main, splits.train.n_units) == ("label", 8)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (
            "body,label\na,b\n",
            {},
            "x.csv:1: no column is named text, sentence, review, content; the columns are",
        ),
        ("text\na\n", {}, "x.csv:1: there is no column of labels beside 'text'"),
        ("text,a,a\nx,1,2\n", {}, "x.csv:1: a column is unnamed or named twice"),
        ("text,label\n", {}, "x.csv: the file has a header and no rows"),
        ('text,label\n"a\nb",1\nc\n', {}, "x.csv:4: 1 cells where the header has 2"),
        ('text,label\n"a"b,1\n', {}, "x.csv:2: is not a readable row"),
        (TABLE, {"main": "stars"}, "no task 'stars'; it has id, label, rating, tags"),
        (TABLE, {"main": "label:regression"}, "x.csv:3: 'pos' in column 'label' is no number"),
        (TABLE.replace("4.5", "nan"), {"main": "rating:regression"}, "x.csv:3: 'nan' in column 'rating'"),
    ],
)
def test_tables_name_what_is_wrong(write, text, settings, message):
    assert message in message_of(f"csv:{write(**{'x.csv': text}) / 'x.csv'}", **settings)


def test_tables_of_different_columns_are_named(table_folder, write):
    write(**{"test.csv": "text,other\na,b\n"})
    assert "test.csv: the columns differ from the training file's" in message_of(f"csv:{table_folder}")


# Raw text


def test_text_has_no_tasks_and_says_so(write):
    path = write(**{"x.txt": "One line.\n\n" + "another one\n" * 9}) / "x.txt"
    splits = open_data(f"text:{path}")
    assert (splits.main, splits.tasks, splits.train.targets) == (None, (), {})
    assert splits.train.n_units == 8
    message = message_of(f"text:{path}", main="upos")
    able = "stdlib, columns:PATH, conllu:PATH, csv:PATH"
    assert f"has no labels for task 'upos'; readers with labels are {able}" in message


# open_data


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("xml:x", "no reader 'xml'; the readers are stdlib, columns:PATH, conllu:PATH, csv:PATH, text:PATH"),
        ("data.csv", "no reader 'data.csv'"),
        ("", "no reader ''"),
        ("csv:", "the reader csv needs a path"),
        ("csv", "the reader csv needs a path"),
        ("stdlib:x", "the reader stdlib takes no path"),
    ],
)
def test_bad_specs_are_named(spec, message):
    assert message in message_of(spec)


def test_tasks_named_twice_or_of_a_foreign_kind_are_named(conllu_folder):
    spec = f"conllu:{conllu_folder}"
    assert "'upos' is main and auxiliary" in message_of(spec, main="upos", auxiliary=["upos"])
    assert "'xpos' is named twice" in message_of(spec, auxiliary=["xpos", "xpos"])
    assert "conllu has classes only" in message_of(spec, main="upos:regression")


def test_the_default_main_task_among_the_auxiliary_ones_is_named(conllu_folder, table_folder, write):
    assert "'upos' is main and auxiliary" in message_of(f"conllu:{conllu_folder}", auxiliary=["upos"])
    assert "'label' is main and auxiliary" in message_of(f"csv:{table_folder}", auxiliary=["label"])
    path = write(**{"c.col": sentences(9)}) / "c.col"
    assert "'col2' is main and auxiliary" in message_of(f"columns:{path}", auxiliary=["col2"])
    assert "'role' is main and auxiliary" in message_of("stdlib", auxiliary=["role"])


def test_labels_are_hidden_in_training_text_only(write):
    folder = write(**{f"{part}.txt": sentences(40) for part in ("train", "dev", "test")})
    splits = open_data(f"columns:{folder}", main="col1", label_fraction=0.25)
    labelled = {part: int(corpus.column("col1").labelled().sum()) for part, corpus in splits.parts.items()}
    assert labelled == {"train": 10, "dev": 40, "test": 40}
    assert splits.train.column("col2").labelled().all()
    assert splits.notes == ("0.25 of the training units keep their labels of 'col1'",)
    assert "label fraction 2" in message_of(f"columns:{folder}", label_fraction=2)


def test_a_main_task_without_any_training_label_is_named(write):
    text = "text,label,other\n" + "a,,x\n" * 10
    path = write(**{"x.csv": text}) / "x.csv"
    assert "no training row has a label of the main task 'label'" in message_of(f"csv:{path}")


# Real data


@needs_real_data
def test_ewt_has_its_published_size():
    splits = open_data(f"conllu:{REAL_DATA / 'ud_english_ewt'}", label_fraction=0.05)
    assert [corpus.n_rows for corpus in splits.parts.values()] == [204_577, 25_147, 25_094]
    assert splits.train.n_units == 12_544
    assert splits.train.column("upos").size == 17
    assert 0.03 < splits.train.column("upos").labelled().mean() < 0.07


@needs_real_data
def test_conll2000_has_its_published_size():
    splits = open_data(f"columns:{REAL_DATA / 'conll2000'}")
    assert splits.train.n_rows + splits.dev.n_rows == 211_727
    assert splits.test.n_rows == 47_377
    assert splits.tasks == ("col2", "col1")


# A reader is one file


LINES_READER = """
import json

from mt2st_fast.data.readers.assembly import Section, assemble, complete_splits
from mt2st_fast.data.readers.files import find_splits, numbered_lines
from mt2st_fast.data.readers.request import Reader


def read(request):
    found = {}
    for part, path in find_splits(request.path, (".jsonl",)).items():
        rows = [json.loads(line) for _, line in numbered_lines(path)]
        cells = {"label": [[row["label"]] for row in rows]}
        found[part] = Section([row["text"].split() for row in rows], cells)
    return assemble("lines", complete_splits(found, "lines"), {"label": "classes"}, "document", "label", ())


READER = Reader(NAME, read, path="a JSON object a line")
"""


@pytest.fixture
def with_reader(tmp_path, monkeypatch):
    """Put a reader of that name into the folder of readers."""

    def add(name):
        (tmp_path / "json_lines.py").write_text(LINES_READER.replace("NAME", repr(name)))
        monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(tmp_path)])

    yield add
    sys.modules.pop("mt2st_fast.data.readers.json_lines", None)
    vars(readers).pop("json_lines", None)


def test_a_file_with_a_reader_is_all_that_a_reader_needs(with_reader, write, monkeypatch):
    with_reader("jsonl")
    monkeypatch.setattr(readers, "READERS", readers._find_readers())
    lines = '{"text": "a b", "label": "x"}\n{"text": "c", "label": "y"}\n' * 5
    splits = open_data(f"jsonl:{write(**{'x.jsonl': lines}) / 'x.jsonl'}")
    assert (splits.main, splits.train.n_rows) == ("label", 8)
    assert "csv:PATH, jsonl:PATH, text:PATH" in message_of("xml:x")


def test_two_readers_of_one_name_are_refused(with_reader):
    with_reader("csv")
    with pytest.raises(ValueError, match="two readers are named csv"):
        readers._find_readers()

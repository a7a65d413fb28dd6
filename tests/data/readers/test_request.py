"""What is asked of `open_data`: the reader, the tasks and the share of labels; and a reader of one's own."""

import gc
import sys

import pytest

from mt2st_fast.data import open_data, readers
from mt2st_fast.errors import InputError
from tests.data.readers.opened import message_of, sentences


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("xml:x", "available: stdlib, columns:PATH, conllu:PATH, csv:PATH, jsonl:PATH, text:PATH"),
        ("data.csv", "unknown reader 'data.csv'"),
        ("data.csv", "text:PATH (did you mean csv:data.csv?)"),
        (r"C:\data\r.csv.gz", r"text:PATH (did you mean csv:C:\data\r.csv.gz?)"),
        ("x/a.txt", "text:PATH (did you mean columns:x/a.txt or conllu:x/a.txt or text:x/a.txt?)"),
        ("CSV:a.csv", "text:PATH (did you mean csv:?)"),
        ("", "unknown reader ''"),
        ("csv:", "the reader csv needs a path"),
        ("csv", "the reader csv needs a path"),
        ("stdlib:x", "the reader stdlib takes no path"),
    ],
)
def test_bad_specs_are_named(spec, message):
    assert message in message_of(spec)


def test_tasks_named_twice_or_of_a_foreign_kind_are_named(conllu_folder):
    spec = f"conllu:{conllu_folder}"
    assert "'upos' is both main and auxiliary" in message_of(spec, main="upos", auxiliary=["upos"])
    assert "'xpos' is named twice" in message_of(spec, auxiliary=["xpos", "xpos"])
    assert "conllu supports classes only" in message_of(spec, main="upos:regression")


def test_the_default_main_task_among_the_auxiliary_ones_is_named(conllu_folder, table_folder, write):
    assert "'upos' is both main and auxiliary" in message_of(f"conllu:{conllu_folder}", auxiliary=["upos"])
    assert "'label' is both main and auxiliary" in message_of(f"csv:{table_folder}", auxiliary=["label"])
    path = write(**{"c.col": sentences(9)}) / "c.col"
    assert "'col2' is both main and auxiliary" in message_of(f"columns:{path}", auxiliary=["col2"])
    assert "'expression' is both main and auxiliary" in message_of("stdlib", auxiliary=["expression"])


def test_labels_are_hidden_in_training_text_only(write):
    folder = write(**{f"{part}.txt": sentences(40) for part in ("train", "dev", "test")})
    splits = open_data(f"columns:{folder}", main="col1", label_fraction=0.25)
    labelled = {part: int(corpus.column("col1").labelled().sum()) for part, corpus in splits.parts.items()}
    assert labelled == {"train": 10, "dev": 40, "test": 40}
    assert splits.train.column("col2").labelled().all()
    assert splits.notes[0] == "0.25 of the training units keep their labels for 'col1'"
    assert "label fraction 2" in message_of(f"columns:{folder}", label_fraction=2)


def test_a_main_task_without_any_training_label_is_named(write):
    text = "text,label,other\n" + "a,,x\n" * 10
    path = write(**{"x.csv": text}) / "x.csv"
    assert "no training row has a label for the main task 'label'" in message_of(f"csv:{path}")


# A reader is one file


LINES_READER = """
import json

from mt2st_fast.data.readers.assembly import Section, assemble, complete_splits
from mt2st_fast.data.readers.files import find_splits
from mt2st_fast.data.readers.request import Reader
from mt2st_fast.data.text.lines import open_lines


def read(request):
    found = {}
    for part, path in find_splits(request.path, (".jsonl",)).items():
        rows = [json.loads(line) for _, line in open_lines(path)]
        cells = {"label": [[row["label"]] for row in rows]}
        found[part] = Section([row["text"].split() for row in rows], cells)
    return assemble("lines", complete_splits(found, "lines"), {"label": "classes"}, "document", "label", ())


READER = Reader(NAME, read, path="a JSON object a line")
"""


@pytest.fixture
def with_reader(tmp_path, monkeypatch):
    """Put a reader of that name into the folder of readers."""

    def add(name):
        (tmp_path / "of_a_test.py").write_text(LINES_READER.replace("NAME", repr(name)))
        monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(tmp_path)])

    yield add
    sys.modules.pop("mt2st_fast.data.readers.of_a_test", None)
    vars(readers).pop("of_a_test", None)


def test_a_file_with_a_reader_is_all_that_a_reader_needs(with_reader, write, monkeypatch):
    with_reader("mine")
    monkeypatch.setattr(readers, "READERS", readers._find_readers())
    lines = '{"text": "a b", "label": "x"}\n{"text": "c", "label": "y"}\n' * 5
    splits = open_data(f"mine:{write(**{'x.jsonl': lines}) / 'x.jsonl'}")
    assert (splits.main, splits.train.n_rows) == ("label", 8)
    assert "jsonl:PATH, mine:PATH, text:PATH" in message_of("xml:x")


def test_two_readers_of_one_name_are_refused(with_reader):
    with_reader("csv")
    with pytest.raises(ValueError, match="two readers are named csv"):
        readers._find_readers()


@pytest.mark.parametrize("was_enabled", [True, False])
def test_the_collector_rests_while_a_corpus_is_read_and_no_longer(was_enabled, monkeypatch):
    seen = []

    def fail(request):
        seen.append(gc.isenabled())
        raise InputError(f"{request.path}: is broken")

    monkeypatch.setitem(readers.READERS, "broken", readers.Reader("broken", fail, path="anything"))
    if not was_enabled:
        gc.disable()
    try:
        assert message_of("broken:x") == "x: is broken"
        assert seen == [False]
        assert gc.isenabled() == was_enabled
    finally:
        gc.enable()

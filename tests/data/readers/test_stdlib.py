"""The reader of the standard library: labels of known source, the cache, the workers."""

import logging
import sys

import numpy as np
import pytest

from mt2st_fast.data import open_data
from mt2st_fast.data.readers import python_source, stdlib
from mt2st_fast.errors import InputError

SOURCE = """\
import os.path as p
from a import (b,  # comment
               c)

@wrap(x=1)
class A(B):
    async def f(self, é, *args, k: int = 3):
        "doc"
        try:
            y = [é.b.c(z) for z in q]; del y
        except (E) as e:
            return (a
                    .b)
        g = lambda v: f"{v!r}" "tail"
        a[i].j = -1.5
"""


def labelled(source, task):
    """(token, class) of every token."""
    read = python_source.read_source(source)
    ids = read["labels"][task]
    names = {**dict(enumerate(python_source.CLASS_NAMES[task])), python_source.MISSING_ROLE: None}
    assert len(ids) == len(read["tokens"]) == sum(read["unit_lengths"])
    return list(zip(read["tokens"], (names[i] for i in ids), strict=True))


def lines_of(source):
    read = python_source.read_source(source)
    tokens = iter(read["tokens"])
    return [" ".join(next(tokens) for _ in range(length)) for length in read["unit_lengths"]]


def test_units_are_logical_lines_without_comments():
    assert lines_of(SOURCE) == [
        "import os . path as p",
        "from a import ( b , c )",
        "@ wrap ( x = <num> )",
        "class A ( B ) :",
        "async def f ( self , é , * args , k : int = <num> ) :",
        "<str>",
        "try :",
        "y = [ é . b . c ( z ) for z in q ] ; del y",
        "except ( E ) as e :",
        "return ( a . b )",
        "g = lambda v : <str> <str>",
        "a [ i ] . j = - <num>",
    ]


def test_roles_of_identifiers():
    roles = [f"{token} {role}" for token, role in labelled(SOURCE, "role") if role]
    assert roles == [
        *("os import", "path import", "p import", "a import", "b import", "c import"),
        *("wrap call", "x keyword", "A class", "B read"),
        *("f function", "self parameter", "é parameter", "args parameter", "k parameter", "int read"),
        *("y assigned", "é read", "b attribute", "c method", "z read", "z assigned", "q read", "y assigned"),
        *("E read", "e assigned", "a read", "b attribute"),
        *("g assigned", "v parameter", "a read", "i read", "j attribute"),
    ]


def classes_of_lines(source, task):
    """The classes of each logical line's tokens, runs joined."""
    classes = iter([label for _, label in labelled(source, task)])
    lines = []
    for length in python_source.read_source(source)["unit_lengths"]:
        line = [next(classes) for _ in range(length)]
        lines.append([label for i, label in enumerate(line) if i == 0 or label != line[i - 1]])
    return lines


def test_statements_are_the_innermost_ones_and_decorators_belong_to_their_class():
    assert classes_of_lines(SOURCE, "statement") == [
        ["Import"],
        ["ImportFrom"],
        ["ClassDef"],
        ["ClassDef"],
        ["AsyncFunctionDef"],
        ["Expr"],
        ["Try"],
        ["Assign", "Try", "Delete"],
        ["Try"],
        ["Return"],
        ["Assign"],
        ["Assign"],
    ]


def test_expressions_are_the_innermost_ones():
    last = [name for _, name in labelled(SOURCE, "expression")][-9:]
    assert last == [
        "Name",
        "Subscript",
        "Name",
        "Subscript",
        "Attribute",
        "Attribute",
        "_",
        "UnaryOp",
        "Constant",
    ]


def test_scopes_are_those_of_the_block():
    lines = classes_of_lines(SOURCE, "scope")
    assert lines[:7] == [["module"]] * 4 + [["class"], ["async"], ["async"]]
    assert lines[7] == ["async", "comprehension", "async"]
    assert lines[10] == ["async", "lambda"]
    method = classes_of_lines("class A:\n    def f(): pass\ndef g(): pass\n", "scope")
    assert method == [["module"], ["class", "method"], ["module", "function"]]


def test_depth_counts_brackets_and_ends_at_three():
    depths = labelled("f(a, [{(b)}])\n", "depth")
    assert " ".join(depth for _, depth in depths) == "0 0 1 1 1 2 3+ 3+ 3+ 2 1 0"


def test_next_is_the_kind_of_the_following_token():
    kinds = labelled("if a.b == 'x':\n    c += -1\n", "next")
    assert [kind for _, kind in kinds] == [
        *("name", "dot", "name", "compare", "string", "colon", "end"),
        *("assign", "operator", "number", "end"),
    ]


def test_formatted_strings_are_one_token_whatever_they_hold():
    source = (
        "x = f\"{a[f'{b}']:>{w}} {{\" + y\n" if sys.version_info >= (3, 12) else 'x = f"{a:>{w}} {{" + y\n'
    )
    assert lines_of(source) == ["x = <str> + y"]
    assert [role for _, role in labelled(source, "role")] == ["assigned", None, None, None, "read"]


@pytest.fixture
def library(tmp_path):
    """A small standard library: modules that fall into every split, a test folder, a broken file."""
    root = tmp_path / "lib"
    for folder in ("", "pkg", "test", "pkg/tests", "site-packages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "__init__.py").write_text("inside = __name__\n")
    for i in range(60):
        (root / "pkg" / f"m{i}.py").write_text(f"def f{i}(x):\n    return x.a(b, c={i})\n")
    (root / "broken.py").write_text("def :\n")
    (root / "latin.py").write_bytes(b"# \xe9\nx = 1\n")
    return root


@pytest.fixture
def cached_reader(library, tmp_path, monkeypatch):
    """The reader with that library and an own cache folder, counting how often files are read."""
    calls = []
    read_files = stdlib.read_files

    def count(*arguments):
        calls.append(arguments)
        return read_files(*arguments)

    monkeypatch.setattr(stdlib, "read_files", count)
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(library))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return calls


def test_tests_and_installed_packages_are_left_out(library):
    names = {str(path.relative_to(library).parent) for path in stdlib.source_paths(library)}
    assert names == {".", "pkg"}
    with pytest.raises(InputError, match="the source files of this Python's standard library are missing"):
        stdlib.source_paths(library / "nowhere")


def test_workers_read_what_this_process_reads(library, monkeypatch):
    paths = stdlib.source_paths(library)
    seen = []
    by_workers = stdlib.read_files(library, paths, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (64, 64)
    assert sorted(seen) == seen
    monkeypatch.setattr(stdlib.sys, "executable", "/nowhere/python")
    here = stdlib.read_files(library, paths)
    assert by_workers.modules == here.modules
    assert len(here.modules) == 62  # all but the file that is no Python and the one that is no UTF-8
    assert by_workers.words == here.words
    for name in ("tokens", "unit_lengths", "units_per_file"):
        np.testing.assert_array_equal(getattr(by_workers, name), getattr(here, name))
    for task, ids in here.labels.items():
        np.testing.assert_array_equal(by_workers.labels[task], ids)


def test_the_default_hides_labels_by_file(cached_reader):
    splits = open_data("stdlib")
    assert splits.tasks == ("expression", "role", "statement", "scope", "depth", "next")
    labelled_rows = splits.train.column("expression").labelled()
    files = splits.train.group_of_unit[splits.train.unit_of_row]
    n_files = len(splits.train.groups) - 1
    assert len(np.unique(files[labelled_rows])) == max(1, round(0.01 * n_files))
    for corpus in (splits.dev, splits.test):
        assert len(
            np.unique(corpus.group_of_unit[corpus.unit_of_row][corpus.column("expression").labelled()])
        ) == (len(corpus.groups) - 1)
    whole = open_data("stdlib", label_fraction=1.0)
    assert (whole.train.tokens == splits.train.tokens).all()
    assert whole.train.column("expression").labelled().sum() > labelled_rows.sum()
    assert len(cached_reader) == 1


def test_tasks_can_be_chosen(cached_reader):
    splits = open_data("stdlib", main="scope", auxiliary=["role"])
    assert splits.tasks == ("scope", "role")
    assert splits.train.column("scope").class_names == ("module", "function")
    with pytest.raises(InputError, match="no task 'pos'; available: role, statement, expression"):
        open_data("stdlib", main="pos")


def test_a_damaged_cache_is_made_anew(cached_reader, tmp_path):
    first = open_data("stdlib")
    (cache,) = (tmp_path / "cache" / "mt2st-fast").iterdir()
    whole = cache.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no zip", whole.replace(b"inside", b"beside")):
        cache.write_bytes(damaged)
        assert (open_data("stdlib").train.tokens == first.train.tokens).all()
        assert cache.read_bytes() == whole
    assert len(cached_reader) == 5


def test_a_changed_library_is_read_again(cached_reader, library):
    open_data("stdlib")
    (library / "pkg" / "m0.py").write_text("changed = True\n")
    open_data("stdlib")
    assert len(cached_reader) == 2


def test_a_cache_that_cannot_be_written_only_warns(cached_reader, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        open_data("stdlib")
    assert "cannot write" in caplog.text


def test_an_interrupt_leaves_no_half_of_a_cache(cached_reader, tmp_path, monkeypatch):
    def interrupt(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_data("stdlib")
    assert not list((tmp_path / "cache").rglob("*"))


def test_real_modules_have_the_expected_shape():
    root = stdlib.Path(stdlib.sysconfig.get_path("stdlib"))
    paths = [root / name for name in ("ast.py", "json/decoder.py", "typing.py", "tokenize.py")]
    source = stdlib.read_files(root, paths)
    assert source.modules == ["ast", "json.decoder", "typing", "tokenize"]
    names = np.isin(source.tokens, [source.words.index(word) for word in ("self", "isinstance")])
    assert (source.labels["role"][names] != python_source.MISSING_ROLE).all()
    assert 0.25 < (source.labels["role"] != python_source.MISSING_ROLE).mean() < 0.45


@pytest.mark.long
def test_the_whole_library(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    splits = open_data("stdlib", label_fraction=1)
    assert sum(corpus.n_rows for corpus in splits.parts.values()) > 900_000
    assert sum(corpus.column("role").labelled().sum() for corpus in splits.parts.values()) > 300_000
    assert splits.train.column("role").size == 10

"""docs/gensim-fasttext.md says the truth, and all of it: every public name and argument of gensim's and fastText's."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from mt2st_fast import InputError, Word2Vec, fasttext
from mt2st_fast.words.fasttext_models import Classifier, Vectors
from mt2st_fast.words.fasttext_options import REFUSED, SAME
from mt2st_fast.words.supervised import train_supervised

PAGE = (Path(__file__).parents[2] / "docs" / "gensim-fasttext.md").read_text("utf-8")
SECTIONS = dict(part.split("\n", 1) for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:])
WORD2VEC, KEYED, MODULE, MODEL = (
    "gensim: Word2Vec",
    "gensim: KeyedVectors",
    "fastText: the module",
    "fastText: the model",
)
TEXT = [["a", "b", "c"], ["b", "c"]] * 3


def rows_of(section):
    """(name, arguments, verdict, how) of each name in each row."""
    lines = [line for line in SECTIONS[section].splitlines() if line.startswith("| `")]
    for names, arguments, verdict, how in map(_cells, lines):
        for name in re.findall(r"`(\w+)`", names):
            yield name, re.findall(r"`(\w+)`", arguments), verdict, how


def _cells(line):
    cells = [cell.strip() for cell in line.strip()[1:-1].split("|")]
    assert len(cells) == 4, line
    return cells


def entries(section):
    """{(name, argument or None): verdict}, each once."""
    found = {}
    for name, arguments, verdict, _ in rows_of(section):
        for argument in arguments or [None]:
            assert (name, argument) not in found, f"{name} {argument} stands twice"
            found[name, argument] = verdict
    return found


def public(kind, instance):
    return {name for name in {*dir(kind), *vars(instance)} if not name.startswith("_")}


def arguments_of(function):
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, p in inspect.signature(function).parameters.items()
        if p.kind not in kinds and name != "self"
    ]


def check_whole(section, names, owner, refused_whole):
    """Every name is there, with each of its arguments, or is refused as a whole."""
    table = entries(section)
    told = {name for name, _ in table}
    assert names <= told, f"not told of: {sorted(names - told)}"
    for name in names:
        function = getattr(owner, name, None)
        if callable(function) and not isinstance(function, type) and name not in refused_whole:
            missing = [a for a in arguments_of(function) if (name, a) not in table]
            assert not missing, f"{name}: not told of {missing}"


def test_every_verdict_is_one_of_three():
    for section in (WORD2VEC, MODULE, MODEL):
        for name, _, verdict, how in rows_of(section):
            assert verdict in ("same", "other", "refused"), name
            assert verdict != "other" or how, f"{name}: how is it other?"


# --- nothing is missing ----------------------------------------------------------------------------------------


def test_every_name_of_gensims_word2vec_is_told_of():
    theirs = pytest.importorskip("gensim.models").Word2Vec
    refused = {
        name
        for (name, argument), verdict in entries(WORD2VEC).items()
        if verdict == "refused" and not argument
    }
    check_whole(WORD2VEC, public(theirs, theirs()) - {"load"}, theirs, refused)
    assert not [a for a in arguments_of(theirs) if ("Word2Vec", a) not in entries(WORD2VEC)]


def test_every_name_of_gensims_keyed_vectors_is_told_of():
    theirs = pytest.importorskip("gensim.models").KeyedVectors
    told = set(re.findall(r"`(\w+)`", SECTIONS[KEYED].split("\n\n")[1]))
    assert public(theirs, theirs(3)) <= told
    keyed = Word2Vec(TEXT, min_count=1, vector_size=4).wv
    assert type(keyed) is theirs
    # What it no longer has itself, gensim says in an error of its own.
    assert all(name in dir(keyed) for name in told)


def test_every_name_of_fasttext_is_told_of():
    theirs = pytest.importorskip("fasttext")
    told = entries(MODULE)
    names = {
        "train_supervised",
        "train_unsupervised",
        "load_model",
        "tokenize",
        "BOW",
        "EOW",
        "EOS",
        "cbow",
        "skipgram",
    }
    assert names <= {name for name in dir(theirs) if not name.startswith("_")} <= {
        *{name for name, _ in told}, "FastText", "absolute_import", "division", "print_function", "unicode_literals",
    }  # fmt: skip
    options = theirs.FastText.unsupervised_default
    for name, without in (("train_supervised", {"model"}), ("train_unsupervised", {"seed", *_AUTOTUNE})):
        assert not [o for o in options.keys() - without if (name, o) not in told]
    model = theirs.FastText._FastText
    check_whole(MODEL, {name for name in dir(model) if not name.startswith("_")}, model, set())


_AUTOTUNE = {name for name in REFUSED if name.startswith("autotune")}


# --- and what stands there is so ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One model of each kind."""
    path = tmp_path_factory.mktemp("data") / "train"
    path.write_text("__label__a x y z\n__label__b y z w\n" * 4)
    return (
        fasttext.train_supervised(path, dim=4, epoch=1),
        fasttext.train_unsupervised(path, dim=4, epoch=1, minCount=1, bucket=10, t=1),
    )


def test_what_word2vec_has_is_there():
    model = Word2Vec(TEXT, min_count=1, vector_size=4, hs=1)
    for (name, argument), verdict in entries(WORD2VEC).items():
        if name == "Word2Vec" or verdict == "refused":
            continue
        owner = Word2Vec if name == "load" else model
        # Of the class where it has it: `wv` of a model says so where gensim is missing.
        assert hasattr(Word2Vec, name) or hasattr(owner, name), name
        if argument:
            assert argument in arguments_of(getattr(owner, name)), (name, argument)
    own = inspect.signature(Word2Vec).parameters
    assert {argument for name, argument in entries(WORD2VEC) if name == "Word2Vec"} <= set(own)


def test_word2vecs_defaults_and_places_are_gensims():
    theirs = inspect.signature(pytest.importorskip("gensim.models").Word2Vec).parameters
    own = {name: p for name, p in inspect.signature(Word2Vec).parameters.items() if p.kind != p.KEYWORD_ONLY}
    assert list(own) == list(theirs)
    differ = {name for name in own if own[name].default != theirs[name].default}
    assert differ == {"workers"}


def test_what_word2vec_refuses_refuses_in_a_line():
    model = Word2Vec(TEXT, min_count=1, vector_size=4)
    calls = {
        ("Word2Vec", "null_word"): lambda: Word2Vec(null_word=1),
        ("train", "word_count"): lambda: model.train(TEXT, word_count=5),
    }
    refused = {key for key, verdict in entries(WORD2VEC).items() if verdict == "refused"}
    assert {key for key in refused if key[1]} == set(calls)
    for name, argument in refused:
        with pytest.raises(InputError) as caught:
            calls.get((name, argument), lambda name=name: getattr(model, name))()
        assert "\n" not in str(caught.value)
        assert (argument or name) in str(caught.value)
        assert argument or not hasattr(model, name)


def test_what_the_module_has_is_there():
    own = {*inspect.signature(train_supervised).parameters, *SAME, *REFUSED}
    for (name, argument), verdict in entries(MODULE).items():
        assert hasattr(fasttext, name), name
        if argument:
            known = own if name == "train_supervised" else arguments_of(getattr(fasttext, name))
            assert argument in known, (name, argument)
        assert verdict != "refused" or name in ("cbow", "skipgram", "supervised") or argument


def test_what_the_module_refuses_refuses_in_a_line(models, tmp_path):
    (tmp_path / "t").write_text("__label__a x y z\n" * 4)
    for (name, argument), verdict in entries(MODULE).items():
        if verdict != "refused":
            continue
        with pytest.raises(InputError) as caught:
            getattr(fasttext, name)(tmp_path / "t", **({argument: 7} if argument else {}))
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(argument or name)


@pytest.mark.parametrize("kind", [Classifier, Vectors])
def test_what_a_model_has_is_there(kind, models):
    (model,) = (model for model in models if type(model) is kind)
    of_classifiers = {"predict", "test", "test_label", "get_label_id", "get_line"}
    for (name, argument), verdict in entries(MODEL).items():
        if verdict == "refused" or (kind is Vectors and name in of_classifiers):
            continue
        assert hasattr(model, name), name
        if argument:
            assert argument in arguments_of(getattr(kind, name)), (name, argument)


def test_what_a_model_refuses_refuses_in_a_line(models):
    for name in {name for (name, _), verdict in entries(MODEL).items() if verdict == "refused"}:
        for model in models:
            with pytest.raises(InputError, match=f"^{name}: ") as caught:
                getattr(model, name)()
            assert "\n" not in str(caught.value)

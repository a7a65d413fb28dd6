"""What fastText's documentation of its Python module shows, written anew, with the import changed."""

from __future__ import annotations

import numpy as np
import pytest

from mt2st_fast import InputError, Word2Vec, WordVectors, fasttext, load
from mt2st_fast import train_supervised as train_families

SMALL = {"dim": 16, "bucket": 2000}


@pytest.fixture(scope="module")
def cooking(tmp_path_factory):
    """Questions with one or two labels, as the tutorial's of Stack Exchange."""
    generator, lines = np.random.default_rng(0), []
    about = {
        "baking": "bread oven dough flour",
        "knife-skills": "cut slice sharp blade",
        "tea": "leaf kettle cup brew",
    }
    for i in range(240):
        label = list(about)[i % 3]
        words = [*generator.choice(about[label].split(), 3), *generator.choice(["the", "my", "how", "?"], 3)]
        generator.shuffle(words)
        lines.append(f"__label__{label} {' '.join(words)}")
    folder = tmp_path_factory.mktemp("cooking")
    (folder / "train").write_text("\n".join(lines[:180]) + "\n")
    (folder / "valid").write_text("\n".join([*lines[180:], "a line without a label"]) + "\n")
    return folder


@pytest.fixture(scope="module")
def classifier(cooking):
    return fasttext.train_supervised(input=str(cooking / "train"), lr=1.0, epoch=25, wordNgrams=2, **SMALL)


@pytest.fixture(scope="module")
def vectors(cooking):
    return fasttext.train_unsupervised(
        str(cooking / "train"), model="skipgram", minn=2, maxn=4, epoch=20, minCount=1, t=1, **SMALL
    )


def test_text_classification(classifier, cooking, tmp_path):
    labels, shares = classifier.predict("which oven for my bread ?")
    assert labels == ("__label__baking",)
    assert (shares.dtype, shares.shape) == (np.float64, (1,))
    labels, shares = classifier.predict("which oven for my bread ?", k=-1)
    assert len(labels) == 3
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    assert classifier.predict("sharp blade", k=-1, threshold=0.5)[0] == ("__label__knife-skills",)
    many = classifier.predict(["oven dough", "kettle"], k=2)
    assert [one[0] for one in many[0]] == ["__label__baking", "__label__tea"]
    assert [len(one) for one in many[1]] == [2, 2]
    n, precision, recall = classifier.test(str(cooking / "valid"))
    assert (n, precision) == (60, recall)
    assert precision > 0.95
    _, precision, recall = classifier.test(str(cooking / "valid"), k=2)
    assert precision == pytest.approx(recall / 2)
    assert recall > 0.95
    scores = classifier.test_label(str(cooking / "valid"))
    assert (
        set(scores) == set(classifier.labels) == {"__label__baking", "__label__knife-skills", "__label__tea"}
    )
    assert min(of_label["f1score"] for of_label in scores.values()) > 0.9
    classifier.save_model(str(tmp_path / "model_cooking.bin"))
    again = fasttext.load_model(str(tmp_path / "model_cooking.bin"))
    assert again.predict("sharp", k=3)[1].tolist() == classifier.predict("sharp", k=3)[1].tolist()


def test_counts_of_precision_and_recall(tmp_path):
    (tmp_path / "train").write_text("__label__a x\n__label__b y\n" * 20)
    model = fasttext.train_supervised(str(tmp_path / "train"), epoch=30, dim=4)
    (tmp_path / "test").write_text("__label__a __label__b x\n__label__b x\n__label__never y\nno label\n")
    # A label that training never saw does not count, nor a document that has no other, as fastText has it: a and a are
    # predicted for two documents, of whose three labels one is hit.
    assert model.test(tmp_path / "test") == (2, 1 / 2, 1 / 3)
    n, precision, recall = model.test(tmp_path / "test", threshold=1.0)
    assert (n, recall) == (2, 0)
    assert np.isnan(precision)
    scores = model.test_label(tmp_path / "test")
    assert list(scores) == ["__label__a", "__label__b"]
    assert scores["__label__a"] == {"precision": 1 / 2, "recall": 1, "f1score": 2 / 3}
    assert np.isnan(scores["__label__b"].pop("precision"))
    assert scores["__label__b"] == {"recall": 0, "f1score": 0}


def test_a_label_beside_one_that_training_never_saw_counts(tmp_path):
    (tmp_path / "train").write_text("__label__m x\n__label__z y\n" * 20)
    model = fasttext.train_supervised(str(tmp_path / "train"), epoch=30, dim=4)
    (tmp_path / "test").write_text("__label__a __label__m __label__new x\n__label__a y\n")
    assert model.test(tmp_path / "test") == (1, 1, 1)
    assert model.test_label(tmp_path / "test")["__label__m"]["f1score"] == 1


BLANKS = " \t\v\f\0\x1c\x85\xa0\u1680\u2003\u2028\u202f\u205f\u3000"


@pytest.mark.parametrize("blank", BLANKS, ids=lambda blank: f"U+{ord(blank):04X}")
def test_one_rule_says_what_a_word_is(blank, tmp_path):
    """Whatever is asked, words are those that training reads."""
    line = f"__label__a{blank}prix{blank}{blank}5 000"
    (tmp_path / "train").write_text(f"{line}\n__label__b other\n" * 5, encoding="utf-8")
    model = fasttext.train_supervised(str(tmp_path / "train"), epoch=1, dim=4)
    assert model.labels == ["__label__a", "__label__b"]
    assert set(model.words) == {"prix", "5", "000", "other"}
    assert fasttext.tokenize(line) == ["__label__a", "prix", "5", "000"]
    assert model.get_line(line) == (["prix", "5", "000"], ["__label__a"])
    vector = model.get_sentence_vector(f"prix{blank}5")
    assert vector == pytest.approx(model.get_sentence_vector("prix 5"), abs=1e-7)
    words = fasttext.train_unsupervised(str(tmp_path / "train"), minCount=1, dim=4, epoch=1, bucket=10)
    assert set(words.words) == {"prix", "5", "000", "other"}
    assert words.get_sentence_vector(f"prix{blank}5").tolist() == words.get_sentence_vector("prix 5").tolist()


def test_labels_are_whole(tmp_path):
    (tmp_path / "train").write_text("__label__a__b x\n__label__a__c y\n" * 20)
    model = fasttext.train_supervised(str(tmp_path / "train"), epoch=30, dim=4)
    assert model.labels == ["__label__a__b", "__label__a__c"]
    assert model.predict("x")[0] == ("__label__a__b",)


def test_one_versus_all(cooking):
    model = fasttext.train_supervised(
        input=str(cooking / "train"), lr=0.5, epoch=25, wordNgrams=2, loss="ova", **SMALL
    )
    labels, _ = model.predict("kettle brew", k=-1, threshold=0.5)
    assert labels == ("__label__tea",)
    assert model.predict("kettle brew", k=-1)[1].sum() != pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", ["classifier", "vectors"])
def test_what_both_kinds_of_models_tell(kind, request):
    model = request.getfixturevalue(kind)
    words, counts = model.get_words(include_freq=True)
    assert words == model.words == model.get_words()
    assert (np.diff(counts) <= 0).all()
    assert model.get_labels(include_freq=True)[0] == model.labels == model.get_labels()
    assert model.get_dimension() == 16 == len(model.get_word_vector("bread")) == len(model["bread"])
    assert "bread" in model
    assert "breads" not in model
    row = model.get_word_id("bread")
    assert words[row] == "bread"
    assert model.get_word_id("breads") == -1
    table = model.get_input_matrix()
    assert table.shape == (len(words) + 2000, 16)
    assert np.array_equal(model.get_input_vector(row), table[row])
    parts, rows = model.get_subwords("bread")
    assert parts[0] == "bread"
    assert [row, *map(model.get_subword_id, parts[1:])] == rows.tolist()
    assert model.get_word_vector("bread") == pytest.approx(table[rows].mean(0), abs=1e-6)
    assert model.get_output_matrix().shape == (len(model.labels), 16)
    assert not model.is_quantized()
    assert model.get_sentence_vector("oven bread").shape == (16,)
    near = model.get_nearest_neighbors("bread", k=3)
    assert len(near) == 3
    assert [score for score, _ in near] == sorted((score for score, _ in near), reverse=True)
    assert "bread" not in [word for _, word in near]
    assert len(model.get_nearest_neighbors("bread", k=-1)) == len(words) - 1
    found = model.get_analogies("bread", "oven", "kettle", k=2)
    assert len(found) == 2
    assert not {"bread", "oven", "kettle"} & {word for _, word in found}
    units = {word: model[word] / np.linalg.norm(model[word]) for word in words}
    query = units["bread"] - units["oven"] + units["kettle"]
    best = max(set(words) - {"bread", "oven", "kettle"}, key=lambda word: units[word] @ query)
    assert found[0][1] == best
    assert found[0][0] == pytest.approx(units[best] @ query / np.linalg.norm(query), abs=1e-5)


def test_lines_and_label_numbers(classifier):
    assert classifier.get_line("bread __label__tea oven") == (["bread", "oven"], ["__label__tea"])
    assert classifier.get_line(["a", "__label__b"]) == ([["a"], []], [[], ["__label__b"]])
    assert [classifier.get_label_id(label) for label in classifier.labels] == [0, 1, 2]
    assert classifier.get_label_id("__label__none") == -1
    assert fasttext.tokenize("a b\tc\nd  e") == ["a", "b", "c", "</s>", "d", "e"]


def test_word_representations(vectors, tmp_path):
    neighbours = [word for _, word in vectors.get_nearest_neighbors("dough", k=3)]
    assert set(neighbours) == {"bread", "oven", "flour"}
    assert vectors.get_word_vector("breadoven").any()
    assert not any(word.startswith("__label__") for word in vectors.words)
    vectors.save_model(tmp_path / "fil9.bin")
    again = fasttext.load_model(tmp_path / "fil9.bin")
    assert np.array_equal(again.get_word_vector("unseen"), vectors.get_word_vector("unseen"))
    assert isinstance(load(tmp_path / "fil9.bin"), Word2Vec)
    assert vectors.get_line("bread __label__tea") == (["bread"], ["__label__tea"])
    for ask in (vectors.predict, vectors.test, vectors.test_label, vectors.get_label_id):
        with pytest.raises(ValueError, match="this model has word vectors but no labels"):
            ask("bread")


def test_matrices_are_put_in(cooking):
    model = fasttext.train_supervised(str(cooking / "train"), dim=4, epoch=1)
    inputs, outputs = model.get_input_matrix(), model.get_output_matrix()
    model.set_matrices(inputs + 1, outputs + 2)
    read_only = model.get_input_matrix()
    read_only.setflags(write=False)
    model.set_matrices(read_only, np.asfortranarray(outputs + 2))
    with pytest.raises(InputError, match="the output matrix has numbers that are not finite"):
        model.set_matrices(inputs, outputs * np.nan)
    assert np.array_equal(model.get_input_matrix(), inputs + 1)
    assert np.array_equal(model.get_output_matrix(), outputs + 2)
    with pytest.raises(InputError, match="the output matrix is"):
        model.set_matrices(inputs, inputs)
    words = fasttext.train_unsupervised(str(cooking / "train"), dim=4, epoch=1, minCount=1, maxn=0, t=1)
    words.set_matrices(words.get_input_matrix() + 1, words.get_output_matrix())
    assert words["bread"] == pytest.approx(words.get_input_vector(words.get_word_id("bread")))


@pytest.mark.parametrize(
    "options", [{"model": "cbow"}, {"loss": "hs", "maxn": 0}, {"maxn": 0}, {"neg": 10, "ws": 3}]
)
def test_the_ways_of_train_unsupervised(cooking, options):
    model = fasttext.train_unsupervised(
        str(cooking / "train"), minCount=1, epoch=20, t=1, lr=0.1, **SMALL | options
    )
    near = [word for _, word in model.get_nearest_neighbors("dough", k=3)]
    assert len({"bread", "oven", "flour"} & set(near)) >= 2


def test_pretrained_vectors(cooking, tmp_path):
    WordVectors(["bread", "other"], np.ones((2, 16), np.float32)).write(tmp_path / "given.vec")
    options = {
        "minCount": 1,
        "epoch": 1,
        "lr": 1e-9,
        "maxn": 0,
        "pretrainedVectors": str(tmp_path / "given.vec"),
    }
    model = fasttext.train_unsupervised(str(cooking / "train"), dim=16, **options)
    assert model["bread"] == pytest.approx(np.ones(16), abs=1e-5)
    with pytest.raises(InputError, match="use dim=16, not 8"):
        fasttext.train_unsupervised(str(cooking / "train"), dim=8, **options)


def test_options_by_their_place(cooking):
    placed = fasttext.train_supervised(str(cooking / "train"), 0.1, 4, 5, 2, 3)
    named = fasttext.train_supervised(input=str(cooking / "train"), lr=0.1, dim=4, ws=5, epoch=2, minCount=3)
    assert np.array_equal(placed.get_input_matrix(), named.get_input_matrix())
    with pytest.raises(InputError, match="lr given twice"):
        fasttext.train_supervised(str(cooking / "train"), 0.1, lr=0.1)


def test_options_by_their_second_names(cooking):
    options = {"dim": 4, "epoch": 1, "minn": 0, "maxn": 0}
    first = {"minCount": 2, "label": "__label__", "lrUpdateRate": 100, "wordNgrams": 1}
    second = {"min_count": 2, "label_prefix": "__label__", "lr_update_rate": 100, "word_ngrams": 1}
    for train in (fasttext.train_supervised, fasttext.train_unsupervised):
        one, other = (train(cooking / "train", **options, **names) for names in (first, second))
        assert one.words == other.words
        np.testing.assert_array_equal(one.get_input_matrix(), other.get_input_matrix())
        with pytest.raises(InputError, match="min_count is another name for minCount, which is also given"):
            train(cooking / "train", **options, minCount=2, min_count=2)
        with pytest.raises(InputError, match="lrUpdateRate=7: "):
            train(cooking / "train", **options, lr_update_rate=7)


def test_a_model_of_families_is_shown_by_its_main_one(tmp_path):
    (tmp_path / "t").write_text(
        "__label__topic__a __label__tone__x w\n__label__topic__b __label__tone__y v\n" * 20
    )
    train_families(tmp_path / "t", families=True, epoch=30, dim=4).save(tmp_path / "m")
    model = fasttext.load_model(tmp_path / "m")
    assert model.predict("w")[0] == ("__label__topic__a",)
    assert model.test(tmp_path / "t") == (40, 1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: m.quantize(input=t, retrain=True), "quantize: not supported, tables stay float32"),
        (lambda m, t: fasttext.train_supervised(t, dim=4, epoch=1).get_subword_id("<x>"), "no n-grams"),
        (lambda m, t: m.get_meter(t), "get_meter: there are no precision-recall curves"),
        (lambda m, t: m.predict("a\nb"), "line feed"),
        (lambda m, t: m.predict("a", k=0), "k must be"),
        (lambda m, t: fasttext.train_supervised(t, loss="hs"), "loss='hs': every label is computed"),
        (lambda m, t: fasttext.train_supervised(t, autotuneValidationFile=t), "autotuneValidationFile="),
        (lambda m, t: fasttext.train_unsupervised(t, loss="softmax"), "use ns .* or hs"),
        (lambda m, t: fasttext.train_unsupervised(t, model="glove"), "skipgram and cbow"),
        (lambda m, t: fasttext.train_unsupervised(t, wordNgrams=2), "wordNgrams=2"),
        (lambda m, t: fasttext.train_unsupervised(t, dim=0), "^dim must be a whole number of at least 1"),
        (lambda m, t: fasttext.train_unsupervised(t, dim=10**9), "^dim must be at most 1,048,576"),
        (lambda m, t: fasttext.train_unsupervised(t, bucket=10**10), "^bucket must be at most 2,000,000,000"),
        (lambda m, t: fasttext.train_supervised(t, dim=10**9), "^dim must be at most 1,048,576"),
        (lambda m, t: fasttext.train_unsupervised(t, thread=1.5), "^thread must be a whole number"),
        (lambda m, t: fasttext.train_unsupervised(t, minn=5, maxn=3), r"^minn \(5\)"),
        (lambda m, t: fasttext.train_unsupervised(t, lr=float("nan")), "^lr must be positive and finite"),
        (lambda m, t: fasttext.train_supervised(), "pass input="),
        (lambda m, t: m.get_line(3), "a text must be a string, not int"),
        (
            lambda m, t: fasttext.train_supervised(t, dim=4, epoch=1).get_analogies("?", "qqq", "my"),
            "'qqq' has no vector",
        ),
        (lambda m, t: fasttext.load_model(t), "is a file, but a model is a folder"),
        (lambda m, t: fasttext.cbow(t), "model='cbow'"),
        (lambda m, t: fasttext.skipgram(t), "model='skipgram'"),
        (lambda m, t: fasttext.supervised(t), "train_supervised"),
    ],
)
def test_what_is_refused_says_why_in_a_line(classifier, cooking, call, message):
    with pytest.raises(InputError, match=message) as caught:
        call(classifier, str(cooking / "train"))
    assert "\n" not in str(caught.value)


def test_options_of_the_training_are_no_attributes(classifier, vectors):
    for model in (classifier, vectors):
        with pytest.raises(AttributeError, match=r"^dim: use get_dimension\(\)"):
            _ = model.dim
        with pytest.raises(
            AttributeError, match=r"^minCount: a model does not show the options of its training"
        ):
            _ = model.minCount


def test_a_text_of_labels_alone_is_named_without_gensims_options(tmp_path):
    (tmp_path / "labels.txt").write_text("__label__a\n__label__b\n" * 20)
    with pytest.raises(
        InputError, match=r"labels.txt: no word occurs at least 5 times, labels aside; .* minCount"
    ):
        fasttext.train_unsupervised(tmp_path / "labels.txt")

"""CoNLL-U files: words and features, and the malformed line named."""

import pytest

from mt2st_fast.data import open_data
from tests.data.readers.opened import CONLLU, REAL_DATA, labels, message_of, needs_real_data, words


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
    assert message.endswith(
        "no task 'feats.Case'; available: upos, xpos, deprel, feats.Number, feats.VerbForm"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "1\tonly\tthree",
            "x.conllu:3: a CoNLL-U line must have 10 tab-separated columns, this one has 3",
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


@needs_real_data
def test_ewt_has_its_published_size():
    splits = open_data(f"conllu:{REAL_DATA / 'ud_english_ewt'}", label_fraction=0.05)
    assert [corpus.n_rows for corpus in splits.parts.values()] == [204_577, 25_147, 25_094]
    assert splits.train.n_units == 12_544
    assert splits.train.column("upos").size == 17
    assert 0.03 < splits.train.column("upos").labelled().mean() < 0.07


def test_sentences_without_a_blank_line_between_are_told_apart(write):
    row = "{}\tw\t_\tX\t_\t_\t0\troot\t_\t_\n"
    text = row.format(1) + row.format(2) + "# sent_id = 2\n" + row.format(1) + row.format(3) + "\n"
    splits = open_data(f"conllu:{write(**{'x.conllu': text * 3}) / 'x.conllu'}")
    assert sum(corpus.n_units for corpus in splits.parts.values()) == 6
    assert splits.notes[:2] == (
        "x.conllu: 3 sentences are not preceded by a blank line; the first begins on line 4",
        "x.conllu: 3 word ids are not consecutive from 1; the first is on line 5. Is a line missing?",
    )


def sentence(*words):
    """Lines of words, each given as (form, upos, features)."""
    lines = (
        f"{i}\t{form}\tx\t{upos}\tX\t{feats}\t0\troot\t_\t_" for i, (form, upos, feats) in enumerate(words, 1)
    )
    return "\n".join(lines) + "\n\n"


def test_an_empty_cell_is_no_label_and_is_said(write):
    text = sentence(("a", "N", "Number=Sing"), ("b", "", ""), ("c", " ", "_"), ("d", "V", "")) * 3
    splits = open_data(f"conllu:{write(**{'x.conllu': text}) / 'x.conllu'}", "upos", ["feats.Number"])
    assert labels(splits, "upos") == ["N", None, None, "V"]
    assert labels(splits, "feats.Number") == ["Sing", None, "_", None]
    assert splits.train.column("upos").class_names == ("N", "V")
    assert splits.notes[0] == (
        "x.conllu: 12 cells are empty and so no label, the first is on line 2; not annotated is written _"
    )


@pytest.mark.parametrize("form", ["", " "])
def test_a_word_without_a_form_is_named_by_its_line(write, form):
    folder = write(
        **{"x.conllu": sentence(("a", "N", "_")) * 3 + sentence(("a", "N", "_"), (form, "N", "_"))}
    )
    assert message_of(f"conllu:{folder / 'x.conllu'}").endswith(
        "x.conllu:8: there is no word in the second column; add it"
    )


def test_features_that_are_not_one_value_are_said(write):
    words = (
        ("a", "N", "Number=Sing|Number=Plur"),
        ("b", "N", "Case=Nom|plur|Tense="),
        ("c", "N", "Number=Sing,Plur"),
    )
    splits = open_data(f"conllu:{write(**{'x.conllu': sentence(*words) * 3}) / 'x.conllu'}")
    assert labels(splits, "feats.Number") == ["Sing", "_", "Sing,Plur"]
    assert message_of(splits.name, main="feats.Zzz").endswith(
        "available: upos, xpos, deprel, feats.Case, feats.Number"
    )
    assert splits.notes[:2] == (
        "x.conllu: 3 words have a feature twice, of which the first counts (Number=Sing|Number=Plur, line 1)",
        "x.conllu: 3 words have features that are not NAME=VALUE, and so no task (Case=Nom|plur|Tense=, line 2)",
    )

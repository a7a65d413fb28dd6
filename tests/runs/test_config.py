"""What decides a run, and what the command line shows of it."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from mt2st_fast.data import MISSING, Corpus, Splits, TargetColumn, Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.options import in_flags, options_of
from mt2st_fast.training.schedules import Switch

_NUMERIC = ("int", "float", "int | None", "float | None")


def test_every_field_says_what_it_means():
    for field in fields(Config):
        if field.name != "strategy_options":  # the strategies say it
            assert field.metadata["help"], field.name
            assert field.metadata["panel"] in ("Data", "Strategy", "Training", "Model", "Machine")


def test_json_gives_the_same_configuration_again():
    config = Config(aux=("a", "b"), strategy_options={"switch_at": 0.25}, graph=True)
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert Config.from_json(Config().to_json()) == Config()


def test_a_strategy_gets_the_options_that_it_takes():
    config = Config(epochs=2.0, strategy_options={"switch_at": 0.25, "alpha": 0.5})
    assert config.for_strategy("switch").schedule() == Switch(at=0.25)
    assert config.for_strategy("squaring").strategy_options == {"alpha": 0.5}
    with pytest.raises(InputError, match="takes no --alpha"):
        config.schedule()


def test_the_schedule_waits_for_the_number_of_epochs():
    with pytest.raises(InputError, match="epochs"):
        Config().schedule()


def test_an_option_that_nobody_takes_is_refused():
    config = Config(strategy_options={"nu": 2.0})
    config.check_strategy_options(("stl", "diminish"))
    with pytest.raises(
        InputError, match=r"--nu is not an option of stl, mtl, but of diminish, .*; leave it out"
    ):
        config.check_strategy_options(("stl", "mtl"))
    with pytest.raises(InputError, match="no strategy has an option magic"):
        Config(strategy_options={"magic": 1.0}).check_strategy_options(("stl",))


NUMBERS = [f.name for f in fields(Config) if f.name != "strategy_options" and f.type in _NUMERIC]


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", NUMBERS)
def test_nonsense_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=rf"^{name} must be ") as refused:
        Config(**{name: value})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["label_fraction", "epochs", "lr", "clip_norm"])
def test_nothing_is_no_amount(name):
    with pytest.raises(InputError, match=f"^{name} must be positive and finite, not 0"):
        Config(**{name: 0.0})


@pytest.mark.parametrize("value", [2**53, 2**64, 10**400])
@pytest.mark.parametrize("name", ["seed", "epochs", "dim", "window", "hidden", "buckets"])
def test_a_number_that_would_overflow_is_refused_by_name(name, value):
    limit = options_of(Config)[name].limits["max"]
    with pytest.raises(
        InputError, match=rf"^{name} must be a finite number within \[\d, {limit:,}\], not {value}$"
    ):
        Config(**{name: value})
    assert getattr(Config(**{name: limit}), name) == limit


@pytest.mark.parametrize(
    ("of_library", "of_command"),
    [
        ("use epochs=3 or more, or start a new run without resume",
         "use --epochs 3 or more, or start a new run without --resume"),
        ('backward="fused" stores no gradient, which clip_norm needs',
         "--backward fused stores no gradient, which --clip-norm needs"),
        ("graph=True needs CUDA; an epoch of data", "--graph needs CUDA; an epoch of data"),
        ("accumulate=4; use accumulate=1.", "--accumulate 4; use --accumulate 1."),
        ("other=3, --clip-norm 1, min_lr=2", "other=3, --clip-norm 1, min_lr=2"),
    ],
)  # fmt: skip
def test_a_message_of_the_library_names_flags_where_a_command_ends_with_it(of_library, of_command):
    assert in_flags(of_library, options_of(Config)) == of_command


def splits_of(labelled, auxiliary=("aux",), T=4_000):
    """Splits of T tokens of one type, of which the first `labelled` have a label of the main task."""
    column = TargetColumn("classes", ("no", "yes"), np.arange(T) % 2)
    main = replace(column, values=np.where(np.arange(T) < labelled, column.values, MISSING))
    corpus = Corpus(np.zeros(T, np.int32), np.arange(0, T + 1, 4), {"main": main, "aux": column})
    vocabulary = Vocabulary(["a"], np.array([T]))
    return Splits(corpus, corpus, corpus, vocabulary, "made up", "main", auxiliary)


@pytest.mark.parametrize(
    ("changed", "labelled", "auxiliary", "expected"),
    [
        ({}, 4_000, ("aux",), 32),
        ({}, 800, ("aux",), 32),  # a fifth, so that a batch has as many of its own accord
        ({}, 799, ("aux",), 20),  # 4 rows with a main label, and 16 others
        ({"main_share": 0.5}, 799, ("aux",), 32),
        ({"main_share": 1.0}, 799, ("aux",), 32),
        ({"batch_size": 100}, 799, ("aux",), 100),
        ({}, 799, (), 32),  # no row is drawn for another task
    ],
)
def test_a_batch_with_few_main_labels_has_room_for_half_of_the_usual_rows(
    changed, labelled, auxiliary, expected
):
    assert Config(**changed).resolved(splits_of(labelled, auxiliary)).batch_size == expected


@pytest.mark.parametrize(
    ("rows", "changed", "expected"),
    [
        (20, {}, 100.0),
        (160, {}, 100.0),  # 1,000 steps of 16 rows
        (400, {}, 40.0),  # the same
        (1_600, {}, 10.0),
        (4_000, {}, 10.0),
        (400, {"batch_size": 400}, 40.0),  # 40 steps
        (400_000, {}, 3.2),
        (4_000, {"epochs": 2.0}, 2.0),
    ],
)
def test_few_rows_are_read_often_enough_to_be_learned(rows, changed, expected):
    assert Config(**changed).resolved(splits_of(rows, T=rows)).epochs == expected


@pytest.mark.parametrize(
    ("changed", "labelled", "auxiliary", "expected"),
    [
        ({}, 799, ("aux",), True),
        ({}, 800, ("aux",), False),
        ({"main_share": 0.5}, 800, ("aux",), True),
        ({}, 799, (), False),
        ({"predict_context": True}, 799, (), True),
        ({"strategy": "mtl"}, 799, ("aux",), None),
        ({"strategy": "stl"}, 799, ("aux",), None),
        ({"strategy": "adaptive"}, 799, ("aux",), True),
        ({"self_training": False}, 799, ("aux",), False),
        ({"self_training": True}, 800, ("aux",), True),
    ],
)
def test_a_model_trains_itself_by_default_where_main_labels_are_rare(changed, labelled, auxiliary, expected):
    assert Config(**changed).resolved(splits_of(labelled, auxiliary)).self_training is expected


def test_by_default_only_classes_are_labelled_by_the_model_itself():
    column = TargetColumn(
        "values", ("x",), np.where(np.arange(4_000) < 100, 1.0, np.nan).astype(np.float32)[:, None]
    )
    splits = splits_of(100)
    for corpus in (splits.train, splits.dev, splits.test):
        corpus.targets["main"] = column
    assert Config().resolved(splits).self_training is False
    assert Config(self_training=True).resolved(splits).self_training is True


def test_self_training_is_for_strategies_that_let_the_others_go():
    with pytest.raises(InputError, match=r"--self-training .* which strategy mtl never does; leave it out"):
        Config(strategy="mtl", self_training=True).resolved(splits_of(100))
    for_all = Config(self_training=True)
    found = [for_all.for_strategy(name).resolved(splits_of(100)).self_training for name in ("stl", "switch")]
    assert found == [False, True]


@pytest.mark.parametrize("own", ["stl", "mtl", "adaptive", "switch"])
def test_a_kept_configuration_decides_for_another_strategy_as_the_given_one_did(own):
    """As --against does in a run that goes on."""
    splits, given = splits_of(100), Config(strategy=own)
    expected = given.for_strategy("selector").resolved(splits)
    assert expected.self_training is True
    assert given.resolved(splits).for_strategy("selector").resolved(splits) == expected


@pytest.mark.parametrize(
    ("changed", "labelled", "expected"),
    [
        ({}, 799, {"switch_at": 0.3}),
        ({"strategy": "selector"}, 799, {"switch_at": 0.3}),
        ({"strategy_options": {"aux_weight": 0.5}}, 799, {"switch_at": 0.3, "aux_weight": 0.5}),
        ({"strategy_options": {"switch_at": 0.5}}, 799, {"switch_at": 0.5}),
        ({"strategy": "diminish", "strategy_options": {"eta": 1.0}}, 799, {"eta": 1.0}),
        ({"strategy": "adaptive"}, 799, {}),
        ({"self_training": False}, 799, {}),
        ({}, 800, {}),
    ],
)
def test_the_switch_is_early_where_rows_are_labelled_by_labels_that_tell_the_main_ones(
    changed, labelled, expected
):
    assert Config(**changed).resolved(splits_of(labelled)).strategy_options == expected


def test_the_switch_is_as_late_as_ever_where_other_labels_tell_nothing():
    splits = splits_of(799)
    unrelated = replace(splits.train.column("aux"), values=np.zeros(4_000, np.int64))
    splits.train.targets["aux"] = unrelated
    resolved = Config().resolved(splits)
    assert resolved.self_training is True
    assert resolved.strategy_options == {}
    assert resolved.schedule() == Switch(at=0.6)

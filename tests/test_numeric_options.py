"""Every option that is a number refuses what means nothing, by its name and in one line: a walk over all of them."""

from __future__ import annotations

import inspect
import json
import math
import tempfile
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from mt2st_fast import (
    SGD,
    AdaptiveSwitch,
    Classification,
    Diminish,
    InputError,
    LazyAdam,
    MultiLabel,
    MultiTask,
    MultiTaskHeads,
    Regression,
    RowwiseAdagrad,
    SingleTask,
    SquaringDecay,
    Switch,
    Trainer,
    Word2Vec,
    load_model,
    train_supervised,
)
from mt2st_fast.cli import app
from mt2st_fast.model.task_json import tasks_to_json
from mt2st_fast.runs.config import Config
from mt2st_fast.serving.wanted import Wanted
from mt2st_fast.training.run_options import description
from mt2st_fast.training.schedules import RunFacts, find_strategy, strategy_options
from tests.cli.running import fails, make_treebank

NAN, INF = math.nan, math.inf
FOR_ANY = (NAN, INF, -INF, -1, -0.5, True, "1", "many", None, [1])
# Options that may be what is nonsense elsewhere.
MAY_BE = {
    ("Word2Vec", "ns_exponent"): (-1, -0.5),  # of any sign, as gensim's
    ("Word2Vec", "sg"): (True,),  # a switch by its meaning, as are these:
    ("Word2Vec", "hs"): (True,),
    ("Word2Vec", "cbow_mean"): (True,),
    ("Word2Vec", "null_word"): (False,),
    ("Word2Vec", "sorted_vocab"): (True,),
}
SENTENCES = [["a", "b"], ["b", "c"]] * 5
DATA = [(torch.randn(2, 3), {"a": torch.tensor([0, 1])})]


def test_a_schedule_with_numbers_of_numpy_is_the_same_option_on_resuming():
    for kind, option in (
        (Switch, {"at": 0.5}),
        (AdaptiveSwitch, {"patience": 2}),
        (AdaptiveSwitch, {"margin": 0.1}),
    ):
        of_numpy = {name: np.array(value)[()] for name, value in option.items()}
        assert description(kind(**of_numpy)) == description(kind(**option))


def trainer(**options):
    heads = MultiTaskHeads(4, {"a": Classification(2)}, "a")
    return Trainer(torch.nn.Linear(3, 4), heads, schedule=SingleTask(), device="cpu", **options)


def parameters():
    return [torch.nn.Parameter(torch.zeros(2, 2))]


def known_words(**options):
    model = Word2Vec(min_count=1, vector_size=2)
    model.build_vocab(SENTENCES)
    model.train(SENTENCES, **options)


def classifier(**options):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.txt")
        path.write_text("__label__a x y\n__label__b z y\n", "utf-8")
        train_supervised(path, **options)


# An entry point: what has the options, and how it is called with one of them.
ENTRY_POINTS = {
    "Trainer": (Trainer, trainer),
    "Trainer.fit": (Trainer.fit, lambda **options: trainer().fit(DATA, **options)),
    "Config": (Config, Config),
    "Diminish": (Diminish, lambda **options: Diminish(**{"eta": 1.0} | options)),
    "SquaringDecay": (SquaringDecay, SquaringDecay),
    "MultiTask": (MultiTask, MultiTask),
    "Switch": (Switch, Switch),
    "SGD": (SGD, lambda **options: SGD(parameters(), **options)),
    "RowwiseAdagrad": (RowwiseAdagrad, lambda **options: RowwiseAdagrad(parameters(), **options)),
    "LazyAdam": (LazyAdam, lambda **options: LazyAdam(parameters(), **options)),
    "Word2Vec": (Word2Vec, lambda **options: Word2Vec(SENTENCES, **{"min_count": 1} | options)),
    "Word2Vec.train": (Word2Vec.train, known_words),
    "train_supervised": (train_supervised, classifier),
}
# Numbers by their annotation that nothing is done with, as gensim says itself.
WITHOUT_EFFECT = {
    ("Word2Vec.train", name)
    for name in ("total_examples", "total_words", "queue_factor", "report_delay", "word_count")
}


def numeric(annotation):
    """The types of number that an annotation names: {int}, {float} or none."""
    text = annotation if isinstance(annotation, str) else str(annotation)
    words = set(text.replace("[", " ").replace("]", " ").replace(",", " ").replace("|", " ").split())
    if "Callable" in words or "Sequence" in words:
        return set()
    return words & {"int", "float", "PerTask"}


def options_of(owner):
    if is_dataclass(owner):
        return {field.name: (field.type, field.default) for field in fields(owner)}
    signature = inspect.signature(owner)
    return {name: (p.annotation, p.default) for name, p in signature.parameters.items()}


def cases():
    for entry_point, (owner, _) in ENTRY_POINTS.items():
        for name, (annotation, default) in options_of(owner).items():
            kinds = numeric(annotation)
            if not kinds or (entry_point, name) in WITHOUT_EFFECT or name in ("betas", "strategy_options"):
                continue
            for value in (*FOR_ANY, *((1.5, 2.0) if "int" in kinds else ())):
                if value is None and (default is None or "None" in str(annotation)):
                    continue
                if value in MAY_BE.get((entry_point, name), ()) and type(value) is not float:
                    continue
                if value in MAY_BE.get((entry_point, name), ()) and value == value:
                    continue
                yield pytest.param(entry_point, name, value, id=f"{entry_point}-{name}-{value}")


@pytest.mark.parametrize(("entry_point", "name", "value"), [*cases()])
def test_nonsense_is_refused_by_name(entry_point, name, value):
    with pytest.raises(InputError) as refused:
        ENTRY_POINTS[entry_point][1](**{name: value})
    message = str(refused.value)
    assert name in message
    assert "\n" not in message


def test_the_walk_sees_the_options_that_there_are():
    seen = {tuple(case.values[:2]) for case in cases()}
    assert {entry_point for entry_point, _ in seen} == set(ENTRY_POINTS)
    for option in (
        ("Trainer", "lr"), ("Trainer", "accumulate"), ("Trainer.fit", "checkpoint_seconds"), ("Config", "dim"),
        ("Diminish", "nu"), ("Word2Vec", "alpha"), ("train_supervised", "epoch"), ("LazyAdam", "eps"),
    ):  # fmt: skip
        assert option in seen
    assert len(seen) > 60


@pytest.mark.parametrize("value", [-0.5, NAN, INF, 1.5, True, "0.9"])
def test_a_beta_is_named(value):
    with pytest.raises(InputError, match=r"betas\[1\] must be a finite number within"):
        LazyAdam(parameters(), betas=(0.9, value))


@pytest.mark.parametrize("value", [-0.5, NAN, INF, 1.5])
def test_a_probability_to_predict_from_is_named(value):
    with pytest.raises(InputError, match="--threshold is a probability"):
        Wanted(("pos",), "jsonl", threshold=value)


def test_numbers_of_numpy_are_numbers():
    Config(dim=np.int64(8), lr=np.float32(0.1))
    Diminish(eta=np.float64(1), nu=np.int32(2))
    trainer(lr=np.float32(0.1), accumulate=np.int64(2)).fit(DATA, epochs=np.int64(1))


# --- values by task, strategies, the command line ----------------------------------------------------------------


@pytest.mark.parametrize("value", [-1.0, NAN, INF, True, "1"])
@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        *((Diminish, name) for name in ("eta", "gamma", "nu", "floor")),
        *((SquaringDecay, name) for name in ("alpha", "floor")),
        *((Switch, name) for name in ("at", "at_epoch", "at_step", "weights")),
        (MultiTask, "weights"),
    ],
)
def test_a_value_of_one_task_is_refused_too(schedule, name, value):
    with pytest.raises(InputError, match=f"^{name} must be "):
        schedule(**({"eta": 1.0} if schedule is Diminish else {}) | {name: {"pos": 1.0, "chunk": value}})


@pytest.mark.parametrize("value", [-1.0, NAN, INF, -INF, True])
@pytest.mark.parametrize("name", sorted(strategy_options()))
def test_an_option_of_a_strategy_is_named_by_its_flag(name, value):
    option, taken_by = strategy_options()[name]
    for strategy in taken_by:
        with pytest.raises(InputError, match=f"^{option.flag} must be a finite number"):
            find_strategy(strategy).make({name: value}, RunFacts(5))


def command_line_cases():
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        (callback,) = [c.callback for c in app.registered_commands if (c.name or c.callback.__name__) == name]
        for parameter in inspect.signature(callback, eval_str=True).parameters.values():
            (flag, *_) = next((p.opts for p in command.params if p.name == parameter.name), ["-"])
            taken = (
                numeric(typing.get_args(parameter.annotation)[0])
                if flag not in ("-", "--threshold")
                else set()
            )
            for value in ("nan", "inf", "many", *(["1.5"] if "int" in taken else [])) if taken else ():
                yield pytest.param(name, flag, value, id=f"{name} {flag} {value}")


@pytest.mark.parametrize(("command", "flag", "value"), [*command_line_cases()])
def test_the_command_line_refuses_in_one_line(command, flag, value, tmp_path, capsys):
    treebank = make_treebank(tmp_path)
    arguments: typing.Sequence[str] = {
        "train": ["--data", treebank, "--out", str(tmp_path / "o")],
        "compare": ["--data", treebank, "--out", str(tmp_path / "o")],
        "prepare": [str(tmp_path / "text"), "--out", str(tmp_path / "o")],
        "predict": [str(tmp_path), str(tmp_path / "text")],
        "test": [str(tmp_path), treebank],
        "evaluate": [str(tmp_path / "text")],
    }.get(command, [])
    (tmp_path / "text").write_text("a b\n")
    if flag.removeprefix("--").replace("-", "_") in strategy_options() and command == "train":
        taken_by = strategy_options()[flag.removeprefix("--").replace("-", "_")][1]
        arguments = [*arguments, "--strategy", taken_by[0]]
    error = fails(capsys, command, *arguments, f"{flag}={value}")
    assert flag in error or flag.removeprefix("--").replace("-", "_") in error
    assert not list((tmp_path / "o").rglob("*.*")) if (tmp_path / "o").exists() else True


def test_numbers_of_numpy_are_kept_as_numbers_in_checkpoints(tmp_path):
    def options(whole, real):
        return {
            "schedule": Diminish(eta=real(0.5)),
            "lr": real(0.5),
            "accumulate": whole(1),
            "clip_norm": real(0.5),
        }

    file, steps = tmp_path / "checkpoint", np.int64(2)
    heads = MultiTaskHeads(np.int64(4), {"a": Classification(2)}, "a")
    plain = options(int, float)
    Trainer(torch.nn.Linear(3, 4), heads, **options(np.int64, np.float32)).fit(
        DATA, steps=steps, checkpoint=file
    )
    history = Trainer(torch.nn.Linear(3, 4), heads, **plain).fit(DATA, steps=3, checkpoint=file, resume=True)
    assert history.steps[-1].step == 3


def test_numbers_of_numpy_are_kept_as_numbers_in_models(tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("__label__a x y\n__label__b y z\n" * 4)
    options = {"dim": np.int64(4), "bucket": np.int32(20), "word_ngrams": np.int64(2), "epoch": np.float32(1)}
    model = train_supervised(file, **options, minn=np.int64(2), maxn=np.int64(3), lr=np.float32(0.1))
    model.save(tmp_path / "m")
    assert load_model(tmp_path / "m").predict("x") == model.predict("x")
    words = Word2Vec(
        SENTENCES, vector_size=np.int64(4), min_count=np.int64(1), sg=np.True_, comment=np.str_("c")
    )
    words.save(tmp_path / "w")
    assert Word2Vec.load(tmp_path / "w").sg == 1


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (
            Classification(np.int64(3), label_smoothing=np.float64(0.5)),
            Classification(3, label_smoothing=0.5),
        ),
        (Classification(np.uint8(3), ignore_index=np.int16(-1)), Classification(3, ignore_index=-1)),
        (MultiLabel(np.int32(2)), MultiLabel(2)),
        (Regression(np.int64(2), huber_delta=np.float32(0.5)), Regression(2, huber_delta=0.5)),
    ],
)
def test_tasks_take_numbers_of_numpy(given, meant):
    assert repr(given) == repr(meant)
    assert given.head == meant.head
    json.dumps(tasks_to_json({"a": given}))


@pytest.mark.parametrize("lr", [1e300, 1e-300, 10**400], ids=str)
def test_rates_that_float32_cannot_hold_are_refused(lr):
    """The first is infinite there (NumPy warns, the loss is not finite), the second 0: nothing learns."""
    heads = MultiTaskHeads(4, {"a": Classification(2)}, main="a")
    for make in (lambda: Trainer(torch.nn.Linear(4, 4), heads, lr=lr), lambda: SGD([torch.zeros(2)], lr=lr)):
        with pytest.raises(
            InputError, match=r"^lr must be from 1\.4e-45 to 3\.4e\+38, as float32 holds numbers"
        ):
            make()

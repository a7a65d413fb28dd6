"""Graphs of taggers and classifiers say what the models say, of any text and any size of batch."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mt2st_fast import InputError, SupervisedModel, TextInputs, TextModel, train_supervised
from mt2st_fast.data.text.tokenizers import TOKENIZERS
from mt2st_fast.exporting import models, writing
from tests.serving.test_text_model import LABELS, TASKS, WORDS, made

LETTERS = "aAbßéΣ日😀1٣'’-_.,\u0301ǅ<>"


def some_word(chance: random.Random) -> str:
    if chance.random() < 0.3:
        return chance.choice(WORDS)
    return "".join(chance.choice(LETTERS) for _ in range(chance.choice((1, 1, 2, 3, 5, 60))))


def some_units(seed: int) -> list[list[str]]:
    chance = random.Random(seed)
    return [[some_word(chance) for _ in range(chance.choice((0, 1, 2, 7, 30)))] for _ in range(12)]


UNITS = [some_units(seed) for seed in range(4)] + [[], [[]], [["die"]], [[], ["Katze"] * 1000, []]]


class Runtime:
    """A graph in the runtime that its format is for."""

    def __init__(self, written: writing.Exported) -> None:
        self.inputs = TextInputs.read(written.description)
        self._is_onnx = written.graph.suffix == ".onnx"
        if self._is_onnx:
            self._session = onnxruntime.InferenceSession(written.graph, providers=["CPUExecutionProvider"])
        else:
            self._program = torch.export.load(written.graph).module()

    def logits(self, units: list[Any], task: str) -> np.ndarray:
        given = self.inputs(units)
        if self._is_onnx:
            (found,) = self._session.run([f"logits.{task}"], given)
            return np.asarray(found)
        with torch.no_grad():
            return self._program(*map(torch.from_numpy, given.values()))[task].numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


CASES = {
    "tagger": lambda: made("token", min_n=3, max_n=4),
    "without hidden layer": lambda: made("token", hidden=None),
    "documents": lambda: made("document"),
}


@pytest.fixture(
    scope="module", params=[*((case, "onnx") for case in CASES), ("tagger", "torch")], ids=" ".join
)
def words_graph(request: pytest.FixtureRequest, folder: Path) -> tuple[TextModel, Runtime]:
    case, form = request.param
    model = CASES[case]()
    written = model.export(folder / f"{case}{writing.SUFFIXES[form]}", tasks=model.tasks)
    assert written.compared_by == {"onnx": "onnxruntime", "torch": "torch.export"}[form]
    return model, Runtime(written)


def test_words_have_the_models_logits(words_graph: tuple[TextModel, Runtime]) -> None:
    model, runtime = words_graph
    for units in UNITS:
        for task in TASKS:
            found, expected = runtime.logits(units, task), model.logits(units, task).numpy()
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_labels_are_the_models(words_graph: tuple[TextModel, Runtime]) -> None:
    model, runtime = words_graph
    units = UNITS[0]
    for task in TASKS:
        logits = runtime.logits(units, task)
        np.testing.assert_allclose(
            runtime.inputs.probabilities(task, logits), model.probabilities(units, task), atol=1e-5
        )
        assert runtime.inputs.labels(task) == list(LABELS[task].names)
    predicted = model.predict(units)
    flat = [label for unit in predicted for label in unit] if model.level == "token" else predicted
    assert runtime.inputs.likeliest("pos", runtime.logits(units, "pos")) == flat
    marks = model.shown(runtime.logits(units, "marks"), "marks")
    assert runtime.inputs.likeliest("marks", runtime.logits(units, "marks")) == list(map(list, marks))
    with pytest.raises(ValueError, match="not one string; split it with cut"):
        runtime.inputs(["die Katze"])


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_lines_are_cut_as_in_training(tokenizer: str) -> None:
    chance = random.Random(3)
    inputs = TextInputs({"text": "words", "cut": models.CUTS[tokenizer]})
    for _ in range(200):
        line = "".join(chance.choice(LETTERS + "  \t\x1c\u2003\xa0") for _ in range(40))
        assert inputs.cut(line) == TOKENIZERS[tokenizer](line)


OPTIONS = {
    "words": {},
    "bigrams": {"word_ngrams": 3, "bucket": 97},
    "characters": {"minn": 1, "maxn": 3, "bucket": 97, "word_ngrams": 2, "families": True},
}


@pytest.fixture(scope="module", params=OPTIONS)
def lines_graph(request: pytest.FixtureRequest, folder: Path) -> tuple[SupervisedModel, Runtime]:
    chance = random.Random(1)
    lines = [
        f"__label__tone__{chance.choice('ab')} __label__{chance.choice('xyz')} {' '.join(unit) or 'die'}"
        for seed in range(10)
        for unit in some_units(seed)
    ]
    file = folder / "train.txt"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = train_supervised(file, dim=8, epoch=2, seed=1, **OPTIONS[request.param])
    return model, Runtime(model.export(folder / f"{request.param}.onnx", families=list(model.labels)))


def test_lines_have_the_models_probabilities(lines_graph: tuple[SupervisedModel, Runtime]) -> None:
    model, runtime = lines_graph
    for units in UNITS:
        lines = ["\t".join(["__label__x", *unit, "\0die"]) for unit in units] + ["", " __label__tone__a "]
        for family, names in model.labels.items():
            logits = runtime.logits(lines, family)
            found = runtime.inputs.probabilities(family, logits)
            for row, (labels, values) in zip(found, model.predict(lines, k=-1, family=family), strict=True):
                expected = dict(zip(labels, values, strict=True))
                np.testing.assert_allclose(row, [expected[name] for name in names], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="a string without a line feed"):
        runtime.inputs(["a\nb"])


def test_the_logits_themselves_are_as_near(lines_graph: tuple[SupervisedModel, Runtime]) -> None:
    model, runtime = lines_graph
    lines = [" ".join(unit) for units in UNITS for unit in units]
    vectors = np.stack([model.text_vector(line) for line in lines])
    linear = model.heads.linear(model.main)
    expected = (
        torch.nn.functional.linear(torch.from_numpy(vectors), linear.weight, linear.bias).detach().numpy()
    )
    np.testing.assert_allclose(runtime.logits(lines, model.main), expected, atol=1e-5, rtol=0)


def test_the_same_input_gives_the_same_bits(folder: Path) -> None:
    """Nothing is added up by scattering, where runtimes lose rows in threads (microsoft/onnxruntime#18048)."""
    runtime = Runtime(made("document").export(folder / "again.onnx"))
    units = [["die", "Katze"] * 2000, ["schläft"], [], ["word1"] * 3000]
    first = runtime.logits(units, "pos")
    np.testing.assert_allclose(first, made("document").logits(units).numpy(), atol=1e-5, rtol=0)
    assert all(np.array_equal(runtime.logits(units, "pos"), first) for _ in range(30))


def test_onnx_is_made_of_plain_operators(folder: Path) -> None:
    written = made("token").export(folder / "plain.onnx")
    proto = onnx.load(written.graph)
    onnx.checker.check_model(proto, full_check=True)
    assert {node.domain for node in proto.graph.node} == {""}
    assert not [
        node
        for node in proto.graph.node
        if node.op_type.startswith("Scatter") and node.attribute[-1].s == b"add"
    ]
    assert not proto.functions
    assert [(i.name, i.type.tensor_type.elem_type) for i in proto.graph.input] == [
        (name, onnx.TensorProto.INT64) for name in ("rows", "rows_per_word", "words_per_unit")
    ]
    assert [o.name for o in proto.graph.output] == ["logits.pos"]


def test_the_inputs_need_neither_torch_nor_this_package(folder: Path) -> None:
    model = made("token")
    written = model.export(folder / "alone.pt2")
    program = (
        "import importlib.util, json, sys\n"
        "spec = importlib.util.spec_from_file_location('inputs', sys.argv[1])\n"
        "inputs = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(inputs)\n"
        "made = inputs.TextInputs.read(sys.argv[2])([['die', 'Unbekannte']])\n"
        "assert not {'torch', 'mt2st_fast'} & set(sys.modules)\n"
        "print(json.dumps({name: values.tolist() for name, values in made.items()}))"
    )
    source = sys.modules[TextInputs.__module__].__file__
    done = subprocess.run(
        [sys.executable, "-c", program, str(source), str(written.description)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    here = TextInputs.read(written.description)([["die", "Unbekannte"]])
    assert done.stdout.strip() == str({name: values.tolist() for name, values in here.items()}).replace(
        "'", '"'
    )


def test_a_description_knows_its_graph(folder: Path) -> None:
    written = made("document").export(folder / "own.pt2")
    with written.graph.open("ab") as file:
        file.write(b"x")
    with pytest.raises(
        ValueError, match=r"own.pt2.json: belongs to a different own.pt2; export the model again"
    ):
        TextInputs.read(written.description)
    for part in ("", written.description.read_text()[:200], "é"):
        (folder / "half.json").write_text(part, encoding="utf-8")
        with pytest.raises(
            ValueError, match=r"half.json: is not a complete description \(.*\); export the model again"
        ):
            TextInputs.read(folder / "half.json")
    (folder / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"other.json: is not written as 'mt2st-fast export 1'"):
        TextInputs.read(folder / "other.json")


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("document")
    with pytest.raises(InputError, match="the model has no task tag; available: pos, marks, length"):
        model.export(tmp_path / "m.pt2", tasks=["tag"])
    with pytest.raises(InputError, match="format must be onnx or torch, not 'tensorrt'"):
        model.export(tmp_path / "m", "tensorrt")
    with pytest.raises(
        InputError, match=r"m.pt2: has the suffix of torch, but the format is onnx; use the suffix .onnx"
    ):
        model.export(tmp_path / "m.pt2", "onnx")
    with pytest.raises(InputError, match=r"m.tflite: the suffix .tflite names no format; use .onnx or .pt2"):
        model.export(tmp_path / "m.tflite")
    with pytest.raises(InputError, match=r".json is the suffix of the description of a graph"):
        model.export(tmp_path / "m.json")
    with pytest.raises(InputError, match="is a folder; pass a file"):
        model.export(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(writing, "_PACKAGES", ("onnx_of_tomorrow",))
        with pytest.raises(
            InputError, match=r"ONNX needs the package onnx_of_tomorrow: pip install 'mt2st-fast\[export\]'"
        ):
            model.export(tmp_path / "m.onnx")
    with monkeypatch.context() as patched:
        patched.setattr(writing, "MOST_ONNX_BYTES", 100)
        with pytest.raises(InputError, match="an ONNX file holds at most 2; export with the format torch"):
            model.export(tmp_path / "m.onnx")
    model._trained.rows_of_type[:-1, 1] = 1  # which no part of a word is hashed to
    model = TextModel(model._trained, model.heads, model.vocabulary, model.table, model.labels, "words")
    with pytest.raises(InputError, match=r"logits of pos are .* off the model's, so nothing was written"):
        model.export(tmp_path / "m.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_a_full_disk_is_named() -> None:
    with pytest.raises(OSError, match="No space left") as error:
        made("document").export("/dev/full", "onnx")
    assert error.value.filename == "/dev/full"

"""Graphs of encoders and heads: what they are called with goes in, for any size of batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mt2st_fast import (
    BagEncoder,
    Classification,
    InputError,
    MultiLabel,
    MultiTaskHeads,
    OpenTask,
    TextInputs,
    WindowEncoder,
    export_modules,
    save_modules,
)
from mt2st_fast.model_folder import write_model
from mt2st_fast.words import word2vec_model
from tests.cli.running import fails, run

TASKS = {"tag": Classification(4), "feats.Number": MultiLabel(3)}
TYPES = 30


def rows_of_types() -> dict[str, Any]:
    rows = torch.randint(0, 20, (TYPES, 3), generator=torch.Generator().manual_seed(1))
    rows[4] = 0  # a type that has no row
    return {"rows_of_type": rows, "num_rows": 20, "sparse": True}


ENCODERS = {
    "window": lambda: WindowEncoder(TYPES, 5, window=1, hidden=6, dropout=0.5),
    "window of rows": lambda: WindowEncoder(TYPES, 5, window=2, hidden=None, **rows_of_types()),
    "mean": lambda: BagEncoder(TYPES, 5, dropout=0.5),
    "sum of rows": lambda: BagEncoder(TYPES, 5, mode="sum", **rows_of_types()),
}


def some_types(chance: np.random.Generator, *shape: int) -> np.ndarray:
    return chance.integers(-1, TYPES, shape)


@pytest.mark.parametrize("name", ENCODERS)
def test_any_batch_has_the_logits_of_the_modules(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    encoder = ENCODERS[name]()
    heads = MultiTaskHeads(encoder.out_features, TASKS, "tag")
    written = export_modules(encoder, heads, tmp_path / "m.onnx", tasks=heads.names)
    assert encoder.training  # as it was
    encoder.eval()
    session = onnxruntime.InferenceSession(written.graph, providers=["CPUExecutionProvider"])
    chance = np.random.default_rng(4)
    for n in (0, 1, 2, 77):
        if isinstance(encoder, WindowEncoder):
            given = {"windows": some_types(chance, n, encoder.width)}
            features = encoder(torch.from_numpy(given["windows"]))
        else:
            sizes = chance.integers(0, 9, n)
            given = {"types": some_types(chance, int(sizes.sum())), "types_per_unit": sizes}
            features = encoder(
                (torch.from_numpy(given["types"]), torch.from_numpy(np.append(0, sizes.cumsum())))
            )
        for task in heads.names:
            (found,) = session.run([f"logits.{task}"], given)
            expected = heads.logits(features, task).detach().numpy()
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"m.onnx.json: its graph does not take text, but"):
        TextInputs.read(written.description)


class Recurrent(nn.Module):
    """Somebody's own: sentences of vectors, and the mask that an OpenTask asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)
        self.drop = nn.Dropout(0.5)

    def forward(self, sentences: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        mixed = self.drop(self.layer(sentences)) + sentences.mean(1, keepdim=True).repeat(1, 1, 2)[..., :6]
        return mixed * mask.unsqueeze(2), mask


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_an_encoder_of_ones_own_is_traced(form: str, tmp_path: Path) -> None:
    encoder = Recurrent()
    heads = MultiTaskHeads(6, TASKS, "tag")
    example = (torch.randn(3, 5, 4), torch.ones(3, 5))
    axes = [("rows", "length", 4), ("rows", "length")]
    file = tmp_path / {"onnx": "m.onnx", "torch": "m.pt2"}[form]
    written = export_modules(encoder, heads, file, tasks=["feats.Number"], example=example, axes=axes)
    assert written.outputs == {"logits.feats.Number": ("rows", "length", 3)}
    encoder.eval()
    for n, length in ((3, 5), (1, 1), (8, 31)):
        given = torch.randn(n, length, 4), (torch.rand(n, length) > 0.3).float()
        expected = heads.logits(encoder(*given)[0], "feats.Number").detach().numpy()
        if form == "onnx":
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            names = [i.name for i in session.get_inputs()]
            (found,) = session.run(None, {name: t.numpy() for name, t in zip(names, given, strict=True)})
        else:
            with torch.no_grad():
                found = torch.export.load(file).module()(*given)["feats.Number"].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_one_input_may_be_given_by_itself_and_a_compiled_encoder_is_what_it_wraps(tmp_path: Path) -> None:
    encoder, heads = nn.Sequential(nn.Linear(6, 6), nn.ReLU()), MultiTaskHeads(6, TASKS, "tag")
    wrapped = torch.compile(encoder, backend="eager")
    written = export_modules(wrapped, heads, tmp_path / "m.pt2", example=torch.randn(3, 6))
    assert written.outputs["logits.tag"][0] == "rows"
    given = torch.randn(9, 6)
    found = torch.export.load(tmp_path / "m.pt2").module()(given)["tag"]
    torch.testing.assert_close(found, heads.logits(encoder(given), "tag"))


class Branching(nn.Module):
    """What depends on data cannot be traced."""

    def forward(self, values: Tensor) -> Tensor:
        return values if values.sum() > 0 else -values


class Contrast(OpenTask):
    def loss(self, features: Tensor, targets: Any, mask: Tensor | None) -> Tensor:
        return features.sum()


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    heads = MultiTaskHeads(6, TASKS | {"contrast": Contrast()}, "tag")
    file = tmp_path / "m.pt2"
    with pytest.raises(InputError, match="a Recurrent must be traced; pass example="):
        export_modules(Recurrent(), heads, file)
    with pytest.raises(InputError, match=r"^Branching cannot be traced for any size of batch: "):
        export_modules(Branching(), heads, file, example=[torch.ones(3, 6)])
    with pytest.raises(
        InputError, match=r"the task contrast has no head to export; tasks with a head: tag, feats\.Number"
    ):
        export_modules(Recurrent(), heads, file, tasks=["contrast"])
    with pytest.raises(InputError, match="parameters are bfloat16, but a graph needs float32"):
        export_modules(Recurrent().bfloat16(), heads, file)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_can_do_for_each_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "vectors", word2vec_model.KIND, {}, {})
    assert "is a Word2Vec model, which has vectors but no task to compute" in fails(
        capsys, "export", str(tmp_path / "vectors")
    )
    encoder = ENCODERS["mean"]()
    save_modules(tmp_path / "modules", encoder, MultiTaskHeads(5, TASKS, "tag"))
    run("export", str(tmp_path / "modules"), "--format", "torch")
    said = capsys.readouterr().out
    assert "modules.pt2" in said
    assert "types (types), types_per_unit (units) -> logits.tag (units x 4)" in said
    assert "checked with torch.export: logits differ from the model's by at most" in said
    assert (tmp_path / "modules.pt2.json").exists()
    assert "the task colour has no head to export" in fails(
        capsys, "export", str(tmp_path / "modules"), "--tasks", "colour"
    )
    assert "is not a model (model.json is missing)" in fails(capsys, "export", str(tmp_path / "nothing"))

"""What `mt2st-fast predict` writes for a model of train_supervised: by default what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mt2st_fast import SupervisedModel, train_supervised
from mt2st_fast.serving.classified_lines import write_lines
from mt2st_fast.serving.wanted import Wanted

LINES = ["x", "y", "z", "x z"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SupervisedModel:
    """A family with one label a document, and one with several."""
    file = tmp_path_factory.mktemp("data") / "train.txt"
    file.write_text(
        "__label__one__up __label__any__a __label__any__b x\n__label__one__down __label__any__b y\n"
        "__label__one__up __label__any__c z\n" * 30
    )
    return train_supervised(file, dim=8, epoch=30, batch_size=16, families=True, device="cpu")


def written(model: SupervisedModel, form: str, **asked: Any) -> list[str]:
    return "".join(write_lines(model, [LINES, []], Wanted(("one", "any"), form, **asked))).splitlines()


def test_labels_are_by_default_those_that_are_measured(model: SupervisedModel, tmp_path: Path) -> None:
    found = written(model, "labels")
    assert [sorted(line.split()) for line in found[:3]] == [
        ["__label__any__a", "__label__any__b", "__label__one__up"],
        ["__label__any__b", "__label__one__down"],
        ["__label__any__c", "__label__one__up"],
    ]
    again = tmp_path / "again.txt"
    again.write_text("".join(f"{labels} {line}\n" for labels, line in zip(found, LINES, strict=True)))
    assert model.test(again) == {"one": 1, "any": 1}


def test_json_has_probabilities_where_they_are_asked_for(model: SupervisedModel) -> None:
    plain = [json.loads(line) for line in written(model, "jsonl")]
    pairs = [json.loads(line) for line in written(model, "jsonl", probabilities=True)]
    assert [line["one"] for line in plain[:3]] == ["up", "down", "up"]
    assert [sorted(line["any"]) for line in plain[:3]] == [["a", "b"], ["b"], ["c"]]
    for one, other in zip(plain, pairs, strict=True):
        assert [[one["one"]], one["any"]] == [[label for label, _ in other[task]] for task in ("one", "any")]
        assert all(p >= 0.5 for _, p in other["any"])


def test_k_and_threshold_limit_them(model: SupervisedModel) -> None:
    two = [json.loads(line) for line in written(model, "jsonl", k=2)]
    assert [(len(line["one"]), len(line["any"])) for line in two] == [(2, 2)] * 4
    least = [json.loads(line) for line in written(model, "jsonl", threshold=0.0)]
    assert [(len(line["one"]), len(line["any"])) for line in least] == [(1, 3)] * 4
    none = [json.loads(line) for line in written(model, "jsonl", threshold=1.0)]
    assert [(line["one"], line["any"]) for line in none] == [([], [])] * 4
    assert written(model, "labels", threshold=1.0) == [""] * 4

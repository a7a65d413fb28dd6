"""--predict-context: words predict their neighbours beside the labels, until the schedule lets the task go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.running import QUICK, QUICK_DOCUMENTS, fails, run


def table(folder: Path, *, label: str = "tone") -> str:
    """Reviews whose words tell their label."""
    rows = [
        f"{'good fine great' if i % 2 else 'bad poor awful'} film number n{i % 7},{'pos' if i % 2 else 'neg'}"
        for i in range(240)
    ]
    path = folder / "reviews.csv"
    path.write_text(f"text,{label}\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return f"csv:{path}"


@pytest.mark.parametrize("data", ["treebank", "table"])
def test_words_predict_their_neighbours_until_the_switch(data: str, treebank: str, tmp_path: Path) -> None:
    source = treebank if data == "treebank" else table(tmp_path)
    out = tmp_path / "out"
    quick = QUICK if data == "treebank" else QUICK_DOCUMENTS
    run("train", "--data", source, *quick, "--predict-context", "--out", str(out), "--label-fraction", "0.2")
    report = json.loads((out / "report.json").read_text())
    main = report["main"]["task"]
    assert report["phases"][0]["active"][-1] == "context"
    assert report["phases"][-1]["active"] == [main]
    assert report["tasks"]["context"]["outputs"] is None
    assert 0 < report["tasks"]["context"]["retired_at_step"] < report["steps"]
    steps = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    losses = [s["losses"]["context"] for s in steps if "context" in s.get("losses", {})]
    assert losses[-1] < losses[0]
    assert report["main"]["test"] > 0.8
    run("predict", str(out), source, "--out", str(tmp_path / "labels"))  # the model is without it
    assert (tmp_path / "labels").stat().st_size > 0


def test_single_task_training_has_no_such_task(treebank: str, tmp_path: Path) -> None:
    options = ["--data", treebank, *QUICK, "--strategy", "stl"]
    run("train", *options, "--out", str(tmp_path / "without"))
    run("train", *options, "--predict-context", "--out", str(tmp_path / "with"))
    assert json.loads((tmp_path / "with/report.json").read_text())["phases"][0]["active"] == ["upos"]
    assert (tmp_path / "with/vectors.txt").read_bytes() == (tmp_path / "without/vectors.txt").read_bytes()


def test_a_task_of_the_same_name_and_the_other_engine_are_refused(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = table(tmp_path, label="context")
    out = str(tmp_path / "out")
    error = fails(capsys, "train", "--data", named, "--main", "context", "--predict-context", "--out", out)
    assert "--predict-context adds a task named context" in error
    error = fails(
        capsys, "compare", "--data", treebank, "--engine", "fused,torch", "--predict-context", "--out", out
    )
    assert "--predict-context is not supported by the engine torch" in error

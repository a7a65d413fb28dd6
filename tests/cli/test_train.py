"""`mt2st-fast train`: what it writes, how it goes on, what it says of itself."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mt2st_fast.training.schedules import strategies
from mt2st_fast.words.vectors import WordVectors
from tests.cli.running import QUICK, QUICK_DOCUMENTS, WORDS, fails, run

FILES = (
    "report.json",
    "report.md",
    "curves.png",
    "history.jsonl",
    "vectors.txt",
    "checkpoint/last.safetensors",
    "model/model.json",
    "model/tensors.safetensors",
)

ALL_TO_THE_END = ("mtl", "adatask", "alternate", "alternate-steps", "dwa", "famo", "taps", "uncertainty")


@pytest.mark.parametrize("strategy", strategies())
def test_train_writes_every_file(strategy: str, treebank: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(
        "train",
        "--data",
        treebank,
        "--strategy",
        strategy,
        "--out",
        str(out),
        *QUICK,
        "--aux",
        "xpos,feats.Number",
    )
    assert all((out / name).stat().st_size > 0 for name in FILES)
    report = json.loads((out / "report.json").read_text())
    for key in ("environment", "data", "strategy", "steps", "train_seconds", "tokens_per_second", "phases"):
        assert report[key], key
    assert report["backend"]["name"] == "numba"
    assert report["backend"]["reason"]
    assert report["main"]["metric"] == "accuracy"
    assert report["main"]["test"] > 0.9
    assert 0 < report["main"]["best_step"] <= report["steps"]
    active = [phase["active"] for phase in report["phases"]]
    everything = ["upos", "xpos", "feats.Number"]
    expected = {"stl": [["upos"]], **{name: [everything] for name in ALL_TO_THE_END}}
    if strategy == "adaptive":  # one by one, by what it sees
        assert active[0] == everything
        assert active[-1] == ["upos"]
    else:
        assert active == expected.get(strategy, [everything, ["upos"]])
    assert (report["tasks"]["xpos"]["retired_at_step"] is None) == (strategy in ALL_TO_THE_END)
    assert report["kept"] == (["upos"] if strategy in ("taps", "stl") else everything)
    assert report["untrained"] == (everything[1:] if strategy == "stl" else [])
    assert report["score"]["value"] == pytest.approx(report["main"]["test"], abs=1e-6), (
        "the model is what was measured"
    )
    turns = [phase["turns"] for phase in report["phases"]]
    assert all(turns) if strategy.startswith("alternate") else not any(turns)


def test_the_main_task_is_judged_by_the_metric_that_is_asked_for(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run("train", "--data", treebank, "--out", str(out), *QUICK, "--epochs", "1", "--metric", "macro_f1")
    report = json.loads((out / "report.json").read_text())
    assert report["main"]["metric"] == report["score"]["metric"] == "macro_f1"
    scores = [each["f1"] for each in report["score"]["classes"]]
    assert report["main"]["test"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert {task["metric"] for name, task in report["tasks"].items() if name != "upos"} == {"accuracy"}
    run("test", str(out), treebank)
    assert f"{report['main']['test']:.4f}" in capsys.readouterr().out
    error = fails(capsys, "evaluate", str(out))
    assert f"mt2st-fast evaluate {out / 'vectors.txt'}" in error
    assert f"mt2st-fast test {out} DATA" in error


def test_tags_of_spans_are_scored_by_spans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(0)
    kinds = {"the": "B-NP", "dog": "I-NP", "cat": "I-NP", "runs": "B-VP", "now": "O"}
    sentences = [f"the {chance.choice(['dog', 'cat'])} runs now".split() for _ in range(60)]
    lines = ["\n".join(f"{word} {kinds[word]}" for word in sentence) for sentence in sentences]
    (tmp_path / "chunks.txt").write_text("\n\n".join(lines) + "\n")
    data, out = f"columns:{tmp_path / 'chunks.txt'}", tmp_path / "out"
    run("train", "--data", data, "--main", "col1", "--out", str(out), *QUICK, "--metric", "span_f1")
    report = json.loads((out / "report.json").read_text())
    spans = report["score"]["spans"]
    assert report["main"]["metric"] == "span_f1"
    assert report["main"]["test"] == report["main"]["best"] == 1.0
    assert spans["right"] == spans["present"] == spans["found"] > 0
    assert spans["f1"] == spans["precision"] == spans["recall"] == 1.0
    line = f"by spans, as conlleval counts: F1 1.0000, precision 1.0000, recall 1.0000 ({spans['right']} right of"
    assert f"On test rows, {line}" in capsys.readouterr().out
    assert all(line in (out / name).read_text() for name in ("report.md", "report.html"))
    run("test", str(out), data, "--part", "test")
    assert f"col1 {line}" in capsys.readouterr().out


def test_vectors_load_in_gensim(treebank: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("train", "--data", treebank, "--out", str(out), *QUICK)
    models = pytest.importorskip("gensim.models")
    vectors = models.KeyedVectors.load_word2vec_format(str(out / "vectors.txt"))
    report = json.loads((out / "report.json").read_text())
    assert (len(vectors), vectors.vector_size) == (report["vectors"]["count"], 8) == (len(WORDS), 8)
    assert set(vectors.index_to_key) == set(WORDS)


def test_training_starts_from_a_file_of_vectors(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["the", "dog", "CATS", "nowhere"]
    vectors = WordVectors(words, np.random.default_rng(0).normal(size=(4, 8)))
    vectors.write(tmp_path / "v.bin")
    options = [
        *QUICK[:-4],
        "--hidden",
        "16",
        "--buckets",
        "0",
        "--lr",
        "1e-30",
        "--init",
        str(tmp_path / "v.bin"),
    ]
    run("train", "--data", treebank, "--out", str(tmp_path / "out"), *options)
    trained = WordVectors.read(tmp_path / "out" / "vectors.txt")
    for word in ("the", "dog"):
        expected = vectors.vectors[vectors.index_of[word]]
        assert np.array_equal(trained.vectors[trained.index_of[word]], expected)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["init"] == {
        "words": 7,
        "exact": 2,
        "lowered": 0,
    }
    assert "2 of 7 words found" in " ".join(capsys.readouterr().out.split())


def test_csv_trains_a_bag_model_with_every_kind_of_head(tmp_path: Path) -> None:
    chance = random.Random(1)
    rows = []
    for _ in range(300):
        good = chance.random() < 0.5
        text = " ".join(chance.choices(["fine", "great", "good"] if good else ["bad", "poor", "awful"], k=5))
        rows.append(
            f"{text} film,{'pos' if good else 'neg'},{4.5 if good else 1.25},{'happy|warm' if good else 'sad'}"
        )
    (tmp_path / "reviews.csv").write_text("text,mood,rating,tags\n" + "\n".join(rows) + "\n")
    out = tmp_path / "out"
    aux = "rating:regression,tags:multilabel"
    run(
        "train",
        "--data",
        f"csv:{tmp_path / 'reviews.csv'}",
        "--main",
        "mood",
        "--aux",
        aux,
        "--out",
        str(out),
        *QUICK_DOCUMENTS,
    )
    report = json.loads((out / "report.json").read_text())
    assert {name: task["metric"] for name, task in report["tasks"].items()} == {
        "mood": "accuracy",
        "rating": "r2",
        "tags": "micro_f1",
    }
    assert report["main"]["test"] > 0.9


# From outside, Ctrl-C would come after the end now and then.
INTERRUPTED = """
import os, signal
from mt2st_fast.cli import main
from mt2st_fast.training.checkpoints.saving import Saving
now, saved = Saving.now, []
def then_interrupted(self):
    now(self)
    if not saved:
        saved.append(os.kill(os.getpid(), signal.SIGINT))
Saving.now = then_interrupted
main()
"""


@pytest.mark.parametrize(
    "more", [["--epochs", "60"], ["--epochs", "10", "--predict-context"]], ids=["labels", "context"]
)
def test_interrupted_and_resumed_equals_uninterrupted(more: list[str], treebank: str, tmp_path: Path) -> None:
    """Ctrl-C in a real process; the resumed run's history and weights are those of a run left alone."""
    small = ["--batch-size", "16", "--dim", "8", "--buckets", "50"]
    options = ["--data", treebank, *small, *more]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run("train", *options, "--out", str(whole))
    process = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "train", *options, "--out", str(broken)],
        # Tests that run in the background inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.returncode == 130
    assert (broken / "checkpoint" / "last.safetensors").exists()
    assert not (broken / "report.json").exists()
    run("train", "--resume", "--out", str(broken))
    timed = {"step_ms", "train_seconds"}
    histories = [
        [
            {key: value for key, value in json.loads(line).items() if key not in timed}
            for line in (folder / "history.jsonl").read_text().splitlines()
        ]
        for folder in (whole, broken)
    ]
    assert histories[0] == histories[1]
    assert (whole / "vectors.txt").read_bytes() == (broken / "vectors.txt").read_bytes()


def test_text_has_no_main_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "raw.txt"
    path.write_text("a line of words\n" * 40, encoding="utf-8")
    assert "label" in fails(capsys, "train", "--data", f"text:{path}", "--out", str(tmp_path / "out"))


def test_diverging_run_names_task_and_step(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = fails(capsys, "train", "--data", treebank, "--out", str(tmp_path / "out"), *QUICK, "--lr", "1e30")
    assert "upos" in error
    assert "step" in error


def test_a_csv_run_with_kinds_can_be_resumed(tmp_path: Path) -> None:
    rows = [
        f"{'good' if i % 2 else 'bad'} film {i % 7},{'pos' if i % 2 else 'neg'},{i % 5}.5" for i in range(100)
    ]
    (tmp_path / "r.csv").write_text("text,mood,rating\n" + "\n".join(rows) + "\n")
    out = tmp_path / "out"
    data = ["--data", f"csv:{tmp_path / 'r.csv'}", "--main", "mood", "--aux", "rating:regression"]
    run("train", *data, "--out", str(out), *QUICK_DOCUMENTS)
    before = (out / "vectors.txt").read_bytes()
    run("train", "--resume", "--out", str(out))
    assert (out / "vectors.txt").read_bytes() == before


def test_a_new_run_leaves_nothing_of_the_old_one_to_resume(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run("train", "--data", treebank, "--out", str(out), *QUICK)
    capsys.readouterr()
    assert "upos" in fails(capsys, "train", "--data", treebank, "--out", str(out), *QUICK, "--lr", "1e30")
    assert not (out / "report.json").exists()
    assert not (out / "checkpoint" / "last.safetensors").exists()


def test_the_report_says_who_took_the_steps(treebank: str, tmp_path: Path) -> None:
    run("train", "--data", treebank, "--backward", "autograd", "--out", str(tmp_path / "out"), *QUICK)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for phase in report["phases"]:
        assert phase["engine"] == "eager"
        assert phase["passed_over"]
        assert all(phase["passed_over"].values())
    for name, reason in report["phases"][0]["passed_over"].items():
        assert f"not {name}: {reason}" in (tmp_path / "out" / "report.md").read_text()


def test_fused_backward_passes_are_within_reach(treebank: str, tmp_path: Path) -> None:
    run("train", "--data", treebank, "--backward", "fused", "--out", str(tmp_path / "out"), *QUICK)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["config"]["backward"] == "fused"
    assert report["main"]["test"] > 0.9


def test_names_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "[" / "old]"  # "[/old]" would close a tag
    folder.mkdir(parents=True)
    rows = "".join(f"good film {i % 7},{i % 3}\n" for i in range(60))
    (folder / "s.csv").write_text("text,stars[/5]\n" + rows)
    out = tmp_path / "[" / "bold]"
    run("train", "--data", f"csv:{folder / 's.csv'}", "--out", str(out), *QUICK_DOCUMENTS)
    shown = "".join(capsys.readouterr().out.split())
    assert "stars[/5]" in shown
    assert "[/bold]" in shown
    assert "stars[/5]" in (out / "report.md").read_text()

"""The command line: what each command writes, and one line for everything that cannot be used."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gensim.models import KeyedVectors

from mt2st_fast.cli import main
from mt2st_fast.data import TokenStream
from mt2st_fast.training.schedules import strategies
from mt2st_fast.words.vectors import WordVectors

WORDS = {
    "the": "DET",
    "a": "DET",
    "dog": "NOUN",
    "cats": "NOUN",
    "tree": "NOUN",
    "runs": "VERB",
    "saw": "VERB",
}
FILES = (
    "report.json",
    "report.md",
    "curves.png",
    "history.jsonl",
    "vectors.txt",
    "checkpoint/last.safetensors",
)
QUICK = [
    "--epochs",
    "10",
    "--lr",
    "0.02",
    "--batch-size",
    "64",
    "--dim",
    "8",
    "--hidden",
    "16",
    "--buckets",
    "50",
]


@pytest.fixture
def treebank(tmp_path: Path) -> str:
    """A small CoNLL-U file whose tags follow from the words."""
    chance = random.Random(0)
    sentences = []
    for _ in range(120):
        words = [chance.choice(list(WORDS)) for _ in range(6)]
        lines = [
            f"{i}\t{w}\t{w}\t{WORDS[w]}\tX{WORDS[w]}\tNumber={'Plur' if w.endswith('s') else 'Sing'}\t0\troot\t_\t_"
            for i, w in enumerate(words, 1)
        ]
        sentences.append("\n".join(lines))
    path = tmp_path / "tiny.conllu"
    (tmp_path / "tiny.vec").write_text("dog 1 2 3\n", encoding="utf-8")
    path.write_text("\n\n".join(sentences) + "\n\n", encoding="utf-8")
    return f"conllu:{path}"


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("mt2st-fast: ")
    assert error.count("\n") == 1, error
    return error


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 0


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
    expected = {"stl": [["upos"]], "mtl": [everything]}
    assert active == expected.get(strategy, [everything, ["upos"]])
    assert (report["tasks"]["xpos"]["retired_at_step"] is None) == (strategy == "mtl")


def test_vectors_load_in_gensim(treebank: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("train", "--data", treebank, "--out", str(out), *QUICK)
    vectors = KeyedVectors.load_word2vec_format(str(out / "vectors.txt"))
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


def test_compare_writes_a_table_of_all_strategies(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run("compare", "--data", treebank, "--label-fraction", "0.3", "--seeds", "2", "--out", str(out), *QUICK)
    comparison = json.loads((out / "compare.json").read_text())
    assert list(comparison["strategies"]) == ["stl", "mtl", "diminish", "switch"]
    for name, strategy in comparison["strategies"].items():
        assert len(strategy["seeds"]) == 2
        assert strategy["best_median"] >= comparison["target"]
        assert strategy["steps_to_target_median"] <= strategy["steps_median"]
        assert set(comparison["reductions"][name]) >= {"vs_stl", "vs_mtl"}
    assert comparison["reductions"]["stl"]["vs_stl"] == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in comparison["strategies"])
    assert (out / "compare.md").exists()
    assert (out / "compare.png").exists()


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
        *QUICK,
    )
    report = json.loads((out / "report.json").read_text())
    assert {name: task["metric"] for name, task in report["tasks"].items()} == {
        "mood": "accuracy",
        "rating": "r2",
        "tags": "micro_f1",
    }
    assert report["main"]["test"] > 0.9


def test_interrupted_and_resumed_equals_uninterrupted(treebank: str, tmp_path: Path) -> None:
    """Ctrl-C in a real process; the resumed run's history and weights are those of a run left alone."""
    options = ["--data", treebank, "--epochs", "60", "--batch-size", "16", "--dim", "8", "--buckets", "50"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run("train", *options, "--out", str(whole))
    process = subprocess.Popen([sys.executable, "-m", "mt2st_fast", "train", *options, "--out", str(broken)])
    checkpoint = broken / "checkpoint" / "last.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
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


def test_info_names_backends_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    run("info")
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("numba", "reference", "chunked", "tile", "torch"))


def test_kernels_compiles_ahead_of_time(capsys: pytest.CaptureFixture[str]) -> None:
    run("kernels", "--compile", "sm_90")
    assert "0 with spills" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["train", "--data", "conllu:/nowhere/at/all"], ["/nowhere/at/all"]),
        (["train", "--data", "parquet:x"], ["parquet", "conllu", "stdlib"]),
        (["train", "--data", "TREEBANK", "--main", "mood"], ["mood", "upos"]),
        (["train", "--data", "TREEBANK", "--aux", "xpos,mood"], ["mood", "xpos"]),
        (["train", "--data", "TREEBANK", "--main", "upos", "--aux", "upos"], ["upos", "auxiliary"]),
        (["train", "--data", "TREEBANK", "--strategy", "magic"], ["magic", *strategies()]),
        (["train", "--data", "TREEBANK", "--backend", "cuda"], ["cuda", "numba", "triton"]),
        (["train", "--data", "TREEBANK", "--backend", "triton"], ["triton", "cpu"]),
        (["train", "--data", "TREEBANK", "--device", "tpu9"], ["tpu9"]),
        (["train", "--data", "TREEBANK", "--init", "OUT/none.txt"], ["OUT/none.txt"]),
        (["train", "--data", "TREEBANK", "--init", "OUT/tiny.vec"], ["OUT/tiny.vec", "3 numbers", "--dim 3"]),
        (["train", "--data", "TREEBANK", "--lr", "-1"], ["lr", "-1"]),
        (["train", "--data", "TREEBANK", "--epochs", "0"], ["epochs"]),
        (["train", "--data", "TREEBANK", "--precision", "int4"], ["int4", "bfloat16"]),
        (["train", "--data", "TREEBANK", "--switch-at", "2"], ["switch-at"]),
        (["train", "--data", "TREEBANK", "--label-fraction", "0"], ["fraction"]),
        (["train", "--batch-size", "many"], ["batch-size", "integer"]),
        (["train", "--colour", "red"], ["--colour"]),
        (["train", "--resume", "--out", "OUT/empty"], ["resume"]),
        (["train", "--data", "TREEBANK", "--out", "/proc/run"], ["/proc/run"]),
        (["compare", "--data", "TREEBANK", "--strategies", "stl,magic"], ["magic", "switch"]),
        (["prepare", "/nowhere/at/all", "--out", "OUT/t"], ["/nowhere/at/all"]),
        (["prepare", "OUT/tiny.conllu", "--out", "OUT"], ["OUT", "folder"]),
        (["prepare", "OUT/tiny.conllu", "--out", "/proc/t"], ["/proc"]),
        (
            ["prepare", "OUT/tiny.conllu", "--out", "OUT/t", "--min-count", "999999"],
            ["999999", "most frequent"],
        ),
        (["prepare", "OUT/tiny.conllu", "--out", "OUT/t", "--min-count", "0"], ["min-count"]),
        (["prepare", "OUT/tiny.conllu"], ["--out"]),
        (["kernels", "--compile", "sm_90,z80"], ["z80", "sm_"]),
        (["dance"], ["dance"]),
    ],
)
def test_bad_input_gets_one_line(
    arguments: list[str], names: list[str], treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [a.replace("TREEBANK", treebank).replace("OUT", str(tmp_path)) for a in arguments]
    if arguments[0] in ("train", "compare") and "--out" not in filled:
        filled += ["--out", str(tmp_path / "out")]
    error = fails(capsys, *filled)
    for name in names:
        assert name.replace("OUT", str(tmp_path)) in error
    left = (
        [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        if (tmp_path / "out").exists()
        else []
    )
    assert left == []


def test_prepare_writes_a_token_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.txt").write_text("The cat saw the dog\nA dog saw\n")
    run(
        "prepare",
        str(tmp_path / "x.txt"),
        "--out",
        str(tmp_path / "new" / "t"),
        "--lower",
        "--min-count",
        "2",
    )
    tokens = TokenStream.open(tmp_path / "new" / "t")
    assert [tokens.vocabulary.words[t] for t in tokens.ids] == ["the", "saw", "the", "dog", "dog", "saw"]
    assert tokens.bounds.tolist() == [0, 4, 6]
    shown = " ".join(capsys.readouterr().out.split())
    assert "6 tokens in 2 sentences, 3 word types; 2 rarer types (2 tokens) left out" in shown


def test_malformed_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.conllu"
    path.write_text("1\tA\ta\tDET\tDT\t_\t0\troot\t_\t_\n2\tdog\tdog\n\n", encoding="utf-8")
    assert f"{path}:2" in fails(capsys, "train", "--data", f"conllu:{path}", "--out", str(tmp_path / "out"))


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


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mt2st_fast", "train", "--strategy", "magic", "--out", os.devnull],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_csv_run_with_kinds_can_be_resumed(tmp_path: Path) -> None:
    rows = [
        f"{'good' if i % 2 else 'bad'} film {i % 7},{'pos' if i % 2 else 'neg'},{i % 5}.5" for i in range(100)
    ]
    (tmp_path / "r.csv").write_text("text,mood,rating\n" + "\n".join(rows) + "\n")
    out = tmp_path / "out"
    data = ["--data", f"csv:{tmp_path / 'r.csv'}", "--main", "mood", "--aux", "rating:regression"]
    run("train", *data, "--out", str(out), *QUICK)
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


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--floor", "0"], ["floor", "diminish"]),
        (["--aux-weight", "0"], ["aux-weight"]),
        (["--switch-at", "0"], ["switch-at"]),
        (["--seed", "-1"], ["seed"]),
        (["--epochs", "inf"], ["epochs"]),
    ],
)
def test_compare_refuses_before_it_trains(
    options: list[str], names: list[str], treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = fails(capsys, "compare", "--data", treebank, "--out", str(tmp_path / "out"), *QUICK, *options)
    assert all(name in error for name in names)


def test_info_shows_what_a_forced_backend_cannot_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MT2ST_BACKEND", "numba")
    run("info")
    assert "honoured" in capsys.readouterr().out

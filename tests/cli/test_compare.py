"""`mt2st-fast compare`: a table of all strategies, and what is refused before anything trains."""

from __future__ import annotations

import importlib
import json
import random
from pathlib import Path

import pytest

from mt2st_fast.runs.comparison_options import ComparisonOptions
from mt2st_fast.runs.comparison_state import FILE as STATE_FILE
from mt2st_fast.runs.comparison_state import ComparisonState
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.experiment import Experiment
from tests.cli.running import QUICK, fails, run


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


def test_the_table_of_a_terminal_is_whole(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In 80 columns, with a target that nobody reaches."""
    options = [
        *QUICK,
        "--epochs",
        "1",
        "--seeds",
        "1",
        "--target",
        "1",
        "--lr",
        "1e-9",
        "--strategies",
        "stl,diminish-switch",
    ]
    run("compare", "--data", treebank, *options, "--out", str(tmp_path))
    shown = capsys.readouterr().out
    assert "is finished, so there is nothing to resume" in fails(
        capsys, "compare", "--resume", "--out", str(tmp_path)
    )
    assert shown.count("0 of 1") == 4
    assert "…" not in shown
    assert "nothing can be concluded" in shown


def test_the_runs_of_a_stopped_comparison_are_not_lost_by_a_forgotten_resume(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "an out"
    out.mkdir()
    stopped = ComparisonState(Config(data=treebank), ComparisonOptions(strategies=("stl", "mtl"), seeds=2))
    stopped.runs["stl"] = [{"seed": 1}]
    stopped.write(out)
    before = (out / STATE_FILE).read_bytes()
    asked = ["compare", "--data", treebank, *QUICK, "--strategies", "stl", "--seeds", "1", "--out", str(out)]
    error = fails(capsys, *asked)
    assert "stopped with 1 of 4 runs done, which would be lost: go on with --resume" in error
    assert f"remove '{out / STATE_FILE}'" in error  # as a shell takes a path with a blank
    assert (out / STATE_FILE).read_bytes() == before
    stopped.runs.clear()
    stopped.write(out)
    run(*asked)


@pytest.mark.usefixtures("one_thread")
def test_compare_shows_all_that_it_was_asked_for(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both engines, tuned, with early stopping, a target and a margin of one's own, over three seeds."""
    out = tmp_path / "out"
    options = [
        *QUICK,
        "--seeds",
        "3",
        "--strategies",
        "stl,switch",
        "--switch-at",
        "0.5",
        "--label-fraction",
        "0.2",
    ]
    options += [
        "--main-share",
        "0.5",
        "--engine",
        "fused,torch",
        "--tune",
        "2",
        "--patience",
        "3",
        "--min-delta",
        "0.01",
    ]
    options += ["--main-share", "0.5", "--target", "0.5", "--plateau-margin", "0.05"]
    run("compare", "--data", treebank, *options, "--aux", "xpos", "--out", str(out))
    comparison = json.loads((out / "compare.json").read_text())
    assert list(comparison["strategies"]) == ["stl", "switch", "stl (torch)", "switch (torch)"]
    assert comparison["engines"] == ["fused", "torch"]
    assert list(comparison["targets"]) == ["given", "stl_best"]
    assert (comparison["target"], comparison["plateau_margin"]) == (0.5, 0.05)
    for name, strategy in comparison["strategies"].items():
        assert [seed["seed"] for seed in strategy["seeds"]] == [1, 2, 3], name
        # Of 64 rows half have a main label; the others are not read without the tasks.
        for seed in strategy["seeds"]:
            switched_after = 45 if "switch" in name else 0
            assert seed["examples"] == 32 * seed["steps"] + 32 * min(seed["steps"], switched_after)
        for seed in strategy["seeds"]:
            assert (seed["stopped"] is not None) == (seed["steps"] < 90)
        assert strategy["stopped"] > 0
    # Tuned on a seed that no result is of, and with the same values on both engines.
    tuning = comparison["tuning"]
    assert (tuning["seed"], tuning["trials"], tuning["fixed"]) == (4, 2, ["lr", "switch_at"])
    assert list(tuning["ranges"]) == ["aux_weight"]
    assert list(tuning["strategies"]) == ["switch"]  # all that stl takes is given
    first, second = (trial["values"]["aux_weight"] for trial in tuning["strategies"]["switch"]["trials"])
    assert first == 1.0 != second
    assert 0.1 <= second <= 3.0
    assert len(comparison["verdicts"]) == 4
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "tuned stl: nothing to tune, all of its options are set",
        "tuned switch: aux_weight ",
        "3 seeds; 95 % intervals",
    ):
        assert words in shown
    for file in ("compare.md", "report.html"):
        text = (out / file).read_text()
        for words in ("To the target: 0.5 (given)", "To the plateau", "What the engine saves", "Tuning", "aux_weight",
                      "switch (torch)", "ended early, after 3 evaluations without an improvement of more than 0.01",
                      "energy is not measured", "examples"):  # fmt: skip
            assert words in text.replace("Runs ended", "ended"), (file, words)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--engine", "tensorflow"], ["tensorflow", "fused, torch"]),
        (["--engine", ""], ["--engine is empty", "fused, torch"]),
        (["--engine", "torch,torch"], ["--engine names torch twice"]),
        (["--engine", "torch", "--backend", "numba"], ["--backend", "torch"]),
        (["--engine", "fused,torch", "--backward", "fused"], ["--backward", "torch"]),
        (["--tune", "1"], ["--tune 1", "2 or more"]),
        (["--tune", "3", "--strategies", "stl"], ["--tune 3", "lr"]),
        (["--tune", "-1"], ["tune"]),
        (["--plateau-margin", "0"], ["--plateau-margin"]),
        (["--target", "nan"], ["--target"]),
        (["--target", "90"], ["--target must be at most 1", "90 % is 0.9"]),
        (["--min-delta", "0.1"], ["min_delta", "patience"]),
        (["--floor", "0"], ["floor", "diminish"]),
        (["--aux-weight", "0"], ["aux-weight"]),
        (["--switch-at", "0"], ["switch-at"]),
        (["--seed", "-1"], ["seed"]),
        (["--epochs", "inf"], ["epochs"]),
        (["--strategies", "stl,adatask", "--clip-norm", "1"], ["AdaTask", "rules out --clip-norm"]),
    ],
)
def test_compare_refuses_before_it_trains(
    options: list[str], names: list[str], treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = fails(capsys, "compare", "--data", treebank, "--out", str(tmp_path / "out"), *QUICK, *options)
    assert all(name in error for name in names)
    assert not (tmp_path / "out").exists() or not [*(tmp_path / "out").iterdir()]


def test_every_arm_is_warmed_up_before_any_is_timed(
    treebank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading kernels and starting threads took the first run of a process a second."""
    done, warm_up, train = [], Experiment.warm_up, Experiment.run
    monkeypatch.setattr(
        Experiment, "warm_up", lambda own: done.append(f"warm {own.config.strategy}") or warm_up(own)
    )
    monkeypatch.setattr(
        Experiment, "run", lambda own, *given: done.append(own.config.strategy) or train(own, *given)
    )
    options = [*QUICK, "--epochs", "1", "--strategies", "stl,mtl", "--seeds", "1"]
    run("compare", "--data", treebank, *options, "--out", str(tmp_path))
    assert done == ["warm stl", "warm mtl", "stl", "mtl"]


def test_energy_stands_beside_seconds_where_it_is_measured(
    treebank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joules = iter(range(10**6))
    found = (lambda: next(joules)), "energy is counted"
    for module in ("mt2st_fast.cli.compare", "mt2st_fast.cli.comparison_runner"):
        monkeypatch.setattr(importlib.import_module(module), "energy_counter", lambda device: found)
    run(
        "compare",
        "--data",
        treebank,
        *QUICK,
        "--strategies",
        "stl,mtl",
        "--seeds",
        "1",
        "--out",
        str(tmp_path),
    )
    comparison = json.loads((tmp_path / "compare.json").read_text())
    for strategy in comparison["strategies"].values():
        (seed,) = strategy["seeds"]
        assert strategy["joules_median"] == seed["curve"][-1]["joules"] > 0
        measured = [point["joules"] for point in seed["curve"]]
        assert measured == sorted(measured)
        assert strategy["to"]["common"]["joules"]["median"] in measured
    text = (tmp_path / "compare.md").read_text()
    assert "energy is counted" in text
    assert "| examples | joules |" in text


def test_tags_of_spans_are_also_counted_as_spans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As train and test count them; only where the classes are such tags, and runs are not judged by it anyway."""
    chance = random.Random(0)
    words = {"the": ("D", "B-NP"), "dog": ("N", "I-NP"), "sees": ("V", "B-VP"), "up": ("R", "O")}
    sentences = [[chance.choice(list(words)) for _ in range(6)] for _ in range(150)]
    lines = ["\n".join(" ".join((word, *words[word])) for word in sentence) for sentence in sentences]
    (tmp_path / "tagged.txt").write_text("\n\n".join(lines) + "\n")
    asked = ["--data", f"columns:{tmp_path / 'tagged.txt'}", *QUICK, "--epochs", "1"]
    chunks, parts_of_speech = (
        ["--main", main, "--aux", aux] for main, aux in (("col2", "col1"), ("col1", "col2"))
    )
    run("train", *asked, *chunks, "--strategy", "mtl", "--against", "stl", "--out", str(tmp_path / "train"))
    score = json.loads((tmp_path / "train" / "report.json").read_text())["score"]
    assert "| test, span F1 |" in (tmp_path / "train" / "report.md").read_text()
    seeds = ["--strategies", "stl,mtl", "--seeds", "1"]
    run("compare", *asked, *chunks, *seeds, "--out", str(tmp_path / "chunks"))
    found = json.loads((tmp_path / "chunks" / "compare.json").read_text())["strategies"]["mtl"]
    assert found["test_span_f1_median"] == found["seeds"][0]["test_span_f1"] == score["spans"]["f1"]
    assert found["test_median"] == pytest.approx(score["value"]) != score["spans"]["f1"]
    assert "span F1" in capsys.readouterr().out
    told = (tmp_path / "chunks" / "compare.md").read_text()
    assert f"| {found['test_median']:.4f}" in told
    assert "| test, span F1 |" in told
    for name, options in (("other", parts_of_speech), ("judged", [*chunks, "--metric", "span_f1"])):
        run("compare", *asked, *options, *seeds, "--out", str(tmp_path / name))
        assert "span F1" not in (tmp_path / name / "compare.md").read_text()

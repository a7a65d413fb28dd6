"""--against: another strategy trains beside a run, and the report says what was saved."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from mt2st_fast.cli import main
from mt2st_fast.cli.signals import StoppingOnSignals
from mt2st_fast.runs.baseline_run import against_baseline, sentence
from mt2st_fast.runs.config import NONE, Config
from mt2st_fast.training.schedules import SingleTask
from tests.cli.running import QUICK, fails, run


def of_curve(*points: tuple[int, float, float]) -> dict[str, object]:
    """A run whose evaluations are (step, seconds, quality)."""
    curve = [{"step": step, "seconds": seconds, "quality": quality} for step, seconds, quality in points]
    return {"best": max(p[2] for p in points), "test": 0.5, "seconds": points[-1][1], "curve": curve}


def test_the_target_is_the_best_of_the_other_strategy() -> None:
    runs = {
        "switch": of_curve((10, 1.0, 0.6), (20, 2.0, 0.9)),
        "stl": of_curve((10, 0.5, 0.4), (20, 1.0, 0.7), (90, 8.0, 0.8)),
    }
    found = against_baseline("switch", runs)  # type: ignore[arg-type]
    assert found["target"] == 0.8
    assert [found["runs"][name]["at_target"]["step"] for name in runs] == [20, 90]
    said = sentence(found, "accuracy")
    assert "after 2.00 s and 20 steps, stl after 8.00 s and 90: 75% less time" in said
    other = sentence(against_baseline("stl", runs), "accuracy")  # type: ignore[arg-type]
    assert "stl did not reach the best development accuracy of switch (0.9000)" in other


def test_the_default_corpus_is_held_against_stl() -> None:
    assert Config().held_against() == "stl"
    assert Config(against=NONE).held_against() is None
    assert Config(against="mtl").held_against() == "mtl"
    assert Config(strategy="stl").held_against() is None
    assert Config(data="conllu:x").held_against() is None
    assert Config(data="conllu:x", against="stl").held_against() == "stl"


def test_the_report_has_both_runs(treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    options = ["--data", treebank, *QUICK, "--aux", "xpos"]
    run("train", *options, "--out", str(alone))
    run("train", *options, "--out", str(both), "--against", "stl")
    shown = " ".join(capsys.readouterr().out.split())
    report = json.loads((both / "report.json").read_text())
    against = report["against"]
    assert list(against["runs"]) == ["switch", "stl"]
    assert against["runs"]["switch"]["best"] == report["main"]["best"]
    assert sentence(against, "accuracy") in shown
    assert sentence(against, "accuracy") in (both / "report.md").read_text()
    page = (both / "report.html").read_text()
    assert sentence(against, "accuracy") in page
    assert page.index("Against stl") < page.index("Curves")  # what was saved is what is seen first
    assert (both / "against.png").stat().st_size > 0
    # The run itself is the one that there would have been alone.
    assert (alone / "vectors.txt").read_bytes() == (both / "vectors.txt").read_bytes()
    assert json.loads((alone / "report.json").read_text())["against"] is None
    assert not (alone / "against.png").exists()
    run("train", "--resume", "--epochs", "12", "--out", str(both))  # both go on
    longer = json.loads((both / "report.json").read_text())["against"]
    assert longer["runs"]["stl"]["curve"][-1]["step"] > against["runs"]["stl"]["curve"][-1]["step"]
    run("train", *options, "--out", str(both))  # nothing of an earlier comparison stays
    assert not (both / "against.png").exists()


def test_a_run_stopped_while_the_other_trains_is_whole(
    treebank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted_when_alone(self: StoppingOnSignals, trainer: Any) -> None:
        if isinstance(trainer.schedule, SingleTask):
            self.received.append(signal.SIGINT)
            trainer.stop_requested = True

    monkeypatch.setattr(StoppingOnSignals, "on_step", interrupted_when_alone)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data", treebank, *QUICK, "--against", "stl", "--out", str(out), "--aux", "xpos"])
    assert stop.value.code == 130
    assert "of stl, to compare. The run itself is complete" in " ".join(capsys.readouterr().out.split())
    report = json.loads((out / "report.json").read_text())
    assert (report["steps"], report["against"]) == (90, None)
    run("predict", str(out), str(Path(treebank.removeprefix("conllu:"))), "--out", str(tmp_path / "tagged"))


@pytest.mark.parametrize(("against", "words"), [("switch", "the run's own strategy"), ("slt", "slt")])
def test_what_cannot_run_beside_is_refused(
    against: str, words: str, treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in fails(capsys, "train", "--data", treebank, "--against", against, "--out", str(tmp_path))
    assert not (tmp_path / "config.json").exists()

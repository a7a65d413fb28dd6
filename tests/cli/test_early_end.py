"""--patience: a run ends at its plateau, its report says so, and it is over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.running import QUICK, fails, run

ENDING = ["--evaluations", "10", "--patience", "2", "--min-delta", "0.5"]


def test_train_ends_at_the_plateau_and_says_so(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run("train", "--data", treebank, *QUICK, *ENDING, "--out", str(out))
    shown = " ".join(capsys.readouterr().out.split())
    report = json.loads((out / "report.json").read_text())
    assert report["stopped"].startswith("upos has not risen by more than 0.5 in 2 evaluations")
    assert 0 < report["steps"] < 90
    said = f"Ended early: {report['stopped']}. It never trained upos alone: xpos, deprel"  # and others
    for text in (shown, (out / "report.md").read_text(), (out / "report.html").read_text()):
        assert said in text
    run("train", "--resume", "--out", str(out))  # it is over: nothing is trained again
    again = json.loads((out / "report.json").read_text())
    assert (again["steps"], again["main"]) == (report["steps"], report["main"])


@pytest.mark.parametrize("options", [["--strategy", "mtl"], ["--switch-at", "0"]])
def test_a_run_that_has_no_switch_or_is_past_it_does_not_miss_it(
    options: list[str], treebank: str, tmp_path: Path
) -> None:
    run("train", "--data", treebank, *QUICK, *ENDING, *options, "--out", str(tmp_path))
    text = (tmp_path / "report.md").read_text()
    assert "Ended early: " in text
    assert "It never trained" not in text


def test_a_run_without_patience_goes_to_its_end(treebank: str, tmp_path: Path) -> None:
    run("train", "--data", treebank, *QUICK, "--out", str(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["steps"], report["stopped"]) == (90, None)
    assert "Ended early" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--min-delta", "0.1"], ["min_delta 0.1", "patience"]),
        (["--patience", "0"], ["patience"]),
        (["--patience", "2", "--min-delta", "-1"], ["min-delta"]),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: list[str], words: list[str], treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = fails(capsys, "train", "--data", treebank, *options, "--out", str(tmp_path))
    for word in words:
        assert word in error

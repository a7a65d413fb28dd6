"""Commands that were stopped go on, with their own options, and one at a time writes to a folder."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path

import pytest

from mt2st_fast.cli import main
from mt2st_fast.cli.comparison_runner import ComparisonRunner
from mt2st_fast.cli.signals import StoppingOnSignals
from mt2st_fast.folder_lock import holding
from mt2st_fast.runs.comparison_state import ComparisonState
from mt2st_fast.runs.tuning import Range
from mt2st_fast.training.divergence import NonFiniteLossError
from mt2st_fast.training.run import Run
from mt2st_fast.training.trainer import Trainer
from tests.cli.running import QUICK, fails, run

SMALL = [*QUICK, "--strategies", "stl,mtl", "--seeds", "2", "--epochs", "3"]


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch):
    """Sends this process a signal after so many steps of all runs together."""

    def arrange(steps: int, number: int) -> None:
        heed, taken = StoppingOnSignals.on_step, [0]

        def on_step(stopping, trainer):
            if trainer.step:  # not before the first
                taken[0] += 1
            if taken[0] == steps:
                os.kill(os.getpid(), number)
            heed(stopping, trainer)

        monkeypatch.setattr(StoppingOnSignals, "on_step", on_step)

    return arrange


def ends_with(code: int, *arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == code


def without_seconds(value):
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if "second" not in k and "vs_" not in k}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_comparison_that_was_stopped_goes_on_to_the_same_end(
    number: int, treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], stop_at
) -> None:
    straight, out = tmp_path / "straight", tmp_path / "out"
    judged = [*SMALL, "--target", "0.5"]
    run("compare", "--data", treebank, *judged, "--out", str(straight))
    stop_at(27 + 12, number)  # in the second of four runs
    ends_with(128 + number, "compare", "--data", treebank, *judged, "--out", str(out))
    shown = capsys.readouterr().out
    assert (
        "Stopped at step 12 of 27 of mtl, seed 1; 1 of 4 runs are done. Continue with: mt2st-fast compare --resume"
        in (" ".join(shown.split()))
    )
    assert not (out / "compare.json").exists()
    done = json.loads((out / "compare.progress.json").read_text())
    assert [run["seed"] for run in done["runs"]["stl"]] == [1]
    run("compare", "--resume", "--out", str(out))
    ours, theirs = (json.loads((folder / "compare.json").read_text()) for folder in (out, straight))
    assert list(ours["targets"]) == list(theirs["targets"])
    assert ours["target"] == 0.5
    assert without_seconds(ours["strategies"]) == without_seconds(theirs["strategies"])
    assert not (out / "compare.progress.json").exists()
    assert not (out / "checkpoint").exists()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("steps", [pytest.param(12, marks=pytest.mark.long), 27 * 3 + 5, 27 * 4 + 27 + 9])
def test_tuning_and_the_engines_after_it_go_on_as_well(
    steps: int, treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], stop_at
) -> None:
    """Stopped in the first trial, in the last one, and in a run of the second engine."""
    small = [option for option in SMALL if option not in ("--lr", "0.02")]
    small += ["--strategies", "stl,mtl", "--seeds", "1", "--tune", "2", "--engine", "torch,fused"]
    straight, out = tmp_path / "straight", tmp_path / "out"
    run("compare", "--data", treebank, *small, "--out", str(straight))
    stop_at(steps, signal.SIGTERM)
    ends_with(143, "compare", "--data", treebank, *small, "--out", str(out))
    done = json.loads((out / "compare.progress.json").read_text())
    assert sum(map(len, done["trials"].values())) == min(4, steps // 27)
    error = fails(capsys, "compare", "--resume", "--tune", "3", "--out", str(out))
    assert "--tune is 3" in error
    assert "has 2; leave it out" in error
    assert "--engine is fused" in fails(capsys, "compare", "--resume", "--engine", "fused", "--out", str(out))
    run("compare", "--resume", "--out", str(out))
    ours, theirs = (json.loads((folder / "compare.json").read_text()) for folder in (out, straight))
    assert ours["tuning"] == theirs["tuning"]
    assert without_seconds(ours["strategies"]) == without_seconds(theirs["strategies"])


def test_a_trial_that_diverges_is_none_to_choose(
    treebank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far_too_fast = {"lr": Range(1e37, 1e38, ratios=True)}
    monkeypatch.setattr("mt2st_fast.runs.tuning.ranges_of", lambda config, fixed: far_too_fast)
    small = [option for option in SMALL if option not in ("--lr", "0.02")]
    small += ["--strategies", "stl", "--seeds", "1", "--tune", "2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # overflows
        run("compare", "--data", treebank, *small, "--out", str(tmp_path))
    tuning = json.loads((tmp_path / "compare.json").read_text())["tuning"]["strategies"]["stl"]
    given, failed = tuning["trials"]
    assert "the loss of upos is" in failed["error"]
    assert (tuning["chosen"], given["error"]) == (0, None)
    assert "the loss of upos is" in (tmp_path / "compare.md").read_text()


def test_a_comparison_in_a_folder_that_is_written_to_is_refused(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with holding(tmp_path):
        assert "another run is writing" in fails(
            capsys, "compare", "--data", treebank, "--out", str(tmp_path)
        )
    assert not (tmp_path / "compare.progress.json").exists()


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_mistyped_folder_to_resume_is_named_and_not_made(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "typo"
    assert f"nothing to resume in {out}: no such folder" in fails(
        capsys, command, "--resume", "--out", str(out)
    )
    assert not out.exists()


def test_a_comparison_goes_on_with_its_own_options(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], stop_at
) -> None:
    out = str(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "no comparison to resume" in fails(capsys, "compare", "--resume", "--out", str(tmp_path / "empty"))
    stop_at(5, signal.SIGTERM)
    ends_with(143, "compare", "--data", treebank, *SMALL, "--out", out)
    capsys.readouterr()
    for flag, value, then in (
        ("--lr", "0.5", "0.02"), ("--epochs", "9", "3.0"), ("--seeds", "3", "2"), ("--strategies", "stl", "stl,mtl"),
    ):  # fmt: skip
        error = fails(capsys, "compare", "--resume", flag, value, "--out", out)
        assert flag in error
        assert f"has {then}; leave it out" in error
    path = Path(treebank.partition(":")[2])
    before = path.read_text()
    for old, new in (("XNOUN", "XVERB"), ("\tdog\t", "\tdogs\t")):
        path.write_text(before.replace(old, new))
        assert "has changed since the comparison began" in fails(capsys, "compare", "--resume", "--out", out)
    (tmp_path / "out/compare.progress.json").write_text("{}")
    assert "is damaged" in fails(capsys, "compare", "--resume", "--out", out)


@pytest.mark.parametrize("command", [["train"], ["compare", "--strategies", "stl", "--seeds", "1"]])
def test_minutes_between_checkpoints_are_handed_on(
    command: list[str], treebank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds, fit = [], Trainer.fit
    monkeypatch.setattr(
        Trainer,
        "fit",
        lambda *args, **options: seconds.append(options["checkpoint_seconds"]) or fit(*args, **options),
    )
    arguments = [*command, "--data", treebank, *QUICK, "--epochs", "1"]
    run(*arguments, "--out", str(tmp_path / "a"))
    run(*arguments, "--checkpoint-every", "0.5", "--out", str(tmp_path / "b"))
    assert seconds == [600, 30]


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_comparison_that_diverges_names_the_run(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = fails(capsys, "compare", "--data", treebank, *SMALL, "--lr", "1e38", "--out", str(tmp_path / "o"))
    assert "mt2st-fast: stl, seed 1: " in error
    for part in ("upos", "at step", "in epoch", "at a rate of", "lower lr (1e+38)"):
        assert part in error


def test_a_run_that_diverges_costs_the_others_no_report(
    treebank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_one, done = ComparisonRunner._run, []

    def diverging(self, config, splits, label, resumes):
        done.append(label)
        if label == "mtl, seed 2":
            raise NonFiniteLossError(f"{label}: the loss of upos is nan at step 3")
        return run_one(self, config, splits, label, resumes)

    monkeypatch.setattr(ComparisonRunner, "_run", diverging)
    out = tmp_path / "out"
    arguments = ["--strategies", "stl,mtl", "--seeds", "3", "--out", str(out)]
    run("compare", "--data", treebank, *SMALL, *arguments)
    assert "mtl, seed 2: the loss of upos is nan at step 3; the other runs go on" in capsys.readouterr().out
    assert done[-2:] == ["stl, seed 3", "mtl, seed 3"]
    comparison = json.loads((out / "compare.json").read_text())
    assert comparison["n_seeds"] == 2
    for strategy in comparison["strategies"].values():
        assert [seed["seed"] for seed in strategy["seeds"]] == [1, 3]
    said = (
        "Seed 2 is left out for all strategies, as a run of it diverged: mtl, seed 2: the loss of upos is nan"
    )
    assert said in (out / "compare.md").read_text()
    assert said in (out / "report.html").read_text()


def test_a_run_goes_on_with_its_own_options_and_more_epochs(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    run("train", "--data", treebank, *QUICK, "--epochs", "2", "--strategy", "diminish", "--out", out)
    schedule = json.loads((tmp_path / "out/report.json").read_text())["phases"]
    for flag, value, then in (("--lr", "0.01", "0.02"), ("--nu", "2", "None"), ("--dim", "16", "8")):
        error = fails(capsys, "train", "--resume", flag, value, "--out", out)
        assert flag in error
        assert f"has {then}; leave it out" in error
    error = fails(capsys, "train", "--resume", "--epochs", "1", "--out", out)
    assert "use --epochs 2 or more, or start a new run without --resume" in error
    run("train", "--resume", "--epochs", "4", "--lr", "0.02", "--out", out)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["steps"] == 36
    # The decay is the one that was found for two epochs: tasks retire where they did.
    assert [phase["first_step"] for phase in report["phases"]] == [phase["first_step"] for phase in schedule]
    assert json.loads((tmp_path / "out/config.json").read_text())["epochs"] == 4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("XNOUN", "XVERB"),
        ("\tdog\t", "\tdogs\t"),
        ("\n\n", "\n\n1\tdog\tdog\tNOUN\tXNOUN\t_\t0\troot\t_\t_\n\n"),
    ],
)  # a label, a word, a sentence
def test_changed_data_is_said_to_have_changed(
    old: str, new: str, treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["train", "--data", treebank, *QUICK, "--epochs", "1", "--out", str(tmp_path / "out")]
    run(*asked)
    path = Path(treebank.partition(":")[2])
    path.write_text(path.read_text().replace(old, new))
    error = fails(capsys, "train", "--resume", "--epochs", "2", "--out", str(tmp_path / "out"))
    assert error.endswith(
        f"{treebank} has changed since the run began; restore the data, or train again without --resume\n"
    )


def test_a_run_that_ended_early_is_not_trained_again_where_its_result_was_lost(
    treebank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the last step of a run that had come to its plateau, before that was noted."""
    early = [*SMALL, "--seeds", "1", "--patience", "1", "--min-delta", "0.9"]
    straight, out = tmp_path / "straight", tmp_path / "out"
    run("compare", "--data", treebank, *early, "--out", str(straight))
    with monkeypatch.context() as patched:
        patched.setattr(ComparisonState, "end_run", lambda own, folder, result: sys.exit(1))
        ends_with(1, "compare", "--data", treebank, *early, "--out", str(out))
    taken, step = [], Run.step
    monkeypatch.setattr(Run, "step", lambda own: taken.append(own.total_steps) or step(own))
    run("compare", "--resume", "--out", str(out))
    ours, theirs = (json.loads((folder / "compare.json").read_text()) for folder in (out, straight))
    assert without_seconds(ours["strategies"]) == without_seconds(theirs["strategies"])
    of_stl, of_mtl = (ours["strategies"][name]["seeds"][0] for name in ("stl", "mtl"))
    assert "has not risen by more than 0.9" in of_stl["stopped"]
    assert of_stl["steps"] < 27
    assert taken.count(27) == of_mtl["steps"]  # none of stl's; warming up has runs of its own

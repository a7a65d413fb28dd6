"""Whole jobs on a CPU with tiny inputs: their records, and that a failing one does not affect the others."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch
import typer

from bench import jobs, ledger
from bench.environment import describe
from bench.jobs import Sizes, run_supervised, run_train, run_words

CPU = torch.device("cpu")
TINY = Sizes(documents=300, test_documents=50, words=4000, types=100)


def test_supervised_is_timed_by_its_own_clock_and_scored(tmp_path):
    (made,) = run_supervised(describe(), CPU, tmp_path, TINY)
    assert (made["suite"], made["case"], made["peer"]) == ("jobs", "train_supervised", "ours on cpu")
    assert made["value"] == pytest.approx(300 * 40 * 5 / made["train_seconds"], rel=0.1)
    assert 0 < made["train_seconds"] <= made["call_seconds"]
    assert 0 <= made["quality"] <= 1


def test_words_are_counted_over_all_epochs(tmp_path):
    (made,) = run_words(describe(), CPU, tmp_path, TINY)
    assert made["value"] == pytest.approx(4000 * 5 / made["train_seconds"], rel=0.01)
    assert len(made["losses"]) == 5


def test_the_report_of_train_becomes_a_record(tmp_path, monkeypatch):
    asked = []

    def run(command, **_):
        asked.append(command)
        out = tmp_path / "train"
        out.mkdir()
        report = {
            "data": {"name": "ewt"}, "steps": 9, "tokens_per_second": 1e6, "train_seconds": 2.0,
            "main": {"test": 0.94, "metric": "accuracy"},
            "phases": [{"first_step": 1, "active": ["a"], "engine": "e", "step_ms_median": 0.5}],
        }  # fmt: skip
        (out / "report.json").write_text(json.dumps(report))
        return subprocess.CompletedProcess(command, 0, "", "")

    environment = describe()  # runs git
    monkeypatch.setattr(subprocess, "run", run)
    (made,) = run_train(environment, CPU, tmp_path, tmp_path, 5.0)
    assert f"conllu:{tmp_path.resolve()}" in asked[0]
    assert (made["value"], made["quality"], made["shape"]) == (1e6, 0.94, "ewt, 9 steps")
    assert made["phases"] == [{"active": ["a"], "engine": "e", "step_ms_median": 0.5}]


def test_a_train_that_fails_names_its_last_line(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 2, "", "trace\nno such corpus\n")
    environment = describe()
    monkeypatch.setattr(subprocess, "run", lambda command, **_: failed)
    with pytest.raises(RuntimeError, match="no such corpus"):
        list(run_train(environment, CPU, None, tmp_path, 5.0))


def test_a_job_that_breaks_leaves_the_others_alone(tmp_path, capsys):
    def broken():
        raise RuntimeError("no kernel")
        yield

    def fine():
        yield ledger.make_value(describe(), "jobs", "x", "", "ours", "words/s", 1.0)

    assert [jobs.survived(job.__name__, job, tmp_path) for job in (broken, fine)] == [False, True]
    assert len(ledger.read(tmp_path)) == 1
    said = capsys.readouterr().out
    assert "broken: failed, RuntimeError: no kernel" in said


def test_some_of_the_jobs_may_be_run_alone(tmp_path, monkeypatch):
    ran = []
    for name in ("train", "supervised", "words"):
        monkeypatch.setattr(jobs, f"run_{name}", lambda *_, name=name: ran.append(name) or ())
    jobs.main(device="cpu", only=["words", "supervised"], records=tmp_path)
    assert ran == ["supervised", "words"]
    with pytest.raises(typer.BadParameter, match="--only word: available are train, supervised, words"):
        jobs.main(device="cpu", only=["word"], records=tmp_path)

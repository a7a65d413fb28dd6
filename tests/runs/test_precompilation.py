"""What a precompilation compiles is what the run needs; it is begun where that helps, and ends with who began it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest

from mt2st_fast.compiling import LONGEST, is_first_on, note_precompiled
from mt2st_fast.data import Corpus, TargetColumn
from mt2st_fast.kernels.machine import cache
from mt2st_fast.runs import precompilation
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.experiment_parts import evaluation_rows
from tests.runs.test_engines import documents

# Runs after a precompilation; prints the kernels that it had to get beside those.
COMPARED = """
import json, sys
from mt2st_fast.data import open_data
from mt2st_fast.kernels.machine import cache
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.experiment import Experiment
from mt2st_fast.runs.precompilation import precompile

asked = []
load = cache.KernelCache.load_overload
def recorded(self, sig, target):
    asked.append((self._py_func.__name__, str(sig)))
    return load(self, sig, target)
cache.KernelCache.load_overload = recorded

config = Config.from_json(json.loads(sys.argv[1]))
splits = open_data(config.data, config.main, config.aux)
before = set(asked)
precompile(config)
precompiled = set(asked) - before
experiment = Experiment.prepare(config, splits)
experiment.run()
experiment.test()
print(json.dumps({"precompiled": sorted(name for name, _ in precompiled),
                  "more": sorted(name for name, _ in set(asked) - precompiled - before)}))
"""


@pytest.mark.parametrize("level", ["token", "document"])
def test_a_run_needs_no_kernel_that_was_not_precompiling(level, treebank, tmp_path):
    config = Config(data=treebank, main="upos", aux=("xpos",), epochs=3.0)
    if level == "document":
        config = Config(data=documents(tmp_path), main="kind", aux=("size:regression",), epochs=3.0)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMPARED), json.dumps(config.to_json())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert LONGEST in found["precompiled"]
    assert found["more"] == []


@pytest.mark.parametrize(
    ("changed", "cpus", "first", "worth"),
    [
        ({}, 2, True, True),
        ({}, 1, True, False),
        ({}, 2, False, False),
        ({"engine": "torch"}, 2, True, False),
        ({"backend": "reference"}, 2, True, False),
        ({"device": "cuda"}, 2, True, False),
    ],
)
def test_when_it_is_worth_it(changed, cpus, first, worth, monkeypatch):
    monkeypatch.setattr(precompilation, "usable_cpus", lambda: cpus)
    monkeypatch.setattr(precompilation, "is_first_on", lambda level: first)
    assert precompilation.is_worth_it(replace(Config(device="cpu"), **changed)) is worth


def test_it_ends_with_the_block(monkeypatch):
    began = []
    begin = precompilation._begin
    monkeypatch.setattr(precompilation, "_begin", lambda config: began.append(begin(config)) or began[0])
    monkeypatch.setattr(precompilation, "is_worth_it", lambda config: True)
    with precompilation.precompiling(Config()):
        assert began[0].poll() is None
    assert began[0].returncode is not None


ENDLESS = """
import time
from mt2st_fast.runs import precompilation
precompilation.precompile = lambda config: (print("begun", flush=True), time.sleep(600))
precompilation.main()
"""


def test_it_ends_with_the_process_that_began_it():
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        process.stdin.write(json.dumps(Config().to_json()) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "begun\n"
        assert process.poll() is None
        process.stdin.close()  # as the system does for whoever is gone
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_a_system_without_room_for_a_process_trains_without(monkeypatch):
    def refuse(*arguments, **options):
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(precompilation.subprocess, "Popen", refuse)
    monkeypatch.setattr(precompilation, "is_worth_it", lambda config: True)
    assert precompilation._begin(Config()) is None
    with precompilation.precompiling(Config()):
        pass


def test_a_run_is_precompiled_once_even_if_it_needs_none_of_what_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "folder", lambda: tmp_path)
    assert is_first_on("token")
    assert is_first_on("document")
    note_precompiled("token")
    assert not is_first_on("token")
    assert is_first_on("document")
    (tmp_path / f"text_step.{LONGEST}-text_step-9.py311.nbi").touch()
    assert not is_first_on("document")
    monkeypatch.setattr(cache, "folder", lambda: None)
    assert not is_first_on("token")
    note_precompiled("token")  # nowhere


@pytest.mark.parametrize("metric", ["span_f1", "micro_f1", "r2"])
def test_made_up_rows_need_not_have_the_metric_of_the_run(metric, monkeypatch):
    done = []
    monkeypatch.setattr(precompilation.Experiment, "warm_up", lambda experiment: None)
    monkeypatch.setattr(precompilation, "note_precompiled", done.append)
    precompilation.precompile(Config(data="columns:FILE", metric=metric))
    assert done == ["token"]


@pytest.mark.parametrize(
    ("level", "classes", "rows"), [("token", 50, 1 << 14), ("token", 100_000, 671), ("document", 2, 1 << 12)]
)
def test_an_evaluation_looks_at_as_many_rows_as_their_logits_have_room(level, classes, rows):
    column = TargetColumn("classes", tuple(map(str, range(classes))), np.zeros(1, np.int64))
    corpus = Corpus(np.zeros(1, np.int32), np.array([0, 1]), {"main": column}, level)
    assert evaluation_rows(corpus, ("main",)) == rows

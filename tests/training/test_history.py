"""The history of a run: its best evaluation, the steps of a phase, and the file that keeps it."""

from __future__ import annotations

import json
import math

import pytest

from mt2st_fast import Evaluation, History, PhaseRecord, StepRecord, Switch, Trainer
from mt2st_fast.errors import InputError
from mt2st_fast.training.history import PartRecord, SelectionRecord


def record(step, ms):
    return StepRecord(step, step / 10, 0.0, {}, {}, 1e-3, ms, 0.0)


def test_history_finds_the_best():
    qualities = [0.2, math.nan, 0.7, 0.9, 0.9, 0.8]
    evaluations = [Evaluation(10 * i, i, {"tag": q, "aux": 1 - q}, 0.0) for i, q in enumerate(qualities)]
    history = History("tag", evaluations=evaluations)
    assert history.best.step == 30
    assert History("tag").best is None


def test_step_ms_median_is_the_phases_own():
    phases = [PhaseRecord(0, ("tag", "aux")), PhaseRecord(25, ("tag",)), PhaseRecord(40, ())]
    steps = [record(10, 5.0), record(20, 7.0), record(25, 6.0), record(30, 1.0), record(45, 99.0)]
    history = History("tag", steps=steps, phases=phases)
    assert history.step_ms_median(phases[0]) == 6.0
    assert history.step_ms_median(phases[1]) == 1.0  # the record up to 45 spans the border
    assert history.step_ms_median(phases[2]) is None


def test_history_survives_json_and_writes_lines(toy, tmp_path):
    trainer = Trainer(toy.encoder(), toy.heads(), schedule=Switch(at_step=3), log_every=2)
    history = trainer.fit(toy.batches(4), val=toy.batches(1), epochs=2)
    again = History.from_json(json.loads(json.dumps(history.to_json())))
    assert again == history
    assert again.steps[-1].step_ms == history.steps[-1].step_ms
    history.write_jsonl(tmp_path / "history.jsonl")
    assert History.read_jsonl(tmp_path / "history.jsonl", "tag") == history
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert {line["kind"] for line in lines} == {"phase", "step", "evaluation"}
    assert history.train_seconds == pytest.approx(
        sum(r.step_ms * n / 1e3 for r, n in zip(history.steps, (2, 1, 1, 2, 2), strict=True))
    )


def test_a_metric_without_a_value_is_null_in_the_history_file(tmp_path):
    """JSON has no NaN: most readers refuse a file that holds one."""
    evaluation = Evaluation(1, 0.5, {"tag": 0.25, "aux": float("nan")}, 1.0)
    History("tag", evaluations=[evaluation]).write_jsonl(tmp_path / "history.jsonl")
    (line,) = (tmp_path / "history.jsonl").read_text().splitlines()
    stored = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert stored["metrics"] == {"tag": 0.25, "aux": None}


def test_every_kind_of_line_is_read_again(tmp_path):
    part = PartRecord("layer 1", ("a.weight", "a.bias"), 3, 12.5, {"tag": 0.1}, "frozen")
    history = History(
        "tag",
        steps=[StepRecord(2, 0.5, 1.5, {"tag": 0.1 + 0.2}, {"tag": 1.0}, 1e-3, 5.5, 0.011, {"shared": 2})],
        evaluations=[Evaluation(2, 0.5, {"tag": 0.25, "aux": math.nan}, 0.011)],
        phases=[
            PhaseRecord(
                0,
                ("tag", "aux"),
                {"aux": "said so"},
                "turns",
                3,
                ("aux",),
                "eager",
                {"graph": "why not"},
                "captured",
            )
        ],
        selections=[SelectionRecord(2, "fisher", (part,), 0.5)],
        stopped="it had come to its plateau",
    )
    history.write_jsonl(tmp_path / "history.jsonl")
    again = History.read_jsonl(tmp_path / "history.jsonl", "tag")
    assert repr(again.to_json()) == repr(history.to_json())  # seconds and engines, too, and nan is nan
    with pytest.raises(InputError, match="no such file"):
        History.read_jsonl(tmp_path / "none.jsonl", "tag")


def test_a_console_shows_a_history_in_a_line():
    steps = [record(step, 1.0) for step in range(10, 5001, 10)]
    phases = [PhaseRecord(0, ("tag", "aux")), PhaseRecord(3000, ("tag",))]
    history = History("tag", steps, [Evaluation(2500, 0.5, {"tag": 0.75}, 1.0)], phases)
    assert repr(history) == (
        "History(main='tag' | 5,000 steps | tag, aux from step 0; tag from step 3000 | best 0.7500 after 2,500)"
    )
    assert repr(History("tag")) == "History(main='tag' | 0 steps | no phase)"
    assert "best" not in repr(History("tag", evaluations=[Evaluation(1, 0.5, {"aux": 0.5}, 1.0)]))

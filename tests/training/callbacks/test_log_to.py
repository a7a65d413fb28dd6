"""What a logger of somebody else's is told."""

from __future__ import annotations

import logging
import math

import pytest

from mt2st_fast import InputError, LogTo, Switch
from tests.training.small_runs import batches, trainer_of


def both_tasks():
    return [(x, {"a": t["a"], "b": t["a"].flip(0)}) for x, t in batches()]


class Logger:
    """What Lightning's loggers have."""

    def __init__(self):
        self.told, self.saved = [], 0

    def log_metrics(self, metrics, step=None):
        self.told.append((step, metrics))

    def save(self):
        self.saved += 1


def run(logger, **options):
    trainer = trainer_of(
        callbacks=[LogTo(logger)], schedule=Switch(at_step=6), lr_decay="linear", log_every=3, **options
    )
    trainer.fit(both_tasks(), val=both_tasks()[:2], epochs=1, evaluate_every=4)
    return trainer


def test_a_logger_is_told_what_the_history_holds():
    logger = Logger()
    history = run(logger).history
    expected = [(p.first_step, {f"active/{n}": float(n in p.active) for n in "ab"}) for p in history.phases]
    for r in history.steps:
        of_tasks = {f"loss/{n}": v for n, v in r.losses.items()}
        of_tasks |= {f"weight/{n}": v for n, v in r.weights.items()}
        expected.append((r.step, {"loss/total": r.total, "rate": r.learning_rate, **of_tasks}))
    for e in history.evaluations:
        expected.append(
            (e.step, {**{f"metric/{n}": v for n, v in e.metrics.items()}, "main": e.metrics["a"]})
        )
    assert sorted(logger.told, key=str) == sorted(expected, key=str)
    assert [step for step, values in logger.told if "active/b" in values] == [0, 6]
    assert logger.told[-1][1].keys() == {"metric/a", "main"}  # b has retired
    assert logger.saved == 1


def test_what_is_no_number_is_left_out():
    logger = Logger()
    trainer = trainer_of(callbacks=[LogTo(logger)], metrics={"a": lambda predictions, targets: math.nan})
    trainer.fit(batches(), val=batches()[:1], epochs=1)
    assert all(values and "metric/a" not in values for _, values in logger.told)


def test_of_several_processes_one_writes():
    logger = Logger()
    callback = LogTo(logger)

    class Second:
        writes = False
        heads = trainer_of().heads

    callback.on_phase(Second(), type("Phase", (), {"first_step": 0, "active": ("a",)}))
    callback.on_fit_end(Second())
    assert not logger.told
    assert not logger.saved


def test_tensorboard_reads_it_back(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        history = run(writer).history
        events = EventAccumulator(str(tmp_path)).Reload()  # flushed while it is open
    losses = events.Scalars("loss/a")
    assert [event.step for event in losses] == [record.step for record in history.steps]
    assert [event.value for event in losses] == pytest.approx(
        [r.losses["a"] for r in history.steps], rel=1e-6
    )
    assert [(event.step, event.value) for event in events.Scalars("active/b")] == [(0, 1.0), (6, 0.0)]
    assert [event.step for event in events.Scalars("main")] == [4, 8]
    assert set(events.Tags()["scalars"]) == {
        "active/a", "active/b", "loss/a", "loss/b", "loss/total", "main", "metric/a", "metric/b", "rate", "weight/a",
        "weight/b",
    }  # fmt: skip


def test_a_logger_of_lightning_takes_it(tmp_path):
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    logger = loggers.CSVLogger(tmp_path)
    history = run(logger).history
    lines = next(tmp_path.rglob("metrics.csv")).read_text("utf-8").splitlines()
    assert "loss/total" in lines[0]
    assert len(lines) > len(history.steps)


def test_a_run_of_wandb_takes_it():
    class WandbRun:
        def __init__(self):
            self.rows = []

        def log(self, data, step=None):
            self.rows.append((step, data))

    wandb_run = WandbRun()
    history = run(wandb_run).history
    losses = [(step, data["loss/a"]) for step, data in wandb_run.rows if "loss/a" in data]
    assert losses == [(record.step, record.losses["a"]) for record in history.steps]
    assert [step for step, data in wandb_run.rows if "main" in data] == [4, 8]


@pytest.mark.parametrize("logger", [{}, logging.getLogger("a")])
def test_what_is_no_logger_is_refused(logger):
    with pytest.raises(InputError, match=r"LogTo needs a logger with log_metrics.* not a (dict|Logger)"):
        LogTo(logger)

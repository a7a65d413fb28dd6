"""What a finished run writes: its model and vectors, history.jsonl, and facts.json.

facts.json has what a report shows beyond the history: the data, the machine, and the test metrics. Reports are made
from these two files alone (`runs/report.py`), at the end of a run and whenever a new report is requested.
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np

from mt2st_fast.environment import environment
from mt2st_fast.errors import InputError
from mt2st_fast.model.task_adapted import adapted_in
from mt2st_fast.model_folder import RUN_MODEL
from mt2st_fast.runs.data_summary import summarize_data
from mt2st_fast.runs.experiment import Experiment
from mt2st_fast.runs.json_files import read_json, write_json
from mt2st_fast.runs.kept_model import text_model
from mt2st_fast.runs.run_schema import RunFacts, RunOutcome, ScoreSummary
from mt2st_fast.serving.scores import TaskScore, scores
from mt2st_fast.spelling import counted
from mt2st_fast.training.history import History
from mt2st_fast.training.schedules.abilities import evidence_of
from mt2st_fast.training.trained_heads import untrained
from mt2st_fast.words.vectors import WordVectors, telling_neighbours

FACTS, HISTORY, VECTORS = "facts.json", "history.jsonl", "vectors.txt"
RUN_FILES = (HISTORY, FACTS, VECTORS)
FORMAT = "mt2st-fast run 2"


def write_run(experiment: Experiment, folder: Path) -> None:
    """Write the results of a finished run to `folder`; facts.json comes last and marks them as complete.

    If a finished run was continued, its earlier facts.json is removed before anything else is written.
    """
    (folder / FACTS).unlink(missing_ok=True)
    splits = experiment.splits
    table_td = experiment.trainer.encoder.vectors().float().cpu().numpy()  # type: ignore[operator]
    vectors = WordVectors(splits.vocabulary.words, table_td, splits.vocabulary.counts).select(
        np.flatnonzero(splits.vocabulary.counts)
    )
    model = text_model(experiment)
    [score] = scores(model, splits, ("test",), (model.main,))
    n_written = vectors.write(folder / VECTORS)
    heads, history = experiment.trainer.heads, experiment.trainer.history
    facts: RunFacts = {
        "format": FORMAT,
        **_outcome(experiment, experiment.test()),
        "score": _score(score),
        "kept": list(model.heads.names),
        "untrained": list(untrained(heads, history)),
        "vectors": {"count": n_written, "dimension": vectors.dim, "left_out": len(vectors) - n_written},
        "neighbours": telling_neighbours(vectors),
        "records": _n_records(history),
    }
    model.save(folder / RUN_MODEL)
    history.write_jsonl(folder / HISTORY)
    write_json(folder / FACTS, facts)


def read_facts(folder: Path) -> RunFacts:
    """Read what `write_run` wrote. Raises InputError where it is missing, damaged or of another version."""
    path = folder / FACTS
    facts = cast(RunFacts, read_json(path, "train again"))
    try:
        found = facts["format"]
    except (KeyError, TypeError):
        raise InputError(f"{path}: is damaged; train again") from None
    if found != FORMAT:
        raise InputError(f"{path}: has the format {found!r}, but this version reads {FORMAT!r}; train again")
    return facts


def read_history(folder: Path, facts: RunFacts) -> History:
    """Read the history of the run that left these facts.

    Raises InputError where it is missing or incomplete, and KeyError, TypeError or ValueError where it is damaged in
    another way.
    """
    path = folder / HISTORY
    history = History.read_jsonl(path, facts["main"])
    steps, n_found = [record.step for record in history.steps], _n_records(history)
    if n_found != facts["records"]:
        why = f"has {counted(n_found, 'record')}, but the run wrote {facts['records']:,}"
    elif (last := steps[-1] if steps else 0) != facts["steps"]:
        why = f"ends at step {last:,}, but the run took {counted(facts['steps'], 'step')}"
    elif any(after <= before for before, after in pairwise(steps)):
        why = "has steps out of order"
    else:
        return history
    raise InputError(f"{path}: is not the complete history of the run (it {why}); restore it, or train again")


def _n_records(history: History) -> int:
    """Return how many lines the file of a history has."""
    of_steps = len(history.steps) + len(history.evaluations)
    return len(history.phases) + of_steps + len(history.selections) + (history.stopped is not None)


def _outcome(experiment: Experiment, test: dict[str, float]) -> RunOutcome:
    """Return the facts but those of the saved files; metrics that could not be measured are NaN."""
    trainer, config, splits = experiment.trainer, experiment.config, experiment.splits
    heads = trainer.heads
    tasks, main = {name: heads.task(name) for name in heads.names}, heads.main
    return {
        "environment": environment(trainer.device),
        "data": {
            **summarize_data(splits),
            "main_labels": int(splits.train.targets[main].labelled().sum()),
        },
        "config": config.to_json(),
        "init": asdict(experiment.coverage) if experiment.coverage else None,
        "schedule": repr(trainer.schedule),
        "decisions": [
            *evidence_of(trainer.schedule),
            *(line for each in adapted_in(trainer.encoder) for line in each.sharing()),
        ],
        "backend": {"name": experiment.backend.name, "reason": experiment.backend.reason},
        "main": main,
        "tasks": {
            name: {
                "kind": type(task).__name__,
                # A task on words has no head, and only its loss is known.
                "outputs": heads.tasks[name].head.size if name in heads.tasks else None,
                "metric": _metric_of(experiment, name),
                "test": test.get(name),
            }
            for name, task in tasks.items()
        },
        "steps": trainer.step,
        "epochs": trainer.epoch,
        "tokens": _tokens(experiment),
    }


def _score(score: TaskScore) -> ScoreSummary:
    return {
        "metric": score.metric,
        "value": score.value,
        "rows": score.rows,
        "classes": [
            {
                "name": each.name,
                "support": each.support,
                "precision": each.precision,
                "recall": each.recall,
                "f1": each.f1,
            }
            for each in score.classes
        ],
        "spans": None if score.spans is None else score.spans.figures(),
    }


def _metric_of(experiment: Experiment, task: str) -> str:
    heads = experiment.trainer.heads
    if task == heads.main:
        return experiment.metric
    return heads.tasks[task].metric if task in heads.tasks else "loss"


def _tokens(experiment: Experiment) -> float:
    """Return how many tokens training steps have read: a row is a token, or a document of mean length."""
    corpus = experiment.splits.train
    return experiment.rows_read(experiment.trainer.step) * len(corpus.tokens) / corpus.n_rows

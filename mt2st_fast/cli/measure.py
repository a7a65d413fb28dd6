"""`mt2st-fast test`: how right a trained model is on labelled text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mt2st_fast.cli.terminal import plain_console, say
from mt2st_fast.errors import InputError

PARTS = ("train", "dev", "test")


def measure(
    model: Annotated[
        Path, typer.Argument(help="the folder of a run of `train`, or of a model that was saved")
    ],
    data: Annotated[str, typer.Argument(help="KIND:PATH, as `train --data` takes it")],
    part: Annotated[
        str, typer.Option(help="train, dev, test, or all of them together; all for a single file")
    ] = "",
    tasks: Annotated[
        str | None, typer.Option(help="the tasks to measure, separated by commas; the main one by default")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="the column of a table that has the text; as in training otherwise")
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(
            help="what stands between a table's cells, one character or tab; by its header otherwise"
        ),
    ] = None,
) -> None:
    """Measure a trained model: the metric of its tasks, and precision, recall and F1 of every class."""
    from mt2st_fast.data import open_data
    from mt2st_fast.runs.what_was_read import summary, what_was_read
    from mt2st_fast.serving.scores import scores
    from mt2st_fast.serving.text_model import TextModel

    found = TextModel.load(model)
    names = [name.strip() for name in tasks.split(",") if name.strip()] if tasks else [found.main]
    for name in names:
        found.check_task(name)
    if part not in ("", "all", *PARTS):
        raise InputError(f"--part is one of {', '.join(PARTS)} and all, not {part!r}")
    asked = [_with_kind(name, found.labels[name].kind, data) for name in names]
    if text_column is None and data.startswith("csv:"):
        text_column = found.text_column
    splits = open_data(
        data, asked[0], asked[1:], label_fraction=1.0, text_column=text_column, delimiter=delimiter
    )
    chosen = part or ("test" if Path(data.partition(":")[2]).is_dir() else "all")
    parts = PARTS if chosen == "all" else (chosen,)
    console = plain_console()
    table = Table("task", "metric", "value", "rows", "rows of classes that training never saw")
    measured = scores(found, splits, parts, names)
    for score in measured:
        table.add_row(score.task, score.metric, f"{score.value:.4f}", f"{score.rows:,}", f"{score.unseen:,}")
    say(console, summary(what_was_read(splits), parts=chosen != "all"))
    for score in measured:
        for line in score.lines():
            say(console, line)
    say(console, (str(model), "bold"), f" on {splits.name}, {chosen}")
    console.print(table)
    for score in measured:
        if score.classes:
            of_task = Table(score.task, "rows", "precision", "recall", "F1")
            for each in sorted(score.classes, key=lambda c: -c.support):
                numbers = (each.precision, each.recall, each.f1)
                of_task.add_row(each.name, f"{each.support:,}", *map(_shown, numbers))
            console.print(of_task)


def _with_kind(task: str, kind: str, data: str) -> str:
    """A task as the csv reader is asked for it."""
    suffix = {"labels": ":multilabel", "values": ":regression"}.get(kind, "")
    return task + suffix if data.startswith("csv:") else task


def _shown(value: float) -> str:
    return "–" if value != value else f"{value:.4f}"

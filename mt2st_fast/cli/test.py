"""`mt2st-fast test`: how accurate a trained model is on labelled text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from mt2st_fast.cli.paths import not_empty, path_argument
from mt2st_fast.cli.table_flags import DelimiterFlag, TextColumnFlag
from mt2st_fast.cli.tasks import tasks_named, tasks_option
from mt2st_fast.cli.terminal import plain_console, say, say_table
from mt2st_fast.errors import InputError
from mt2st_fast.interrupts import importing

if TYPE_CHECKING:  # reading options must not import torch
    from rich.console import Console

    from mt2st_fast.data import Splits
    from mt2st_fast.serving.scores import TaskScore

PARTS = ("train", "dev", "test")


def measure(
    model: Annotated[Path, path_argument("folder of a `train` run or of a saved model")],
    data: Annotated[
        str,
        typer.Argument(
            help="KIND:PATH, as for `train --data`; for a `train_supervised` model, a file of labelled lines",
            parser=not_empty,
        ),
    ],
    part: Annotated[
        str,
        typer.Option(
            help="train, dev, test, or all of them together; by default test for a folder, all for a single file"
        ),
    ] = "",
    tasks: Annotated[str | None, tasks_option("measure")] = None,
    text_column: TextColumnFlag = None,
    delimiter: DelimiterFlag = None,
) -> None:
    """Measure a trained model: task metrics, and precision, recall and F1 of every class."""
    with importing():
        from mt2st_fast.model_folder import SUPERVISED, kind_of

    if kind_of(model) == SUPERVISED:
        if part or text_column is not None or delimiter is not None:
            raise InputError("a train_supervised model is measured on a file of labelled lines; leave out "
                             "--part, --text-column and --delimiter")  # fmt: skip
        _measure_lines(model, data, tasks_named(tasks))
    else:
        _measure_corpus(model, data, part, tasks_named(tasks), text_column, delimiter)


def _measure_lines(model: Path, file: str, families: tuple[str, ...]) -> None:
    """Measure a line classifier on the labels in the lines."""
    with importing():
        from mt2st_fast.runs.formatting import shown
        from mt2st_fast.words.supervised_model import SupervisedModel

    found = SupervisedModel.load(model, device="cpu")
    counts = found.label_counts(file, families)
    console = plain_console()
    table = Table("labels", "metric", "value")
    for family, of_family in counts.items():
        table.add_row(family, found.heads.tasks[family].metric, shown(found.metric(family, of_family)))
    say(console, (str(model), "bold"), f" on {file}")
    say_table(console, table)
    for family, of_family in counts.items():
        of_labels = Table(family, "precision", "recall", "F1")
        for label, numbers in of_family.scores().items():
            of_labels.add_row(label, *map(shown, numbers.values()))
        say_table(console, of_labels)


def _measure_corpus(
    model: Path, data: str, part: str, tasks: tuple[str, ...], text_column: str | None, delimiter: str | None
) -> None:
    """Measure the model of a run on data that is read as in training."""
    with importing():
        from mt2st_fast.data import open_data
        from mt2st_fast.data.readers import READERS, parse_spec, takes
        from mt2st_fast.data.readers.same_data import same_data
        from mt2st_fast.data.record import repeated_texts
        from mt2st_fast.runs.data_summary import summarize_data, summary
        from mt2st_fast.serving.scores import scores
        from mt2st_fast.serving.text_model import TextModel

    found = TextModel.load(model)
    names = tasks or (found.main,)
    for name in names:
        found.check_task(name)
    if part not in ("", "all", *PARTS):
        raise InputError(f"--part {part!r} is unknown; available: {', '.join(PARTS)}, all")
    kind, path = parse_spec(data)
    asked = [_with_kind(name, found.labels[name].kind, READERS[kind].kinds) for name in names]
    if text_column is None and takes(data, "text_column"):
        text_column = found.text_column
    chosen = part or ("test" if path.is_dir() else "all")
    parts = PARTS if chosen == "all" else (chosen,)
    # The model's own training data is split as it was then, whatever its files are named.
    spec = f"{kind}:{path}"
    as_then = chosen != "all" and same_data(found.source, spec)
    splits = open_data(
        data, asked[0], asked[1:], label_fraction=1.0, text_column=text_column, delimiter=delimiter,
        measured=None if as_then else parts,
    )  # fmt: skip
    splits = _named_as(splits, names)
    console = plain_console()
    measured = scores(found, splits, parts, names)
    say(console, summary(summarize_data(splits), parts=chosen != "all"))
    # Of a run's own data, its report has the notes; this one is on the result.
    for note in repeated_texts(splits, [p for p in parts if p != "train"]) if as_then else splits.notes:
        say(console, note)
    if learnt := _learnt_from(found.source, spec, chosen):
        say(console, learnt)
    for score in measured:
        for line in score.lines():
            say(console, line)
    say(console, (str(model), "bold"), f" on {splits.name}, {chosen}")
    _say_scores(console, measured)


def _say_scores(console: Console, measured: Sequence[TaskScore]) -> None:
    """Print the metric of each task, then what it has on spans and on each class."""
    from mt2st_fast.runs.formatting import shown, spans_line

    table = Table("task", "metric", "value", "rows", "rows of classes not seen in training")
    for score in measured:
        table.add_row(score.task, score.metric, shown(score.value), f"{score.rows:,}", f"{score.unseen:,}")
    say_table(console, table)
    for score in measured:
        if score.spans is not None:
            say(console, (score.task, "bold"), f" {spans_line(score.spans.figures())}")
        if score.classes:
            of_task = Table(score.task, "rows", "precision", "recall", "F1")
            for each in sorted(score.classes, key=lambda c: -c.support):
                numbers = (each.precision, each.recall, each.f1)
                of_task.add_row(each.name, f"{each.support:,}", *map(shown, numbers))
            say_table(console, of_task)


def _learnt_from(source: str, spec: str, part: str) -> str:
    """Return a line that says so if rows that the model was trained on are measured without a request; else ""."""
    from mt2st_fast.data.readers.same_data import is_training_file_of, same_data

    if part == "train":
        return ""
    if part == "all" and same_data(source, spec):
        return "the model was trained on this data: its training rows are included; to exclude them, use --part test"
    if is_training_file_of(spec, source):
        return "the model was trained on this file: the results include rows that it was trained on"
    return ""


def _named_as(splits: Splits, names: Sequence[str]) -> Splits:
    """Return the splits with the model's task names, in the same order; a header may differ in case."""
    found = dict(zip(names, splits.tasks, strict=True))
    parts = {
        part: replace(corpus, targets={name: corpus.targets[own] for name, own in found.items()})
        for part, corpus in splits.parts.items()
    }
    return replace(splits, **parts, main=names[0], auxiliary=tuple(names[1:]))  # type: ignore[arg-type]


def _with_kind(task: str, kind: str, kinds: Sequence[str]) -> str:
    """Return a task as it is requested from a reader of these kinds."""
    suffix = {"labels": ":multilabel", "values": ":regression"}.get(kind, "")
    return task + suffix if kind in kinds else task

"""`mt2st-fast train`: the main job."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mt2st_fast.cli.options import (
    CheckpointOption,
    OutOption,
    given_options,
    going_on,
    make_writable,
    takes_config,
)
from mt2st_fast.cli.processes import together
from mt2st_fast.cli.progress import TrainingProgress
from mt2st_fast.cli.reading import read_data
from mt2st_fast.cli.signals import StoppingOnSignals
from mt2st_fast.cli.terminal import plain_console, say, say_notes
from mt2st_fast.errors import InputError
from mt2st_fast.files import write_atomically
from mt2st_fast.folder_lock import holding
from mt2st_fast.model_folder import RUN_MODEL
from mt2st_fast.numbers import check_positive
from mt2st_fast.runs import against as beside
from mt2st_fast.runs.chosen_parts import PICTURE
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.experiment import Experiment
from mt2st_fast.runs.report import RUN_FILES, WrittenRun, write_run
from mt2st_fast.runs.shown import shown, step_ms_of, trained_in
from mt2st_fast.runs.what_was_read import summary, what_was_read
from mt2st_fast.training.run_options import NonFiniteLossError

CONFIG_FILE = "config.json"
CHECKPOINT = "checkpoint/last.safetensors"


@takes_config(without=("engine",))
def train(
    config: Config,
    context: typer.Context,
    out: OutOption = Path("runs/train"),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="go on with the run in --out, with its own options; --epochs may be more",
            rich_help_panel="Output",
        ),
    ] = False,
    checkpoint_every: CheckpointOption = 10.0,
) -> None:
    """Train on the main and auxiliary tasks, finish on the main task, and write a report.

    Writes report.html, report.md, report.json, curves.png, history.jsonl, vectors.txt, model/ and checkpoint/ to --out,
    importance.png where parts were chosen (--strategy selector), and against.png where another strategy has trained
    beside (--against stl, which the default corpus begins with).
    Ctrl-C or SIGTERM stops after the step at hand and leaves a checkpoint; --resume goes on from there. Under torchrun
    several processes train one model, and one of them writes.
    """
    check_positive(**{"--checkpoint-every": checkpoint_every})
    with together(config.device) as processes:
        folder = make_writable(out) if processes.writes else out
        with holding(folder) if processes.writes else nullcontext():
            if resume:
                config = going_on(_stored_config(folder), config, given_options(context), folder)
            processes.barrier()  # everybody has read what is there before anything is written
            _train(config, folder, resume, 60 * checkpoint_every, writes=processes.writes)


def _train(config: Config, folder: Path, resume: bool, checkpoint_seconds: float, *, writes: bool) -> None:
    """Of several processes one writes files; what the others print goes nowhere."""
    console = plain_console()
    config = replace(config, against=beside.against_of(config) or beside.NONE)
    splits = read_data(config)
    other = None if config.against == beside.NONE else config.for_strategy(str(config.against))
    experiment = Experiment.prepare(config, splits)
    _announce(console, experiment)
    if other is not None:
        # What comes but once in a process, such as loading kernels, is no run's own time.
        for each in (other, config):
            Experiment.prepare(each, splits).warm_up()
        experiment = Experiment.prepare(config, splits)
    if writes:
        if not resume:
            _clear(folder)
        write_atomically(folder / CONFIG_FILE, json.dumps(experiment.config.to_json(), indent=2).encode())
    with StoppingOnSignals() as stopping:
        how = {"checkpoint": folder / CHECKPOINT, "resume": resume, "checkpoint_seconds": checkpoint_seconds}
        _run(experiment, "train", stopping, writes, **how)
        trainer = experiment.trainer
        if not experiment.is_over:
            say(
                console,
                f"Stopped at step {trainer.step} of {experiment.total_steps}. "
                f"Go on with: mt2st-fast train --resume --out {folder}",
            )
            raise typer.Exit(stopping.exit_code)
        if trainer.history.stopped:
            say(
                console,
                f"Ended early, after step {trainer.step} of {experiment.total_steps}: {trainer.history.stopped}.",
            )
        written = write_run(experiment, folder) if writes else None
        if other is not None:
            _train_beside(console, experiment, other, stopping, written, folder)
    if written is not None:
        _summarise(console, written.report, folder)


def _run(experiment: Experiment, label: str, stopping: StoppingOnSignals, writes: bool, **how: Any) -> None:
    """Train to the end or to where a signal asks to stop."""
    progress = TrainingProgress(experiment.total_steps, label)
    experiment.trainer.callbacks += [progress, stopping] if writes else [stopping]
    with progress if writes else nullcontext():
        experiment.run(**how)


def _train_beside(
    console: Console,
    own: Experiment,
    config: Config,
    stopping: StoppingOnSignals,
    written: WrittenRun | None,
    folder: Path,
) -> None:
    """Train by another strategy for the comparison in the report; the run itself is written already, and stays."""
    label = f"{config.strategy}, to compare"
    own_summary = beside.summary_of(own)
    experiment = Experiment.prepare(config, own.splits)
    try:
        _run(experiment, label, stopping, written is not None)
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"{label}: {error}; the run itself is whole, in {folder}") from error
    if not experiment.is_over:
        say(
            console,
            f"Stopped at step {experiment.trainer.step} of {experiment.total_steps} of {label}. The run itself is "
            f"whole, in {folder}.",
        )
        raise typer.Exit(stopping.exit_code)
    if written is not None:
        runs = {own.config.strategy: own_summary, config.strategy: beside.summary_of(experiment)}
        written.report["against"] = beside.beside(own.config.strategy, runs)
        written.write(folder)


def _clear(folder: Path) -> None:
    """Remove what an earlier run wrote: its checkpoint must not be resumed under another configuration."""
    for name in (CONFIG_FILE, CHECKPOINT, *RUN_FILES):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / RUN_MODEL, ignore_errors=True)


def _stored_config(folder: Path) -> Config:
    path = folder / CONFIG_FILE
    try:
        return Config.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"there is no run to resume in {folder}: {CONFIG_FILE} is missing") from None
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}); train again without --resume") from error


def _announce(console: Console, experiment: Experiment) -> None:
    splits, config = experiment.splits, experiment.config
    labelled = int(splits.train.targets[splits.main].labelled().sum())  # type: ignore[index]
    say(console, summary(what_was_read(splits)))
    say_notes(console, splits.notes, "report.md")
    say(
        console,
        (str(splits.main), "bold"),
        f" on {splits.name}: {splits.train.n_rows:,} training rows, {labelled:,} with a main label; "
        f"auxiliary tasks {', '.join(n for n in experiment.trainer.heads.names if n != splits.main) or 'none'}",
    )
    say(
        console,
        f"strategy {config.strategy}, {experiment.total_steps:,} steps; "
        f"backend {experiment.backend.name} ({experiment.backend.reason})",
    )
    if experiment.coverage is not None:
        say(console, f"vectors from {config.init}: {experiment.coverage}")


def _summarise(console: Console, report: dict[str, Any], folder: Path) -> None:
    main = report["main"]
    tasks = Table("task", "outputs", "metric", "dev, last active", "test, at the end", "retired at step")
    for name, task in report["tasks"].items():
        tasks.add_row(
            Text(name, style="bold" if name == main["task"] else ""),
            shown(task["outputs"], 0),
            task["metric"],
            shown(task["last_dev"]),
            shown(task["test"]),
            shown(task["retired_at_step"], 0),
        )
    phases = Table("phase from step", "active tasks", "step, ms (median)", "steps taken by")
    for phase in report["phases"]:
        phases.add_row(
            str(phase["first_step"]),
            trained_in(phase),
            step_ms_of(phase),
            phase["engine"],
        )
    words = Table("word", "nearest neighbours")
    for word, near in report["neighbours"].items():
        words.add_row(word, ", ".join(near))
    for table in (tasks, phases, words):
        console.print(table)
    say(
        console,
        (main["task"], "bold"),
        f": {main['metric']} {shown(main['best'])} on development at best "
        f"(step {main['best_step']}), {shown(main['test'])} on test. "
        f"{report['steps']:,} steps in {report['train_seconds']:.1f} s, {report['tokens_per_second']:,.0f} tokens/s.",
    )
    if report["against"] is not None:
        say(console, beside.sentence(report["against"], main["metric"]))
    pictures = ", ".join(
        name
        for name, drawn in (
            (beside.PICTURE, report["against"]), ("curves.png", True), (PICTURE, report["chosen_parts"]),
        )
        if drawn
    )  # fmt: skip
    written = (
        f"report.html, report.md, report.json, {pictures}, history.jsonl, vectors.txt, model/, checkpoint/"
    )
    say(console, f"Written to {folder}: {written}")
    say(console, f"Label text with: mt2st-fast predict {folder} FILE")

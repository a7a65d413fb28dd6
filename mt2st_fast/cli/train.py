"""`mt2st-fast train`: the main job."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mt2st_fast.cli.options import (
    COMMANDS,
    Given,
    check_used,
    config_of,
    kept_config,
    resumed_config,
    takes_options,
)
from mt2st_fast.cli.output import (
    CHECKPOINT,
    OutputOptions,
    check_not_lost,
    check_not_of,
    has_run,
    writable,
)
from mt2st_fast.cli.processes import together
from mt2st_fast.cli.progress import TrainingProgress, waiting
from mt2st_fast.cli.reading import read_data
from mt2st_fast.cli.signals import StoppingOnSignals
from mt2st_fast.cli.terminal import plain_console, say, say_notes, say_table
from mt2st_fast.errors import InputError
from mt2st_fast.files import at_home, check_not_read, write_atomically
from mt2st_fast.folder_lock import holding
from mt2st_fast.model_folder import RUN_CONFIG, RUN_MODEL
from mt2st_fast.runs import baseline_run
from mt2st_fast.runs.config import NONE, Config
from mt2st_fast.runs.config_file import read_config_file
from mt2st_fast.runs.data_summary import summarize_data, summary
from mt2st_fast.runs.experiment import Experiment
from mt2st_fast.runs.formatting import (
    early_end_of,
    left_out_of_model,
    left_out_of_vectors,
    quality_of,
    spans_line,
)
from mt2st_fast.runs.precompilation import precompiling
from mt2st_fast.runs.report import REPORT_FILES, pictures_of, write_report
from mt2st_fast.runs.run_facts import RUN_FILES, write_run
from mt2st_fast.runs.run_schema import Against, RunReport
from mt2st_fast.runs.run_tables import NEIGHBOURS, neighbour_rows, phase_rows, task_rows
from mt2st_fast.spelling import counted, in_shell
from mt2st_fast.training.divergence import NonFiniteLossError

# The files of a run in its folder; the configuration comes last, as it marks the folder as a run's.
OF_A_RUN = (CHECKPOINT, *RUN_FILES, *REPORT_FILES, baseline_run.AGAINST, RUN_MODEL, RUN_CONFIG)


@takes_options(without=("engine",))
def train(output: OutputOptions, config: Config, given: Given) -> None:
    """Train on the main and auxiliary tasks, finish on the main task, and write a report.

    Writes report.html, report.md, report.json, curves.png, history.jsonl, facts.json, config.json, vectors.txt, model/
    and checkpoint/ to --out; also importance.png if parts were chosen (--strategy selector), and against.png and
    against.json if a second strategy was trained (--against stl, the default on the default corpus). Ctrl-C or SIGTERM
    stops after the current step and leaves a checkpoint; --resume continues from there. Under torchrun, several
    processes train one model, and one of them writes. config.json keeps the options of the run: pass it to --config to
    repeat the run.
    """
    if not output.resume:  # a resumed run keeps its options
        check_used(config, given)
    out = output.folder("train")
    with together(config.device) as processes:
        folder = writable(out, to_resume=output.resume) if processes.writes else out
        with holding(folder) if processes.writes else nullcontext():
            check_not_of("compare", folder)
            if output.resume:
                stored = _stored_options(folder)
                config = resumed_config(config_of(stored), config, given, folder)
                output = output.resumed(stored, given)
            _check_out(config, folder)
            processes.barrier()  # all processes have read the folder before anything is written
            with precompiling(config) if processes.writes else nullcontext():
                _train(config, output, folder, writes=processes.writes)


def _train(config: Config, output: OutputOptions, folder: Path, *, writes: bool) -> None:
    """Train; of several processes, one writes files, and what the others print is discarded."""
    console = plain_console()
    config = replace(config, against=config.held_against() or NONE)
    other = None if config.against == NONE else config.for_strategy(str(config.against))
    splits = read_data(config)
    experiment = Experiment.prepare(config, splits)
    _announce(console, experiment)
    if other is not None:
        # Costs that occur once per process, such as loading kernels, must not count for either run.
        with waiting("warm up") if writes else nullcontext():
            for each in (other, config):
                # Initial vectors take long to read, and do not change the cost of a step.
                Experiment.prepare(replace(each, init=None), splits).warm_up()
        experiment = Experiment.prepare(config, splits)
    elif not output.resume:
        experiment.check()
    if writes:
        _clear(folder, of_the_run=not output.resume)
        write_atomically(folder / RUN_CONFIG, kept_config("train", output, experiment.config))
    with StoppingOnSignals() as stopping:
        how = {"resume": output.resume, "checkpoint_seconds": output.checkpoint_seconds}
        _run(experiment, "train", stopping, writes, checkpoint=folder / CHECKPOINT, **how)
        trainer = experiment.trainer
        if not experiment.is_over:
            say(
                console,
                f"Stopped at step {trainer.step} of {experiment.total_steps}. "
                f"Continue with: mt2st-fast train --resume --out {in_shell(folder)}",
            )
            raise typer.Exit(stopping.exit_code)
        if writes:
            with waiting("test the model and write the report"):
                write_run(experiment, folder)
                report = write_report(folder)
        if other is not None:
            against = _train_baseline(console, experiment, other, stopping, folder, writes=writes)
            if writes:
                with waiting("write the report"):
                    baseline_run.write_against(against, folder)
                    report = write_report(folder)
    if writes:
        _summarise(console, report, folder)


def _run(experiment: Experiment, label: str, stopping: StoppingOnSignals, writes: bool, **how: Any) -> None:
    """Train to the end, or until a signal asks to stop."""
    progress = TrainingProgress(experiment.total_steps, label)
    experiment.trainer.callbacks += [progress, stopping] if writes else [stopping]
    with progress if writes else nullcontext():
        experiment.run(**how)


def _train_baseline(
    console: Console,
    own: Experiment,
    config: Config,
    stopping: StoppingOnSignals,
    folder: Path,
    *,
    writes: bool,
) -> Against:
    """Train with another strategy and return what reports show of both runs; the first run is already written."""
    label = f"{config.strategy}, to compare"
    try:
        own_summary = baseline_run.summary_of(own)
    except InputError as error:
        raise InputError(
            f"{error}; the run itself is complete, in {folder}, but nothing can be compared"
        ) from None
    experiment = Experiment.prepare(config, own.splits)
    try:
        _run(experiment, label, stopping, writes)
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"{label}: {error}; the run itself is complete, in {folder}") from error
    if not experiment.is_over:
        say(
            console,
            f"Stopped at step {experiment.trainer.step} of {experiment.total_steps} of {label}. The run itself is "
            f"complete, in {folder}. Finish with: mt2st-fast train --resume --out {in_shell(folder)}",
        )
        raise typer.Exit(stopping.exit_code)
    runs = {own.config.strategy: own_summary, config.strategy: baseline_run.summary_of(experiment)}
    return baseline_run.against_baseline(own.config.strategy, runs)


def _clear(folder: Path, *, of_the_run: bool) -> None:
    """Remove what an earlier run wrote: its checkpoint must not be resumed under another configuration.

    For a resumed run, only remove its comparison with another strategy, which is made again at the end.
    """
    for name in OF_A_RUN if of_the_run else (baseline_run.AGAINST, baseline_run.PICTURE):
        if name == RUN_MODEL:
            shutil.rmtree(folder / name, ignore_errors=True)
        else:
            (folder / name).unlink(missing_ok=True)


def _check_out(config: Config, folder: Path) -> None:
    """Raise InputError if the run would overwrite its inputs, or files that were not written by a run."""
    inputs = [at_home(path) for path in (config.data.partition(":")[2], config.init) if path]
    for name in OF_A_RUN:
        check_not_read(folder / name, inputs)
    check_not_lost(folder, OF_A_RUN, has_run(folder))


def _stored_options(folder: Path) -> dict[str, Any]:
    """Return the options of the run in a folder by name. Raises InputError if they do not form a configuration."""
    path = folder / RUN_CONFIG
    if not path.exists():
        raise InputError(f"no run to resume in {folder}: {RUN_CONFIG} is missing; train without --resume")
    try:
        stored = read_config_file(path, "train", COMMANDS["train"])
        config_of(stored)
    except InputError as error:
        raise InputError(f"{error}; train again without --resume") from None
    return stored


def _announce(console: Console, experiment: Experiment) -> None:
    splits, config = experiment.splits, experiment.config
    labelled = int(splits.train.targets[splits.main].labelled().sum())  # type: ignore[index]
    say(console, summary(summarize_data(splits)))
    say_notes(console, splits.notes, "report.md")
    say(
        console,
        (str(splits.main), "bold"),
        f" on {splits.name}: {counted(splits.train.n_rows, 'training row')}, {labelled:,} with a main label; "
        f"auxiliary tasks {', '.join(n for n in experiment.trainer.heads.names if n != splits.main) or 'none'}",
    )
    say(
        console,
        f"strategy {config.strategy}, {counted(experiment.total_steps, 'step')}; "
        f"backend {experiment.backend.name} ({experiment.backend.reason})",
    )
    if experiment.coverage is not None:
        say(console, f"vectors from {config.init}: {experiment.coverage}")


def _summarise(console: Console, report: RunReport, folder: Path) -> None:
    main = report["main"]
    tasks = Table("task", "outputs", "metric", "dev, last active", "test, at the end", "retired at step")
    for name, _kind, *cells in task_rows(report):
        tasks.add_row(Text(name, style="bold" if name == main["task"] else ""), *cells)
    phases = Table("phase from step", "active tasks", "step, ms (median)", "steps taken by")
    for (*cells, _with_reasons), phase in zip(phase_rows(report), report["phases"], strict=True):
        phases.add_row(*cells, phase["engine"])
    words = Table(*NEIGHBOURS)
    for row in neighbour_rows(report):
        words.add_row(*row)
    for table in (tasks, phases, words):
        say_table(console, table)
    say(
        console,
        (main["task"], "bold"),
        f": {quality_of(main)}. "
        f"{counted(report['steps'], 'step')} in {report['train_seconds']:.1f} s, "
        f"{report['tokens_per_second']:,.0f} tokens/s.",
    )
    if spans := report["score"]["spans"]:
        say(console, f"On test rows, {spans_line(spans)}.")
    if report["stopped"]:
        say(console, early_end_of(report))
    if report["against"] is not None:
        say(console, baseline_run.sentence(report["against"], main["metric"]))
    files = "report.html", "report.md", "report.json", *pictures_of(report), *RUN_FILES, RUN_CONFIG
    written = f"{', '.join(files)}, model/, checkpoint/"
    say(console, f"Written to {folder}: {written}")
    if left_out := left_out_of_vectors(report["vectors"]):
        say(console, left_out)
    say(console, f"Label text with: mt2st-fast predict {in_shell(folder)} FILE")
    for line in left_out_of_model(report):
        say(console, line)

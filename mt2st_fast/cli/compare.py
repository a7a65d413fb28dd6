"""`mt2st-fast compare`: strategies on the same data, over seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mt2st_fast.cli.options import (
    CheckpointOption,
    OutOption,
    given_options,
    going_on,
    make_writable,
    takes_config,
)
from mt2st_fast.cli.progress import TrainingProgress
from mt2st_fast.cli.reading import read_data
from mt2st_fast.cli.signals import StoppingOnSignals
from mt2st_fast.environment import environment
from mt2st_fast.errors import InputError
from mt2st_fast.files import json_text, write_atomically
from mt2st_fast.folder_lock import holding
from mt2st_fast.numbers import check_finite_number, check_positive, given
from mt2st_fast.runs.comparison import compare_runs, render, summarise_seed, table_rows
from mt2st_fast.runs.comparison_progress import CHECKPOINT, Progress
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.experiment import Experiment
from mt2st_fast.runs.pages import comparison_page
from mt2st_fast.runs.plots import plot_comparison, write_png
from mt2st_fast.training.run_options import NonFiniteLossError
from mt2st_fast.training.schedules import strategies as strategies_by_name

FILES = ("report.html", "compare.md", "compare.json", "compare.png")


@takes_config(without=("strategy",))
def compare(
    config: Config,
    context: typer.Context,
    out: OutOption = Path("runs/compare"),
    strategies: Annotated[
        str, typer.Option(help="strategies, separated by commas", rich_help_panel="Strategy")
    ] = "stl,mtl,diminish,switch",
    seeds: Annotated[int, typer.Option(min=1, help="runs a strategy", rich_help_panel="Training")] = 3,
    target: Annotated[
        float | None,
        typer.Option(
            help="main-task quality to reach; the highest that every run reaches otherwise",
            rich_help_panel="Output",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="go on with the comparison in --out, with its own options",
            rich_help_panel="Output",
        ),
    ] = False,
    checkpoint_every: CheckpointOption = 10.0,
) -> None:
    """Train the same data by several strategies and compare quality, steps, seconds and time to a target.

    Writes report.html, compare.json, compare.md and compare.png to --out. Seeds differ in initial weights, in the order
    of rows and in which main labels --label-fraction keeps; the strategies share each seed's data.
    Ctrl-C or SIGTERM stops after the step at hand and keeps the runs that are done; --resume goes on from there.
    """
    check_finite_number(**given(**{"--target": target}))
    check_positive(**{"--checkpoint-every": checkpoint_every})
    names = [name.strip() for name in strategies.split(",") if name.strip()]
    if not names:
        raise InputError(f"--strategies names none; there are {', '.join(strategies_by_name())}")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"--strategies names {twice[0]} twice; name each once")
    asked = Progress(config, names, seeds)
    if not resume:
        for name in names:
            config.for_strategy(name)
        config.check_strategy_options(tuple(names))
    folder = make_writable(out)
    with holding(folder), StoppingOnSignals() as stopping:
        progress = _stored(folder, asked, given_options(context)) if resume else asked
        _compare(progress, folder, target, stopping, 60 * checkpoint_every)


def _stored(folder: Path, asked: Progress, given: set[str]) -> Progress:
    """The comparison in a folder. Raises InputError where another one is asked for."""
    stored = Progress.read(folder)
    for name in sorted(given & {"strategies", "seeds", "epochs"}):
        own, then = (
            getattr(progress, name, None) or getattr(progress.config, name) for progress in (asked, stored)
        )
        if own != then:
            shown, was = (",".join(v) if isinstance(v, list) else v for v in (own, then))
            raise InputError(
                f"--{name} {shown} is given, and the comparison in {folder} has {was}: leave it out to go on with "
                "that one, or choose another --out for one of its own"
            )
    going_on(stored.config, asked.config, given, folder)
    return stored


def _compare(
    progress: Progress,
    folder: Path,
    target: float | None,
    stopping: StoppingOnSignals,
    checkpoint_seconds: float,
) -> None:
    config, names = progress.config, progress.strategies
    configs = {name: config.for_strategy(name) for name in names}
    first = read_data(config)
    progress.check_data(first)
    for name in names:  # what cannot run is found before anything has run
        experiment = Experiment.prepare(configs[name], first)
    if not progress.n_done and not progress.current:
        for file in FILES:  # of another comparison
            (folder / file).unlink(missing_ok=True)
    # Seeds outside, strategies inside: a machine that slows down slows all of them down.
    for seed in range(config.seed, config.seed + progress.seeds):
        left = [name for name in names if not progress.is_done(name, seed)]
        splits = first if seed == config.seed or not left else read_data(replace(config, seed=seed))
        for name in left:
            experiment = Experiment.prepare(replace(configs[name], seed=seed), splits)
            resumes = progress.begin(folder, name, seed)
            summary = _run(experiment, f"{name}, seed {seed}", folder, resumes, stopping, checkpoint_seconds)
            if summary is None:
                _tell_stopped(progress, experiment, folder)
                raise typer.Exit(stopping.exit_code)
            progress.end(folder, name, {"seed": seed, **summary})
    comparison = {
        "main": experiment.trainer.heads.main,
        "metric": experiment.trainer.heads.tasks[experiment.trainer.heads.main].metric,
        "data": first.name,
        "auxiliary": list(first.auxiliary),
        "config": config.resolved(first).to_json(),
        "n_seeds": progress.seeds,
        "environment": environment(experiment.trainer.device),
        "backend": {"name": experiment.backend.name, "reason": experiment.backend.reason},
        **compare_runs({name: progress.runs[name] for name in names}, target),
    }
    write_atomically(folder / "compare.json", json_text(comparison, indent=2).encode())
    write_atomically(folder / "compare.md", render(comparison).encode())
    write_png(plot_comparison(comparison), folder / "compare.png")
    write_atomically(folder / "report.html", comparison_page(comparison))
    Progress.clear(folder)
    _summarise(Console(), comparison, folder)


def _run(
    experiment: Experiment,
    label: str,
    folder: Path,
    resumes: bool,
    stopping: StoppingOnSignals,
    checkpoint_seconds: float,
) -> dict[str, Any] | None:
    """The summary of one run; None where a signal has stopped it, which leaves its checkpoint.

    Raises InputError that names the run where it diverges.
    """
    bar = TrainingProgress(experiment.total_steps, label)
    experiment.trainer.callbacks += [bar, stopping]
    try:
        with bar:
            history = experiment.run(folder / CHECKPOINT, resumes, checkpoint_seconds)
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"{label}: {error}") from error
    if experiment.trainer.step < experiment.total_steps:
        return None
    return summarise_seed(history, experiment.test()[history.main])


def _tell_stopped(progress: Progress, experiment: Experiment, folder: Path) -> None:
    name, seed = progress.current
    Console().print(
        f"Stopped at step {experiment.trainer.step} of {experiment.total_steps} of {escape(name)}, seed {seed}; "
        f"{progress.n_done} of {progress.n_all} runs are done. "
        f"Go on with: mt2st-fast compare --resume --out {escape(str(folder))}",
        soft_wrap=True,
    )


def _summarise(console: Console, comparison: dict[str, Any], folder: Path) -> None:
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # all columns fit into 80
        title=f"{escape(comparison['main'])}: target {comparison['metric']} {comparison['target']:.4f} on development, "
        f"medians of {comparison['n_seeds']} seeds",
    )
    table.add_column("strategy", no_wrap=True)
    for name in (
        "dev",
        "test",
        "steps",
        "s",
        "steps to\ntarget",
        "s to\ntarget",
        "vs stl",
        "vs mtl",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in table_rows(comparison):
        table.add_row(*row)
    console.print(table)
    console.print(f"Written to {escape(str(folder))}: report.html, compare.md, compare.json, compare.png")

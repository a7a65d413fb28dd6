"""`mt2st-fast compare`: strategies on the same data, over seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mt2st_fast.cli.options import OutOption, make_writable, takes_config
from mt2st_fast.cli.progress import TrainingProgress
from mt2st_fast.cli.reading import read_data
from mt2st_fast.cli.terminal import plain_console, say, say_notes
from mt2st_fast.environment import environment
from mt2st_fast.errors import InputError
from mt2st_fast.files import json_text, write_atomically
from mt2st_fast.runs.comparison import compare_runs, render, summarise_seed, table_rows
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.experiment import Experiment
from mt2st_fast.runs.pages import comparison_page
from mt2st_fast.runs.plots import plot_comparison, write_png
from mt2st_fast.runs.what_was_read import summary, what_was_read
from mt2st_fast.training.schedules import strategies as strategies_by_name


@takes_config(without=("strategy",))
def compare(
    config: Config,
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
) -> None:
    """Train the same data by several strategies and compare quality, steps, seconds and time to a target.

    Writes report.html, compare.json, compare.md and compare.png to --out. Seeds differ in initial weights, in the order
    of rows and in which main labels --label-fraction keeps; the strategies share each seed's data.
    """
    names = [name.strip() for name in strategies.split(",") if name.strip()]
    if not names:
        raise InputError(f"--strategies names none; there are {', '.join(strategies_by_name())}")
    configs = {name: config.for_strategy(name) for name in names}
    config.check_strategy_options(tuple(names))
    folder = make_writable(out)
    console = plain_console()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    # Seeds outside, strategies inside: a machine that slows down slows all of them down.
    for seed in range(config.seed, config.seed + seeds):
        splits = read_data(replace(config, seed=seed))
        if seed == config.seed:
            say(console, summary(what_was_read(splits)))
            say_notes(console, splits.notes, "compare.md")
        for name in names if seed == config.seed else ():
            # What cannot run is found before anything has run.
            Experiment.prepare(replace(configs[name], seed=seed), splits)
        for name in names:
            experiment = Experiment.prepare(replace(configs[name], seed=seed), splits)
            progress = TrainingProgress(experiment.total_steps, f"{name}, seed {seed}")
            experiment.trainer.callbacks.append(progress)
            with progress:
                history = experiment.run()
            runs[name].append(summarise_seed(history, seed, experiment.test()[history.main]))
    comparison = {
        "main": experiment.trainer.heads.main,
        "metric": experiment.trainer.heads.tasks[experiment.trainer.heads.main].metric,
        "data": splits.name,
        "read": what_was_read(splits),
        "auxiliary": list(splits.auxiliary),
        "config": config.resolved(splits).to_json(),
        "n_seeds": seeds,
        "environment": environment(experiment.trainer.device),
        "backend": {"name": experiment.backend.name, "reason": experiment.backend.reason},
        **compare_runs(runs, target),
    }
    write_atomically(folder / "compare.json", json_text(comparison, indent=2).encode())
    write_atomically(folder / "compare.md", render(comparison).encode("utf-8", "replace"))
    write_png(plot_comparison(comparison), folder / "compare.png")
    write_atomically(folder / "report.html", comparison_page(comparison))
    _summarise(console, comparison, folder)


def _summarise(console: Console, comparison: dict[str, Any], folder: Path) -> None:
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # all columns fit into 80
        title=f"{comparison['main']}: target {comparison['metric']} {comparison['target']:.4f} on development, "
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
    say(console, f"Written to {folder}: report.html, compare.md, compare.json, compare.png")

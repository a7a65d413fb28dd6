"""`mt2st-fast compare`: strategies on the same data, over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mt2st_fast.cli.comparing import Comparing
from mt2st_fast.cli.options import (
    CheckpointOption,
    OutOption,
    given_options,
    going_on,
    make_writable,
    takes_config,
)
from mt2st_fast.cli.reading import read_data
from mt2st_fast.cli.signals import StoppingOnSignals
from mt2st_fast.cli.terminal import plain_console, say, say_notes
from mt2st_fast.environment import environment
from mt2st_fast.errors import InputError
from mt2st_fast.files import json_text, write_atomically
from mt2st_fast.folder_lock import holding
from mt2st_fast.numbers import check_finite_number, check_positive, given
from mt2st_fast.runs.comparison import compare_runs
from mt2st_fast.runs.comparison_plots import plot_comparison
from mt2st_fast.runs.comparison_progress import Progress
from mt2st_fast.runs.comparison_tables import render, table_rows
from mt2st_fast.runs.conclusions import sentence
from mt2st_fast.runs.config import ENGINES, Config
from mt2st_fast.runs.experiment import Experiment
from mt2st_fast.runs.intervals import LEAST_SEEDS
from mt2st_fast.runs.pages import comparison_page
from mt2st_fast.runs.plots import write_png
from mt2st_fast.runs.shown import counted
from mt2st_fast.runs.tuning import TUNED, tuning_record
from mt2st_fast.runs.what_was_read import summary, what_was_read
from mt2st_fast.training.energy import energy_counter
from mt2st_fast.training.schedules import strategies as strategies_by_name

FILES = ("report.html", "compare.md", "compare.json", "compare.png")


@takes_config(without=("strategy", "engine", "against"))
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
            help="main-task quality to reach, beside the best of stl and of mtl; the highest that every run reaches "
            "otherwise",
            rich_help_panel="Output",
        ),
    ] = None,
    plateau_margin: Annotated[
        float,
        typer.Option(
            help="a run has come to its plateau where its best rises by less than this",
            rich_help_panel="Output",
        ),
    ] = 0.002,
    engine: Annotated[
        str,
        typer.Option(
            help="fused, torch (separate layers, a dense table and optimizer of torch), or both: fused,torch",
            rich_help_panel="Machine",
        ),
    ] = "fused",
    tune: Annotated[
        int,
        typer.Option(
            min=0,
            help="trials for every strategy before the comparison, of the rate, the switch point and the auxiliary "
            "weight, where they are not given; on a seed of their own",
            rich_help_panel="Strategy",
        ),
    ] = 0,
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
    """Train the same data by several strategies and compare quality, and the time to several targets.

    Writes report.html, compare.json, compare.md and compare.png to --out. Seeds differ in initial weights, in the order
    of rows and in which main labels --label-fraction keeps; the strategies share each seed's data.
    Ctrl-C or SIGTERM stops after the step at hand and keeps the runs that are done; --resume goes on from there.
    """
    check_finite_number(**given(**{"--target": target}))
    check_positive(**{"--checkpoint-every": checkpoint_every, "--plateau-margin": plateau_margin})
    names = _named(strategies, "--strategies", list(strategies_by_name()))
    engines = _named(engine, "--engine", list(ENGINES))
    on_command_line = given_options(context)
    asked = Progress(config, names, seeds, engines, tune, sorted(on_command_line & set(TUNED)))
    if not resume:
        for name in names:
            config.for_strategy(name)
        if tune and not any(map(asked.trials_of, names)):
            given_flags = ", ".join("--" + name.replace("_", "-") for name in asked.fixed)
            raise InputError(
                f"--tune {tune} has nothing left to tune for {', '.join(names)}: leave out {given_flags}, or --tune"
            )
        for each in engines:
            config.on_engine(each)
        config.check_strategy_options(tuple(names))
    folder = make_writable(out)
    with holding(folder), StoppingOnSignals() as stopping:
        progress = _stored(folder, asked, on_command_line) if resume else asked
        progress.note_load()
        _compare(progress, folder, (target, plateau_margin), stopping, 60 * checkpoint_every)


def _named(text: str, flag: str, known: list[str]) -> list[str]:
    """The names in a list with commas. Raises InputError for none, and for one that stands there twice."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"{flag} names none; there are {', '.join(known)}")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"{flag} names {twice[0]} twice; name each once")
    return names


def _stored(folder: Path, asked: Progress, given: set[str]) -> Progress:
    """The comparison in a folder. Raises InputError where another one is asked for."""
    stored = Progress.read(folder)
    for name in sorted(given & {"strategies", "engine", "tune", "seeds", "epochs"}):
        place = "engines" if name == "engine" else name
        own, then = (
            getattr(progress, place) if hasattr(progress, place) else getattr(progress.config, place)
            for progress in (asked, stored)
        )
        if own != then:
            shown, was = (",".join(v) if isinstance(v, list) else v for v in (own, then))
            raise InputError(
                f"--{name} {shown} is given, and the comparison in {folder} has {was}: leave it out to go on with "
                "that one, or choose another --out for one of its own"
            )
    going_on(stored.config, asked.config, given - {"engine"}, folder)
    return stored


def _compare(
    progress: Progress,
    folder: Path,
    judged_by: tuple[float | None, float],
    stopping: StoppingOnSignals,
    checkpoint_seconds: float,
) -> None:
    """Run what is left of a comparison, and write its report; judged_by: the target, if given, and plateau margin."""
    console = plain_console()
    first = read_data(progress.config)
    say(console, summary(what_was_read(first)))
    say_notes(console, first.notes, "compare.md")
    progress.check_data(first)
    comparing = Comparing(progress, folder, first, console, stopping, checkpoint_seconds)
    experiment = comparing.check()
    if not progress.n_done and not progress.current:
        for file in FILES:  # of another comparison
            (folder / file).unlink(missing_ok=True)
    comparing.tune()
    comparing.run()
    comparison = _comparison(progress, experiment, judged_by)
    write_atomically(folder / "compare.json", json_text(comparison, indent=2).encode())
    write_atomically(folder / "compare.md", render(comparison).encode("utf-8", "replace"))
    write_png(plot_comparison(comparison), folder / "compare.png")
    write_atomically(folder / "report.html", comparison_page(comparison))
    Progress.clear(folder)
    _summarise(console, comparison, folder)


def _comparison(
    progress: Progress, experiment: Experiment, judged_by: tuple[float | None, float]
) -> dict[str, Any]:
    """What compare.json has; experiment: one of the first arm."""
    splits, heads = experiment.splits, experiment.trainer.heads
    options = progress.config.resolved(splits).to_json()
    facts = {
        "main": heads.main,
        "metric": heads.tasks[heads.main].metric,
        "data": splits.name,
        "read": what_was_read(splits),
        "auxiliary": list(splits.auxiliary),
        "config": {
            name: value for name, value in options.items() if name not in ("strategy", "engine", "against")
        },
        "n_seeds": progress.seeds,
        "engines": progress.engines,
        "load": progress.load,
        "energy": energy_counter(experiment.trainer.device)[1],
        "environment": environment(experiment.trainer.device),
        "backend": {"name": experiment.backend.name, "reason": experiment.backend.reason},
        "tuning": (
            tuning_record(progress.config, progress.fixed, progress.tuning_seed, progress.trials)
            if progress.trials
            else None
        ),
    }
    return compare_runs(
        {arm.name: progress.runs[arm.name] for arm in progress.arms}, progress.arms, facts, *judged_by
    )


def _summarise(console: Console, comparison: dict[str, Any], folder: Path) -> None:
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"{comparison['main']}: target {comparison['metric']} {comparison['target']:.4f} on development, "
        f"medians of {counted(comparison['n_seeds'], 'seed')}",
    )
    table.add_column("strategy", no_wrap=True)
    for name in ("dev", "test", "s", "steps to\ntarget", "s to\ntarget", "vs stl", "vs mtl"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, dev, test, _, *others in table_rows(comparison):  # shortened, it fits into 80 columns
        table.add_row(name, dev, test, *(cell.removesuffix(" came") for cell in others))
    console.print(table)
    for line in comparison["conclusions"]:
        say(console, line)
    if comparison["n_seeds"] >= LEAST_SEEDS:
        for verdict in comparison["verdicts"]:
            say(console, sentence(verdict))
    say(console, f"Written to {folder}: report.html, compare.md, compare.json, compare.png")

"""`mt2st-fast compare`: strategies on the same data, over seeds."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mt2st_fast.cli.comparison_runner import ComparisonRunner
from mt2st_fast.cli.options import (
    COMMANDS,
    Given,
    OfFiles,
    another_value,
    check_used,
    kept_config,
    resumed_config,
    takes_options,
)
from mt2st_fast.cli.output import OutputOptions, check_not_lost, check_not_of, writable
from mt2st_fast.cli.reading import read_data
from mt2st_fast.cli.signals import StoppingOnSignals
from mt2st_fast.cli.terminal import plain_console, say, say_notes, say_table
from mt2st_fast.data import Splits
from mt2st_fast.environment import environment
from mt2st_fast.errors import InputError
from mt2st_fast.files import write_atomically
from mt2st_fast.folder_lock import holding
from mt2st_fast.model_folder import RUN_CONFIG, has_comparison
from mt2st_fast.runs.comparison import compare_runs
from mt2st_fast.runs.comparison_options import ComparisonOptions
from mt2st_fast.runs.comparison_report import COMPARISON, REPORT_FILES, write_comparison_report
from mt2st_fast.runs.comparison_schema import Comparison, ComparisonFacts
from mt2st_fast.runs.comparison_state import CHECKPOINT, ComparisonState
from mt2st_fast.runs.comparison_state import FILE as STATE_FILE
from mt2st_fast.runs.comparison_tables import table_of
from mt2st_fast.runs.conclusions import sentence
from mt2st_fast.runs.config import MOST_SEED, NONE, Config
from mt2st_fast.runs.config_file import read_config_file
from mt2st_fast.runs.data_summary import summarize_data, summary
from mt2st_fast.runs.experiment import Experiment
from mt2st_fast.runs.intervals import LEAST_SEEDS
from mt2st_fast.runs.json_files import write_json
from mt2st_fast.runs.precompilation import precompiling
from mt2st_fast.runs.tuning import TUNED, tuning_record
from mt2st_fast.spelling import counted, in_shell
from mt2st_fast.training.callbacks.energy import energy_counter

OF_RUNS = ("strategy", "against")  # the options by which the file of a run names strategies

# Columns of the summary that fit into 80 columns of a terminal, and their names there.
IN_TERMINAL = {
    "strategy": "strategy",
    "best development:": "dev",
    "test:": "test",
    "test, span F1:": "test\nspan F1",
    "seconds:": "s",
    "steps to target:": "steps to\ntarget",
    "seconds to target:": "s to\ntarget",
    "time to target vs stl:": "time\nvs stl",
    "vs mtl:": "time\nvs mtl",
}


def _take_strategies(found: dict[str, Any], file: Path) -> None:
    """Have the strategies of a run's file be compared, with the default ones. Raises InputError beside `strategies`."""
    if "strategies" in found:
        name = next(name for name in OF_RUNS if name in found)
        raise InputError(f"{file}: {name} is for train, strategies for compare; leave {name} out")
    of_run = [found.pop(name) for name in OF_RUNS if name in found]
    found["strategies"] = tuple(
        n for n in dict.fromkeys((*ComparisonOptions.strategies, *of_run)) if n != NONE
    )


@takes_options(without=("strategy", "engine", "against"), of_files=OfFiles(OF_RUNS, _take_strategies))
def compare(output: OutputOptions, comparison: ComparisonOptions, config: Config, given: Given) -> None:
    """Train on the same data with several strategies, and compare quality and the time to several targets.

    Writes report.html, compare.json, compare.md, compare.png and config.json to --out. Seeds differ in initial weights,
    row order and which main labels --label-fraction keeps; all strategies share each seed's data. Ctrl-C or SIGTERM
    stops after the current step and keeps finished runs; --resume continues from there. The config.json of a run can
    be passed to --config: its strategies are compared with the default ones.
    """
    asked = ComparisonState(config, comparison, sorted(given.keys() & set(TUNED)))
    if not output.resume:
        _check(asked)
        check_used(config, given)
    folder = writable(output.folder("compare"), to_resume=output.resume)
    with holding(folder), StoppingOnSignals() as stopping:
        check_not_of("train", folder)
        check_not_lost(folder, (COMPARISON, *REPORT_FILES, CHECKPOINT), has_comparison(folder))
        state = asked
        if not output.resume:
            _check_not_stopped(folder)
        else:
            state = _stored(folder, asked, given)
            if (kept := folder / RUN_CONFIG).exists():
                output = output.resumed(read_config_file(kept, "compare", COMMANDS["compare"]), given)
        state.note_load()
        by_kernels = "fused" in state.comparison.engine
        with precompiling(state.config) if by_kernels else nullcontext():
            _compare(state, folder, output, stopping)


def _check(asked: ComparisonState) -> None:
    """Raise InputError for options that contradict each other."""
    config, comparison = asked.config, asked.comparison
    if comparison.tune and not any(map(asked.trials_of, comparison.strategies)):
        given_flags = ", ".join("--" + name.replace("_", "-") for name in asked.fixed)
        raise InputError(
            f"--tune {comparison.tune} has nothing left to tune for {', '.join(comparison.strategies)}: "
            f"leave out {given_flags} or --tune"
        )
    for engine in comparison.engine:
        config.on_engine(engine)
    config.check_strategy_options(comparison.strategies)
    if config.seed + comparison.seeds > MOST_SEED:  # one more than the runs use, for tuning
        raise InputError(
            f"--seed {config.seed} is too large for --seeds {comparison.seeds}, as seeds count up from --seed; the "
            f"largest seed is {MOST_SEED}"
        )


def _check_not_stopped(folder: Path) -> None:
    """Raise InputError for a folder with a comparison that was stopped after some of its runs, which may be hours."""
    try:
        stopped = ComparisonState.read(folder)
    except InputError:  # there is none, or none that could be resumed
        return
    if stopped.n_done:
        raise InputError(
            f"--out {folder} has a comparison that was stopped with {stopped.n_done} of {stopped.n_all} runs done, "
            "which would be lost: go on with --resume, choose another folder, or remove "
            f"{in_shell(folder / STATE_FILE)}"
        )


def _stored(folder: Path, asked: ComparisonState, given: Given) -> ComparisonState:
    """Return the stored comparison, to be judged by the options given now. Raises InputError if the options ask for
    another comparison.
    """
    stored = ComparisonState.read(folder)
    for name in sorted(given.keys() & {"strategies", "engine", "tune", "seeds", "epochs"}):
        own, then = (
            getattr(state.config if name == "epochs" else state.comparison, name) for state in (asked, stored)
        )
        if own != then:
            raise another_value(name, given[name], own, then, f"the comparison in {folder}")
    resumed_config(
        stored.config, asked.config, {name: given[name] for name in given if name != "engine"}, folder
    )
    judged_by = {
        name: getattr(asked.comparison, name) for name in ("target", "plateau_margin") if name in given
    }
    return replace(stored, comparison=replace(stored.comparison, **judged_by))


def _compare(
    state: ComparisonState, folder: Path, output: OutputOptions, stopping: StoppingOnSignals
) -> None:
    """Run the remaining part of a comparison, and write its report."""
    console = plain_console()
    first = read_data(state.config)
    say(console, summary(summarize_data(first)))
    say_notes(console, first.notes, "compare.md")
    state.check_data(first)
    runner = ComparisonRunner(state, folder, first, console, stopping, output.checkpoint_seconds)
    experiment = runner.check()
    if not state.n_done and not state.current:
        for file in (COMPARISON, *REPORT_FILES):  # from an earlier comparison
            (folder / file).unlink(missing_ok=True)
    state.write(folder)  # first, as it shows that the configuration beside it is a comparison's
    write_atomically(folder / RUN_CONFIG, _kept(state, first, output))
    runner.tune()
    runner.run()
    if len(state.diverged) == state.comparison.seeds:
        ComparisonState.clear(folder)
        raise InputError(f"{next(iter(state.diverged.values()))}; no seed is left to compare")
    comparison = _comparison(state, experiment)
    write_json(folder / COMPARISON, comparison)
    ComparisonState.clear(folder)
    _summarise(console, write_comparison_report(folder), folder)


def _kept(state: ComparisonState, first: Splits, output: OutputOptions) -> bytes:
    """Return the configuration file of a comparison. It leaves out options that are tuned and were not given."""
    tuned = set(TUNED) - set(state.fixed) if state.comparison.tune else set()
    parts = (output, state.comparison, _resolved(state.config, first))
    return kept_config("compare", *parts, without=tuple(tuned))


def _resolved(config: Config, splits: Splits) -> Config:
    """Fill in what the first seed's data decide, but no option of a strategy: every arm finds its own on every seed."""
    return replace(config.resolved(splits), strategy_options=config.strategy_options)


def _comparison(state: ComparisonState, experiment: Experiment) -> Comparison:
    """Return the content of compare.json; experiment: a run of the first arm."""
    splits, heads = experiment.splits, experiment.trainer.heads
    options = _resolved(state.config, splits).to_json()
    facts: ComparisonFacts = {
        "main": heads.main,
        "metric": experiment.metric,
        "data": splits.name,
        "read": summarize_data(splits),
        "auxiliary": [name for name in heads.names if name != heads.main],
        "config": {
            name: value for name, value in options.items() if name not in ("strategy", "engine", "against")
        },
        "n_seeds": state.comparison.seeds - len(state.diverged),
        "diverged": {str(seed): line for seed, line in state.diverged.items()},
        "engines": list(state.comparison.engine),
        "load": state.load,
        "energy": energy_counter(experiment.trainer.device)[1],
        "environment": environment(experiment.trainer.device),
        "backend": {"name": experiment.backend.name, "reason": experiment.backend.reason},
        "tuning": (
            tuning_record(state.config, state.fixed, state.tuning_seed, state.trials)
            if state.trials
            else None
        ),
    }
    asked = state.comparison
    return compare_runs(state.whole_runs, state.arms, facts, asked.target, asked.plateau_margin)


def _summarise(console: Console, comparison: Comparison, folder: Path) -> None:
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"{comparison['main']}: target {comparison['metric']} {comparison['target']:.4f} on development rows, "
        f"medians of {counted(comparison['n_seeds'], 'seed')}",
    )
    columns, rows = table_of(comparison)
    kept = [number for number, name in enumerate(columns) if name in IN_TERMINAL]
    for number in kept:
        table.add_column(IN_TERMINAL[columns[number]], justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(str(row[number]).removesuffix(" reached it") for number in kept))
    say_table(console, table)
    for line in comparison["conclusions"]:
        say(console, line)
    if comparison["n_seeds"] >= LEAST_SEEDS:
        for verdict in comparison["verdicts"]:
            say(console, sentence(verdict))
    say(console, f"Written to {folder}: report.html, compare.md, compare.json, compare.png, config.json")

"""Tables and sentences of a comparison, for compare.md, report.html and the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from mt2st_fast.markdown import one_line
from mt2st_fast.runs.comparison import MEASURES, QUALITIES, has_spans
from mt2st_fast.runs.comparison_schema import (
    ArmDifferences,
    ArmResult,
    Comparison,
    Measure,
    Quality,
    Spread,
    TargetSummary,
)
from mt2st_fast.runs.data_summary import section_on_data
from mt2st_fast.runs.formatting import change, in_percent, in_points, option, short, shown
from mt2st_fast.runs.intervals import LEAST_SEEDS
from mt2st_fast.runs.sections import Section, Table, sections_in_markdown
from mt2st_fast.runs.targets import PLATEAU, POINT
from mt2st_fast.spelling import counted

TAKEN = ("steps:", "seconds:", "steps to target:", "seconds to target:", "time to target vs stl:", "vs mtl:")


def sections_of(comparison: Comparison) -> list[Section]:
    """Return all sections on the results, in their order."""
    on_quality = [
        ON_SPANS * _by_spans(comparison),
        *(say(comparison) for say in (_stopped, _taken_by, _own_labels)),
    ]
    return [
        _verdicts(comparison),
        Section("Quality", [line for line in on_quality if line], [_quality(comparison)]),
        Section("The whole run", [ON_WHOLE_RUNS], [_whole_runs(comparison)]),
        *(
            Section(f"To the target: {target['label']}", [_of_seeds(target)], [_to(comparison, key)])
            for key, target in comparison["targets"].items()
        ),
        Section("To the plateau", [_on_plateau(comparison)], [_to(comparison, PLATEAU)]),
        *_engines(comparison),
        *_joint(comparison),
        *_retired(comparison),
        *_tuning(comparison),
    ]


def lead(comparison: Comparison) -> str:
    """Explain how to read the numbers."""
    machine = comparison["environment"]
    return (
        f"Medians over {counted(comparison['n_seeds'], 'seed')}, quartiles in brackets. Seconds are those of training "
        f"steps only, on {machine['processor']}, {counted(machine['threads'], 'thread')}; {comparison['energy']}. "
        f"Engine: {', '.join(comparison['engines'])}. Runs reach a target at one of their evaluations, which are "
        f"{counted(comparison['steps_between_evaluations'], 'step')} apart."
    )


def render(comparison: Comparison) -> str:
    """Return the comparison as Markdown."""
    lines = [
        one_line(f"# {comparison['main']} on {comparison['data']}: strategies compared"),
        "",
        lead(comparison),
        "",
        "![seconds and steps to every target](compare.png)",
        "",
    ]
    return "\n".join(
        lines + sections_in_markdown([*sections_of(comparison), section_on_data(comparison["read"])])
    )


def table_of(comparison: Comparison) -> Table:
    """Return the summary, with one row per arm."""
    columns = ["strategy", "best development:", "test:", *_on_spans(comparison), *TAKEN]
    rows = []
    for name, strategy in comparison["strategies"].items():
        steps, seconds = strategy["steps_to_target_median"], strategy["seconds_to_target_median"]
        reached = strategy["to"][next(iter(comparison["targets"]))]["reached"]
        missing = f"{reached} of {len(strategy['seeds'])} reached it"
        reduction = comparison["reductions"][name]
        rows.append(
            [
                name,
                *(shown(strategy["spread"][which]["median"]) for which in _qualities(comparison)),
                f"{strategy['steps_median']:,.0f}",
                short(strategy["seconds_median"]),
                missing if steps is None else f"{steps:,.0f}",
                missing if seconds is None else short(seconds),
                *(_reduced(reduction[f"vs_{base}"]) for base in ("stl", "mtl")),
            ]
        )
    return Table(columns, rows)


def _by_spans(comparison: Comparison) -> bool:
    """Return whether runs were also tested by spans."""
    return has_spans(run for strategy in comparison["strategies"].values() for run in strategy["seeds"])


def _qualities(comparison: Comparison) -> tuple[Quality, ...]:
    return QUALITIES if _by_spans(comparison) else ("best", "test")


def _on_spans(comparison: Comparison) -> list[str]:
    """Return the column of the quality by spans, if there is one."""
    return ["test, span F1:"] if _by_spans(comparison) else []


def _reduced(reduction: float | None) -> str:
    return change(None if reduction is None else -reduction)


# --- cells ------------------------------------------------------------------------------------------------


def _spread(spread: Spread, show: Callable[[float], str]) -> str:
    """Format the median, with quartiles in brackets; a quartile that falls on a run that never arrived is left open."""
    if spread["median"] is None:
        return "–"
    # The lower quartile is known where the median is.
    low, high = ("…" if end is None else show(end) for end in (spread["q1"], spread["q3"]))
    return f"{show(spread['median'])} ({low}–{high})"


def _taken(spread: Spread, measure: Measure) -> str:
    """Format what a target took; examples are shown with the steps, whose quartiles suffice."""
    if measure == "examples":
        return "–" if spread["median"] is None else _whole(spread["median"])
    return _spread(spread, _whole if measure == "steps" else short)


def _whole(value: float) -> str:
    return f"{value:,.0f}"


# --- tables -----------------------------------------------------------------------------------------------


def _bases(comparison: Comparison) -> list[str]:
    """Return the baselines that are part of the comparison."""
    bases = next(iter(comparison["differences"].values()))
    strategies = {strategy["strategy"] for strategy in comparison["strategies"].values()}
    return [base for base in bases if base in strategies]


def _arms(comparison: Comparison) -> Iterator[tuple[str, ArmResult, list[ArmDifferences | None]]]:
    """Yield (name, results, differences from each baseline) of every arm."""
    bases = _bases(comparison)
    for name, strategy in comparison["strategies"].items():
        yield name, strategy, [comparison["differences"][name][base] for base in bases]


def _verdicts(comparison: Comparison) -> Section:
    columns = [
        "strategy",
        "against",
        "time",
        "time to its plateau",
        "time of the whole run",
        "quality at the end",
    ]
    rows = [
        [v["own"], v["base"], v["time"], v["plateau"], v["whole"], v["quality"]]
        for v in comparison["verdicts"]
    ]
    enough = comparison["n_seeds"] >= LEAST_SEEDS
    return Section(
        "What can be concluded", comparison["conclusions"], [Table(columns, rows)] if enough else []
    )


def _quality(comparison: Comparison) -> Table:
    bases, measured = _bases(comparison), _qualities(comparison)
    columns = ["strategy", "best on development:", "test, at the end:", *_on_spans(comparison)]
    columns += [f"{where} vs {base}, points:" for where in ("development", "test") for base in bases]
    rows = [
        [
            name,
            *(_spread(strategy["spread"][quality], shown) for quality in measured),
            *(in_points(d and d["best"]) for d in found),
            *(in_points(d and d["test"]) for d in found),
        ]
        for name, strategy, found in _arms(comparison)
    ]  # fmt: skip
    return Table(columns, rows)


def _measured(comparison: Comparison) -> list[Measure]:
    """Return the measures to show; energy only if a run measured it."""
    strategies = comparison["strategies"].values()
    return [m for m in MEASURES if m != "joules" or any(s["joules_median"] for s in strategies)]


def _whole_runs(comparison: Comparison) -> Table:
    """Table of what every arm needs from its first step to its last."""
    bases, measured = _bases(comparison), _measured(comparison)
    columns = ["strategy", *(f"{m}:" for m in measured)]
    columns += [f"{measure} vs {base}:" for measure in ("time", "examples") for base in bases]
    rows = [
        [
            name,
            *(_taken(strategy["spread"][m], m) for m in measured),
            *(in_percent(d and d["whole"]["seconds"]) for d in found),
            *(in_percent(d and d["whole"]["examples"]) for d in found),
        ]
        for name, strategy, found in _arms(comparison)
    ]
    return Table(columns, rows)


ON_SPANS = (
    "Span F1 counts entities or chunks on test rows, as conlleval does, at the end of each run; runs are judged by it "
    "only with --metric span_f1."
)
ON_WHOLE_RUNS = (
    "Training only, from the first step to the last. Examples are the rows that steps have read. Where main labels "
    "are rare, a step on several tasks reads rows with a main label and rows without; a step on the main task alone "
    "(every step of stl, and those after a switch) reads only rows with a main label, as many as the former includes; "
    "where the model has labelled rows itself, twice as many, most of them these."
)


def _to(comparison: Comparison, key: str) -> Table:
    """Table of what every arm needs to reach one target, or its plateau."""
    bases = _bases(comparison)
    measured = _measured(comparison)
    at_plateau = ["development there:"] if key == PLATEAU else []
    columns = ["strategy", "reached by:", *(f"{m}:" for m in measured), *at_plateau]
    columns += [f"{measure} vs {base}:" for measure in ("time", "steps") for base in bases]
    rows = [
        [
            name,
            f"{to['reached']} of {len(strategy['seeds'])}",
            *(_taken(to[m], m) for m in measured),
            *(_spread(to["quality"], shown) for _ in at_plateau),
            *(in_percent(d and d["to"][key]["seconds"]) for d in found),
            *(in_percent(d and d["to"][key]["steps"]) for d in found),
        ]
        for name, strategy, found in _arms(comparison)
        for to in (strategy["to"][key],)
    ]
    return Table(columns, rows)


def _of_seeds(target: TargetSummary) -> str:
    values = sorted(target["of_seed"].values())
    if values[0] == values[-1]:
        return f"{shown(values[0])} on development rows, for every seed."
    return (
        f"Each seed has its own target, from its own run: {shown(values[0])} to {shown(values[-1])} on development "
        f"rows, median {shown(target['median'])}."
    )


def _on_plateau(comparison: Comparison) -> str:
    return (
        f"The first evaluation after which a run's best rises by less than "
        f"{comparison['plateau_margin'] / POINT:g} points: the earliest time to stop. A run that still rises at its "
        "end has no plateau; one that levels off early may do so at a low quality."
    )


def _stopped(comparison: Comparison) -> str:
    """Say how many runs --patience ended; "" for none."""
    ended = [f"{n}: {s['stopped']} of {len(s['seeds'])}" for n, s in comparison["strategies"].items()]
    if comparison["config"]["patience"] is None:
        return ""
    config = comparison["config"]
    return (
        f"Runs that ended early, after {counted(config['patience'], 'evaluation')} without an improvement of more than "
        f"{config['min_delta']:g}: {', '.join(ended)}."
    )


def _taken_by(comparison: Comparison) -> str:
    """Say how the arms took their steps (see `training/engines`)."""
    arms_of: dict[str, list[str]] = {}
    for name, strategy in comparison["strategies"].items():
        ways = dict.fromkeys(way for run in strategy["seeds"] for way in run["taken_by"])
        arms_of.setdefault(" and ".join(ways), []).append(name)
    told = [f"{ways}: {', '.join(arms)}" for ways, arms in arms_of.items()]
    return f"Steps were taken by {'; by '.join(told)}."


def _own_labels(comparison: Comparison) -> str:
    """Say which arms trained at the end with rows that the model had labelled itself; "" for none."""
    rows = {
        name: max(run["own_labels"] for run in s["seeds"]) for name, s in comparison["strategies"].items()
    }
    told = [f"{name} (up to {counted(n, 'row')})" for name, n in rows.items() if n]
    runs = [run for strategy in comparison["strategies"].values() for run in strategy["seeds"]]
    tasks = ", ".join(dict.fromkeys(task for run in runs for task in run["labelled_by"]))
    by = f"the model and the labels of {tasks}" if tasks else "the model"
    return (
        f"Once alone, the main task also trained with rows labelled by {by}: {', '.join(told)}."
        if told
        else ""
    )


def _engines(comparison: Comparison) -> Iterator[Section]:
    """The section on what the engine saves with the same strategy."""
    found = comparison["engine_differences"]
    if not found:
        return
    strategies = comparison["strategies"]
    first = comparison["engines"][0]
    keys = list(comparison["targets"])
    rows = []
    for other, differences in found.items():
        own = next(n for n, s in strategies.items() if s["strategy"] == strategies[other]["strategy"])
        per_step = [
            1e3 * strategies[n]["seconds_median"] / strategies[n]["steps_median"] for n in (own, other)
        ]
        rows.append(
            [
                f"{own}, {first} against {strategies[other]['engine']}",
                *map(short, per_step),
                in_points(differences["best"]),
                *(in_percent(differences["to"][key]["seconds"]) for key in keys),
            ]
        )
    columns = ["strategy", f"ms per step, {first}:", "other engine:", "development, points:"]
    columns += [f"time to {comparison['targets'][key]['label']}:" for key in keys]
    yield Section(
        "What the engine saves",
        [
            "With the same strategy, initial values, row order and learning rates. The engine torch has a separate "
            "nn.Linear and loss per task, a dense table and torch.optim.AdamW, which also moves rows that are not in "
            "the batch: it is a different optimizer, so qualities differ. Differences from stl and mtl in the other "
            "tables are within one engine."
        ],
        [Table(columns, rows)] if rows else [],
    )


def _joint(comparison: Comparison) -> Iterator[Section]:
    """The section on what algorithm and engine save together."""
    targets = comparison["targets"]
    rows = [
        [own, base, in_points(d["best"]), *(in_percent(d["to"][key]["seconds"]) for key in targets)]
        for base, of_arms in comparison["joint_differences"].items()
        for own, d in of_arms.items()
    ]
    if rows:
        columns = ["strategy", "against", "development, points:"]
        columns += [f"time to {target['label']}:" for target in targets.values()]
        yield Section("What algorithm and engine save together", tables=[Table(columns, rows)])


def _retired(comparison: Comparison) -> Iterator[Section]:
    """The section on the tasks that an adaptive schedule retired, over the seeds."""
    rows = []
    for name, strategy in comparison["strategies"].items():
        runs = strategy["seeds"]
        for task in dict.fromkeys(task for run in runs for task in run["retired"]):
            found = [run["retired"][task] for run in runs if task in run["retired"]]
            steps = sorted(each["step"] for each in found)
            reasons = Counter(each["why"].partition(" (")[0] for each in found)
            rows.append(
                [
                    name,
                    task,
                    f"{len(found)} of {len(runs)}",
                    _whole(steps[0]) if steps[0] == steps[-1] else f"{_whole(steps[0])}–{_whole(steps[-1])}",
                    "; ".join(f"{why} ({n})" if len(reasons) > 1 else why for why, n in reasons.items()),
                ]
            )
    if rows:
        yield Section(
            "When adaptive strategies retired tasks",
            tables=[Table(["strategy", "task", "in runs:", "at step:", "reason"], rows)],
        )


def _tuning(comparison: Comparison) -> Iterator[Section]:
    """The section on all trials, with the selected one marked."""
    tuning = comparison["tuning"]
    if tuning is None:
        return
    names = list(tuning["ranges"])
    rows = [
        [
            strategy,
            f"{number + 1}{' chosen' * (number == found['chosen'])}",
            *(option(trial["values"].get(name)) for name in names),
            shown(trial["best"]) if trial["error"] is None else trial["error"].partition(":")[0],
            option(trial["step"]),
        ]
        for strategy, found in tuning["strategies"].items()
        for number, trial in enumerate(found["trials"])
    ]
    ranges = ", ".join(f"{name} [{low:g}, {high:g}]" for name, (low, high) in tuning["ranges"].items())
    columns = ["strategy", "trial:", *(f"{name}:" for name in names), "best on development:", "at step:"]
    yield Section(
        "Tuning",
        [
            f"{tuning['trials']} trials per strategy on seed {tuning['seed']}, which no result uses; the best on "
            f"development rows is chosen. The first trial has the values as given; the others are drawn from {ranges}, "
            "as far as the strategy has these options."
        ],
        [Table(columns, rows)],
    )

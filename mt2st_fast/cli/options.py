"""The flags of a run, shared by the commands that train: each field of Config, and each option of a strategy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from mt2st_fast.errors import InputError
from mt2st_fast.runs.config import Config
from mt2st_fast.training.schedules import StrategyOption, strategy_options


def _flag(field: Field[Any], annotation: Any) -> Any:
    shown = field.metadata
    # The command line takes a list as one text.
    taken = str | None if field.name == "aux" else annotation
    option = typer.Option(help=shown["help"], rich_help_panel=shown["panel"], **shown["limits"])
    return Annotated[taken, option]


def _strategy_flag(option: StrategyOption, taken_by: tuple[str, ...]) -> Any:
    default = "" if option.default is None else f" (default {option.default:g})"
    text = f"{option.help}{default}; for {', '.join(taken_by)}"
    return Annotated[
        float | None,
        typer.Option(help=text, rich_help_panel="Strategy", min=option.low, max=option.high),
    ]


OutOption = Annotated[
    Path,
    typer.Option("--out", "-o", help="folder for everything that the run writes", rich_help_panel="Output"),
]

CheckpointOption = Annotated[
    float,
    typer.Option(
        help="minutes between checkpoints, beside the one at the end of every epoch", rich_help_panel="Output"
    ),
]


def given_options(context: typer.Context) -> set[str]:
    """The names of the options that stand on the command line, be it with their default."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def going_on(stored: Config, config: Config, given: set[str], folder: Path) -> Config:
    """The configuration of the run in a folder, with the end that is given now.

    Raises InputError for any other option that is given with another value than that run has.
    """
    for name in sorted(given - {"epochs"}):
        own, then = (_value(of, name) for of in (config, stored))
        if own != then:
            raise InputError(
                f"--{name.replace('_', '-')} {own} is given, and the run in {folder} has {then}: leave it out to go on "
                "with that run, or choose another --out for one of its own"
            )
    if "epochs" in given and config.epochs is not None:
        return stored.going_on_to(config.epochs)
    return stored


def _value(config: Config, name: str) -> Any:
    if name in strategy_options():
        return config.strategy_options.get(name)
    return getattr(config, name, None)  # None: no option of a run, such as --out


def takes_config(*, without: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command `f(config, ...)` take a flag for each field of Config but those in `without`, and for each option
    of a strategy.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for name, p in signature.parameters.items() if name != "config"]
        taken = [f for f in fields(Config) if f.name not in (*without, "strategy_options")]
        hints = get_type_hints(Config)
        of_strategies = strategy_options()
        added = [_parameter(f.name, f.default, _flag(f, hints[f.name])) for f in taken]
        added += [_parameter(name, None, _strategy_flag(*found)) for name, found in of_strategies.items()]

        @wraps(command)
        def run(**given: Any) -> None:
            values = {field.name: given.pop(field.name) for field in taken}
            options = {name: given.pop(name) for name in of_strategies}
            if values["aux"] is not None:
                values["aux"] = tuple(name.strip() for name in values["aux"].split(",") if name.strip())
            values["strategy_options"] = {name: v for name, v in options.items() if v is not None}
            command(config=Config(**values), **given)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + added
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def make_writable(folder: Path) -> Path:
    """Create `folder` if need be and try it. Raises InputError where nothing can be written."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"--out {folder} cannot be written ({error.strerror}); choose another folder"
        ) from error
    return folder

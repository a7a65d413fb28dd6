"""The options of a command, from its flags and from a configuration file: flags override the file.

A command declares which dataclasses of options it takes; each field is both a flag and a key (see `runs/options.py`).
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from mt2st_fast.cli.paths import path
from mt2st_fast.cli.tasks import names_between_commas
from mt2st_fast.data.readers import READERS, takes
from mt2st_fast.errors import InputError
from mt2st_fast.files import at_home
from mt2st_fast.runs.config import OF_TOKENS, Config
from mt2st_fast.runs.config_file import config_file, read_config_file
from mt2st_fast.runs.options import Option, options_of, options_of_strategies
from mt2st_fast.training.schedules import strategy_options

logger = logging.getLogger("mt2st_fast")

LABEL_COLUMN = Option(
    "label_column",
    tuple,
    None,
    "Data",
    "table column with labels; append :regression or :multilabel for those kinds; repeat for auxiliary tasks "
    "(the first is the main task); replaces --main and --aux",
    {},
    may_be_none=True,
    repeated=True,
)

# The options that each command takes, by name.
COMMANDS: dict[str, dict[str, Option]] = {}

# The names of the options that a user gave, with the file that sets each, or None for the command line.
Given = Mapping[str, Path | None]

Command = Callable[..., None]


@dataclass(frozen=True)
class OfFiles:
    """Options that a command has in files only, as files of another command have them; take(options, file) replaces
    them by its own.
    """

    names: tuple[str, ...]
    take: Callable[[dict[str, Any], Path], None]


def takes_options(
    *, without: tuple[str, ...] = (), of_files: OfFiles | None = None
) -> Callable[[Command], Command]:
    """Give a command `f(config, ..., given)` a flag for each option of the dataclasses in its annotations.

    With Config come the options of strategies and --label-column; without: fields of Config that the command does not
    have; of_files: those of them that a file may have all the same. The command receives `given`.
    """

    def decorate(command: Command) -> Command:
        hints = {
            name: p.annotation for name, p in inspect.signature(command, eval_str=True).parameters.items()
        }
        groups = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
        known = _options(groups.values(), without)
        COMMANDS[command.__name__] = known
        in_files = {name: options_of(Config)[name] for name in (of_files.names if of_files else ())}

        @wraps(command)
        def run(context: typer.Context, config_path: Path | None, **flags: Any) -> None:
            values = _from_flags(context, known, flags)
            given: dict[str, Path | None] = dict.fromkeys(values)
            if config_path is not None:
                config_path = at_home(config_path)
                from_file = read_config_file(config_path, command.__name__, {**known, **in_files})
                if of_files is not None and from_file.keys() & set(of_files.names):
                    of_files.take(from_file, config_path)
                given |= dict.fromkeys(from_file.keys() - given.keys(), config_path)
                values = _merged(values, from_file)
            try:
                made = {name: _made(kind, values, without) for name, kind in groups.items()}
                command(**made, given=given)
            except InputError as error:
                error.args = (_with_origin(str(error), values, known, given),)
                raise

        parameters = [
            _parameter("context", inspect.Parameter.empty, typer.Context),
            _parameter("config_path", None, _ConfigPath),
            *(_parameter(each.name, _default(each), _flag(each)) for each in known.values()),
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


_ConfigPath = Annotated[
    Path | None,
    typer.Option(
        "--config", help="TOML or .json file with any of these options; flags override it", parser=path
    ),
]


def _options(kinds: Any, without: tuple[str, ...]) -> dict[str, Option]:
    found: dict[str, Option] = {}
    for kind in kinds:
        if kind is Config:
            of_config = {name: each for name, each in options_of(kind).items() if name not in without}
            found |= {**of_config, LABEL_COLUMN.name: LABEL_COLUMN, **options_of_strategies()}
        else:
            found |= options_of(kind)
    return found


# --- flags ------------------------------------------------------------------------------------------------


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _flag(option: Option) -> Any:
    kind: Any = option.kind
    if kind is tuple:  # a list is one string on the command line
        kind = list[str] if option.repeated else str
    if option.may_be_none:
        kind = kind | None
    declared = [option.flag, option.short] if option.short else [option.flag] if option.repeated else []
    return Annotated[
        kind,
        typer.Option(*declared, help=option.help, rich_help_panel=option.panel, **option.limits),
    ]


def _default(option: Option) -> Any:
    return ",".join(option.default) if isinstance(option.default, tuple) else option.default


def _from_flags(
    context: typer.Context, known: Mapping[str, Option], flags: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options on the command line, even those with default values. Raises InputError for a bad value."""
    found = {}
    for name, option in known.items():
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        value = flags[name]
        if option.kind is tuple:
            value = tuple(value) if option.repeated else names_between_commas(value, option.flag)
        option.check(value, option.flag)
        found[name] = value
    return found


# --- values -----------------------------------------------------------------------------------------------


def _merged(flags: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    """Merge options; flags override the file. Tasks can be given in two ways; flags of either way also override a file
    that uses the other.
    """
    file = dict(file)
    if LABEL_COLUMN.name in flags:
        file = {name: value for name, value in file.items() if name not in ("main", "aux")}
    elif flags.keys() & {"main", "aux"} and LABEL_COLUMN.name in file:
        file |= _tasks_of(file.pop(LABEL_COLUMN.name), file)
    return {**file, **flags}


def _made(kind: Any, values: Mapping[str, Any], without: tuple[str, ...]) -> Any:
    """Make a dataclass of options from the values it has fields for; without: options that Config leaves to others."""
    if kind is Config:
        return config_of({name: value for name, value in values.items() if name not in without})
    return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})


def config_of(values: Mapping[str, Any]) -> Config:
    """Return the configuration for some options by name, including those of strategies and --label-column."""
    own = {name: values[name] for name in options_of(Config) if name in values}
    columns = values.get(LABEL_COLUMN.name)
    if columns:
        own |= _tasks_of(columns, values)
        data = own.get("data", Config.data)
        if not takes(data, "text_column"):
            raise InputError(f"{data}: --label-column is for csv:PATH and jsonl:PATH; use --main and --aux")
    options = {name: values[name] for name in options_of_strategies() if values.get(name) is not None}
    return Config(**own, strategy_options=options)


def _tasks_of(columns: tuple[str, ...], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the main task and the auxiliary ones. Raises InputError if they are given in the other way as well."""
    if values.get("main") is not None or values.get("aux") is not None:
        raise InputError(
            "--label-column names the main task and the auxiliary ones, as --main and --aux do; use only one of the two"
        )
    return {"main": columns[0], "aux": tuple(columns[1:])}


def _with_origin(message: str, values: Mapping[str, Any], known: Mapping[str, Option], given: Given) -> str:
    """Add to an error message which options of the file it refers to."""
    named = [
        f"{known[name].key} in {path}"
        for name, path in given.items()
        if path is not None
        and str(path) not in message
        and _speaks_of(message, known[name], values.get(name))
    ]
    return f"{message} ({', '.join(named)})" if named else message


def _speaks_of(message: str, option: Option, value: Any) -> bool:
    texts = [str(each) for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, str)]
    texts += [text.partition(":")[2] for text in texts]  # the path in KIND:PATH
    return _is_named(option.flag, message) or any(len(t) > 2 and _is_named(t, message) for t in texts)


def _is_named(text: str, message: str) -> bool:
    """Whether the text occurs as a whole word: --lr is not in --lr-decay."""
    return re.search(rf"(?<![\w-]){re.escape(text)}(?![\w-])", message) is not None


def check_used(config: Config, given: Given) -> None:
    """Warn of an option that was given but has no effect on the data, as where several data sets share their options.

    A file may set such an option to its default, as the configuration that a run keeps has all options.
    """
    if READERS[config.data.partition(":")[0]].level == "token":
        return
    for name in OF_TOKENS:
        option = options_of(Config)[name]
        if name in given and (given[name] is None or getattr(config, name) != option.default):
            logger.warning(
                "%s is for word labels and has no effect where rows are documents, as in %s",
                option.flag,
                config.data,
            )


# --- stored configurations --------------------------------------------------------------------------------


def kept_config(command: str, *parts: Any, without: tuple[str, ...] = ()) -> bytes:
    """Return the file with which a command does the same again, from its dataclasses of options; None is left out.

    Where to write and whether to resume are not part of it.
    """
    values: dict[str, Any] = {}
    for part in reversed(parts):
        values |= {name: getattr(part, name) for name in options_of(type(part))}
        values |= getattr(part, "strategy_options", {})
    left_out = ("out", "resume", *without)
    options = {name: option for name, option in COMMANDS[command].items() if name not in left_out}
    return config_file(options, values)


def resumed_config(stored: Config, config: Config, given: Given, folder: Path) -> Config:
    """Return the configuration of the run in a folder, with the number of epochs that is given now.

    Raises InputError for any other option whose value differs from that run's.
    """
    columns = LABEL_COLUMN.name
    places = {**(dict.fromkeys(("main", "aux"), given[columns]) if columns in given else {}), **given}
    for name in sorted(places.keys() - {"epochs"}):
        own, then = (_value(of, name) for of in (config, stored))
        if own != then:
            raise another_value(name, places[name], own, then, f"the run in {folder}")
    if "epochs" in given and config.epochs is not None:
        return stored.extended_to(config.epochs)
    return stored


def another_value(name: str, file: Path | None, own: Any, then: Any, what: str) -> InputError:
    """Return the error for an option whose value differs from the resumed run's; file: the file that sets it."""
    own, then = (",".join(value) if isinstance(value, tuple) else value for value in (own, then))
    key = name.replace("_", "-")
    said = f"--{key} is {own}" if file is None else f"{file}: {key} is {own}"
    return InputError(
        f"{said}, but {what} has {then}; leave it out to continue, or choose another --out to start anew"
    )


def _value(config: Config, name: str) -> Any:
    if name in strategy_options():
        return config.strategy_options.get(name)
    return getattr(config, name, None)  # None for what is not an option of a run, such as --out

"""The command line: train, predict, test, export, compare, report, prepare, evaluate, info, kernels, tune."""

from __future__ import annotations

import codecs
import io
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from mt2st_fast.cli.launched import SaidElsewhereError, be_quiet_unless_first, is_first, refusal
from mt2st_fast.cli.terminal import in_ascii
from mt2st_fast.errors import INTERRUPTED, InputError, LostProcessError
from mt2st_fast.files import STANDARD_OUTPUT
from mt2st_fast.interrupts import importing

# Where each command is. A command loads only its own module: those of training need seconds.
COMMANDS = {
    "train": ("train", "train"),
    "predict": ("predict", "predict"),
    "test": ("test", "measure"),
    "export": ("export", "export"),
    "compare": ("compare", "compare"),
    "report": ("report", "report"),
    "prepare": ("prepare", "prepare"),
    "evaluate": ("evaluate", "evaluate"),
    "info": ("info", "info"),
    "kernels": ("kernels", "kernels"),
    "tune": ("tune", "tune"),
}

NO_NUMBA = "NUMBA_DISABLE_JIT"  # as kernels name it, which are not loaded here


if TYPE_CHECKING:
    app: typer.Typer


class _InterruptedError(Exception):
    """Ctrl-C within a command."""


class _Commands(TyperGroup):
    """All commands, which end by an error of ours on Ctrl-C: some versions of typer turn it into a silent exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command of the arguments."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _InterruptedError from error


def __getattr__(name: str) -> Any:
    """Make `app`, which has all commands, when it is asked for."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = _app_of(COMMANDS)
    return globals()["app"]


def load_command(arguments: Sequence[str]) -> typer.Typer:
    """Return an app with the command that the arguments begin with; with all of them if that is none, as for --help."""
    named = arguments[:1]
    return _app_of(named) if named and named[0] in COMMANDS else __getattr__("app")  # type: ignore[no-any-return]


def _app_of(names: Iterable[str]) -> typer.Typer:
    made = typer.Typer(
        name="mt2st-fast",
        help="Train on many tasks, finish on one.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",
        callback=_begin,
        cls=_Commands,
    )
    for name in names:
        module, function = COMMANDS[name]
        made.command(name)(getattr(import_module(f"{__name__}.{module}"), function))
    return made


def _begin() -> None:
    # With it, a single command, too, is called by its name.
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Errors that the user can fix end in one line on standard error and exit code 2."""
    # Closed: `print` would put what is meant for it among the answers on standard output.
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (to the end of the process)
    codecs.register_error(in_ascii.__name__, in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII-only terminal must not end a run
            stream.reconfigure(errors=in_ascii.__name__)
    handler = logging.StreamHandler()
    handler.addFilter(_Once())
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[handler])
    be_quiet_unless_first()
    given = sys.argv[1:] if arguments is None else list(arguments)
    if why_not := refusal(given):
        _leave(why_not, of_all=True)
    try:
        with importing():
            app = load_command(given)
        code = app(args=given, prog_name="mt2st-fast", standalone_mode=False)
    except typer.TyperException as error:
        if not error.format_message():  # without a command, the help has just been shown
            sys.exit(2)
        context = getattr(error, "ctx", None)  # of the command that refuses, if it was found
        command = "mt2st-fast" if context is None else context.command_path
        _leave(f"{error.format_message()} (see {command} --help)", of_all=True)
    except SaidElsewhereError:
        sys.exit(2)
    except LostProcessError as error:
        print(f"mt2st-fast: {error}", file=sys.stderr, flush=True)
        os._exit(2)  # a normal exit would destroy the process group, which waits for the lost process
    except InputError as error:
        if os.environ.get("MT2ST_DEBUG"):
            raise
        _leave(str(error))
    except ImportError as error:
        if error.name != NO_NUMBA:
            raise
        _leave(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fix = "send it elsewhere" if error.filename == STANDARD_OUTPUT else "choose another --out"
        _leave(f"{where}{error.strerror or error}; {fix} or free some space there")
    except (_InterruptedError, KeyboardInterrupt, typer.Abort):
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)
    else:
        sys.exit(code if isinstance(code, int) else 0)


class _Once(logging.Filter):
    """Passes each message only once: a command that trains many models reports a shared condition once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message is new."""
        message = record.getMessage()
        is_new = message not in self._said
        self._said.add(message)
        return is_new


def _leave(message: str, *, of_all: bool = False) -> None:
    """Print an error and exit. of_all: an error that every process has, and only the first one prints."""
    if is_first() or not of_all:
        print(f"mt2st-fast: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)

"""Commands as a page shows them: run in this process, or parsed by the program that they call."""

from __future__ import annotations

import gc
import importlib.util
import io
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import typer

from mt2st_fast.cli import app, main
from tests.pages.blocks import ROOT

OWN = "mt2st-fast"
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer has no name of its own for it
SHELL = ("cat", "echo", "head", "ls", "printf")  # run by a shell


class UnknownCommandError(AssertionError):
    """A command that nobody here can run or parse: mark its block, or teach this file its program."""


def statements(script: str) -> list[str]:
    """The commands of a script, one each, with the text that a `<<EOF` gives them."""
    found: list[str] = []
    lines = iter(script.splitlines())
    for line in lines:
        while line.endswith("\\"):
            line = line[:-1] + next(lines).lstrip()
        if "<<" in line:
            end = line.rpartition("<<")[2].strip("'\" ")
            text = [line]
            while text[-1] != end:
                text.append(next(lines))
            found.append("\n".join(text))
        elif line.strip() and not line.startswith("#"):
            found += [part.strip() for part in line.split("&&")]
    return found


def run(statement: str, folder: Path) -> str:
    """What a command prints; it must succeed. The process is in `folder`."""
    if shlex.split(statement, comments=True)[0] in SHELL and OWN not in statement:
        return subprocess.run(
            ["bash", "-euc", statement], cwd=folder, capture_output=True, text=True, check=True
        ).stdout
    piped, _, command = statement.rpartition("|")
    words = shlex.split(command, comments=True)
    if words[0] != OWN:
        parse(statement)
        return ""
    given = run(piped.strip(), folder) if piped else ""
    target = words[words.index(">") + 1] if ">" in words else None
    printed = _run_own(words[1 : words.index(">") if target else None], given)
    if target is None:
        return printed
    (folder / target).write_text(printed, encoding="utf-8")
    return ""


def _run_own(arguments: list[str], given: str) -> str:
    written, before = io.BytesIO(), (sys.stdin, sys.getswitchinterval())
    printed = io.TextIOWrapper(written, "utf-8", write_through=True)
    sys.stdin = io.TextIOWrapper(io.BytesIO(given.encode()))
    try:
        with redirect_stdout(printed), pytest.raises(SystemExit) as left:
            main(arguments)
    finally:  # a command is a process of its own otherwise, and leaves both to it
        sys.stdin = before[0]
        sys.setswitchinterval(before[1])
        gc.enable()
    printed.flush()
    assert left.value.code == 0, f"{OWN} {shlex.join(arguments)} ended with {left.value.code}"
    return written.getvalue().decode()


def parse(statement: str) -> None:
    """Look whether the program that a command calls would take it. Raises what that program's parser raises."""
    for command in re.split(r"\s\|\s", statement):
        words = shlex.split(command, comments=True)
        words = words[: words.index(">")] if ">" in words else words
        _parse(words)


def _parse(words: list[str]) -> None:
    program, arguments = Path(words[0]).name, words[1:]
    if program == OWN:
        _parse_own(arguments)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        given = get_args_parser().parse_args(arguments)
        if given.training_script == "mt2st_fast":
            _parse_own(given.training_script_args)
    elif program == "pip":
        assert arguments[0] == "install", words
        _check_extras(arguments)
    elif program in ("python", "python3"):
        _check_program(arguments)
    elif program == "pytest":
        assert all((ROOT / place).exists() for place in arguments if not place.startswith("-")), words
    elif program == "mkdocs":
        assert arguments in (["build"], ["serve"]), words
    elif program not in (*SHELL, "cd", "export", "git", "rm"):
        raise UnknownCommandError(shlex.join(words))


def _parse_own(arguments: list[str]) -> None:
    if arguments in (["--help"], []):
        return
    name, *of_command = arguments
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert name in commands, f"no command {name}"
    command = commands[name]
    if of_command != ["--help"]:
        command.make_context(name, of_command)


def _check_extras(arguments: list[str]) -> None:
    """Whether what is asked for in brackets is an extra of this package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for argument in arguments:
        if extras := re.fullmatch(r"(?:\.|mt2st-fast)\[([\w,]+)\]", argument):
            unknown = set(extras[1].split(",")) - set(project["optional-dependencies"])
            assert not unknown, f"no extra {unknown}"


def _check_program(arguments: list[str]) -> None:
    """Whether there is such a file or module."""
    if arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file(), f"no file {arguments[0]}"
        return
    module, *of_module = arguments[1:]
    if module == "mt2st_fast":
        _parse_own(of_module)
    else:
        assert importlib.util.find_spec(module) is not None, f"no module {module}"

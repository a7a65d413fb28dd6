"""User options: each is a flag of a command and a key of its configuration file at once.

Options are fields of dataclasses, made by `option`, which states the meaning, the limits and further conditions. A new
field is a new flag and a new key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from mt2st_fast.errors import InputError
from mt2st_fast.numbers import check_count, check_positive, check_positive_in_float32, check_within, is_whole
from mt2st_fast.spelling import meant, twice
from mt2st_fast.training.schedules import StrategyOption, strategy_options

# A further condition: a function of the option's name, for the message, and its value that raises InputError.
Test = Callable[[str, Any], None]

KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a string", tuple: "a list of strings",
}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """An option with its Python name; kind is int, float, bool, str, or tuple for names.

    limits: min and max, both inclusive. repeated: the flag is repeated for each name, instead of separating names by
    commas.
    """

    name: str
    kind: type
    default: Any
    panel: str
    help: str
    limits: Mapping[str, Any]
    may_be_none: bool = False
    test: Test | None = None
    short: str | None = None
    repeated: bool = False

    @property
    def key(self) -> str:
        """The name in a configuration file."""
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        """The name on the command line."""
        return f"--{self.key}"

    @property
    def due(self) -> str:
        """What a value must be, for messages."""
        least = self.limits.get("min")
        return f"{KINDS[self.kind]} of at least {least}" if self.kind is int and least else KINDS[self.kind]

    def takes(self, value: Any) -> bool:
        """Return whether a value is of the option's kind, whatever its limits."""
        if value is None:
            return self.may_be_none
        if self.kind is tuple:
            return isinstance(value, tuple) and all(isinstance(each, str) for each in value)
        if self.kind in (int, float):
            return is_whole(value) or (self.kind is float and isinstance(value, float | np.floating))
        return isinstance(value, self.kind)

    def check(self, value: Any, shown: str | None = None) -> None:
        """Raise InputError for a value of another kind, out of its limits or failing the test; shown: the name to use
        in the message.
        """
        shown = self.name if shown is None else shown
        if not self.takes(value):
            raise InputError(f"{shown} must be {self.due}, not {value!r}")
        if value is None:
            return
        low, high = (self.limits.get(name, limit) for name, limit in (("min", -math.inf), ("max", math.inf)))
        if self.kind is int:
            check_count(int(max(low, 0)), **{shown: value})
        if self.test is not None:
            self.test(shown, value)
        if self.kind in (int, float):
            check_within(low, high, **{shown: value})


def option(
    default: Any,
    panel: str,
    help: str,
    *,
    test: Test | None = None,
    short: str | None = None,
    **limits: float,
) -> Any:
    """Return a dataclass field that is an option; panel: the title under which `--help` and the file show it."""
    shown = {"panel": panel, "help": help, "limits": limits, "test": test, "short": short}
    return field(default=default, metadata=shown)


def options_of(kind: Any) -> Mapping[str, Option]:
    """Return the options among the fields of a dataclass, by name."""
    # Apart: mypy takes a `type` for unhashable, and so refuses it to a cached function.
    return _options_of(kind)


@cache
def _options_of(kind: Any) -> dict[str, Option]:
    hints = get_type_hints(kind)
    return {f.name: _of_field(f, hints[f.name]) for f in fields(kind) if "help" in f.metadata}


def _of_field(found: Field[Any], hint: Any) -> Option:
    assert found.default is not MISSING
    (taken,) = [each for each in get_args(hint) if each is not NoneType] if _may_be_none(hint) else [hint]
    return Option(
        found.name,
        get_origin(taken) or taken,
        found.default,
        may_be_none=_may_be_none(hint),
        **found.metadata,
    )


def _may_be_none(hint: Any) -> bool:
    return NoneType in get_args(hint)


def check_options(values: Any) -> None:
    """Raise InputError for a field of an options dataclass that its option refuses."""
    for name, each in options_of(type(values)).items():
        each.check(getattr(values, name))


@cache
def options_of_strategies() -> dict[str, Option]:
    """Return the options that strategies declare, by name."""
    return {name: _of_strategy(*found) for name, found in strategy_options().items()}


def _of_strategy(declared: StrategyOption, taken_by: tuple[str, ...]) -> Option:
    default = "" if declared.default is None else f" (default {declared.default:g})"
    limits = {"min": declared.low, "max": declared.high}
    return Option(
        declared.name,
        float,
        None,
        "Strategy",
        f"{declared.help}{default}; for {', '.join(taken_by)}",
        {name: limit for name, limit in limits.items() if limit is not None},
        may_be_none=True,
        test=lambda shown, value: declared.check(value, shown),
    )


def in_flags(message: str, options: Mapping[str, Option | StrategyOption]) -> str:
    """Return a message of the library, which names options as Python does, with these options' flags instead."""
    for name, each in options.items():
        message = re.sub(rf"(?<![\w-]){name}=True\b", each.flag, message)
        message = re.sub(rf"(?<![\w-]){name}=(['\"]?)([\w.+-]*\w)\1", rf"{each.flag} \2", message)
        if "_" in name:  # no word of a sentence
            message = re.sub(rf"(?<![\w-]){name}\b", each.flag, message)
    return re.sub(r"\bwithout resume\b", "without --resume", message)


# --- conditions -------------------------------------------------------------------------------------------


def positive(shown: str, value: Any) -> None:
    """Raise InputError unless the value is a finite number above 0."""
    check_positive(**{shown: value})


def positive_in_float32(shown: str, value: Any) -> None:
    """Raise InputError unless the value is above 0 and finite in float32."""
    check_positive_in_float32(**{shown: value})


def one_of(known: Sequence[str]) -> Test:
    """Return a test that refuses any string other than these."""

    def test(shown: str, value: str) -> None:
        if value not in known:
            raise InputError(
                f"{shown} {value!r} is unknown{meant(value, known)}; available: {', '.join(known)}"
            )

    return test


def some_of(known: Sequence[str]) -> Test:
    """Return a test that refuses a list of names that is empty, or has a duplicate or unknown name."""

    def test(shown: str, value: Sequence[str]) -> None:
        if not value:
            raise InputError(f"{shown} is empty; available: {', '.join(known)}")
        for name in value:
            one_of(known)(shown, name)
        if repeated := twice(value):
            raise InputError(f"{shown} names {repeated} twice; name each once")

    return test

"""A schedule as the command line knows it: its name, its options, and how they become a schedule.

`strategies()` finds every file in this package that has a `STRATEGY`; no other registration is needed.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import nn

from mt2st_fast.errors import InputError
from mt2st_fast.numbers import is_number
from mt2st_fast.training.schedules.base import LEAST_WEIGHT, Schedule


@dataclass(frozen=True)
class StrategyOption:
    """A number that a strategy takes, `--name` on the command line; `low` and `high` are its inclusive limits.

    whole: only whole numbers are allowed. default None: the strategy finds a value itself if none is given, and `help`
    says which.
    """

    name: str
    help: str
    default: float | None
    low: float | None = None
    high: float | None = None
    whole: bool = False

    @property
    def flag(self) -> str:
        """The flag as a user types it."""
        return "--" + self.name.replace("_", "-")

    def check(self, value: float, shown: str | None = None) -> None:
        """Raises InputError, naming the flag (or `shown`), unless the value is a finite number within the limits."""
        low, high = (
            (-math.inf if self.low is None else self.low),
            (math.inf if self.high is None else self.high),
        )
        if not (is_number(value) and low <= value <= high and (value % 1 == 0 or not self.whole)):
            limits = [f"at least {low:g}"] * (low > -math.inf) + [f"at most {high:g}"] * (high < math.inf)
            wanted = " and ".join(["a finite number" + ", whole" * self.whole, *limits])
            raise InputError(f"{shown or self.flag} must be {wanted}, not {value!r}")


@dataclass(frozen=True)
class RunFacts:
    """What a strategy may know about the run that it is built for."""

    epochs: float


@dataclass(frozen=True)
class Strategy:
    """A schedule with a name and options.

    name: what `--strategy` takes. build: makes the schedule from the values of all options, by name, and the run's
    facts; raises InputError for values that do not go together. found: the values that `build` derives from the run's
    facts for options without a default. encoder: makes the encoder to train instead, from the given encoder, the tasks
    and the values of all options; None keeps the given encoder. retires: whether auxiliary tasks retire, so that the
    main task trains alone at the end.
    """

    name: str
    help: str
    build: Callable[[Mapping[str, float | None], RunFacts], Schedule]
    options: tuple[StrategyOption, ...] = ()
    found: Callable[[Mapping[str, float | None], RunFacts], dict[str, float]] = lambda values, facts: {}
    encoder: Callable[[nn.Module, Sequence[str], Mapping[str, float | None]], nn.Module] | None = None
    retires: bool = False

    def settled(self, given: Mapping[str, float], facts: RunFacts) -> dict[str, float]:
        """Add the values that would be derived for a run of these facts, so that any run gets the same schedule."""
        return {**given, **self.found(self._values(given), facts)}

    def make(self, given: Mapping[str, float], facts: RunFacts) -> Schedule:
        """Make the schedule from the given options. Raises InputError for an option that the strategy does not take."""
        known = {option.name: option for option in self.options}
        for name in given:
            if name not in known:
                flags = ", ".join(option.flag for option in self.options) or "no option"
                raise InputError(
                    f"strategy {self.name} takes no --{name.replace('_', '-')}; it takes {flags}"
                )
            known[name].check(given[name])
        return self.build(self._values(given), facts)

    def encoder_of(self, encoder: nn.Module, tasks: Sequence[str], given: Mapping[str, float]) -> nn.Module:
        """Return the encoder that a run by this strategy trains. Raises InputError for one that it cannot train."""
        return encoder if self.encoder is None else self.encoder(encoder, tasks, self._values(given))

    def _values(self, given: Mapping[str, float]) -> dict[str, float | None]:
        return {option.name: given.get(option.name, option.default) for option in self.options}


def required(values: Mapping[str, float | None], name: str) -> float:
    """Return the value of an option that has a default. Raises InputError if there is none all the same."""
    value = values[name]
    if value is None:
        raise InputError(f"--{name.replace('_', '-')} needs a value")
    return value


# Options that several strategies share.
AUX_WEIGHT = StrategyOption("aux_weight", "initial weight of each auxiliary task", 1.0, low=0.0)
SWITCH_AT = StrategyOption(
    "switch_at",
    "fraction of the run at which auxiliary tasks retire; with self-training by their labels, 0.3 by default",
    0.6,
    low=0.0,
    high=1.0,
)
FLOOR = StrategyOption(
    "floor", "an auxiliary task retires when its weight falls below this", LEAST_WEIGHT, low=0.0
)


@cache
def strategies() -> dict[str, Strategy]:
    """Return all strategies by name. Raises ValueError if two files claim a name or define one option differently."""
    package = importlib.import_module(__name__.rpartition(".")[0])
    modules = [
        importlib.import_module(f"{package.__name__}.{info.name}")
        for info in pkgutil.iter_modules(package.__path__)
    ]
    return by_name([module.STRATEGY for module in modules if hasattr(module, "STRATEGY")])


def by_name(found: list[Strategy]) -> dict[str, Strategy]:
    """Index strategies by name. Raises ValueError if two claim the same name, or define one option differently."""
    named: dict[str, Strategy] = {}
    options: dict[str, StrategyOption] = {}
    for strategy in found:
        if strategy.name in named:
            raise ValueError(f"two schedules are named {strategy.name}")
        named[strategy.name] = strategy
        for option in strategy.options:
            if options.setdefault(option.name, option) != option:
                raise ValueError(f"{strategy.name} declares {option.flag} otherwise than another strategy")
    return named


def find_strategy(name: str) -> Strategy:
    """Return a strategy. Raises InputError, listing all names, for an unknown one."""
    found = strategies()
    if name not in found:
        raise InputError(f"unknown strategy {name}; available: {', '.join(found)}")
    return found[name]


def strategy_options() -> dict[str, tuple[StrategyOption, tuple[str, ...]]]:
    """Return every option by name, with the names of the strategies that take it."""
    taken_by: dict[str, tuple[str, ...]] = {}
    options: dict[str, StrategyOption] = {}
    for strategy in strategies().values():
        for option in strategy.options:
            options[option.name] = option
            taken_by[option.name] = (*taken_by.get(option.name, ()), strategy.name)
    return {name: (option, taken_by[name]) for name, option in options.items()}

"""The common base of schedules that train shared and task parameters in turns, counted in epochs or in steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from mt2st_fast.errors import InputError
from mt2st_fast.training.schedules.base import AuxiliaryWeights, Moment, Part, PerTask, Unit, value_of
from mt2st_fast.training.schedules.strategy import AUX_WEIGHT, Strategy, StrategyOption, required


class TakingTurns(AuxiliaryWeights, ABC):
    """Constant weights; some epochs or steps train the encoder alone, then some train the heads alone, and so on."""

    weights: PerTask
    unit: ClassVar[Unit]

    @property
    @abstractmethod
    def lengths(self) -> tuple[int, int]:
        """Length of a turn of the shared parameters, and of a turn of the tasks' parameters, in units."""

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """Return the constant weight."""
        return value_of(self.weights, task, 1.0)

    def part(self, moment: Moment) -> Part:
        """Return which part trains. Raises InputError for a run that ends before task parameters have had a turn."""
        shared, own = self.lengths
        steps = moment.steps_per_epoch if self.unit == "epoch" else 1
        if moment.total_steps <= shared * steps:
            raise InputError(
                f"{type(self).__name__} trains no head before {self.unit} {shared + 1}, and the run ends after "
                f"{moment.total_steps / steps:g}; use more epochs, or fewer shared_{self.unit}s"
            )
        return "shared" if moment.step // steps % (shared + own) < shared else "tasks"

    @property
    def turns(self) -> str:
        """A description of the turns."""
        shared, own = self.lengths
        return f"shared and task parameters in turns of {shared} and {own} {self.unit}s"


def strategy_of(
    name: str, source: str, unit: Unit, make: Callable[[int, int, float], TakingTurns]
) -> Strategy:
    """Return the strategy for the command line; source: the paper's name for it."""
    shared, own = f"shared_{unit}s", f"task_{unit}s"
    return Strategy(
        name,
        f"all tasks; encoder and heads train in turns, by {unit}s ({source})",
        lambda values, facts: make(
            int(required(values, shared)), int(required(values, own)), required(values, "aux_weight")
        ),
        (
            StrategyOption(
                shared, f"consecutive {unit}s that train only the encoder", 1.0, low=1.0, whole=True
            ),
            StrategyOption(
                own, f"consecutive {unit}s that then train only the heads", 1.0, low=1.0, whole=True
            ),
            AUX_WEIGHT,
        ),
    )

"""Which tasks are active at a step, and how much they weigh: one file per family of schedules.

To add a schedule, add a file here: a class with `task_weights`, and a `STRATEGY` that registers it on the command line.
"""

from mt2st_fast.training.schedules.adaptive_switch import AdaptiveSwitch
from mt2st_fast.training.schedules.adaptive_task_selector import AdaptiveTaskSelector
from mt2st_fast.training.schedules.adatask import AdaTask
from mt2st_fast.training.schedules.alternate import Alternate
from mt2st_fast.training.schedules.alternate_steps import AlternateSteps
from mt2st_fast.training.schedules.base import Moment, Part, PerTask, Schedule, Unit, checked_weights
from mt2st_fast.training.schedules.diminish import Diminish
from mt2st_fast.training.schedules.diminish_then_switch import DiminishThenSwitch
from mt2st_fast.training.schedules.dynamic_weight_average import DynamicWeightAverage
from mt2st_fast.training.schedules.famo import FAMO
from mt2st_fast.training.schedules.multi_task import MultiTask
from mt2st_fast.training.schedules.single_task import SingleTask
from mt2st_fast.training.schedules.squaring_decay import SquaringDecay
from mt2st_fast.training.schedules.strategy import (
    RunFacts,
    Strategy,
    StrategyOption,
    find_strategy,
    strategies,
    strategy_options,
)
from mt2st_fast.training.schedules.switch import Switch
from mt2st_fast.training.schedules.uncertainty import Uncertainty

__all__ = [
    "FAMO",
    "AdaTask",
    "AdaptiveSwitch",
    "AdaptiveTaskSelector",
    "Alternate",
    "AlternateSteps",
    "Diminish",
    "DiminishThenSwitch",
    "DynamicWeightAverage",
    "Moment",
    "MultiTask",
    "Part",
    "PerTask",
    "RunFacts",
    "Schedule",
    "SingleTask",
    "SquaringDecay",
    "Strategy",
    "StrategyOption",
    "Switch",
    "Uncertainty",
    "Unit",
    "checked_weights",
    "find_strategy",
    "strategies",
    "strategy_options",
]

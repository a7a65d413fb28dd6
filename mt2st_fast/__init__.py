"""Train on many tasks, finish on one: fused multi-task losses and a phase-aware trainer (MT2ST)."""

from mt2st_fast.callbacks import Callback
from mt2st_fast.encoders import BagEncoder, WindowEncoder
from mt2st_fast.errors import InputError
from mt2st_fast.heads import MultiTaskHeads
from mt2st_fast.history import Evaluation, History, PhaseRecord, StepRecord
from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind, choose_backend, choose_plan, multitask_loss
from mt2st_fast.schedules import (
    Diminish,
    DiminishThenSwitch,
    Moment,
    MultiTask,
    Schedule,
    SingleTask,
    SquaringDecay,
    Switch,
)
from mt2st_fast.tasks import Classification, MultiLabel, Regression
from mt2st_fast.trainer import NonFiniteLossError, Trainer
from mt2st_fast.word2vec import Word2Vec

__version__ = "0.1.0"

__all__ = [
    "BagEncoder",
    "Callback",
    "Classification",
    "Diminish",
    "DiminishThenSwitch",
    "Evaluation",
    "HeadLayout",
    "HeadSpec",
    "History",
    "InputError",
    "Kind",
    "Moment",
    "MultiLabel",
    "MultiTask",
    "MultiTaskHeads",
    "NonFiniteLossError",
    "PhaseRecord",
    "Regression",
    "Schedule",
    "SingleTask",
    "SquaringDecay",
    "StepRecord",
    "Switch",
    "Trainer",
    "WindowEncoder",
    "Word2Vec",
    "choose_backend",
    "choose_plan",
    "multitask_loss",
]

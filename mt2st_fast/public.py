"""The names that users import from `mt2st_fast`."""

from mt2st_fast.errors import InputError, LostProcessError
from mt2st_fast.exporting.inputs import TextInputs
from mt2st_fast.exporting.models import export_modules
from mt2st_fast.kernels import (
    HeadLayout,
    HeadSpec,
    Kind,
    choose_backend,
    multitask_loss,
)
from mt2st_fast.model.description import load_modules, save_modules
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.open_tasks import OpenTask
from mt2st_fast.model.row_shards import gather_rows, shard_rows
from mt2st_fast.model.subword_vectors import SubwordVectors
from mt2st_fast.model.task_adapted import TaskAdaptedEncoder
from mt2st_fast.model.task_json import tasks_from_json, tasks_to_json
from mt2st_fast.model.tasks import Classification, MultiLabel, Regression
from mt2st_fast.model.word_tasks import ContextPrediction, WordAnalogy, WordSimilarity, WordTask
from mt2st_fast.serving.load import load
from mt2st_fast.serving.text_model import TextModel
from mt2st_fast.training.callbacks.callback import Callback
from mt2st_fast.training.callbacks.early_stopping import EarlyStopping
from mt2st_fast.training.callbacks.log_to import LogTo
from mt2st_fast.training.divergence import NonFiniteLossError
from mt2st_fast.training.history import Evaluation, History, PhaseRecord, StepRecord
from mt2st_fast.training.optimizers.row_sparse import SGD, LazyAdam, RowwiseAdagrad
from mt2st_fast.training.phases.controller import Phase, PhaseController
from mt2st_fast.training.schedules import (
    FAMO,
    AdaptiveSwitch,
    AdaptiveTaskSelector,
    AdaTask,
    Alternate,
    AlternateSteps,
    Diminish,
    DiminishThenSwitch,
    DynamicWeightAverage,
    Moment,
    MultiTask,
    Schedule,
    SingleTask,
    SquaringDecay,
    Switch,
    Uncertainty,
)
from mt2st_fast.training.trainer import Trainer
from mt2st_fast.words.supervised import train_supervised
from mt2st_fast.words.supervised_model import Prediction, SupervisedModel, load_model
from mt2st_fast.words.vectors import WordVectors
from mt2st_fast.words.word2vec import Word2Vec

__all__ = [
    "FAMO",
    "SGD",
    "AdaTask",
    "AdaptiveSwitch",
    "AdaptiveTaskSelector",
    "Alternate",
    "AlternateSteps",
    "BagEncoder",
    "Callback",
    "Classification",
    "ContextPrediction",
    "Diminish",
    "DiminishThenSwitch",
    "DynamicWeightAverage",
    "EarlyStopping",
    "Evaluation",
    "HeadLayout",
    "HeadSpec",
    "History",
    "InputError",
    "Kind",
    "LazyAdam",
    "LogTo",
    "LostProcessError",
    "Moment",
    "MultiLabel",
    "MultiTask",
    "MultiTaskHeads",
    "NonFiniteLossError",
    "OpenTask",
    "Phase",
    "PhaseController",
    "PhaseRecord",
    "Prediction",
    "Regression",
    "RowwiseAdagrad",
    "Schedule",
    "SingleTask",
    "SquaringDecay",
    "StepRecord",
    "SubwordVectors",
    "SupervisedModel",
    "Switch",
    "TaskAdaptedEncoder",
    "TextInputs",
    "TextModel",
    "Trainer",
    "Uncertainty",
    "WindowEncoder",
    "Word2Vec",
    "WordAnalogy",
    "WordSimilarity",
    "WordTask",
    "WordVectors",
    "choose_backend",
    "export_modules",
    "gather_rows",
    "load",
    "load_model",
    "load_modules",
    "multitask_loss",
    "save_modules",
    "shard_rows",
    "tasks_from_json",
    "tasks_to_json",
    "train_supervised",
]

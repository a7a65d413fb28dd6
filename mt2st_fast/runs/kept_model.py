"""The model that a finished experiment leaves: for saving, and for predicting labels of text."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from mt2st_fast.data import READERS
from mt2st_fast.data.readers.same_data import located
from mt2st_fast.data.record import never_seen
from mt2st_fast.model.description import describe, rebuild
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.task_adapted import TaskAdaptedEncoder
from mt2st_fast.runs.experiment import Experiment
from mt2st_fast.serving.text_model import Labels, TextModel
from mt2st_fast.training.trained_heads import heads_without, untrained


def text_model(experiment: Experiment) -> TextModel:
    """Return the trained model for saving and predicting: on a CPU, with the current weights, in units of the data."""
    trainer, splits = experiment.trainer, experiment.splits
    left_out = untrained(trainer.heads, trainer.history)
    configuration, tensors = describe(*_modules_to_keep(trainer.encoder, trainer.heads, left_out))
    encoder, heads = rebuild(configuration, {name: t.detach().cpu() for name, t in tensors.items()})
    assert isinstance(encoder, WindowEncoder | BagEncoder)
    for name in heads.names:
        if name in experiment.scales:
            experiment.scales[name].undo_in(heads.linear(name))
    labels = {
        name: Labels(column.kind, column.class_names, never_seen(column))
        for name, column in splits.train.targets.items()
        if name in heads.names
    }
    reader = READERS[experiment.config.data.partition(":")[0]]
    vectors = experiment.vectors
    return TextModel(
        encoder,
        heads,
        vectors.vocabulary,
        vectors.table,
        labels,
        reader.tokenizer,
        located(splits.name),
        experiment.config.text_column,
    )


def _modules_to_keep(
    encoder: nn.Module, heads: MultiTaskHeads, left_out: Collection[str]
) -> tuple[nn.Module, MultiTaskHeads]:
    """Return encoder and heads of the tasks that can be predicted for text; with one encoder per task, the main task's
    only.
    """
    if not isinstance(encoder, TaskAdaptedEncoder):
        return encoder, heads_without(heads, left_out)
    main = heads.main
    alone = MultiTaskHeads.from_modules(
        {main: heads.linear(main)}, {main: heads.tasks[main]}, main, backend=heads.backend, plan=heads.plan
    )
    return encoder.folded(main), alone

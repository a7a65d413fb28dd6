"""Fused multi-task loss and row-sparse embedding kernels for CPU (Numba) and GPU (Triton), with their oracles.

Imports nothing from the rest of the package.
"""

if __name__ == "kernels":
    # Not mt2st_fast.kernels: the working directory is a checkout, and somebody looks for Hugging Face's package of that
    # name, as transformers does. Loaded a second time, the custom ops would replace those that calls already go to,
    # and torch frees what those refer to.
    __path__ = []
else:
    from .bags.batch import DeviceBags, TypeRows, type_rows
    from .bags.device_bags import prepare_on_device
    from .bags.op import (
        FusedUpdate,
        choose_embedding_backend,
        embedding_bag,
        embedding_bag_of_types,
        fuse_update,
        pools_types,
        prepared_embedding_bag,
        sum_pieces,
        take_bags,
        unique_ids,
        update_all_rows,
        update_distinct_rows,
        update_rows,
    )
    from .bags.prepared import PreparedBags, prepare_bags
    from .bags.rules import RULES as ROW_RULES
    from .bags.rules import RowRule, RowRuleKind, RowState
    from .convolution.op import conv1d, convolution_obstacle
    from .heads.apart import losses_apart
    from .heads.kind import HeadSpec, Kind, task_of_column
    from .heads.layout import HeadLayout
    from .heads.op import MultitaskLoss, multitask_gradients, multitask_loss
    from .heads.parts import lay_adjacent
    from .heads.plans import (
        RULES,
        Shape,
        choose_plan,
        table_path,
        tuned_tables,
    )
    from .heads.pooling import POOLINGS, Pooling
    from .heads.reference import accepted_targets, head_correct, row_losses
    from .log_linear.fitting import fit_log_linear
    from .machine.registry import NO_NUMBA, OPS, REFERENCE, Choice, Op, asked_for, choose_backend, is_set
    from .recurrent.op import gru, lstm, recurrent_obstacle
    from .step.activations import ACTIVATIONS, chosen_activation, is_activation
    from .step.bags import bag_step, bag_step_obstacle
    from .step.common import Dropout, Updates
    from .step.dense_model import Decay, Dense
    from .step.embedding import EmbeddingTable
    from .step.model import EVERYTHING, FROZEN, NOTHING, BagModel, Moves, Trained, TrainedHead
    from .step.stack import stack_correct, stack_inputs_obstacle, stack_step, stack_step_obstacle
    from .step.stack_model import BatchNorm, Layer, Norm, Running, StackModel
    from .step.summed import (
        EVERY_ROW,
        Piece,
        Share,
        SummedModel,
        places_of,
        shares_of_rows,
        summed_step,
        take_rows,
    )
    from .step.text import (
        text_correct,
        text_features,
        text_gradients,
        text_step,
        text_step_obstacle,
    )
    from .step.text_model import (
        ExtraGradients,
        Gradient,
        Pooled,
        TextStepModel,
        Words,
        gradient_model,
    )
    from .text.layout import END, PADDING
    from .text.words import LineWords, WordCounter, split_lines

__all__ = [
    "ACTIVATIONS",
    "END",
    "EVERYTHING",
    "EVERY_ROW",
    "FROZEN",
    "NOTHING",
    "NO_NUMBA",
    "OPS",
    "PADDING",
    "POOLINGS",
    "REFERENCE",
    "ROW_RULES",
    "RULES",
    "BagModel",
    "BatchNorm",
    "Choice",
    "Decay",
    "Dense",
    "DeviceBags",
    "Dropout",
    "EmbeddingTable",
    "ExtraGradients",
    "FusedUpdate",
    "Gradient",
    "HeadLayout",
    "HeadSpec",
    "Kind",
    "Layer",
    "LineWords",
    "Moves",
    "MultitaskLoss",
    "Norm",
    "Op",
    "Piece",
    "Pooled",
    "Pooling",
    "PreparedBags",
    "RowRule",
    "RowRuleKind",
    "RowState",
    "Running",
    "Shape",
    "Share",
    "StackModel",
    "SummedModel",
    "TextStepModel",
    "Trained",
    "TrainedHead",
    "TypeRows",
    "Updates",
    "WordCounter",
    "Words",
    "accepted_targets",
    "asked_for",
    "bag_step",
    "bag_step_obstacle",
    "choose_backend",
    "choose_embedding_backend",
    "choose_plan",
    "chosen_activation",
    "conv1d",
    "convolution_obstacle",
    "embedding_bag",
    "embedding_bag_of_types",
    "fit_log_linear",
    "fuse_update",
    "gradient_model",
    "gru",
    "head_correct",
    "is_activation",
    "is_set",
    "lay_adjacent",
    "losses_apart",
    "lstm",
    "multitask_gradients",
    "multitask_loss",
    "places_of",
    "pools_types",
    "prepare_bags",
    "prepare_on_device",
    "prepared_embedding_bag",
    "recurrent_obstacle",
    "row_losses",
    "shares_of_rows",
    "split_lines",
    "stack_correct",
    "stack_inputs_obstacle",
    "stack_step",
    "stack_step_obstacle",
    "sum_pieces",
    "summed_step",
    "table_path",
    "take_bags",
    "take_rows",
    "task_of_column",
    "text_correct",
    "text_features",
    "text_gradients",
    "text_step",
    "text_step_obstacle",
    "tuned_tables",
    "type_rows",
    "unique_ids",
    "update_all_rows",
    "update_distinct_rows",
    "update_rows",
]

"""The memory in which a step surveys the targets of its heads: made once for a model, and used in every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from torch import Tensor

from ...heads.layout import HeadLayout
from ...heads.on_numba.passes import (
    COMPACTED_PASS_LOGITS,
    COMPACTED_ROW_LOGITS,
    HEAD_RECORD,
    head_table,
    kernel_targets,
)
from ...heads.on_numba.targets import survey
from ...machine.held import Doubles1, Floats1, Ints1
from ...machine.jit import helper


class TaskMemory(NamedTuple):
    """K heads with S outputs, the targets of a step, and what `survey` finds in them."""

    heads: Annotated[np.ndarray, HEAD_RECORD, 1]  # (K,)
    column_weights: Floats1  # (S,)
    targets: Ints1  # (K,) addresses, set before a step
    scale: Doubles1  # (K,) these three as `survey` fills them
    gradient_scale: Floats1
    way: Ints1
    wrong: Ints1  # (2,) where a target or an input that is not valid is: of which task, and its index


def task_memory(layout: HeadLayout) -> TaskMemory:
    """Make the memory for the heads of a layout."""
    K, table = len(layout), head_table(layout)
    return TaskMemory(
        table.records, table.column_weights, np.zeros(K, np.int64), np.zeros(K), np.zeros(K, np.float32),
        np.zeros(K, np.int64), np.zeros(2, np.int64),
    )  # fmt: skip


def hold_targets(tasks: TaskMemory, targets: Sequence[Tensor], layout: HeadLayout) -> list[Tensor]:
    """Take over the addresses of a step's targets; return what must be kept while a kernel reads them."""
    held = kernel_targets(targets, layout)
    tasks.targets[:] = list(map(Tensor.data_ptr, held))
    return held


@helper
def survey_tasks(tasks, n_rows, task_weights, skip_zero_weights):
    """Whether all targets are valid: else tasks.wrong says which is not. See `survey`."""
    n_whole = survey(
        tasks.heads, tasks.column_weights, tasks.targets, n_rows, task_weights, skip_zero_weights,
        COMPACTED_PASS_LOGITS, COMPACTED_ROW_LOGITS, tasks.scale, tasks.gradient_scale, tasks.way, tasks.wrong,
    )  # fmt: skip
    return n_whole >= 0

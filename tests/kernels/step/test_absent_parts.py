"""A step on a stack of layers is compiled without what its model does not have: a table, clipping, norms and so on."""

from __future__ import annotations

import inspect

import pytest
from numba.core import ir, types
from numba.core.analysis import dead_branch_prune
from numba.core.compiler import run_frontend

from mt2st_fast.kernels.step.on_numba import activations, embedding, stack_step, stack_tiles

TABLE, CLIPPING, NORMS, BATCH_NORMS, OPTIONS = "table_pieces", "clip_norm", "norms", "batch_norms", "options"


def _called(function, absent):
    """Return the globals that are left in a kernel's function where these arguments are None, as Numba sees it."""
    function = getattr(function, "py_func", function)
    code = run_frontend(function)
    names = inspect.signature(function).parameters
    dead_branch_prune(code, tuple(types.none if name in absent else types.int64 for name in names))
    statements = [statement for block in code.blocks.values() for statement in block.body]
    return {
        statement.value.name
        for statement in statements
        if isinstance(statement, ir.Assign) and isinstance(statement.value, ir.Global)
    }


@pytest.mark.parametrize(
    ("function", "absent", "parts"),
    [
        (stack_step._run, TABLE, {"index_batch"}),
        (stack_step._square, TABLE, {"square_of_rows"}),
        (stack_step._move, TABLE, {"move_table"}),
        (stack_step._step_on_stack, TABLE, {"sweeps_table", "n_table_pieces", "scale_vectors"}),
        (stack_step._step_on_stack, CLIPPING, {"clip_factor", "_square", "scale_vectors"}),
        (stack_tiles.run_tile, TABLE, {"store_vector_gradients"}),
        (activations.activate, NORMS, {"normalise"}),
        (activations.deactivate, NORMS, {"denormalise"}),
        (activations.activate, BATCH_NORMS, {"standardise"}),
        (activations.activate, OPTIONS, {"value_and_slope"}),
        (activations.deactivate, BATCH_NORMS, {"sum_products", "undo_standardise"}),
        (stack_tiles.run_tile, BATCH_NORMS, {"measure", "undo_standardise"}),
        (stack_step._step_on_stack, BATCH_NORMS, {"begin_norms", "_combine"}),
        (embedding.load_rows, TABLE, {"_load_vectors"}),
    ],
)
def test_what_is_none_is_not_compiled(function, absent, parts):
    assert parts <= _called(function, {})
    assert not parts & _called(function, {absent})

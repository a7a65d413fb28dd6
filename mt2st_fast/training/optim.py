"""Optimizers that step only the rows a batch has touched, and dense parameters beside them in the usual way.

A parameter is row-sparse where its gradient is a sparse tensor (encoders with `sparse=True`). A step on it costs what
the batch costs, whatever the length of the table. After `fuse` the backward pass itself steps the rows and no
gradient is made; that rules out gradient clipping, accumulation and loss scaling.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mt2st_fast.kernels import (
    FusedUpdate,
    RowRule,
    RowState,
    fuse_update,
    update_all_rows,
    update_rows,
)
from mt2st_fast.kernels.bags import rules

ROW_STATE = "row"  # (V,) a number for every row; its presence marks a state that only touched rows change
DENSE_STATE = "sum"


class RowSparseOptimizer(torch.optim.Optimizer, ABC):
    """Steps row-sparse parameters by a rule, and leaves the dense ones to the optimizer behind it in the bases."""

    @abstractmethod
    def rule(self, group: dict[str, Any]) -> RowRule:
        """The rule by which rows of this group move."""

    @abstractmethod
    def row_state(self, table: Tensor) -> RowState:
        """What the rule remembers of a table, made at its first step."""

    def dense_state(self, parameter: Tensor) -> RowState | None:
        """What the rule remembers of a dense parameter, made at its first step; None where another rule moves it."""
        del parameter
        return None

    def fuse(self, tables: Iterable[Tensor]) -> None:
        """Have the backward pass step these row-sparse tables from now on, at the rates of the moment.

        Raises ValueError for a table that this optimizer does not hold.
        """
        group_of = {id(p): group for group in self.param_groups for p in group["params"]}
        for table in tables:
            if id(table) not in group_of:
                raise ValueError("a table to fuse is not among the optimizer's parameters")
            group = group_of[id(table)]
            fuse_update(table, FusedUpdate(partial(self.rule, group), self.row_state(table)))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step: of the touched rows of row-sparse parameters, of all else in dense ones."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        row_sparse = [
            (group, parameter, parameter.grad)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.is_sparse
        ]
        for group, table, gradient in row_sparse:
            update_rows(self.rule(group), table, gradient, self.row_state(table))
            table.grad = None
        try:
            super().step()
        finally:
            for _, table, gradient in row_sparse:
                table.grad = gradient
        return loss

    def _state_of(self, table: Tensor, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
        """The table's state, zeros of these shapes in float32 at first."""
        state: dict[str, Tensor] = self.state[table]
        for name, shape in shapes.items():
            if name not in state:
                state[name] = torch.zeros(shape, dtype=torch.float32, device=table.device)
        return state


def unfuse(tables: Iterable[Tensor]) -> None:
    """Have the backward pass make the tables' gradients again."""
    for table in tables:
        fuse_update(table, None)


class SGD(RowSparseOptimizer, torch.optim.SGD):
    """Stochastic gradient descent, w -= lr g; no momentum on rows, as a row would have to move without a gradient.

    Raises ValueError for momentum or weight decay.
    """

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)

    def rule(self, group: dict[str, Any]) -> RowRule:
        """SGD at the group's rate."""
        return RowRule(rules.SGD, float(group["lr"]))

    def row_state(self, table: Tensor) -> RowState:
        """None."""
        del table
        return RowState()

    def dense_state(self, parameter: Tensor) -> RowState:
        """None."""
        del parameter
        return RowState()


def _adagrad_rule(group: dict[str, Any]) -> RowRule:
    return RowRule(rules.ADAGRAD, float(group["lr"]), eps=group["eps"])


def _adagrad_sums(state: dict[str, Tensor], parameter: Tensor) -> RowState:
    if DENSE_STATE not in state:
        state[DENSE_STATE] = torch.zeros(
            parameter.shape[:1] or 1, dtype=torch.float32, device=parameter.device
        )
    return RowState(state[DENSE_STATE])


class _DenseRowwiseAdagrad(torch.optim.Optimizer):
    """Row-wise Adagrad of dense parameters: a row is what the first axis counts."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of all parameters with a gradient."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                sums = _adagrad_sums(self.state[parameter], parameter)
                update_all_rows(_adagrad_rule(group), parameter, parameter.grad, sums)


class RowwiseAdagrad(RowSparseOptimizer, _DenseRowwiseAdagrad):
    """Adagrad with one sum a row: s += mean(g^2), w -= lr g / (sqrt(s) + eps).

    The state is a number a row, 1/D of the table. Rare rows keep a high rate, frequent ones settle. (Duchi et al.
    2011, with the sum taken by row as in Gupta et al. 2014.)
    """

    def __init__(self, params: Any, lr: float = 0.1, *, eps: float = 1e-10) -> None:
        if not lr > 0 or not eps > 0:
            raise ValueError(f"lr and eps must be positive, not {lr} and {eps}")
        super().__init__(params, {"lr": lr, "eps": eps})

    def rule(self, group: dict[str, Any]) -> RowRule:
        """Row-wise Adagrad at the group's rate."""
        return _adagrad_rule(group)

    def row_state(self, table: Tensor) -> RowState:
        """A sum a row."""
        return RowState(self._state_of(table, **{ROW_STATE: (len(table),)})[ROW_STATE])

    def dense_state(self, parameter: Tensor) -> RowState:
        """A sum a row."""
        return _adagrad_sums(self.state[parameter], parameter)


class LazyAdam(RowSparseOptimizer, torch.optim.AdamW):
    """Adam that leaves untouched rows and their moments alone; AdamW on dense parameters.

    A row's bias corrections count the steps of that row. weight_decay acts on dense parameters only. The state of a
    table is two more tables; `RowwiseAdagrad` needs a number a row.
    """

    def rule(self, group: dict[str, Any]) -> RowRule:
        """Adam at the group's rate and betas."""
        beta1, beta2 = group["betas"]
        return RowRule(rules.ADAM, float(group["lr"]), beta1, beta2, group["eps"])

    def row_state(self, table: Tensor) -> RowState:
        """Steps a row, and both moments."""
        shape = tuple(table.shape)
        # AdamW looks for `step` in every parameter's state when it is loaded.
        state = self._state_of(table, step=(), **{ROW_STATE: shape[:1]}, exp_avg=shape, exp_avg_sq=shape)
        return RowState(state[ROW_STATE], state["exp_avg"], state["exp_avg_sq"])

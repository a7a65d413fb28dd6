"""Optimizers that step only the rows a batch has touched, and dense parameters beside them in the usual way.

A parameter is row-sparse where its gradient is a sparse tensor (encoders with `sparse=True`). A step on it costs what
the batch costs, whatever the length of the table. After `fuse` the backward pass itself steps the rows and no
gradient is made; that rules out gradient clipping, accumulation and loss scaling.
"""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mt2st_fast.kernels import (
    FusedUpdate,
    RowRule,
    RowRuleKind,
    RowState,
    fuse_update,
    update_all_rows,
    update_rows,
)
from mt2st_fast.kernels.bags import rules
from mt2st_fast.numbers import check_finite_number, check_not_negative, check_positive, check_within

ROW_STATE = "row_"  # begins the names of what only the rows of a batch change
FROZEN_ROWS = "frozen_rows"  # (V,) 1 for a row of a table that stays as it is


def _not_to_compile(method: Any) -> Callable[..., Any]:
    """A method that torch keeps from its compiler, which it imports to say so: more than a second of every start.

    Where nobody has imported the compiler, nobody compiles, and the method is called as it is.
    """
    if "torch._dynamo" in sys.modules:
        return method  # type: ignore[no-any-return]
    return partial(inspect.unwrap(method.__func__), method.__self__)


class RowSparseOptimizer(torch.optim.Optimizer, ABC):
    """Steps row-sparse parameters by a rule, and leaves the dense ones to the optimizer behind it in the bases.

    A class says which rule by `kind`; its groups hold the rule's numbers by their names, unless it has its own `rule`.
    """

    @property
    @abstractmethod
    def kind(self) -> RowRuleKind:
        """The kind of rule by which rows move; a class attribute will do."""

    def rule(self, group: dict[str, Any]) -> RowRule:
        """The rule of the moment by which rows of this group move, at a rate on the device where the group's is."""
        return RowRule(self.kind, group["lr"], **{name: group[name] for name in self.kind.numbers})

    def next_rule(self, table: Tensor, group: dict[str, Any]) -> RowRule:
        """The rule by which the rows of a table of this group move in the step that is being taken, which counts it."""
        del table
        return self.rule(group)

    def take_back(self, table: Tensor) -> None:
        """A step that `next_rule` has counted is not taken."""
        del table

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As of every optimizer."""
        _not_to_compile(super().add_param_group)(param_group)

    def state_dict(self) -> dict[str, Any]:
        """As of every optimizer."""
        found: dict[str, Any] = _not_to_compile(super().state_dict)()
        return found

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As of every optimizer."""
        _not_to_compile(super().zero_grad)(set_to_none)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of every optimizer."""
        _not_to_compile(super().load_state_dict)(state_dict)

    def row_state(self, table: Tensor) -> RowState:
        """What the rule remembers of a table (V, D), made at its first step."""
        return self._state_of(table, ROW_STATE, *table.shape)

    def dense_state(self, parameter: Tensor) -> RowState | None:
        """What the rule remembers of a dense parameter, made at its first step; None where another rule moves it."""
        del parameter
        return None

    def whole_state(self, parameter: Tensor) -> RowState | None:
        """What the rule remembers of a dense parameter that it moves as one row; None where it does not."""
        del parameter
        return None

    def freeze_rows(self, table: Tensor, frozen: Tensor | None) -> None:
        """Leave the rows of a row-sparse table that are true in frozen (V,) as they are from now on; None: move all.

        They stand in the table's state, as the moments of rows do. Raises ValueError for another shape.
        """
        self.row_state(table)  # which others look for where there is any state
        if frozen is None:
            self.state[table].pop(FROZEN_ROWS, None)
            return
        if frozen.shape != table.shape[:1] or frozen.dtype != torch.bool:
            raise ValueError(
                f"frozen rows must be {tuple(table.shape[:1])} bool, not {tuple(frozen.shape)} {frozen.dtype}"
            )
        # As numbers of the table's kind, which is what torch makes of a state that it loads.
        self.state[table][FROZEN_ROWS] = frozen.to(table.device, table.dtype)

    def frozen_rows(self, table: Tensor) -> Tensor | None:
        """(V,) bool, which rows of a table stay as they are; None: none does."""
        stored = self.state[table].get(FROZEN_ROWS) if table in self.state else None
        return None if stored is None else stored.bool()

    def drop_frozen_rows(self) -> None:
        """Leave frozen rows out of the gradients of row-sparse tables, whose norm they are no part of."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None and table.grad.is_sparse:
                    table.grad = without_rows(table.grad, self.frozen_rows(table))

    def fuse(self, tables: Iterable[Tensor]) -> None:
        """Have the backward pass step these row-sparse tables from now on, at the rates of the moment.

        Raises ValueError for a table that this optimizer does not hold.
        """
        group_of = {id(p): group for group in self.param_groups for p in group["params"]}
        for table in tables:
            if id(table) not in group_of:
                raise ValueError("a table to fuse is not among the optimizer's parameters")
            group = group_of[id(table)]
            fuse_update(table, FusedUpdate(partial(self.next_rule, table, group), self.row_state(table)))

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
            moving = without_rows(gradient, self.frozen_rows(table))
            state = self.row_state(table)
            update_rows(self.next_rule(table, group), table, moving, state)
            table.grad = None
        self._fuse_dense_steps()
        # Torch's step lets itself be differentiated through, where that is asked for.
        step = super().step if self.defaults.get("differentiable") else _not_to_compile(super().step)
        try:
            step()
        finally:
            for _, table, gradient in row_sparse:
                table.grad = gradient
        return loss

    def _fuse_dense_steps(self) -> None:
        """Have torch step dense parameters on a GPU in one launch, which reads a rate on the device where it lies.

        Not said when a group is made: a checkpoint would keep it, and a CPU resume from it.
        """
        for group in self.param_groups:
            if (
                group.get("fused", False) is not None
                or group["foreach"] is not None
                or group["differentiable"]
            ):
                continue
            dense = [p for p in group["params"] if p.grad is not None]
            if dense and all(p.is_cuda and p.is_floating_point() for p in dense):
                group["fused"] = True
                for state in [self.state[p] for p in dense if p in self.state]:
                    if "step" in state:  # a checkpoint brings it on the CPU
                        state["step"] = state["step"].to(dense[0].device, torch.float32)

    def _state_of(self, parameter: Tensor, prefix: str, n_rows: int, n_columns: int) -> RowState:
        """What the rule remembers of a parameter, zeros in float32 at first, under the kind's names."""
        state: dict[str, Tensor] = self.state[parameter]

        def kept(name: str, shape: tuple[int, ...]) -> Tensor:
            if prefix + name not in state:
                state[prefix + name] = torch.zeros(shape, dtype=torch.float32, device=parameter.device)
            return state[prefix + name]

        return self.kind.new_state(kept, n_rows, n_columns)


def without_rows(gradient: Tensor, frozen: Tensor | None) -> Tensor:
    """A row-sparse gradient (V, D) without the rows that are frozen (V,); None: none is."""
    if frozen is None:
        return gradient
    gradient = gradient if gradient.is_coalesced() else gradient.coalesce()
    rows = gradient._indices()[0]
    moving = ~frozen[rows]
    return torch.sparse_coo_tensor(
        rows[moving].unsqueeze(0), gradient._values()[moving], gradient.shape, is_coalesced=True,
        check_invariants=False,
    )  # fmt: skip


def unfuse(tables: Iterable[Tensor]) -> None:
    """Have the backward pass make the tables' gradients again."""
    for table in tables:
        fuse_update(table, None)


def _check_rate(lr: float | Tensor) -> None:
    """Raises InputError for a rate that is not positive; one that is a tensor may not be looked at: it may be on a
    device, which would be waited for."""
    if not isinstance(lr, Tensor):
        check_positive(lr=lr)


class SGD(RowSparseOptimizer, torch.optim.SGD):
    """Stochastic gradient descent, w -= lr g; no momentum on rows, as a row would have to move without a gradient."""

    kind = rules.SGD

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        _check_rate(lr)
        super().__init__(params, lr=lr)

    def dense_state(self, parameter: Tensor) -> RowState:
        """None: torch's SGD and the rule are the same."""
        del parameter
        return RowState()


class _AllRows(torch.optim.Optimizer):
    """Dense parameters by the rule of the row-sparse ones: a row is what the first axis counts."""

    rule: Callable[[dict[str, Any]], RowRule]
    dense_state: Callable[[Tensor], RowState]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of all parameters with a gradient."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update_all_rows(self.rule(group), parameter, parameter.grad, self.dense_state(parameter))


class RuleOptimizer(RowSparseOptimizer, _AllRows):
    """Steps row-sparse and dense parameters by one rule of `ROW_RULES`; see `optimizer_by_rule`.

    Raises ValueError for a rate that is not positive, and for a number that the rule does not know.
    """

    def __init__(self, params: Any, lr: float = 0.1, **numbers: float) -> None:
        _check_rate(lr)
        check_finite_number(**numbers)
        rule = RowRule(self.kind, lr, **numbers)
        super().__init__(params, {"lr": lr, **dict(zip(self.kind.numbers, rule.numbers, strict=True))})

    def dense_state(self, parameter: Tensor) -> RowState:
        """As of a table whose rows the first axis counts."""
        n_rows = parameter.shape[0] if parameter.dim() else 1
        return self._state_of(parameter, "", n_rows, parameter.numel() // max(n_rows, 1))


def optimizer_by_rule(name: str) -> type[RuleOptimizer]:
    """The optimizer class of a row rule: of its arguments (params, lr, and the rule's numbers by their names).

    Raises ValueError for an unknown rule.
    """
    kind = rules.rule_kind(name)
    return type(
        f"By{name.title()}", (RuleOptimizer,), {"kind": kind, "__doc__": f"Steps by the rule {name}."}
    )


class RowwiseAdagrad(RuleOptimizer):
    """Adagrad with one sum a row: s += mean(g^2), w -= lr g / (sqrt(s) + eps).

    The state is a number a row, 1/D of the table. Rare rows keep a high rate, frequent ones settle. (Duchi et al.
    2011, with the sum taken by row as in Gupta et al. 2014.)
    """

    kind = rules.ADAGRAD

    def __init__(self, params: Any, lr: float = 0.1, *, eps: float = 1e-10) -> None:
        check_positive(eps=eps)
        super().__init__(params, lr, eps=eps)


class LazyAdam(RowSparseOptimizer, torch.optim.AdamW):
    """Adam that leaves untouched rows and their moments alone; AdamW on dense parameters.

    A row moves by its own moments, and the further the rarer it is: as far a gradient as AdamW on the whole table
    would in the end move it, at the price of the batch (the formula: `mt2st_fast.kernels.bags.rules.adam`).
    weight_decay acts on dense parameters only. The state of a table is two more tables; `RowwiseAdagrad` needs a number
    a row.
    """

    kind = rules.ADAM

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **options: Any,
    ) -> None:
        _check_rate(lr)
        check_positive(eps=eps)
        check_not_negative(weight_decay=weight_decay)
        check_within(0.0, 1.0, **{f"betas[{i}]": beta for i, beta in enumerate(betas)})
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **options)

    def rule(self, group: dict[str, Any], table_steps: float | Tensor = 0.0) -> RowRule:
        """Adam at the group's rate and betas; of a table that has taken so many steps."""
        beta1, beta2 = group["betas"]
        return RowRule(
            self.kind, group["lr"], table_steps=table_steps, beta1=beta1, beta2=beta2, eps=group["eps"]
        )

    def next_rule(self, table: Tensor, group: dict[str, Any]) -> RowRule:
        """Adam of rows, told how many steps the table has taken."""
        steps: Tensor = self.state[table]["step"]
        if steps.device != table.device:  # a checkpoint brings it on the CPU
            steps = self.state[table]["step"] = steps.to(table.device)
        steps += 1
        return self.rule(group, steps)

    def take_back(self, table: Tensor) -> None:
        """Count a step less."""
        self.state[table]["step"] -= 1

    def whole_state(self, parameter: Tensor) -> RowState | None:
        """AdamW's own state: one count of steps, and both moments. None where AdamW is not plain Adam with decay."""
        (group,) = [g for g in self.param_groups if any(p is parameter for p in g["params"])]
        if group["amsgrad"] or group["maximize"] or group["capturable"] or group["differentiable"]:
            return None
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return RowState(*(state[name].view(-1) for name in ("step", "exp_avg", "exp_avg_sq")))

    def row_state(self, table: Tensor) -> RowState:
        """Steps a row, and both moments."""
        # Of the table: how many steps it has taken. AdamW looks for it in every parameter's state when it is loaded.
        self.state[table].setdefault("step", torch.zeros((), dtype=torch.float32, device=table.device))
        return super().row_state(table)

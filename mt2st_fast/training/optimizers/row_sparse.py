"""Optimizers that step only the rows a batch has touched, and dense parameters beside them in the usual way.

A parameter is row-sparse if its gradient is a sparse tensor (encoders with `sparse=True`). The cost of its step
depends on the batch, not on the length of the table. After `fuse`, the backward pass itself steps the rows and no
gradient is made; that rules out gradient clipping, accumulation and loss scaling.
"""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import Tensor

from mt2st_fast.errors import InputError
from mt2st_fast.huge_pages import move_to_huge_pages, prefer_huge_pages
from mt2st_fast.kernels import (
    FusedUpdate,
    RowRule,
    RowRuleKind,
    RowState,
    fuse_update,
    update_all_rows,
    update_distinct_rows,
    update_rows,
)
from mt2st_fast.kernels.bags import rules
from mt2st_fast.numbers import (
    check_finite_number,
    check_not_negative,
    check_positive_in_float32,
    check_within,
)

ROW_STATE = "row_"  # prefix of state that changes only with the rows of a batch
FROZEN_ROWS = "frozen_rows"  # (V,) 1 for a row of a table that does not move


def _unhooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a parent's step without hooks: torch adds them to every class that was instantiated, so they ran twice."""
    function = step.__func__  # type: ignore[attr-defined]
    return MethodType(function.__wrapped__, step.__self__) if getattr(function, "hooked", False) else step  # type: ignore[attr-defined]


def _not_to_compile(method: Any) -> Callable[..., Any]:
    """Return a method without the wrapper by which torch excludes it from compilation.

    The wrapper imports the compiler, which adds more than a second to every start. As long as nobody has imported the
    compiler, nothing is compiled, and the method can be called as it is.
    """
    if "torch._dynamo" in sys.modules:
        return method  # type: ignore[no-any-return]
    return partial(inspect.unwrap(method.__func__), method.__self__)


class RowSparseOptimizer(torch.optim.Optimizer, ABC):
    """Steps row-sparse parameters by a rule, and leaves the dense ones to the optimizer class after it in the bases.

    A subclass names the rule by `kind`; its groups hold the rule's numbers by name, unless it overrides `rule`.
    """

    # Options of a group under which torch moves dense parameters, and for which no rule of rows exists.
    without_rows: ClassVar[tuple[str, ...]] = ()
    of_rule: ClassVar[str] = ROW_STATE  # how the names of state begin that the rule keeps

    @property
    @abstractmethod
    def kind(self) -> RowRuleKind:
        """The kind of rule that moves rows; a class attribute is enough."""

    def rule(self, group: dict[str, Any]) -> RowRule:
        """Return the rule that currently moves the rows of this group; its rate is on the device if the group's is."""
        return RowRule(self.kind, group["lr"], **{name: group[name] for name in self.kind.numbers})

    def row_rule(self, table: Tensor, group: dict[str, Any]) -> RowRule:
        """Return the rule for the rows of a table of this group; it reads `table_steps` when a row is updated.

        Raises InputError for an option of the group that rows cannot follow.
        """
        del table
        self.check_rows(group)
        return self.rule(group)

    def check_rows(self, group: dict[str, Any]) -> None:
        """Raises InputError for an option of a table's group that rows cannot follow."""
        for name in self.without_rows:
            if value := group.get(name):
                off = False if value is True else 0
                cycles = (
                    " (OneCycleLR and CyclicLR set it: cycle_momentum=False)" if name == "momentum" else ""
                )
                raise InputError(
                    f"{type(self).__name__} moves rows without {name}, and the table's group has {name}={value}: put "
                    f"the table into a group of its own with {name}={off}{cycles}"
                )

    def other_rule(self, group: dict[str, Any]) -> str | None:
        """Return an option of this group by which `step` moves dense parameters in another way than the rule, or None.

        Weight decay does not count: who computes the rule may know it.
        """
        return next((name for name in self.without_rows if group.get(name)), None)

    def table_steps(self, table: Tensor) -> Tensor | None:
        """Return how many steps a table has taken, (), float32; None if the rule of its rows does not ask."""
        del table
        return None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in any optimizer."""
        _not_to_compile(super().add_param_group)(param_group)

    def state_dict(self) -> dict[str, Any]:
        """As in any optimizer."""
        found: dict[str, Any] = _not_to_compile(super().state_dict)()
        return found

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in any optimizer."""
        if not set_to_none:
            _not_to_compile(super().zero_grad)(set_to_none)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in any optimizer."""
        _not_to_compile(super().load_state_dict)(state_dict)
        # torch gives every state the dtype of its parameter, but those of rules are float32 whatever that is.
        held = [parameter for group in self.param_groups for parameter in group["params"]]
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        for index, parameter in zip(saved, held, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if name.startswith(self.of_rule) and isinstance(value, Tensor):
                    self.state[parameter][name] = value.to(parameter.device, torch.float32)
                    move_to_huge_pages(self.state[parameter][name])

    def row_state(self, table: Tensor) -> RowState:
        """Return the rule's state of a table (V, D), made at its first step."""
        return self._state_of(table, ROW_STATE, *table.shape)

    def dense_state(self, parameter: Tensor) -> RowState | None:
        """Return the rule's state of a dense parameter, made at its first step; None if another rule moves it."""
        del parameter
        return None

    def whole_state(self, parameter: Tensor) -> RowState | None:
        """Return the rule's state of a dense parameter that it moves as one row; None if it does not."""
        del parameter
        return None

    def freeze_rows(self, table: Tensor, frozen: Tensor | None) -> None:
        """Freeze the rows of a row-sparse table that are True in frozen (V,), from now on; None: move all rows.

        They are part of the table's state, as row moments are. Raises ValueError for another shape.
        """
        self.row_state(table)  # other code looks for it wherever there is any state
        if frozen is None:
            self.state[table].pop(FROZEN_ROWS, None)
            return
        if frozen.shape != table.shape[:1] or frozen.dtype != torch.bool:
            raise ValueError(
                f"frozen rows must be {tuple(table.shape[:1])} bool, not {tuple(frozen.shape)} {frozen.dtype}"
            )
        # As numbers in the table's dtype, since torch converts any state that it loads to it.
        self.state[table][FROZEN_ROWS] = frozen.to(table.device, table.dtype)

    def frozen_rows(self, table: Tensor) -> Tensor | None:
        """(V,) bool, the frozen rows of a table; None if there are none."""
        stored = self.state[table].get(FROZEN_ROWS) if table in self.state else None
        return None if stored is None else stored.bool()

    def drop_frozen_rows(self) -> None:
        """Remove frozen rows from the gradients of row-sparse tables, so that the norm does not count them."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None and table.grad.is_sparse:
                    table.grad = without_rows(table.grad, self.frozen_rows(table))

    def fuse(self, tables: Iterable[Tensor]) -> None:
        """Have the backward pass step these row-sparse tables from now on, at the current learning rates.

        Raises ValueError for a table that this optimizer does not hold.
        """
        group_of = {id(p): group for group in self.param_groups for p in group["params"]}
        for table in tables:
            if id(table) not in group_of:
                raise ValueError("the table to fuse is not among the optimizer's parameters")
            group = group_of[id(table)]
            rule, frozen = partial(self.row_rule, table, group), partial(self.frozen_rows, table)
            steps = partial(self.table_steps, table)
            fuse_update(table, FusedUpdate(rule, self.row_state(table), frozen, steps))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step: the touched rows of row-sparse parameters, and all of the dense ones."""
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
            update_rows(self._counted_rule(table, group), table, moving, state)
            table.grad = None
        self._fuse_dense_steps()
        # torch's step can be differentiated through, if that is requested.
        step = _unhooked(super().step)
        step = step if self.defaults.get("differentiable") else _not_to_compile(step)
        try:
            step()
        except KeyError:
            self._check_not_moved_by_rows()
            raise
        finally:
            for _, table, gradient in row_sparse:
                table.grad = gradient
        return loss

    @torch.no_grad()
    def step_rows(self, table: Tensor, rows: Tensor, d_rows: Tensor) -> None:
        """Do what `step` does by a sparse gradient: of these rows, int64 (U,) and all distinct, by gradients (U, D)."""
        group = next(group for group in self.param_groups if any(p is table for p in group["params"]))
        if (frozen := self.frozen_rows(table)) is not None:
            moving = ~frozen[rows]
            rows, d_rows = rows[moving], d_rows[moving]
        state = self.row_state(table)
        update_distinct_rows(self._counted_rule(table, group), table, rows, d_rows, state)

    def _counted_rule(self, table: Tensor, group: dict[str, Any]) -> RowRule:
        """Return the rule of the next step of a table's rows, and count that step."""
        rule, steps = self.row_rule(table, group), self.table_steps(table)
        if steps is not None:
            steps += 1
        return rule

    def _check_not_moved_by_rows(self) -> None:
        """Raises InputError for a dense gradient of a table that was moved by rows, whose state torch cannot use."""
        for parameter in (p for group in self.param_groups for p in group["params"]):
            by_rows = any(str(name).startswith(ROW_STATE) for name in self.state.get(parameter, ()))
            if by_rows and parameter.grad is not None and not parameter.grad.is_sparse:
                raise InputError(
                    f"a table {tuple(parameter.shape)} has a dense gradient now, but was trained by rows before "
                    "(sparse=True): leave the encoder's sparse as it was when the run began, or start a new run"
                ) from None

    def _fuse_dense_steps(self) -> None:
        """Have torch step dense parameters on a GPU in one launch that reads the learning rate on the device.

        Not set when a group is made: a checkpoint would store it, and a CPU could resume from it.
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
                    if "step" in state:  # a checkpoint loads it to the CPU
                        state["step"] = state["step"].to(dense[0].device, torch.float32)

    def _state_of(self, parameter: Tensor, prefix: str, n_rows: int, n_columns: int) -> RowState:
        """Return the rule's state of a parameter under the kind's names, float32 zeros at first."""
        state: dict[str, Tensor] = self.state[parameter]

        def kept(name: str, shape: tuple[int, ...]) -> Tensor:
            if prefix + name not in state:
                made = torch.empty(shape, dtype=torch.float32, device=parameter.device)
                prefer_huge_pages(made)
                state[prefix + name] = made.zero_()
            found = state[prefix + name]
            if found.shape != shape:  # kernels read and write it by its address
                raise InputError(
                    f"the optimizer's {prefix + name} of a parameter {tuple(parameter.shape)} is "
                    f"{tuple(found.shape)}, not {shape}: the parameter was given other data; start a new run with it"
                )
            return found

        return self.kind.new_state(kept, n_rows, n_columns)


def without_rows(gradient: Tensor, frozen: Tensor | None) -> Tensor:
    """Return a row-sparse gradient (V, D) without the frozen rows (V,); None: no row is frozen."""
    if frozen is None:
        return gradient
    gradient = gradient if gradient.is_coalesced() else gradient.coalesce()
    rows = gradient._indices()[0]
    moving = ~frozen[rows]
    return torch.sparse_coo_tensor(
        rows[moving].unsqueeze(0), gradient._values()[moving], gradient.shape, is_coalesced=True,
        device=gradient.device, check_invariants=False,
    )  # fmt: skip


def unfuse(tables: Iterable[Tensor]) -> None:
    """Have the backward pass make the tables' gradients again."""
    for table in tables:
        fuse_update(table, None)


def _check_rate(lr: float | Tensor) -> None:
    """Raises InputError for a rate that is not positive; skips tensors, as reading one may wait for a device."""
    if not isinstance(lr, Tensor):
        check_positive_in_float32(lr=lr)


class SGD(RowSparseOptimizer, torch.optim.SGD):
    """Stochastic gradient descent, w -= lr g; no momentum on rows, as a row would have to move without a gradient.

    A group without a row-sparse table may have any option of torch's SGD. Of the others, such a table's group may have
    weight_decay, which acts on its dense parameters only; a step raises InputError for momentum and maximize.
    """

    kind = rules.SGD
    without_rows = ("momentum", "nesterov", "maximize")

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        _check_rate(lr)
        super().__init__(params, lr=lr)

    def dense_state(self, parameter: Tensor) -> RowState:
        """Return an empty state: torch's SGD and the rule are the same, if the group is plain."""
        del parameter
        return RowState()


class _AllRows(torch.optim.Optimizer):
    """Steps dense parameters by the rule of the row-sparse ones; rows are counted by the first axis."""

    rule: Callable[[dict[str, Any]], RowRule]
    dense_state: Callable[[Tensor], RowState]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step of all parameters with a gradient."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update_all_rows(self.rule(group), parameter, parameter.grad, self.dense_state(parameter))


class RuleOptimizer(RowSparseOptimizer, _AllRows):
    """Steps row-sparse and dense parameters by one rule of `ROW_RULES`; see `optimizer_by_rule`.

    Raises ValueError for a rate that is not positive, and for a number that the rule does not have.
    """

    of_rule = ""  # all state

    def __init__(self, params: Any, lr: float = 0.1, **numbers: float) -> None:
        _check_rate(lr)
        check_finite_number(**numbers)
        rule = RowRule(self.kind, lr, **numbers)
        super().__init__(params, {"lr": lr, **dict(zip(self.kind.numbers, rule.numbers, strict=True))})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in any optimizer. Raises InputError for an option that the rule does not have, such as weight_decay."""
        known = {"params", "param_names", "lr", "initial_lr", *self.kind.numbers}
        if unknown := [name for name in param_group if name not in known]:
            raise InputError(
                f"{type(self).__name__} has no option {unknown[0]}; available for a group: lr, "
                f"{', '.join(self.kind.numbers)}"
            )
        super().add_param_group(param_group)

    def dense_state(self, parameter: Tensor) -> RowState:
        """Return its state as for a table whose rows the first axis counts."""
        n_rows = parameter.shape[0] if parameter.dim() else 1
        return self._state_of(parameter, "", n_rows, parameter.numel() // max(n_rows, 1))


def optimizer_by_rule(name: str) -> type[RuleOptimizer]:
    """Return the optimizer class of a row rule; its arguments are params, lr, and the rule's numbers by name.

    Raises ValueError for an unknown rule.
    """
    kind = rules.rule_kind(name)
    return type(
        f"By{name.title()}", (RuleOptimizer,), {"kind": kind, "__doc__": f"Steps by the rule {name}."}
    )


class RowwiseAdagrad(RuleOptimizer):
    """Adagrad with one sum per row: s += mean(g^2), w -= lr g / (sqrt(s) + eps).

    The state is one number per row, 1/D of the table. Rare rows keep a high rate, frequent ones settle. (Duchi et al.
    2011, with the sum taken by row as in Gupta et al. 2014.)
    """

    kind = rules.ADAGRAD

    def __init__(self, params: Any, lr: float = 0.1, *, eps: float = 1e-10) -> None:
        check_positive_in_float32(eps=eps)
        super().__init__(params, lr, eps=eps)


class LazyAdam(RowSparseOptimizer, torch.optim.AdamW):
    """Adam that leaves untouched rows and their moments alone; AdamW on dense parameters.

    A row moves by its own moments, and further the rarer it is: a gradient moves it as far as AdamW on the whole table
    eventually would, at a cost that depends only on the batch (the formula: `mt2st_fast.kernels.bags.rules.adam`).
    weight_decay acts on dense parameters only; a step raises InputError for a row-sparse table in a group with amsgrad
    or maximize. The state of a table is two more tables; `RowwiseAdagrad` needs one number per row.
    """

    without_rows = ("amsgrad", "maximize")

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
        check_positive_in_float32(eps=eps)
        check_not_negative(weight_decay=weight_decay)
        check_within(0.0, 1.0, **{f"betas[{i}]": beta for i, beta in enumerate(betas)})
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **options)

    def rule(self, group: dict[str, Any], table_steps: float | Tensor = 0.0) -> RowRule:
        """Return Adam at the group's rate and betas, for a table that has taken `table_steps` steps."""
        beta1, beta2 = group["betas"]
        return RowRule(
            self.kind, group["lr"], table_steps=table_steps, beta1=beta1, beta2=beta2, eps=group["eps"]
        )

    def row_rule(self, table: Tensor, group: dict[str, Any]) -> RowRule:
        """Return Adam for rows, with the table's own count of its steps.

        Raises InputError as in any `RowSparseOptimizer`.
        """
        self.check_rows(group)
        steps = self.table_steps(table)
        assert steps is not None
        return self.rule(group, steps)

    def table_steps(self, table: Tensor) -> Tensor | None:
        """Return the number of steps that a table has taken, float32 on the table's device."""
        # AdamW looks for it in the state of every parameter when it is loaded.
        return counted_steps(self.state[table], table.device)

    def other_rule(self, group: dict[str, Any]) -> str | None:
        """Return an option by which AdamW is not plain Adam with decay, or is computed elsewhere; None if it is."""
        kept_elsewhere = next((name for name in ("capturable", "differentiable") if group[name]), None)
        return super().other_rule(group) or kept_elsewhere

    def whole_state(self, parameter: Tensor) -> RowState | None:
        """Return AdamW's own state: one step count, and both moments."""
        return adam_state(self.state[parameter], parameter)

    def row_state(self, table: Tensor) -> RowState:
        """Return the step count of each row, and both moments."""
        self.table_steps(table)  # is made with the rest, and before addresses are taken
        return super().row_state(table)


def adam_state(state: dict[str, Any], parameter: Tensor) -> RowState:
    """Return the state of torch's Adam for a parameter, made as at its first step: a step count, and both moments."""
    steps = counted_steps(state)
    for moment in ("exp_avg", "exp_avg_sq"):
        if moment not in state:
            state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return RowState(steps.view(-1), state["exp_avg"], state["exp_avg_sq"])


def counted_steps(state: dict[str, Any], device: torch.device | None = None) -> Tensor:
    """Return the count of steps in a state of Adam as kernels count: float32, on this device or where it is.

    torch counts in its default dtype, and loads a checkpoint's count as it was saved, to the CPU.
    """
    if "step" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=device or "cpu")
    steps: Tensor = state["step"]
    state["step"] = steps.to(device or steps.device, torch.float32)  # itself, if it is that already
    return state["step"]  # type: ignore[no-any-return]

"""Parameters of which every process has a part: what the Trainer asks of them and of all.

They are those that FSDP2's `fully_shard` has divided, whose gradients torch exchanges itself, and tables divided by
rows (model/row_shards.py). Both take messages within a forward pass: every process makes as many passes as the others,
or one waits for ever. What is here works on tensors that are whole, too, so that nobody has to ask.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.row_shards import RowShard, shard_of

Key = TypeVar("Key")


def is_dtensor(value: object) -> bool:
    """Whether this is a tensor that torch has divided (a DTensor), as FSDP2 does."""
    # Not imported: it takes its time, and without it there is none.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def is_sharded(parameter: object) -> bool:
    """Whether other processes have parts of a parameter."""
    return is_dtensor(parameter) or shard_of(parameter) is not None


def has_sharded(module: nn.Module) -> bool:
    """Whether any parameter of a module is sharded, also where torch has put it together for the moment."""
    return any(map(is_sharded, module.parameters())) or any(True for _ in fsdp_modules(module))


def fsdp_modules(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What `fully_shard` was called on, by name."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        yield from (
            (name, part) for name, part in module.named_modules() if isinstance(part, fsdp.FSDPModule)
        )


def check_whole(encoder: nn.Module) -> None:
    """Raises InputError for an encoder of which a process has a part alone: it cannot be kept as a model."""
    if has_sharded(encoder):
        by_rows = any(shard_of(parameter) is not None for parameter in encoder.parameters())
        fix = (
            "call gather_rows(encoder) in all of them"
            if by_rows
            else "load the run's checkpoint into an encoder that is not sharded (Trainer.load)"
        )
        raise InputError(f"every process has a part of this encoder, and none a model: {fix}")


def whole_shape(parameter: Tensor) -> tuple[int, ...]:
    """Of all parts together."""
    shard = shard_of(parameter)
    return tuple(parameter.shape) if shard is None else (shard.n_rows, *parameter.shape[1:])


def own_part(value: Tensor) -> Tensor:
    """This process's part of a tensor, on the same memory; all of one that is whole."""
    return value.to_local() if is_dtensor(value) else value  # type: ignore[attr-defined,no-any-return]


def rows_of(value: Any, parameter: Any = None) -> tuple[RowShard, Tensor] | None:
    """Which rows of a tensor this process has, and these; None of one that is whole, or is not divided by rows.

    parameter: what the tensor is of, where that is not the tensor itself: moments of rows are divided as their table.
    """
    if is_dtensor(value):
        (placement, *more), mesh = value.placements, value.device_mesh
        if more or not placement.is_shard(0):
            return None
        return RowShard(value.shape[0], mesh.get_local_rank(), mesh.size()), value.to_local()
    parameter = value if parameter is None else parameter
    shard = shard_of(parameter)
    divided = shard is not None and value.shape[:1] == parameter.shape[:1]
    return (shard, value) if divided else None  # type: ignore[return-value]


def gathered(value: Tensor, parameter: object = None) -> Tensor:
    """All of a tensor. Of a sharded one all processes call it. parameter: as in `rows_of`."""
    if is_dtensor(value):
        return value.full_tensor()  # type: ignore[attr-defined,no-any-return]
    found = rows_of(value, parameter)
    return value if found is None else found[0].gather(value)


class StoredTensor(Protocol):
    """A tensor, or one that lies somewhere else, whose rows are read as they are asked for."""

    @property
    def shape(self) -> Sequence[int]:
        """Of all of it."""

    def __getitem__(self, rows: slice, /) -> Tensor:
        """These rows."""


def all_of(stored: StoredTensor) -> Tensor:
    """All rows."""
    return stored if isinstance(stored, Tensor) else stored[:]


def divided_as(parameter: Any, stored: StoredTensor) -> Tensor:
    """This process's part of a tensor that every process can read, where a parameter of that shape is sharded.

    Of a table divided by rows also where only the rows are as many: the moments of rows.
    """
    shard = shard_of(parameter)
    if shard is not None and tuple(stored.shape[:1]) == (shard.n_rows,):
        return stored[shard.own].clone()
    if not is_dtensor(parameter) or parameter.shape != stored.shape:
        return all_of(stored)
    from torch.distributed.tensor import DTensor, distribute_tensor

    mesh, placements, device = parameter.device_mesh, parameter.placements, parameter.device
    by_rows = rows_of(parameter)
    if by_rows is None:
        return distribute_tensor(all_of(stored).to(device), mesh, placements, src_data_rank=None)
    own = stored[by_rows[0].own].to(device, copy=True)
    return DTensor.from_local(
        own, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def divided_as_all(parameters: Mapping[Key, Any], stored: Mapping[Key, StoredTensor]) -> dict[Key, Tensor]:
    """Each tensor as the parameter of its name is. Raises RuntimeError for another table than was divided."""
    for key, value in stored.items():
        parameter: Any = parameters.get(key)
        if shard_of(parameter) is not None and tuple(value.shape) != whole_shape(parameter):
            raise RuntimeError(f"{key} is {tuple(value.shape)} there and {whole_shape(parameter)} here")
    return {key: divided_as(parameters.get(key), value) for key, value in stored.items()}


def let_go_of_gathered(module: nn.Module) -> None:
    """Have a module hold its parts alone: after a pass without gradients torch leaves the outermost ones whole.

    Its parameters are others meanwhile: to be called before they are looked at.
    """
    for _, part in fsdp_modules(module):
        part.reshard()


@torch.no_grad()
def sum_instead_of_mean(parameters: Iterable[nn.Parameter], count: int) -> None:
    """Make gradients, which FSDP2 has made the mean over `count` processes, their sum: a step is made of that."""
    for parameter in parameters:
        if is_dtensor(parameter.grad):
            own_part(parameter.grad).mul_(count)  # type: ignore[arg-type]


def norm_of_all(parts: Iterable[Tensor], add_up: Callable[[Tensor], Tensor]) -> float:
    """The 2-norm of tensors of which each process has given its parts; add_up: sums over processes."""
    squares = sum(float(part.double().square().sum()) for part in parts)
    return math.sqrt(float(add_up(torch.tensor([squares], dtype=torch.float64))))

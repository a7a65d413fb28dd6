"""Parameters that are divided among processes: what the Trainer asks of the parts and of the whole.

They are those that FSDP2's `fully_shard` has divided, whose gradients torch exchanges itself, and tables divided by
rows (model/row_shards.py). Both exchange messages within a forward pass: all processes must make the same number of
passes, or one waits forever. The functions here also work on whole tensors, so callers need not distinguish.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.row_shards import RowShard, shard_of

Key = TypeVar("Key")


def is_dtensor(value: object) -> bool:
    """Return whether this is a tensor that torch has divided (a DTensor), as FSDP2 does."""
    # Not imported: the import is slow, and if nobody has imported it there is no DTensor.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def is_sharded(parameter: object) -> bool:
    """Return whether other processes hold parts of a parameter."""
    return is_dtensor(parameter) or shard_of(parameter) is not None


def has_sharded(module: nn.Module) -> bool:
    """Return whether any parameter of a module is sharded, even if torch has gathered it for the moment."""
    return any(map(is_sharded, module.parameters())) or any(True for _ in fsdp_modules(module))


def is_divided_among_all(module: nn.Module) -> bool:
    """Return whether every process of the default group holds a part of a module: all must pass through it together."""
    if not has_sharded(module):
        return False
    let_go_of_gathered(module)
    shards = [shard_of(parameter) for parameter in module.parameters()]
    counts = {shard.count for shard in shards if shard is not None}
    counts |= {parameter.device_mesh.size() for parameter in module.parameters() if is_dtensor(parameter)}  # type: ignore[attr-defined]
    return dist.get_world_size() in counts


def fsdp_modules(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the modules that `fully_shard` was called on, with their names."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        yield from (
            (name, part) for name, part in module.named_modules() if isinstance(part, fsdp.FSDPModule)
        )


def check_whole(encoder: nn.Module) -> None:
    """Raises InputError for an encoder of which each process has only a part: it cannot be saved as a model."""
    if has_sharded(encoder):
        by_rows = any(shard_of(parameter) is not None for parameter in encoder.parameters())
        fix = (
            "call gather_rows(encoder) in all processes"
            if by_rows
            else "load the run's checkpoint into an encoder that is not sharded (Trainer.load)"
        )
        raise InputError(
            f"every process has only a part of this encoder, so it cannot be saved as a model: {fix}"
        )


def whole_shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape of all parts together."""
    shard = shard_of(parameter)
    return tuple(parameter.shape) if shard is None else (shard.n_rows, *parameter.shape[1:])


def own_part(value: Tensor) -> Tensor:
    """Return this process's part of a tensor, on the same memory; a whole tensor is returned as it is."""
    return value.to_local() if is_dtensor(value) else value  # type: ignore[attr-defined,no-any-return]


def rows_of(value: Any, parameter: Any = None) -> tuple[RowShard, Tensor] | None:
    """Return which rows of a tensor this process has, and those rows; None if it is whole, or not divided by rows.

    parameter: the parameter that the tensor belongs to, if it is not one itself: row moments are divided like their
    table.
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
    """Return the whole tensor; all processes must call it for a sharded one. parameter: as in `rows_of`."""
    if is_dtensor(value):
        return value.full_tensor()  # type: ignore[attr-defined,no-any-return]
    found = rows_of(value, parameter)
    return value if found is None else found[0].gather(value)


class StoredTensor(Protocol):
    """A tensor, or one stored elsewhere whose rows are read on demand."""

    @property
    def shape(self) -> Sequence[int]:
        """The shape of the whole tensor."""

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Read these rows."""


def all_of(stored: StoredTensor) -> Tensor:
    """Return all rows."""
    return stored if isinstance(stored, Tensor) else stored[:]


def divided_as(parameter: Any, stored: StoredTensor) -> Tensor:
    """Return this process's part of a tensor that every process can read, if a parameter of that shape is sharded.

    For a table divided by rows, only the number of rows has to match: row moments have another shape.
    """
    shard = shard_of(parameter)
    if shard is not None and tuple(stored.shape[:1]) == (shard.n_rows,):
        return _rows_apart(stored, shard)
    if not is_dtensor(parameter) or parameter.shape != stored.shape:
        return all_of(stored)
    from torch.distributed.tensor import DTensor, distribute_tensor

    mesh, placements, device = parameter.device_mesh, parameter.placements, parameter.device
    by_rows = rows_of(parameter)
    if by_rows is None:
        return distribute_tensor(all_of(stored).to(device), mesh, placements, src_data_rank=None)
    own = _rows_apart(stored, by_rows[0]).to(device)
    return DTensor.from_local(
        own, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def _rows_apart(stored: StoredTensor, shard: RowShard) -> Tensor:
    """Return this process's rows in their own memory; reading them from elsewhere puts them there already."""
    rows = stored[shard.own]
    return rows.clone() if isinstance(stored, Tensor) else rows


def divided_as_all(parameters: Mapping[Key, Any], stored: Mapping[Key, StoredTensor]) -> dict[Key, Tensor]:
    """Divide each tensor like the parameter of its name. Raises RuntimeError if a divided table has another shape."""
    for key, value in stored.items():
        parameter: Any = parameters.get(key)
        if shard_of(parameter) is not None and tuple(value.shape) != whole_shape(parameter):
            raise RuntimeError(
                f"{key} has shape {tuple(value.shape)} in the state and {whole_shape(parameter)} in the module"
            )
    return {key: divided_as(parameters.get(key), value) for key, value in stored.items()}


def let_go_of_gathered(module: nn.Module) -> None:
    """Make a module hold only its parts again: after a pass without gradients torch leaves the outermost ones whole.

    Until then its parameters are different objects, so call this before reading them.
    """
    for _, part in fsdp_modules(module):
        part.reshard()


@torch.no_grad()
def sum_instead_of_mean(parameters: Iterable[nn.Parameter], count: int) -> None:
    """Turn gradients, which FSDP2 has averaged over `count` processes, into sums, as a step needs."""
    for parameter in parameters:
        if is_dtensor(parameter.grad):
            own_part(parameter.grad).mul_(count)  # type: ignore[arg-type]


def norm_of_all(parts: Iterable[Tensor], add_up: Callable[[Tensor], Tensor]) -> float:
    """Return the 2-norm of tensors, from this process's parts; add_up: sums over processes."""
    squares = sum(float(part.double().square().sum()) for part in parts)
    return math.sqrt(float(add_up(torch.tensor([squares], dtype=torch.float64))))

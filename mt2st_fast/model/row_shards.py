"""A table divided by rows among processes, behind the encoder that reads it: for tables beyond one machine.

Every process holds V / W rows of the table, and moves them. For a batch it asks the owners for the rows that occur in
it, each once, computes with those as with a small table, and sends the owners the gradients of these rows. A step thus
costs a process n (8 + 8 D) bytes for its n distinct rows, forward and backward, however many processes there are;
torch's `all_to_all_single` carries them. All processes must make the same number of passes, or one waits forever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mt2st_fast.errors import InputError
from mt2st_fast.kernels import embedding_bag, unique_ids
from mt2st_fast.model.encoders import TABLE_STD, BagEncoder, WindowEncoder
from mt2st_fast.model.meeting import meet, wait_for


@dataclass(frozen=True)
class RowShard:
    """The rows that process `rank` of `count` holds of a table with `n_rows`: divided as by torch.chunk."""

    n_rows: int
    rank: int
    count: int

    @property
    def bounds(self) -> list[int]:
        """Where the rows of each process begin, `count` + 1 numbers; the last is where the last process's rows end."""
        each = -(-self.n_rows // self.count)
        return [min(self.n_rows, rank * each) for rank in range(self.count + 1)]

    @property
    def own(self) -> slice:
        """The rows that this process holds."""
        return slice(*self.bounds[self.rank : self.rank + 2])

    def owned(self, rows: Tensor) -> list[int]:
        """Return how many of these rows (n,), in ascending order, each process holds."""
        bounds = torch.tensor(self.bounds, device=rows.device)
        return torch.searchsorted(rows, bounds).diff().tolist()  # type: ignore[no-any-return]

    def gather(self, own: Tensor) -> Tensor:
        """(V, ...) the whole table from each process's rows (n, ...); all processes must call it."""
        whole = own.new_empty(self.n_rows, *own.shape[1:])
        whole[self.own] = own
        for rank, (first, last) in enumerate(zip(self.bounds, self.bounds[1:], strict=False)):
            part = _as_bytes(whole[first:last])  # on the same memory
            if len(part):
                dist.broadcast(part, rank)
        return whole


def shard_of(value: object) -> RowShard | None:
    """Return which rows of a table a parameter holds; None if it is whole."""
    found: RowShard | None = getattr(value, "row_shard", None)
    return found


def has_lost_its_rows(module: nn.Module) -> bool:
    """Return whether this is a divided encoder whose table has lost the record of its rows, as copies do."""
    return isinstance(module, _ShardedTable) and shard_of(module.table) is None


def shard_rows(encoder: nn.Module) -> None:
    """Keep only this process's share of an encoder's table, and read the other rows from the default group's processes.

    All processes must call it, before the optimizer is made. encoder: a `BagEncoder` or `WindowEncoder` with
    sparse=True and the same weights in all processes; afterwards its `table` is (V / W, D), and other references to
    the table hold the old one. If it was made with table_device="meta", no process ever holds all rows. Raises
    ValueError for another encoder, and InputError if there is no process group.
    """
    if isinstance(encoder, _ShardedTable):
        raise ValueError("the encoder's table is already divided by rows")
    sharded_class = {BagEncoder: _ShardedBagEncoder, WindowEncoder: _ShardedWindowEncoder}.get(type(encoder))  # type: ignore[call-overload]
    if sharded_class is None or not encoder.sparse:
        raise ValueError(
            f"a {type(encoder).__name__} cannot be divided by rows; use a BagEncoder or WindowEncoder with sparse=True"
        )
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError(
            "a table can only be divided among the processes of a group; start them with torchrun and call "
            "torch.distributed.init_process_group, or do not divide it"
        )
    _put(encoder, RowShard(len(encoder.table), dist.get_rank(), dist.get_world_size()))  # type: ignore[arg-type]
    encoder.__class__ = sharded_class


def gather_rows(encoder: nn.Module) -> None:
    """Give every process the whole table again, as before `shard_rows`; all processes must call it.

    An optimizer made earlier still holds each process's part. Raises ValueError for an encoder that is not divided, or
    that something else has divided too, and InputError if a process comes alone.
    """
    plain_class = {_ShardedBagEncoder: BagEncoder, _ShardedWindowEncoder: WindowEncoder}.get(type(encoder))  # type: ignore[call-overload]
    shard = shard_of(getattr(encoder, "table", None))
    if plain_class is None or shard is None:
        raise ValueError(f"this {type(encoder).__name__} has no table that was divided by shard_rows alone")
    meet("gather_rows")
    table: Tensor = encoder.table  # type: ignore[assignment]
    encoder.table = nn.Parameter(shard.gather(table.detach()), requires_grad=table.requires_grad)
    encoder.__class__ = plain_class


def _put(encoder: nn.Module, shard: RowShard) -> None:
    whole: nn.Parameter = encoder.table  # type: ignore[assignment]
    rows = whole.detach()[shard.own]
    rows = _new_rows(encoder, shard, rows) if rows.is_meta else rows.clone()
    own = nn.Parameter(rows, requires_grad=whole.requires_grad)
    own.row_shard = shard  # type: ignore[attr-defined]
    encoder.table = own


def _new_rows(encoder: nn.Module, shard: RowShard, like: Tensor) -> Tensor:
    """Initialize rows as the encoder would: other numbers in every process, but reproducible for one seed and count."""
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())) + shard.rank)
    rows = nn.init.normal_(torch.empty_like(like, device="cpu"), std=TABLE_STD, generator=generator)
    padding = encoder.padding_row - shard.own.start  # type: ignore[operator]
    if encoder.rows_of_type is not None and 0 <= padding < len(rows):
        rows[padding].zero_()
    return rows


class _ShardedTable:
    """The methods that differ in an encoder whose table is divided."""

    table: nn.Parameter
    rows_of_type: Tensor | None
    num_types: int
    dim: int
    backend: str

    def configuration(self) -> dict[str, Any]:
        """Return the configuration of the encoder with its whole table."""
        return super().configuration() | {"num_rows": self._shard.n_rows}  # type: ignore[misc,no-any-return]

    def mean_of_rows(self, rows: Tensor) -> Tensor:
        """(n, D) the mean of n times M rows of the table, -1 = none."""
        vectors, ids = self._fetched(rows)
        return embedding_bag(vectors, ids, mode="mean", backend=self.backend)

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """(T, D) the vector of every word type, in every process; all must call it, or InputError is raised."""
        meet("encoder.vectors()")
        if self.rows_of_type is None:
            return _FetchRows.apply(self.table, self._all_types(), self._shard)  # type: ignore[no-any-return]
        return self.mean_of_rows(self.rows_of_type[:-1])

    def prepare(self, types: Tensor, offsets: Tensor) -> NoReturn:
        """Raises InputError: a prepared batch refers to the rows of a whole table."""
        raise InputError(
            "a batch cannot be prepared for a table that is divided by rows; pass types and offsets"
        )

    def _all_types(self) -> Tensor:
        return torch.arange(self.num_types, device=self.table.device)

    @property
    def _shard(self) -> RowShard:
        shard = shard_of(self.table)
        if shard is None:
            raise RuntimeError(
                "the table is a copy that does not know which rows it holds; copy the encoder before shard_rows"
            )
        return shard

    def _pools_types(self) -> bool:
        return False

    def _source(self, types: Tensor) -> tuple[Tensor, Tensor]:
        """(vectors, ids): vectors[ids] are those of the types (n,)."""
        self._check_range(types)  # type: ignore[attr-defined]
        if self.rows_of_type is None:
            return self._fetched(types)
        unique, ids = unique_ids(types, self.num_types, self.backend)
        return self.mean_of_rows(self.rows_of_type[unique.long()]), ids

    def _fetched(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(vectors, ids): vectors[ids] are the rows (...) of the table, -1 = none; each row is fetched once."""
        is_row = rows >= 0
        wanted = rows[is_row].long().unique()
        vectors = _FetchRows.apply(self.table, wanted, self._shard)
        ids = torch.searchsorted(wanted, rows.long()).masked_fill(~is_row, -1).to(torch.int32)
        # Kernels need a table with at least one row, even if nothing is read from it.
        return (vectors if len(wanted) else torch.cat([vectors, vectors.new_zeros(1, self.dim)])), ids


class _ShardedBagEncoder(_ShardedTable, BagEncoder):
    """A `BagEncoder` whose table is divided by rows."""


class _ShardedWindowEncoder(_ShardedTable, WindowEncoder):
    """A `WindowEncoder` whose table is divided by rows."""


class _FetchRows(torch.autograd.Function):
    """Fetch rows (n, D) of a divided table, by their numbers (n,) in ascending order, each once.

    The gradient of a process's part is the row-sparse sum over all processes that asked for its rows.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: Tensor, shard: RowShard) -> Tensor:
        ask = shard.owned(rows)
        asked = _exchanged(
            torch.tensor(ask, device=rows.device), [1] * shard.count, [1] * shard.count
        ).tolist()
        ids = _exchanged(rows, ask, asked) - shard.own.start
        ctx.ids, ctx.ask, ctx.asked, ctx.shape = ids, ask, asked, own.shape
        return _exchanged(own.detach()[ids], asked, ask)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        arrived = _exchanged(gradient.contiguous(), ctx.ask, ctx.asked)
        rows = torch.sparse_coo_tensor(
            ctx.ids.unsqueeze(0), arrived, ctx.shape, device=arrived.device, check_invariants=False
        )
        return rows.coalesce(), None, None


def _exchanged(values: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
    """Send each process its part of the values (n, ...), and return what arrives, in the order of processes."""
    found = values.new_empty(sum(received), *values.shape[1:])
    row = math.prod(values.shape[1:]) * values.element_size()  # bytes, as gloo does not know every type
    arrived = _as_bytes(found).view(sum(received), row)  # on the same memory
    leaving = _as_bytes(values).view(len(values), row)
    work = dist.all_to_all_single(
        arrived, leaving, list(received), list(sent), async_op=values.device.type == "cpu"
    )
    if work is not None:
        wait_for(work, "a pass through an encoder whose table is divided by rows")
    return found


def _as_bytes(values: Tensor) -> Tensor:
    """(n,) all bytes of a tensor, sharing its memory if it is contiguous."""
    return values.contiguous().view(-1).view(torch.uint8)

"""The sum of the gradients of all processes: dense ones as they are, row-sparse ones as (row, gradient) pairs.

A step takes two messages. The first is one sum over float32 numbers: the losses, which parameters have a gradient at
all (one without a gradient in any process is not stepped, as with one process), how many rows each process has of each
table, and the dense gradients. The second, if there are rows, carries them: every process sends its own, each once, and
by gloo in as many bytes as the process with the most rows needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from mt2st_fast.errors import InputError
from mt2st_fast.kernels import sum_pieces
from mt2st_fast.training.processes.group import Processes

DIGIT = 4096  # row counts travel as two float32 digits, each of which is exact
ALIGNED = 8  # bytes


@dataclass(frozen=True)
class Exchange:
    """The exchange in a step.

    dense: parameters whose gradients are dense, by name. tables: those whose gradients hold some rows (V, D). Both in
    the same order in every process.
    """

    processes: Processes
    dense: Mapping[str, nn.Parameter]
    tables: Sequence[nn.Parameter]

    @torch.no_grad()
    def __call__(self, losses_k: Tensor) -> Tensor:
        """Put the sums over all processes into every `.grad`, and return the summed losses (K,) float32.

        Raises InputError for a sparse gradient of a parameter that is not a table.
        """
        for name, parameter in self.dense.items():
            if parameter.grad is not None and parameter.grad.is_sparse:
                raise InputError(
                    f"the gradient of {name} is sparse, but its layer does not declare it; several processes "
                    "exchange rows only for modules with sparse=True"
                )
        own_rows = [_rows_of(table) for table in self.tables]
        head, losses_k = self._sum_dense(losses_k, own_rows)
        self._exchange_rows(head, own_rows)
        return losses_k

    @cached_property
    def _by_type(self) -> dict[torch.dtype, list[nn.Parameter]]:
        """The dense parameters by the type in which their gradients are summed."""
        found: dict[torch.dtype, list[nn.Parameter]] = {torch.float32: [], torch.float64: []}
        for parameter in self.dense.values():
            found[_travels_as(parameter)].append(parameter)
        return found

    def _sum_dense(
        self, losses_k: Tensor, own_rows: Sequence[Tensor | None]
    ) -> tuple[Sequence[float], Tensor]:
        """Sum the dense gradients; return the table counts from the head of the message, and the losses."""
        present = [float(p.grad is not None) for p in self.dense.values()]
        has_dense = [float(_is_dense(table.grad)) for table in self.tables]
        told = [*present, *has_dense, *self._digits(own_rows)]
        head = torch.tensor(told, dtype=torch.float32).to(losses_k.device)
        single, double = self._by_type.values()
        flat = torch.cat([losses_k.float(), head, *map(_flat_gradient, single)])
        self.processes.add_up(flat)
        wide = None
        if double:
            wide = self.processes.add_up(torch.cat([*map(_flat_gradient, double)]))
        K, n_told = len(losses_k), len(told)
        told = flat[K : K + n_told].tolist()
        have = dict(zip(map(id, self.dense.values()), told, strict=False))
        _put_back(single, flat[K + n_told :], have)
        if wide is not None:
            _put_back(double, wide, have)
        # A copy: losses are kept until they are recorded, and would keep all gradients of their steps.
        return told[len(present) :], flat[:K].clone()

    def _digits(self, own_rows: Sequence[Tensor | None]) -> list[float]:
        """Return, per table and process, two digits of 1 + its rows; 0 without a gradient, and for other processes."""
        digits = [0.0] * (2 * len(self.tables) * self.processes.count)
        for t, rows in enumerate(own_rows):
            if rows is not None:
                place = 2 * (t * self.processes.count + self.processes.rank)
                digits[place : place + 2] = divmod(1 + rows._nnz(), DIGIT)
        return digits

    def _exchange_rows(self, head: Sequence[float], own_rows: Sequence[Tensor | None]) -> None:
        """head: for each table, whether any process has a dense gradient; then the digits of row counts."""
        n_tables, count = len(self.tables), self.processes.count
        high, low = head[n_tables::2], head[n_tables + 1 :: 2]
        sizes = [int(DIGIT * a + b) for a, b in zip(high, low, strict=True)]  # 1 + rows
        by_rows = []
        for t, (table, rows) in enumerate(zip(self.tables, own_rows, strict=True)):
            of_table = sizes[t * count : (t + 1) * count]
            if head[t]:  # a table that is also read densely
                whole = table.grad.to_dense() if table.grad is not None else torch.zeros_like(table)
                table.grad = self.processes.add_up(whole.contiguous())
            elif any(of_table):
                by_rows.append((table, rows, [max(0, size - 1) for size in of_table]))
        if by_rows:
            self._gather_rows(*zip(*by_rows, strict=True))

    def _gather_rows(
        self,
        tables: Sequence[nn.Parameter],
        own_rows: Sequence[Tensor | None],
        sizes: Sequence[Sequence[int]],
    ) -> None:
        """Exchange the rows of all tables in one message. sizes: rows by table and process."""
        lengths = [
            sum(_bytes_of(table, of_table[rank]) for table, of_table in zip(tables, sizes, strict=True))
            for rank in range(self.processes.count)
        ]
        device, write = tables[0].device, partial(_pack, tables, own_rows)
        if any(lengths):
            messages = self.processes.gather_written(write, lengths, device)
        else:  # a gradient without rows counts as a step, in every process
            messages = [torch.empty(0, dtype=torch.uint8, device=device)] * self.processes.count
        of_processes = [
            _unpack(message, tables, [of_table[rank] for of_table in sizes])
            for rank, message in enumerate(messages)
        ]
        for table, pieces in zip(tables, zip(*of_processes, strict=True), strict=True):
            rows, values = sum_pieces(pieces, len(table))
            table.grad = torch.sparse_coo_tensor(
                rows.unsqueeze(0),
                values,
                table.shape,
                is_coalesced=True,
                device=table.device,
                check_invariants=False,
            )


def _is_dense(gradient: Tensor | None) -> bool:
    return gradient is not None and not gradient.is_sparse


def _rows_of(table: nn.Parameter) -> Tensor | None:
    """Return a table's sparse gradient, with each row once; None if there is none."""
    gradient = table.grad
    if gradient is None or not gradient.is_sparse:
        return None
    if gradient.is_coalesced():
        return gradient
    rows = gradient._indices()[0]
    # The kernels make it coalesced; autograd loses that mark on its way into .grad.
    if len(rows) < 2 or bool((rows[1:] > rows[:-1]).all()):
        return gradient
    return gradient.coalesce()


def _travels_as(parameter: Tensor) -> torch.dtype:
    """Return the dtype for the sum; half types are summed in float32."""
    return torch.float64 if parameter.dtype is torch.float64 else torch.float32


def _flat_gradient(parameter: nn.Parameter) -> Tensor:
    dtype = _travels_as(parameter)
    if parameter.grad is None:
        return torch.zeros(parameter.numel(), dtype=dtype, device=parameter.device)
    flat = parameter.grad.reshape(-1)
    return flat if flat.dtype is dtype else flat.to(dtype)


def _put_back(parameters: Sequence[nn.Parameter], flat: Tensor, have: Mapping[int, float]) -> None:
    parts = flat.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        if not have[id(parameter)]:
            continue
        found = part.view(parameter.shape)
        if found.dtype is parameter.dtype and parameter.is_contiguous():
            parameter.grad = found  # the sum itself, which belongs to nobody else
            continue
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.copy_(found)


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNED) * ALIGNED


def _row_type(table: Tensor) -> torch.dtype:
    return torch.int32 if len(table) <= torch.iinfo(torch.int32).max else torch.int64


def _parts_of(table: Tensor, n_rows: int) -> tuple[int, int]:
    """Return the bytes of n row numbers, and of their gradients."""
    numbers = n_rows * _row_type(table).itemsize
    return numbers, n_rows * table[0].numel() * table.element_size()


def _bytes_of(table: Tensor, n_rows: int) -> int:
    return sum(map(_padded, _parts_of(table, n_rows)))


def _pack(tables: Sequence[nn.Parameter], own_rows: Sequence[Tensor | None], packed: Tensor) -> None:
    first = 0
    for table, rows in zip(tables, own_rows, strict=True):
        if rows is None or not rows._nnz():
            continue
        numbers = rows._indices()[0].to(_row_type(table))
        values = rows._values().to(table.dtype).contiguous()
        for part in (numbers, values):
            content = part.reshape(-1).view(torch.uint8)
            packed[first : first + len(content)] = content
            first += _padded(len(content))


def _unpack(
    message: Tensor, tables: Sequence[nn.Parameter], sizes: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """Return (rows (n,), gradients (n, D)) of each table."""
    found, first = [], 0
    for table, n_rows in zip(tables, sizes, strict=True):
        numbers, values = _parts_of(table, n_rows)
        rows = message[first : first + numbers].view(_row_type(table))
        first += _padded(numbers)
        gradients = message[first : first + values].view(table.dtype).view(n_rows, *table.shape[1:])
        first += _padded(values)
        found.append((rows, gradients))
    return found

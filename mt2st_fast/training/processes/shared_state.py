"""One copy of a large table's optimizer state, for all processes of a machine: each moves a share of the rows.

Otherwise every process would read and write the state of all rows of all, and every core would wait for the same
memory. The state is written only in a step that all take, after all have come to it; whoever reads it outside a step
finds what he would find in a copy of his own.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from mt2st_fast.training.optim import RowSparseOptimizer
from mt2st_fast.training.processes.group import Processes
from mt2st_fast.training.processes.memory import PAGE

LEAST_BYTES = 1 << 25  # of a table, from which on its rows are not all in the caches


class SharedState:
    """The state of one table, as `RowSparseOptimizer.row_state` returns it; all processes have one for the same."""

    def __init__(self, processes: Processes, optimizer: RowSparseOptimizer, table: Tensor) -> None:
        self._processes, self._optimizer, self._table = processes, optimizer, table
        self._held: dict[str, Tensor] = {}
        self._may = table.nbytes >= LEAST_BYTES and bool(optimizer.kind.tables)

    @property
    def is_wanted(self) -> bool:
        """Whether to share: the table is large, its rule keeps tables too, and sharing has not failed."""
        return self._may

    @property
    def is_shared(self) -> bool:
        """Whether the optimizer holds the shared state, and nobody has replaced it."""
        state = self._optimizer.state.get(self._table, {})
        return bool(self._held) and all(state.get(name) is tensor for name, tensor in self._held.items())

    def share(self) -> bool:
        """Begin to share; all processes must call it. Returns whether they do, the same in all."""
        own = self._own()
        sizes = [-(-tensor.nbytes // PAGE) * PAGE for tensor in own.values()]
        memory = self._processes.shared_memory(PAGE + sum(sizes))
        self._may = memory is not None
        if memory is None:
            return False
        content, begin, held = torch.frombuffer(memory.content, dtype=torch.uint8), PAGE, {}
        for (name, tensor), size in zip(own.items(), sizes, strict=True):
            part = content[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            if self._processes.rank == 0:  # the same in all
                part.copy_(tensor)
            held[name] = part
            begin += size
        self._processes.barrier()  # nobody writes before it is copied
        os.close(memory.file)
        self._optimizer.state[self._table].update(held)
        self._held = held
        self._processes.take_back = self.take_back
        return True

    def take_back(self) -> None:
        """Hold a copy of its own again, if it is shared; no process may be in a step."""
        if self.is_shared:
            state = self._optimizer.state[self._table]
            state.update({name: tensor.clone() for name, tensor in self._held.items()})
        self._held = {}
        self._processes.take_back = None

    def _own(self) -> dict[str, Tensor]:
        parts = {id(part) for part in self._optimizer.row_state(self._table) if part is not None}
        return {n: value for n, value in self._optimizer.state[self._table].items() if id(value) in parts}

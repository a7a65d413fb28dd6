"""One copy of a large table's optimizer state, for all processes of a machine: each moves a share of the rows.

Otherwise every process would read and write the state of all rows of all, and every core would wait for the same
memory. The state is written only in a step that all take, after all have come to it; whoever reads it outside a step
finds what he would find in a copy of his own.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from mt2st_fast.training.optimizers.row_sparse import RowSparseOptimizer
from mt2st_fast.training.processes.group import Processes
from mt2st_fast.training.processes.memory import PAGE

LEAST_BYTES = 1 << 25  # of a table, from which on its rows are not all in the caches


class SharedState:
    """The state of one table, as `RowSparseOptimizer.row_state` returns it; all processes have one for the same.

    The optimizer's tensors stay the same objects, which only lie elsewhere while they are shared: whoever holds one
    keeps no memory that nobody uses.
    """

    def __init__(self, processes: Processes, optimizer: RowSparseOptimizer, table: Tensor) -> None:
        self.table = table
        self._processes, self._optimizer = processes, optimizer
        self._held: dict[str, Tensor] = {}
        self.obstacle: str | None = None  # to sharing
        if not optimizer.kind.tables:
            self.obstacle = f"{type(optimizer).__name__} keeps no table of moments"
        elif table.nbytes < LEAST_BYTES:
            self.obstacle = f"the table has less than {LEAST_BYTES >> 20} MB"

    @property
    def is_shared(self) -> bool:
        """Whether the optimizer holds the shared state, and nobody has replaced it."""
        state = self._optimizer.state.get(self.table, {})
        return bool(self._held) and all(state.get(name) is tensor for name, tensor in self._held.items())

    def share(self) -> bool:
        """Begin to share what process 0 holds; all processes must call it. Returns whether they do, the same in all."""
        self.take_back()
        own = self._own()
        sizes = [-(-tensor.nbytes // PAGE) * PAGE for tensor in own.values()]
        memory = self._processes.shared_memory(PAGE + sum(sizes))
        if memory is None:
            self.obstacle = f"the processes cannot share {sum(sizes) >> 20} MB of memory for it"
            return False
        os.close(memory.file)  # the mapping stays
        content, begin, parts = torch.frombuffer(memory.content, dtype=torch.uint8), PAGE, {}
        for (name, tensor), size in zip(own.items(), sizes, strict=True):
            parts[name] = content[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            if self._processes.rank == 0:  # the same in all
                parts[name].copy_(tensor)
            begin += size
        self._processes.barrier()  # nobody writes before it is copied
        for name, part in parts.items():
            own[name].data = part
        self._held = own
        self._processes.take_backs.append(self.take_back)
        return True

    def take_back(self) -> None:
        """Hold a copy of its own again, if it is shared; this process may not be in a step."""
        held, is_shared, self._held = self._held, self.is_shared, {}
        if self.take_back in self._processes.take_backs:
            self._processes.take_backs.remove(self.take_back)
        if is_shared:  # else it belongs to nothing any more
            for tensor in held.values():
                tensor.data = tensor.clone()

    def _own(self) -> dict[str, Tensor]:
        parts = {id(part) for part in self._optimizer.row_state(self.table) if part is not None}
        return {n: value for n, value in self._optimizer.state[self.table].items() if id(value) in parts}

"""The processes that train one model together, and the messages between them.

One process alone is also a group, in which nothing has to be sent: callers need no `if`.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mt2st_fast.errors import InputError, LostProcessError
from mt2st_fast.model.meeting import meet
from mt2st_fast.model.sharded import is_sharded
from mt2st_fast.numbers import plain
from mt2st_fast.training.processes import board
from mt2st_fast.training.processes.board import Board, board_for
from mt2st_fast.training.processes.memory import Memory, shared_memory
from mt2st_fast.training.processes.watch import Waiting, Watch

# Of a message, which waits for a process that evaluates or writes; the watch finds lost processes.
MOST_PATIENCE = timedelta(hours=12)
CONNECTING = timedelta(seconds=60)  # for processes that have all come to connect to each other
BEGIN = "Trainer.fit or begin"


class Processes:
    """`count` processes, of which this is number `rank`. All processes must call each method except the properties.

    Numbers and texts travel on a CPU, by memory that the processes share if they are on one machine (`Board`), else by
    gloo; tensors on a device by the group that `init_process_group` has made.
    Everything raises LostProcessError, naming the process, if another process is gone or has stopped, and InputError
    if another one is in another call.
    """

    def __init__(self, rank: int = 0, count: int = 1, call: str = BEGIN) -> None:
        self.rank, self.count = rank, count
        self._call, self._n_messages = call, 0
        self._group: Any = None
        self._board: Board | None = None
        self.without_memory = ""  # why messages do not go through memory that all share
        self._watch: Watch | None = None
        self._users = 1
        # By each of these, this process stops sharing a part of an optimizer's state, and holds a copy of its own.
        self.take_backs: list[Callable[[], None]] = []
        self.is_echo = False  # whether this one reported the same error as process 0
        if count > 1:
            self._world = dist.group.WORLD
            meet(call)  # new connections would wait for a process that does not come
            try:
                self._connect()
            except RuntimeError as error:
                said = " ".join(str(error).split())[:200]
                raise LostProcessError(
                    f"another of {count} processes was lost before a step ({said}); restart all processes"
                ) from error

    @property
    def are_several(self) -> bool:
        """Whether there are other processes."""
        return self.count > 1

    @property
    def writes(self) -> bool:
        """Whether this is the one process that writes files and prints."""
        return self.rank == 0

    # --- messages ---------------------------------------------------------------------------------------

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.are_several:
            with self._talking():
                if self._board is None:
                    dist.barrier(group=self._group)
                else:
                    self._board.barrier(self._check)

    def add_up(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place: the same bits in every one."""
        if self.are_several:
            with self._talking():
                if self._board is None or values.device.type != "cpu":
                    dist.all_reduce(values, group=self._group_of(values))
                else:
                    self._board.add_up(values, self._check)
        return values

    def gather(self, message: bytes) -> list[bytes]:
        """Return the messages of all processes, of one length, in the order of the processes."""
        if not self.are_several:
            return [message]
        if self._board is not None:
            with self._talking():
                return self._board.gather(message, self._check)
        own = torch.from_numpy(np.frombuffer(message, np.uint8).copy())
        return [found.numpy().tobytes() for found in self._gather_by_torch(own)]

    def _gather_by_torch(self, values: Tensor) -> list[Tensor]:
        found = [torch.empty_like(values) for _ in range(self.count)]
        with self._talking():
            dist.all_gather(found, values, group=self._group_of(values))
        return found

    def gather_written(
        self, write: Callable[[Tensor], None], lengths: Sequence[int], device: torch.device
    ) -> list[Tensor]:
        """Return the bytes of all processes, uint8, so many of each, in their order; they stay until the next message.

        write: writes those of this process into a tensor on the device. The lengths are not all 0.
        """
        if self._board is not None and device.type == "cpu":
            with self._talking():
                return self._board.gather_written(write, lengths, self._check)
        padded = torch.zeros(max(lengths), dtype=torch.uint8, device=device)
        write(padded[: lengths[self.rank]])
        return [found[:n] for found, n in zip(self._gather_by_torch(padded), lengths, strict=True)]

    @property
    def most_bytes(self) -> int:
        """The most bytes of a message that goes through memory in one part; 0 if the processes share none."""
        return 0 if self._board is None else board.SLOT

    def room(self) -> np.ndarray:
        """Return where the next message of this process goes, as `Board.room` does; only with `most_bytes`."""
        assert self._board is not None
        return self._board.room()

    def gather_arrays(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        """Return the arrays' bytes of all processes, as `Board.gather_arrays` does; only with `most_bytes`."""
        assert self._board is not None
        with self._talking():
            return self._board.gather_arrays(arrays, self._check)

    def shared_memory(self, n_bytes: int) -> Memory | None:
        """Return memory that all processes have mapped, as `shared_memory` of memory.py does; only with a board."""
        assert self._board is not None
        return shared_memory(self.rank, n_bytes, self.from_first, self.any_of_all)

    def take_all_back(self) -> None:
        """Hold a copy of its own of all state that it shares; the others see that at the next step that would share."""
        for take_back in tuple(self.take_backs):
            take_back()

    def gather_json(self, value: Any) -> list[Any]:
        """Return a JSON-able value from each process."""
        if not self.are_several:
            return [value]
        text = json.dumps(value, default=plain).encode()
        lengths = self.gather(len(text).to_bytes(8, "little"))
        longest = max(int.from_bytes(length, "little") for length in lengths)
        return [json.loads(found) for found in self.gather(text.ljust(longest))]  # JSON may end with blanks

    def from_first(self, value: Any) -> Any:
        """Return the JSON-able value of process 0."""
        return self.gather_json(value if self.rank == 0 else None)[0]

    def any_of_all(self, *flags: bool) -> list[bool]:
        """Return, for each flag, whether it is set in any process."""
        if not self.are_several:
            return list(flags)
        found = self.gather(bytes(map(bool, flags)))
        return [any(flag_of_all) for flag_of_all in zip(*found, strict=True)]

    @torch.no_grad()
    def take_from_first(self, modules: Sequence[nn.Module]) -> None:
        """Copy the parameters and buffers of process 0 to all; each process keeps its part of sharded ones."""
        if not self.are_several:
            return
        tensors = [t for m in modules for t in (*m.parameters(), *m.buffers()) if not is_sharded(t)]
        for tensor in dict.fromkeys(tensors):
            value = tensor.detach().contiguous()
            with self._talking():  # as bytes: gloo does not know every type
                dist.broadcast(value.view(-1).view(torch.uint8), group=self._group_of(value), group_src=0)
            if value.data_ptr() != tensor.data_ptr():
                tensor.copy_(value)

    def check_same(self, facts: Mapping[str, Any], fix: str = "start all with the same options") -> None:
        """Raises InputError, in every process, naming the first fact that differs between one and process 0."""
        if not self.are_several:
            return
        first, *others = self.gather_json({name: str(value) for name, value in facts.items()})
        for rank, found in enumerate(others, 1):
            for name in first | found:
                if found.get(name) != first.get(name):
                    raise InputError(
                        f"process {rank} of {self.count} has {name} {found.get(name)}, process 0 has "
                        f"{first.get(name)}: {fix}"
                    )

    def meet(self, call: str) -> None:
        """Wait until all have made a call, however late: one may have evaluated for the others meanwhile.

        Raises InputError if another process waits for this one in something else, LostProcessError if one is gone.
        """
        if self._watch is not None:
            watch = self._watch
            elsewhere = partial(watch.elsewhere, self._n_messages)
            with self.telling_errors():
                meet(call, patience=math.inf, elsewhere=elsewhere, check=watch.check)

    def doing(self, call: str) -> AbstractContextManager[None]:
        """Within the block, messages belong to this call of the user's, which all processes must make."""
        return self._doing(call) if self.are_several else NOTHING

    @contextmanager
    def _doing(self, call: str) -> Iterator[None]:
        before, self._call = self._call, call
        try:
            yield
        finally:
            self._call = before

    # --- begin and end ----------------------------------------------------------------------------------

    @contextmanager
    def telling_errors(self) -> Iterator[None]:
        """Within the block, an error here also ends the other processes, with a line that says so."""
        try:
            with self._explaining_what_torch_says():
                yield
        except BaseException as error:
            self.tell(error)
            raise

    @contextmanager
    def _explaining_what_torch_says(self) -> Iterator[None]:
        """As `_talking`, around any code: torch exchanges the parts of sharded parameters by itself."""
        try:
            yield
        except RuntimeError as error:
            if self._watch is None or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            raise self._watch.explain(error) from error

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Within the block, which prepares joint work, report an error and then close what `the_processes` began."""
        try:
            with self.telling_errors():
                yield
        except BaseException:
            self.close()
            raise

    def tell(self, error: BaseException) -> None:
        """Tell the others that this process stops with an error, so that nobody waits for it any more."""
        if self._watch is not None:
            watch, self._watch = self._watch, None
            self.is_echo = watch.tell(_one_line(error))
            watch.close()

    def close(self) -> None:
        """Leave together with all others; a process that has reported an error leaves at once."""
        global _open
        self._users -= 1
        try:
            self.take_all_back()
        finally:  # also if there is no memory for it: the others would wait
            if not self._users and self.are_several:
                _open = None if _open is self else _open
                try:
                    self._leave()
                finally:
                    last, self._board = self._board, None
                    if last is not None:
                        last.close()

    def _leave(self) -> None:
        watch = self._watch
        if watch is None:
            return  # a group that somebody has left in trouble is let be: taking it down may wait for him
        try:
            self.barrier()
        finally:
            watch.close()
            self._watch = None
        if dist.group.WORLD is self._world:
            dist.destroy_process_group(self._group)

    def _connect(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=CONNECTING)
        dist.distributed_c10d._set_pg_timeout(MOST_PATIENCE, self._group)
        # Otherwise a step computes on a device, and little travels on the CPU.
        if (backend := dist.get_backend()) == "gloo":
            self._board = board_for(self.rank, self.count, self.from_first, self.any_of_all)
        if self._board is None:
            self.without_memory = _without_memory(backend, self.count)
        self._watch = self._make_watch()
        self.barrier()
        self._watch.start()

    def _group_of(self, values: Tensor) -> Any:
        return self._group if values.device.type == "cpu" else None

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Within the block of torch's collectives, a failure because another process is gone names that process."""
        self._n_messages += 1
        if self._board is not None:
            self._board.posts_for(self._call)
        watch = self._watch
        if watch is None:
            yield
            return
        watch.check()
        watch.waiting = Waiting(time.monotonic(), self._n_messages, self._call)
        try:
            yield
        except RuntimeError as error:  # of gloo and NCCL
            raise watch.explain(error) from error
        except InputError as error:  # the processes are out of step: no further message would fit
            self.tell(error)
            raise
        finally:
            watch.waiting = None

    def _check(self) -> None:
        if self._watch is not None:
            self._watch.check()

    def _make_watch(self) -> Watch:
        """Make a watch on its own store, kept by process 0: the group's store may be a file, or not ours."""
        store, here = None, socket.gethostname()
        if self.rank == 0:
            store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        host, port = self.gather_json([here, None if store is None else store.port])[0]
        if store is None:
            # The address by which the processes have found each other.
            address = "localhost" if host == here else os.environ.get("MASTER_ADDR", host)
            try:
                store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False)
            except RuntimeError as error:
                raise InputError(
                    f"process 0 cannot be reached at {address}: set MASTER_ADDR to its address"
                ) from error
        return Watch(store, self.rank, self.count)


NOTHING: AbstractContextManager[None] = nullcontext()
_open: Processes | None = None


def the_processes(distributed: str = "auto", call: str = BEGIN) -> Processes:
    """Return torch.distributed's process group, or this process alone; every call needs its `close`.

    distributed: "none" ignores an existing group. If several processes are requested, all must request it, for one
    `call` of the user's: waits until all have come. Raises InputError if others do not, or come for another.
    """
    global _open
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if distributed == "none" or not several:
        return Processes()
    if (running := _running()) is not None:
        running.meet(f"{call} within a run")  # another process may have closed its run, or never begun one
        running._users += 1
        return running
    _open = Processes(dist.get_rank(), dist.get_world_size(), call)
    return _open


def _running() -> Processes | None:
    """Return what `the_processes` began and nobody has closed, or left in trouble, yet."""
    is_running = _open is not None and _open._watch is not None and _open._world is dist.group.WORLD
    return _open if is_running else None


def own_device() -> torch.device:
    """Return the device for `device="auto"`: this process's CUDA device on its machine, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return torch.device("cuda", local % torch.cuda.device_count()) if several else torch.device("cuda")


def _without_memory(backend: str, count: int) -> str:
    if backend != "gloo":
        return f"the process group is one of {backend}"
    if count > board.MOST_PROCESSES:
        return f"{count} processes are more than {board.MOST_PROCESSES}"
    return "the processes cannot share memory"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

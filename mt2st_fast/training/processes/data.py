"""Which batches each of several processes trains on, and evaluates."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from mt2st_fast.errors import InputError
from mt2st_fast.model.sharded import has_sharded
from mt2st_fast.training.inputs.digest import content_of, row_numbers
from mt2st_fast.training.inputs.shapes import length_of
from mt2st_fast.training.processes.group import Processes

logger = logging.getLogger(__name__)
OWN = "own"  # way to take a loader: all its batches are this process's own
PARTS = "parts"  # the loader is the same in all processes, and each takes its rows of every batch


class DividedBatches(list[Any]):
    """One process's rows of every batch of a list; `whole` is the list, by which a resumed run recognizes its data."""

    def __init__(self, whole: Sequence[Any], name: str, rank: int, count: int) -> None:
        super().__init__(_part_of(batch, name, rank, count) for batch in whole)
        self.whole = whole


def divide(train: Any, processes: Processes) -> tuple[Any, dict[str, str]]:
    """Return this process's part of the training data given to `fit`, and by name how each loader is taken.

    Loaders that have `take_part` (those of this package) are the same in all processes, and so are lists of batches
    with equal content: a process takes its rows of every batch. All others are taken as the process's own, as
    with DistributedSampler. Raises InputError if processes were given different loaders, or if a loader is not the
    process's own and cannot be divided.
    """
    several = isinstance(train, Mapping)
    loaders = {f"train[{name}]": loader for name, loader in train.items()} if several else {"train": train}
    of_all = processes.gather_json({name: _described(loader, processes) for name, loader in loaders.items()})
    for rank, found in enumerate(of_all):
        if found.keys() != of_all[0].keys() or any(found[n]["kind"] != of_all[0][n]["kind"] for n in found):
            raise InputError(
                f"process {rank} of {processes.count} has different training loaders than process 0; pass the same "
                "kind for the same tasks in all processes"
            )
    ways = {name: _way([found[name] for found in of_all], name, processes) for name in loaders}
    taken = [_taken(loader, name, ways[name], processes) for name, loader in loaders.items()]
    return dict(zip(train, taken, strict=True)) if several else taken[0], ways


class EveryNth:
    """Every count-th of some batches, starting with number `rank`; can be iterated as often as the original."""

    def __init__(self, whole: Iterable[Any], rank: int, count: int) -> None:
        self._whole, self._rank, self._count = whole, rank, count

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._whole), self._rank, None, self._count)

    def resident_on(self, device: torch.device) -> Iterator[Any] | None:
        """Return the same batches as views of data on the device; None if they have no such form."""
        make = getattr(self._whole, "resident_on", None)
        resident = None if make is None else make(device)
        return None if resident is None else islice(resident, self._rank, None, self._count)


def own_batches(val: Iterable[Any] | None, processes: Processes, encoder: nn.Module) -> Iterable[Any] | None:
    """Return the held-out batches that this process evaluates: its share, if they are the same in all processes.

    Otherwise all of its batches: sums over processes then cover all their batches, and metrics are ratios of sums. The
    same holds if the encoder is sharded, as all pass through it together; then raises InputError if some processes have
    more batches than others.
    """
    if val is None or not processes.are_several:
        return val
    if has_sharded(encoder):
        fix = "all pass together through a sharded encoder; give every process a val with the same number of batches"
        n = length_of(val)
        processes.check_same({"a val of": f"{n} batch{'' if n == 1 else 'es'}"}, fix)
        if n is None:
            raise InputError(f"val has no known number of batches, and {fix}")
        return val
    digest = getattr(val, "digest", None)
    first, *others = processes.gather_json(digest() if callable(digest) else _digest_in_order(val))
    if first is None or any(digest != first for digest in others):
        return val
    return EveryNth(val, processes.rank, processes.count)


def warn_if_alike(batches: Sequence[Any], processes: Processes) -> None:
    """Warn if all processes begin with the same rows, though each was given data of its own, as far as is known."""
    numbers = [row_numbers(batch) for batch in batches]
    digest = np.array(
        [sum(map(len, numbers)), sum(int(n) for rows in numbers for n in rows) % 2**64], np.uint64
    )
    found = processes.gather(digest.tobytes())
    if digest[0] and processes.rank == 0 and all(of_one == found[0] for of_one in found):
        logger.warning(
            "all %d processes begin with the same rows, so that each may train on all of the data; give every process "
            "its own part of it (a stream of datasets: datasets.distributed.split_dataset_by_node)",
            processes.count,
        )


def in_step(batches: Iterable[Any], processes: Processes) -> Iterator[Any]:
    """Yield the batches. Raises InputError, in every process, if one of them has more batches than another."""
    left = iter(batches)
    for n in itertools.count():
        batch = next(left, None)
        goes_on, ends = processes.any_of_all(batch is not None, batch is None)
        if goes_on and ends:
            raise InputError(
                f"some processes have {n} held-out batch{'' if n == 1 else 'es'} and others more, and all pass "
                "together through a sharded encoder; give every process the same number of batches"
            )
        if batch is None:
            return
        yield batch


def _described(loader: Any, processes: Processes) -> dict[str, Any]:
    """Return what the processes compare about a loader."""
    kind = "parts" if hasattr(loader, "take_part") else "own"
    if not processes.are_several:
        return {"kind": kind}
    if kind == "parts":
        return {"kind": kind, "stands": loader.state_dict()}
    plain = isinstance(loader, list | tuple) or (
        isinstance(loader, DataLoader) and _knows_no_processes(loader)
    )
    return {
        "kind": "own",
        "in order": _digest_in_order(loader),
        "content": content_of(loader) if plain else None,
        "plain": plain,
    }


def _way(of_all: Sequence[Mapping[str, Any]], name: str, processes: Processes) -> str:
    first = of_all[0]
    if not processes.are_several:
        return PARTS
    if first["kind"] == "parts":
        rank = next((r for r, found in enumerate(of_all) if found["stands"] != first["stands"]), 0)
        if rank:
            raise InputError(
                f"{name} has different data or another position in process {rank} of {processes.count} than in "
                "process 0; give all processes batches of the same corpus, size and seed to divide"
            )
        return PARTS
    if first["in order"] is not None and all(found["in order"] == first["in order"] for found in of_all):
        return PARTS
    # A sampler or a loader of somebody's own knows what it does.
    if not all(found["plain"] for found in of_all):
        return OWN
    if first["content"] is None:
        logger.warning("%s is assumed to be process %d's own part of the data; this cannot be checked",
                       name, processes.rank)  # fmt: skip
    elif all(found["content"] == first["content"] for found in of_all):
        raise InputError(
            f"{name} is the same data in all {processes.count} processes, so each would train on all of it; use "
            "sampler=torch.utils.data.DistributedSampler(dataset), or give each process its own part"
        )
    return OWN


def _taken(loader: Any, name: str, way: str, processes: Processes) -> Any:
    if hasattr(loader, "take_part"):
        loader.take_part(processes.rank, processes.count)  # even alone: it may have been divided before
    elif way == PARTS and processes.are_several:
        return DividedBatches(loader, name, processes.rank, processes.count)
    return loader


def _knows_no_processes(loader: DataLoader[Any]) -> bool:
    """Return whether a loader's order is torch's own for one process."""
    plain = type(loader.sampler) in (SequentialSampler, RandomSampler)
    return plain and type(loader.batch_sampler) in (BatchSampler, type(None))


def _digest_in_order(batches: Any) -> str | None:
    """Return the digest of a list; None for anything else, and for a list that is too long to read."""
    if not isinstance(batches, list | tuple) or content_of(batches) is None:
        return None
    digest = hashlib.sha256()
    for batch in batches:
        numbers = row_numbers(batch)
        digest.update(np.uint64(len(numbers)).tobytes() + numbers.tobytes())
    return digest.hexdigest()


def _part_of(batch: Any, name: str, rank: int, count: int) -> Any:
    """Return every count-th row of a batch's inputs and targets, starting with number `rank`.

    Raises InputError if they do not share their rows.
    """
    if not isinstance(batch, Mapping) and not (isinstance(batch, tuple | list) and len(batch) == 2):
        return batch  # the source reports what is wrong with it
    lengths: set[int] = set()

    def part(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim():
            lengths.add(len(value))
            return value[rank::count]
        if isinstance(value, Mapping):
            return {key: part(item) for key, item in value.items()}
        if isinstance(value, tuple | list):
            items = [part(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        lengths.add(-1)
        return value

    own = part(batch) if isinstance(batch, Mapping) else (part(batch[0]), part(batch[1]))
    if len(lengths) != 1 or -1 in lengths:
        raise InputError(
            f"{name} is the same in all {count} processes, and its batches cannot be divided by rows; give each "
            "process its own batches"
        )
    return own


def add_up_sums(sums: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """Sum (n,) float64 values by task over all processes; a process need not have every task."""
    if not processes.are_several:
        return dict(sums)
    total: dict[str, Tensor] = {}
    for of_one in processes.gather_json({task: values.tolist() for task, values in sums.items()}):
        for task, values in of_one.items():
            found = torch.tensor(values, dtype=torch.float64)
            total[task] = total[task] + found if task in total else found
    return total

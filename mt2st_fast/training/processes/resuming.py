"""Checkpoints of several processes: the position of each in its data, and its random states.

Weights, optimizer, schedule and history are the same in all, and are stored once. With the same number of processes, a
run resumes bit for bit. With another number it continues with the same weights from the same batch, if all
loaders are divided among the processes; additional processes draw their own random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mt2st_fast.errors import InputError
from mt2st_fast.training.processes.data import OWN
from mt2st_fast.training.processes.group import Processes
from mt2st_fast.training.random_states import python_states, set_python_states, states_to_json


def states_of_all(
    processes: Processes, source: Mapping[str, Any], taken: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return the states of all for a checkpoint, JSON-able; None if there is one process. source: its position."""
    if not processes.are_several:
        return None
    own = [name for name, way in taken.items() if way == OWN]
    mine = {"source": source, "random": _random_states()}
    return {"count": processes.count, "own": own, "states": processes.gather_json(mine)}


def own_source(processes: Processes, state: Mapping[str, Any], taken: Mapping[str, str]) -> dict[str, Any]:
    """Return this process's position in its data, from the state of a checkpoint.

    Raises InputError if the number of processes changed and they have data of their own.
    """
    then = _of_several(state)
    if then["count"] == processes.count:
        return then["states"][processes.rank]["source"] if then["states"] else state["source"]
    own = sorted({*then["own"], *(name for name, way in taken.items() if way == OWN)})
    if own:
        raise InputError(
            f"the checkpoint was made by {_named(then['count'])}, this run has {_named(processes.count)}, and "
            f"{own[0]} is separate for each process; start the same number, or give all processes the same batches "
            "to divide"
        )
    stored: dict[str, Any] = state["source"]  # the same for all
    return stored


def restore_random_states(processes: Processes, state: Mapping[str, Any]) -> None:
    """Restore this process's random states; call it after those of the file are restored."""
    states = _of_several(state)["states"]
    if processes.rank < len(states):
        stored = states[processes.rank]["random"]
        set_python_states(stored)
        torch.set_rng_state(torch.tensor(stored["torch"], dtype=torch.uint8, device="cpu"))
        if stored["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(torch.tensor(stored["cuda"], dtype=torch.uint8, device="cpu"))
    elif processes.rank:
        draw_own_numbers(processes)


def draw_own_numbers(processes: Processes) -> None:
    """Give this process other torch random numbers than the others, which may be in the same state.

    Otherwise all would drop the same units of their rows in dropout.
    """
    if processes.rank:
        torch.manual_seed(int(torch.randint(2**62, ())) + processes.rank)


def _of_several(state: Mapping[str, Any]) -> Mapping[str, Any]:
    return state["processes"] or {"count": 1, "own": [], "states": []}


def _random_states() -> dict[str, Any]:
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "torch": torch.get_rng_state().tolist(),
        "cuda": torch.cuda.get_rng_state().tolist() if on_cuda else None,
        **states_to_json(python_states()),
    }


def _named(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"

"""What a checkpoint says of several processes: where each stands in its data, and in its random numbers.

Weights, optimizer, schedule and history are the same in all of them, and stand in the file once. A run goes on bit for
bit with as many processes. With another number it goes on with the same weights from the same batch on, where all
loaders are divided among the processes; those beyond the ones of then draw random numbers of their own.
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
    """For a checkpoint, JSON-able; None of one process alone. source: where this one stands in its data."""
    if not processes.are_several:
        return None
    own = [name for name, way in taken.items() if way == OWN]
    mine = {"source": source, "random": _random_states()}
    return {"count": processes.count, "own": own, "states": processes.gather_json(mine)}


def own_source(processes: Processes, state: Mapping[str, Any], taken: Mapping[str, str]) -> dict[str, Any]:
    """Where this process stands in its data, from the state of a checkpoint.

    Raises InputError where other processes had data of their own, which is not this one's.
    """
    then = _of_several(state)
    if then["count"] == processes.count:
        return then["states"][processes.rank]["source"] if then["states"] else state["source"]
    own = sorted({*then["own"], *(name for name, way in taken.items() if way == OWN)})
    if own:
        raise InputError(
            f"the checkpoint was made by {_named(then['count'])}, this run has {_named(processes.count)}, and {own[0]} "
            "is each process's own: start as many, or give all of them the same batches, which they divide"
        )
    stored: dict[str, Any] = state["source"]  # of all alike
    return stored


def restore_random_states(processes: Processes, state: Mapping[str, Any]) -> None:
    """Draw the numbers that this process would have drawn; to be called when those of the file are restored."""
    states = _of_several(state)["states"]
    if processes.rank < len(states):
        stored = states[processes.rank]["random"]
        set_python_states(stored)
        torch.set_rng_state(torch.tensor(stored["torch"], dtype=torch.uint8))
        if stored["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(torch.tensor(stored["cuda"], dtype=torch.uint8))
    elif processes.rank:
        draw_own_numbers(processes)


def draw_own_numbers(processes: Processes) -> None:
    """Have this process draw other numbers of torch's than the others, which may stand where it stands.

    Or all would leave out the same units of their rows in dropout.
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

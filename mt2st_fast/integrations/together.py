"""Checks that the processes of a run count the same steps, by which a schedule retires tasks in all at once."""

from __future__ import annotations

from collections.abc import Sequence

from mt2st_fast.errors import InputError


def check_steps(of_all: Sequence[Sequence[float]]) -> None:
    """Raise InputError if processes differ in (steps of the run, steps of an epoch)."""
    if wrong := [rank for rank, of_one in enumerate(of_all) if list(of_one) != list(of_all[0])]:
        told = [f"{of_all[rank][0]:g} steps, {of_all[rank][1]:g} of them an epoch" for rank in (0, wrong[0])]
        raise InputError(
            f"process 0 would train for {told[0]}, and process {wrong[0]} of {len(of_all)} for {told[1]}: tasks would "
            "retire at different steps; give every process a loader of the same length"
        )

"""Runs that share heads: which tasks train is part of the heads, so that one run would retire the tasks of another."""

from __future__ import annotations

import weakref
from typing import Protocol

from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultiTaskHeads


class OnHeads(Protocol):
    """What is asked of a run."""

    heads: MultiTaskHeads
    is_closed: bool
    steps_done: int
    total_steps: int


_LATEST: weakref.WeakKeyDictionary[MultiTaskHeads, weakref.ref[OnHeads]] = weakref.WeakKeyDictionary()


def goes_on(run: OnHeads | None) -> bool:
    """Whether a run has begun and is not over: steps are left, and it is not closed."""
    return run is not None and not run.is_closed and run.steps_done < run.total_steps


def begin_on_heads(run: OnHeads) -> None:
    """Note that this run was the last to begin on its heads."""
    _LATEST[run.heads] = weakref.ref(run)


def check_alone(run: OnHeads, active: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """Raises InputError if the heads train other tasks than in the last step of this run because another one has begun
    since, or if the tasks that this run is about to retire (all but `wanted`) train in such a run.

    active: those of the last step, none before the first one.
    """
    reference = _LATEST.get(run.heads)
    latest = None if reference is None else reference()
    if latest is run:
        return
    changed = bool(active) and active != run.heads.active
    if changed or (goes_on(latest) and wanted != run.heads.active):
        raise InputError(
            "another run has begun on the same heads, and what one of them retires no longer trains in the other: end "
            "a run, or close() it, before the next one begins, and go on with the last one only; or give each run "
            "heads of its own"
        )

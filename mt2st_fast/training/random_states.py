"""The random states of Python and numpy: read, converted to JSON, and restored."""

from __future__ import annotations

import random
from typing import Any

import numpy as np


def python_states() -> tuple[Any, Any]:
    """Return the states of Python's and numpy's own generators."""
    return random.getstate(), np.random.get_state()


def states_to_json(states: tuple[Any, Any]) -> dict[str, Any]:
    """Convert `python_states` for JSON; separate from reading them, which is done far more often."""
    of_python, (_, keys, position, has_gauss, cached) = states
    return {"python": of_python, "numpy": [np.asarray(keys).tolist(), position, has_gauss, cached]}


def set_python_states(stored: dict[str, Any]) -> None:
    """Restore the states that `states_to_json` converted."""
    version, internal, gauss = stored["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(("MT19937", np.array(stored["numpy"][0], np.uint32), *stored["numpy"][1:]))

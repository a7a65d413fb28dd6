"""The random numbers that Python and numpy draw: where their generators stand, and put back there."""

from __future__ import annotations

import random
from typing import Any

import numpy as np


def python_states() -> tuple[Any, Any]:
    """Where Python's and numpy's own generators stand."""
    return random.getstate(), np.random.get_state()


def states_to_json(states: tuple[Any, Any]) -> dict[str, Any]:
    """`python_states` for JSON: apart from taking them, as that is done far more often."""
    of_python, (_, keys, position, has_gauss, cached) = states
    return {"python": of_python, "numpy": [np.asarray(keys).tolist(), position, has_gauss, cached]}


def set_python_states(stored: dict[str, Any]) -> None:
    """Stand where the states were taken that `states_to_json` made this of."""
    version, internal, gauss = stored["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(("MT19937", np.array(stored["numpy"][0], np.uint32), *stored["numpy"][1:]))

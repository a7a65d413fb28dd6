"""CPU backend, compiled by Numba."""

from typing import TYPE_CHECKING

from ...machine.registry import KERNEL_DTYPES, NO_NUMBA, Backend

BACKEND = Backend("numba", package="numba", devices=("cpu",), dtypes=KERNEL_DTYPES, stopped_by=NO_NUMBA)

if TYPE_CHECKING:
    # Lets a type checker compare every plan with what the op calls.
    from ..call import Plan
    from . import chunked, tile

    PLANS: tuple[Plan, ...] = (chunked, tile)

"""GPU backend, compiled by Triton."""

from typing import TYPE_CHECKING

from ...machine.registry import KERNEL_DTYPES, Backend

BACKEND = Backend(
    "triton", package="triton", devices=("cuda",), dtypes=KERNEL_DTYPES, interpreted_by="TRITON_INTERPRET"
)

if TYPE_CHECKING:
    # Lets a type checker compare every plan with what the op calls.
    from ..call import Plan
    from . import chunked, packed

    PLANS: tuple[Plan, ...] = (chunked, packed)

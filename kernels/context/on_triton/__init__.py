"""GPU backend, compiled by Triton."""

from ...machine.registry import KERNEL_DTYPES, Backend

BACKEND = Backend(
    "triton", package="triton", devices=("cuda",), dtypes=KERNEL_DTYPES, interpreted_by="TRITON_INTERPRET"
)

"""`mt2st-fast kernels`: compile every Triton kernel ahead of time, on any machine."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from mt2st_fast.cli.terminal import plain_console, say_table
from mt2st_fast.errors import InputError

DEFAULT_TARGETS = "sm_80,sm_90,sm_100,gfx942"


def kernels(
    targets: Annotated[
        str,
        typer.Option("--compile", help="comma-separated architectures: sm_NN (NVIDIA), gfxNNN (AMD)"),
    ] = DEFAULT_TARGETS,
) -> None:
    """Compile every Triton kernel for the given architectures and show registers, spills and shared memory.

    Exits with code 1 if a kernel spills registers to memory.
    """
    names = [target.strip() for target in targets.split(",") if target.strip()]
    if not names:
        raise InputError(f"--compile names no architecture; the default is {DEFAULT_TARGETS}")
    try:
        from mt2st_fast.kernels.machine.ahead_of_time import compile_all
    except ImportError as error:
        raise InputError(f"Triton cannot be imported ({error}); install triton (Linux only)") from error
    try:
        compiled = compile_all(names)
    except (ValueError, RuntimeError) as error:
        raise InputError(str(error)) from error
    table = Table("kernel", "variant", "target", "registers", "spills", "shared bytes")
    for kernel in compiled:
        table.add_row(
            kernel.kernel, kernel.variant, kernel.target,
            str(kernel.registers), str(kernel.spills), f"{kernel.shared_bytes:,}",
        )  # fmt: skip
    console = plain_console()
    say_table(console, table)
    spilling = [kernel for kernel in compiled if kernel.spills]
    console.print(f"{len(compiled)} kernels compiled, {len(spilling)} with spills")
    if spilling:
        raise typer.Exit(1)

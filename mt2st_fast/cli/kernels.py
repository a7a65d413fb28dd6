"""`mt2st-fast kernels`: compile every Triton kernel ahead of time, on any machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from mt2st_fast.cli.terminal import plain_console, say, say_table
from mt2st_fast.errors import InputError

if TYPE_CHECKING:
    from mt2st_fast.kernels.machine.ahead_of_time import CompiledKernel

DEFAULT_TARGETS = "sm_80,sm_90,sm_100,gfx942"
LINES = 10  # that tell how far it is


def kernels(
    targets: Annotated[
        str,
        typer.Option("--compile", help="comma-separated architectures: sm_NN (NVIDIA), gfxNNN (AMD)"),
    ] = DEFAULT_TARGETS,
    variants: Annotated[
        bool, typer.Option("--variants", help="show every variant of a kernel in a line of its own")
    ] = False,
) -> None:
    """Compile every Triton kernel for the given architectures and show registers, spills and shared memory.

    A line of the table is a kernel, with the largest numbers of its variants; variants that spill follow. Exits with
    code 1 if a kernel spills registers to memory.
    """
    names = [target.strip() for target in targets.split(",") if target.strip()]
    if not names:
        raise InputError(f"--compile names no architecture; the default is {DEFAULT_TARGETS}")
    try:
        from mt2st_fast.kernels.machine.ahead_of_time import compile_all
    except ImportError as error:
        raise InputError(f"Triton cannot be imported ({error}); install triton (Linux only)") from error
    progress = plain_console(stderr=True)

    def show(done: int, of: int) -> None:
        if done * LINES // of > (done - 1) * LINES // of:
            say(progress, f"{done} of {of} variants compiled")

    try:
        compiled = compile_all(names, report=show)
    except (ValueError, RuntimeError) as error:
        raise InputError(str(error)) from error
    console = plain_console()
    say_table(console, _of_variants(compiled) if variants else _of_kernels(compiled))
    spilling = [kernel for kernel in compiled if kernel.spills]
    if spilling and not variants:
        say_table(console, _of_variants(spilling))
    say(console, f"{len(compiled)} variants compiled, {len(spilling)} with spills")
    if spilling:
        raise typer.Exit(1)


def _of_variants(compiled: Iterable[CompiledKernel]) -> Table:
    table = Table("kernel", "variant", "target", "registers", "spills", "shared bytes")
    for kernel in compiled:
        table.add_row(
            kernel.kernel, kernel.variant, kernel.target,
            str(kernel.registers), str(kernel.spills), f"{kernel.shared_bytes:,}",
        )  # fmt: skip
    return table


def _of_kernels(compiled: Iterable[CompiledKernel]) -> Table:
    """The largest numbers of every kernel's variants."""
    groups: dict[tuple[str, str], list[CompiledKernel]] = {}
    for kernel in compiled:
        groups.setdefault((kernel.target, kernel.kernel), []).append(kernel)
    table = Table("kernel", "target", "variants", "registers", "spills", "shared bytes")
    for (target, name), same in sorted(groups.items()):
        registers, spills, shared_bytes = (
            max(numbers)
            for numbers in zip(*((k.registers, k.spills, k.shared_bytes) for k in same), strict=True)
        )
        table.add_row(name, target, str(len(same)), str(registers), str(spills), f"{shared_bytes:,}")
    return table

"""`mt2st-fast tune`: time every plan on this device and keep the fastest."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from mt2st_fast.cli.terminal import plain_console, say
from mt2st_fast.environment import device_named
from mt2st_fast.errors import InputError
from mt2st_fast.folder_lock import check_can_write

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def tune(
    device: Annotated[str, typer.Option(help="auto (CUDA if available), cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help=f"dtype of the features: {', '.join(DTYPES)}")] = "float32",
) -> None:
    """Time every plan on a grid of shapes and write a table that later runs on this device choose plans from.

    Takes about two minutes on two cores. Set MT2ST_PLANS to use a file other than the one in the user's cache; delete
    the file to return to the built-in rules.
    """
    from mt2st_fast.kernels.heads.plans import TABLE_VARIABLE, table_path
    from mt2st_fast.kernels.heads.tuning import GRID, Trial, save
    from mt2st_fast.kernels.heads.tuning import tune as time_plans

    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype} is unknown; available: {', '.join(DTYPES)}")
    try:
        chosen = device_named(device)
    except InputError as error:
        raise InputError(f"--{error}") from None
    if table_path().is_dir():
        raise InputError(f"{table_path()} is a folder; set {TABLE_VARIABLE} to the name of a file")
    try:
        check_can_write(table_path().parent)
    except OSError as error:
        raise InputError(
            f"{table_path()} cannot be written ({error.strerror}); set {TABLE_VARIABLE} to another file"
        ) from None
    console = plain_console()

    def show(trial: Trial, ms: dict[str, float]) -> None:
        fastest = min(ms, key=ms.__getitem__)
        times = ", ".join(f"{plan} {value:.3g} ms" for plan, value in ms.items())
        say(console, f"N={trial.N} D={trial.D} S={sum(trial.sizes)}: {times} -> ", (fastest, "bold"))

    try:
        rows = time_plans(chosen, DTYPES[dtype], grid=GRID, progress=show)
    except RuntimeError as error:
        raise InputError(str(error)) from error
    say(console, f"Written: {save(rows, chosen, DTYPES[dtype])}")

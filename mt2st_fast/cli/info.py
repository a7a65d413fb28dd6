"""`mt2st-fast info`: what would run here, and why."""

from __future__ import annotations

import torch
from rich.table import Table

from mt2st_fast.cli.terminal import plain_console, say, say_table
from mt2st_fast.environment import environment
from mt2st_fast.errors import InputError
from mt2st_fast.kernels import OPS, REFERENCE, RULES, Choice, Op, table_path, tuned_tables

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def info() -> None:
    """Show devices and versions, and which backend and plan would run each op, and why."""
    console = plain_console()
    facts = Table("what", "value", title="This machine")
    for key, value in environment().items():
        facts.add_row(key, str(value))
    say_table(console, facts)
    say_table(console, _choices())
    plans = Table(
        "backend", "plan", "when", "why", title="How heads are computed: by the first rule that applies"
    )
    for name, rules in RULES.items():
        for rule in rules:
            plans.add_row(name, rule.plan, rule.when, rule.reason)
    say_table(console, plans)
    try:
        has_table = bool(tuned_tables())
    except ValueError as error:
        raise InputError(str(error)) from None
    if has_table:
        say(console, f"The plans tuned on this device take precedence over these rules: {table_path()}")
    else:
        console.print("To choose plans by measurements on this device, run: mt2st-fast tune")
    if not torch.cuda.is_available():
        console.print(
            "No CUDA device found: the Triton kernels can be compiled (mt2st-fast kernels) but not run."
        )


def _choices() -> Table:
    """Return a table of what would compute each op: one row per answer, with all dtypes it applies to."""
    table = Table("op", "device", "dtypes", "backend", "why", title="What would run")
    for op in OPS.values():
        for device, name in _devices():
            dtypes_of: dict[Choice, list[str]] = {}
            for dtype in DTYPES:
                choice = _choose(op, device, dtype)
                dtypes_of.setdefault(choice, []).append(str(dtype).removeprefix("torch."))
            for choice, dtypes in dtypes_of.items():
                table.add_row(op.name, name, ", ".join(dtypes), choice.name, choice.reason)
    return table


def _choose(op: Op, device: torch.device, dtype: torch.dtype) -> Choice:
    try:
        choice = op.choose(device.type, dtype)
        reason = choice.reason.replace(str(dtype), "this dtype")
        if choice.name == REFERENCE and not op.has_reference:
            return Choice("none", f"{reason}; its parts are computed one by one")
        return Choice(choice.name, reason)
    except RuntimeError as error:  # MT2ST_BACKEND asks for a backend that cannot run here
        return Choice("none", str(error).replace(str(dtype), "this dtype"))
    except ValueError as error:
        raise InputError(str(error)) from error


def _devices() -> list[tuple[torch.device, str]]:
    devices = [(torch.device("cpu"), "cpu")]
    for index in range(torch.cuda.device_count()):
        devices.append((torch.device("cuda", index), f"cuda:{index} {torch.cuda.get_device_name(index)}"))
    return devices

"""`mt2st-fast info`: what would run here, and why."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

from mt2st_fast.environment import environment
from mt2st_fast.errors import InputError
from mt2st_fast.kernels import RULES, Choice, choose_backend, table_path


def info() -> None:
    """Show devices and versions, and which backend and plan would run and why."""
    console = Console()
    facts = Table("what", "value", title="This machine")
    for key, value in environment().items():
        facts.add_row(key, str(value))
    console.print(facts)
    choices = Table("device", "dtype", "backend", "why", title="What would run")
    for device, name in _devices():
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            try:
                backend = choose_backend(device, dtype)
            except RuntimeError as error:
                backend = Choice("none", str(error))
            except ValueError as error:
                raise InputError(str(error)) from error
            choices.add_row(name, str(dtype).removeprefix("torch."), backend.name, backend.reason)
    console.print(choices)
    plans = Table("backend", "plan", "when", "why", title="How heads are computed: the first that fits")
    for name, rules in RULES.items():
        for rule in rules:
            plans.add_row(name, rule.plan, rule.when, rule.reason)
    console.print(plans)
    if table_path().exists():
        console.print(f"Before these rules comes what was tuned on this device: {table_path()}")
    else:
        console.print("mt2st-fast tune measures the plans on this device and chooses by that.")
    if not torch.cuda.is_available():
        console.print(
            "No CUDA device here: the Triton kernels can be compiled (mt2st-fast kernels), not run."
        )


def _devices() -> list[tuple[torch.device, str]]:
    devices = [(torch.device("cpu"), "cpu")]
    for index in range(torch.cuda.device_count()):
        devices.append((torch.device("cuda", index), f"cuda:{index} {torch.cuda.get_device_name(index)}"))
    return devices

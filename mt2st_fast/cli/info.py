"""`mt2st-fast info`: what would run here, and why."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

from mt2st_fast.environment import environment
from mt2st_fast.errors import InputError
from mt2st_fast.kernels import Choice, choose_backend, choose_plan


def info() -> None:
    """Show devices and versions, and which backend and plan would run and why."""
    console = Console()
    facts = Table("what", "value", title="This machine")
    for key, value in environment().items():
        facts.add_row(key, str(value))
    console.print(facts)
    choices = Table("device", "dtype", "backend", "why", "plan", title="What would run")
    for device, name in _devices():
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            try:
                backend = choose_backend(device, dtype)
            except RuntimeError as error:
                backend = Choice("none", str(error))
            except ValueError as error:
                raise InputError(str(error)) from error
            plan = "–" if backend.name in ("reference", "none") else choose_plan().name
            choices.add_row(name, str(dtype).removeprefix("torch."), backend.name, backend.reason, plan)
    console.print(choices)
    console.print(f"plan {choose_plan().name}: {choose_plan().reason}")
    if not torch.cuda.is_available():
        console.print(
            "No CUDA device here: the Triton kernels can be compiled (mt2st-fast kernels), not run."
        )


def _devices() -> list[tuple[torch.device, str]]:
    devices = [(torch.device("cpu"), "cpu")]
    for index in range(torch.cuda.device_count()):
        devices.append((torch.device("cuda", index), f"cuda:{index} {torch.cuda.get_device_name(index)}"))
    return devices

"""The devices, threads and versions that results are computed and measured with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mt2st_fast.errors import InputError

PACKAGES = ("mt2st-fast", "torch", "triton", "numba", "numpy")


def usable_cpus() -> int:
    """Return the number of CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_named(name: str | torch.device) -> torch.device:
    """Return a device; "auto" is CUDA where available. Raises InputError for a device that is not available."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name} is unknown; available: auto, cpu, cuda, cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name} is not available: torch sees no CUDA device here; use cpu")
    if device.type == "cuda" and (device.index or 0) >= (n := torch.cuda.device_count()):
        raise InputError(
            f"device {name} is not available; torch sees {', '.join(f'cuda:{i}' for i in range(n))}"
        )
    if device.type not in ("cpu", "cuda") and not _holds_numbers(device):
        raise InputError(f"device {name} is not available to torch here; use cpu")
    return device


def _holds_numbers(device: torch.device) -> bool:
    """Whether tensors can be made on a device and read again: torch raises almost anything where they cannot."""
    try:
        return torch.ones(1, dtype=torch.float32, device=device).item() == 1.0
    except (RuntimeError, AssertionError, ImportError, AttributeError):
        return False


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Return processor, cores, threads, versions and, for a CUDA device, its name and memory; JSON-able."""
    found: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{name: version(name) for name in PACKAGES},
    }
    if device is not None:
        found["device"] = str(device)
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            found["gpu"] = properties.name
            found["gpu_memory_bytes"] = properties.total_memory
    return found


def version(package: str) -> str:
    """Return the installed version of a package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """Return the processor's name where the system has it, with numbers that distinguish generations of one name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return _processor_of(lines) or platform.machine()


def _processor_of(lines: Sequence[str]) -> str | None:
    """Return the first processor in the lines of /proc/cpuinfo; None where it has no name."""
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    if "model name" not in fields:
        return None
    told = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    flags = fields.get("flags", "").split()
    told += [shown for flag, shown in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags][:1]
    return fields["model name"] + (f" ({', '.join(told)})" if told else "")


@contextmanager
def cpu_threads(n: int | None) -> Iterator[None]:
    """Set torch's CPU threads, which the kernels use too, for the duration of a block; None leaves them."""
    before = torch.get_num_threads()
    try:
        if n is not None:
            torch.set_num_threads(int(n))
        yield
    finally:
        torch.set_num_threads(before)

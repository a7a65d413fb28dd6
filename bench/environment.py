"""Where a record was made: commit, device, versions."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from mt2st_fast.environment import processor, version

ROOT = Path(__file__).resolve().parent.parent
# Measuring writes these files; they do not change the measured code.
WRITTEN_HERE = ("bench/records", "bench/RESULTS.md", "bench/*.png")
PACKAGES = (
    "torch",
    "numba",
    "triton",
    "mt2st-fast",
    "liger-kernel",
    "cut-cross-entropy",
    "torchjd",
    "LibMTL",
)
# Gives the commit if the measured tree is a copy without git, or inside the checkout of something else.
COMMIT_VARIABLE = "MT2ST_COMMIT"


def describe(device: torch.device | None = None) -> dict[str, Any]:
    """Return commit, whether the working tree differs from it, date, device and versions, JSON-able."""
    return {
        "commit": os.environ.get(COMMIT_VARIABLE) or _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", ".", *(f":!{path}" for path in WRITTEN_HERE))),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": _device(device),
        "versions": {
            "python": platform.python_version(),
            **{name: number for name in PACKAGES if (number := version(name)) != "not installed"},
        },
    }


def _device(device: torch.device | None) -> dict[str, Any]:
    on_gpu = device is not None and device.type == "cuda"
    return {
        "kind": "cuda" if on_gpu else "cpu",
        "name": torch.cuda.get_device_name(device) if on_gpu else processor(),
        "threads": torch.get_num_threads(),
        **({"driver": _driver(), "cuda": torch.version.cuda} if on_gpu else {}),
    }


def _driver() -> str | None:
    with suppress(Exception):  # nvidia-ml-py may raise anything, and its version is optional
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    return None


def _git(*arguments: str) -> str | None:
    """Return the output of git, None outside a checkout or without git."""
    try:
        run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()

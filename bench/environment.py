"""What a record says about where it was made: commit, device, versions."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from mt2st_fast.environment import processor, version

ROOT = Path(__file__).resolve().parent.parent
# Measuring writes these; they do not make the measured code another one.
WRITTEN_HERE = ("bench/records", "bench/RESULTS.md", "bench/heads.png")


def describe() -> dict[str, Any]:
    """Commit and whether the working tree differs from it, date, device and versions, JSON-able."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", ".", *(f":!{path}" for path in WRITTEN_HERE))),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": {"kind": "cpu", "name": processor(), "threads": torch.get_num_threads()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numba", "triton", "mt2st-fast")},
        },
    }


def _git(*arguments: str) -> str | None:
    """What git says, None outside a checkout or without git."""
    try:
        run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()

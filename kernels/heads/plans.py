"""How a backend computes heads of a given shape: rules, or results tuned on this device. Each choice gives a reason."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Collection
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..machine.cache_folder import cache_folder
from ..machine.registry import (
    Choice,
)

PLANS = ("tile", "packed", "chunked")  # of all backends together


class Shape(NamedTuple):
    """The sizes by which a plan is chosen."""

    N: int
    D: int
    S: int
    widest: int  # outputs of the widest head
    itemsize: int  # bytes of one feature


class Rule(NamedTuple):
    """A plan, the shapes it is for, and why. The first rule that fits a shape decides."""

    plan: str
    when: str
    fits: Callable[[Shape], bool]
    reason: str


# On a CPU, a head with more outputs or a larger weight gradient is computed in chunks of rows whose logits all threads
# share: at D = 1024 that wins from 2,000 classes on, at D = 256 it does not (mt2st-fast tune, 2 cores).
NUMBA_WIDE_HEAD = 4096
NUMBA_WIDE_GRADIENT = 1 << 20  # float32 numbers
# On a GPU, logits of more bytes than this are computed in chunks.
TRITON_LOGITS_BYTES = 4 << 30
TRITON_WIDE_HEAD = 256  # outputs; a program of the packed plan holds a whole row of a head
TRITON_TILE = 64  # outputs that a program of the tile plan holds

RULES: dict[str, tuple[Rule, ...]] = {
    "numba": (
        Rule(
            "chunked",
            f"a head of more than {NUMBA_WIDE_HEAD:,} outputs, or {NUMBA_WIDE_GRADIENT:,} weights",
            lambda shape: shape.widest > NUMBA_WIDE_HEAD or shape.widest * shape.D > NUMBA_WIDE_GRADIENT,
            "threads share its logits and its weight gradient: one for each thread would not fit a cache",
        ),
        Rule(
            "tile",
            "any other",
            lambda shape: True,
            "logits, losses and gradients of a tile of rows are made while it is in cache",
        ),
    ),
    "triton": (
        Rule(
            "tile",
            f"all heads together of {TRITON_TILE} outputs at most",
            lambda shape: shape.S <= TRITON_TILE,
            "logits never leave the chip: four launches for losses and gradients",
        ),
        Rule(
            "chunked",
            f"a head of more than {TRITON_WIDE_HEAD:,} outputs, or logits of more than {TRITON_LOGITS_BYTES >> 30} GiB",
            lambda shape: (
                shape.widest > TRITON_WIDE_HEAD or shape.N * shape.S * shape.itemsize > TRITON_LOGITS_BYTES
            ),
            "wide heads are swept by kernels of their own, and one buffer of logits serves every chunk of rows",
        ),
        Rule(
            "packed",
            "any other",
            lambda shape: True,
            "one GEMM for all heads' logits, one segmented loss kernel, one GEMM a gradient",
        ),
    ),
}


# Plans that may be requested, by backend.
PLANS_OF = {"numba": ("tile", "chunked"), "triton": ("tile", "packed", "chunked")}


# Names of sizes of the packed plan's programs that may be tuned on a GPU (see on_triton/row_blocks.py).
ROW_BLOCKS = ("8 warps, 80 registers", "4 warps, 96 registers", "8 warps")


def check_plan(requested: str, backend: str) -> None:
    """Raise ValueError for an unknown plan, or one that this backend does not have."""
    if requested not in ("auto", *PLANS):
        raise ValueError(f"plan={requested} is unknown; available: auto, {', '.join(PLANS)}")
    has = PLANS_OF.get(backend, PLANS)
    if requested not in ("auto", *has):
        raise ValueError(
            f"plan={requested} is not supported by backend {backend}, which has {', '.join(has)}"
        )


def choose_plan(
    backend: str, shape: Shape, requested: str = "auto", device: torch.device | None = None
) -> Choice:
    """Choose how `backend` ("numba" or "triton") computes heads of this shape.

    `requested` takes precedence over the table that `mt2st-fast tune` made for this device, which takes precedence over
    RULES. Raises ValueError for an unknown plan.
    """
    check_plan(requested, backend)
    if requested != "auto":
        return Choice(requested, f"requested by plan={requested}")
    tuned = tuned_plan(backend, shape, device)
    if tuned is not None:
        return tuned
    rule = next(rule for rule in RULES[backend] if rule.fits(shape))
    return Choice(rule.plan, rule.reason)


# --- what the autotuner found --------------------------------------------------------------------------------

TABLE_VARIABLE = "MT2ST_PLANS"
# A shape takes the plan of the nearest tuned shape if the differences in N, D, S and widest add up to no more than this
# many doublings.
FARTHEST_DOUBLINGS = 4.0


def table_path() -> Path:
    """Path of the tuned tables: $MT2ST_PLANS, or plans.json in the user's cache."""
    if chosen := os.environ.get(TABLE_VARIABLE):
        return Path(chosen)
    return cache_folder() / "plans.json"


@lru_cache(maxsize=1)
def tuned_tables() -> dict[str, list[dict[str, Any]]]:
    """Read the tuned rows of each device, once; empty if nothing was tuned.

    Raises ValueError for a file that is not such a table, and for a missing one that $MT2ST_PLANS asks for.
    """
    path, asked = table_path(), bool(os.environ.get(TABLE_VARIABLE))
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
        return {
            key: [{**row, "shape": Shape(**row["shape"])} for row in rows] for key, rows in tables.items()
        }
    except FileNotFoundError:
        if asked:
            raise ValueError(
                f"{TABLE_VARIABLE} names {path}, which does not exist; unset it, or let mt2st-fast tune write that file"
            ) from None
        return {}
    except OSError as error:
        fix = f"set {TABLE_VARIABLE} to " + (
            "another file, or unset it" if asked else "a file that can be read"
        )
        raise ValueError(f"the table of plans {path} cannot be read ({error.strerror}); {fix}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a valid table of plans ({error}); remove it or run mt2st-fast tune"
        ) from error


def device_key(backend: str, device: torch.device | None) -> str:
    """Key of a tuned table: what it is for, and the name of the processor that it was measured on."""
    if device is not None and device.type == "cuda":
        return f"{backend} {torch.cuda.get_device_name(device)}"
    return f"{backend} {platform.machine()} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"


def tuned_plan(backend: str, shape: Shape, device: torch.device | None = None) -> Choice | None:
    """Return the plan of the nearest shape tuned on this device, or None."""
    return tuned_choice(backend, shape, PLANS_OF[backend], device)


def tuned_choice(
    of: str, shape: Shape, names: Collection[str], device: torch.device | None = None
) -> Choice | None:
    """Return which of the names was fastest at the nearest shape tuned on this device, or None.

    of: whose table it is: a backend's, or "triton rows".
    """
    tables = tuned_tables()
    if not tables:
        return None
    # A table may predate the current names.
    rows = [
        row
        for row in tables.get(device_key(of, device), ())
        if row["shape"].itemsize == shape.itemsize and row["plan"] in names
    ]
    if not rows:
        return None
    nearest = min(rows, key=lambda row: _doublings(row["shape"], shape))
    if _doublings(nearest["shape"], shape) > FARTHEST_DOUBLINGS:
        return None
    times = ", ".join(f"{plan} {ms:.3g} ms" for plan, ms in nearest["ms"].items())
    at = nearest["shape"]
    return Choice(nearest["plan"], f"tuned on this device at N={at.N} D={at.D} S={at.S}: {times}")


def _doublings(a: Shape, b: Shape) -> float:
    sizes = zip(a[:4], b[:4], strict=True)
    return sum(abs(math.log2(max(x, 1) / max(y, 1))) for x, y in sizes)

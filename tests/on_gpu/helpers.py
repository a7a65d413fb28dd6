"""What the tests on a GPU share: the device, the accuracy rule, poisoned memory, and a device nobody waits for."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import pytest
import torch

from bench.accuracy import FACTOR, relative_error

DEVICE = torch.device("cuda")
BACKEND = "triton"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NO_GPU = "no GPU: torch sees no CUDA device here"
RATE = 2.0**-7  # the same in float32, so that a rate on the device is the same number


def obstacle() -> str | None:
    """Why the tests on a GPU cannot run here, or None."""
    return None if torch.cuda.is_available() else NO_GPU


def reason_of(traceback: str) -> str:
    """The first line of the error in a traceback as pytest prints it, or its last line."""
    lines = [line for line in traceback.splitlines() if line.strip()] or ["no message"]
    errors = [line.removeprefix("E").strip() for line in lines if line.startswith("E  ")]
    return (errors or lines[-1:])[0]


def assert_as_accurate_as_torch(ours, by_torch, truth, dtype):
    """1.5 times torch's own error, and a few roundings on top: torch is sometimes exact by luck."""
    eps = torch.finfo(dtype).eps
    for key, value in ours.items():
        assert value.shape == truth[key].shape, key
        error, torch_error = relative_error(value, truth[key]), relative_error(by_torch[key], truth[key])
        gradient = key in ("d_features", "d_weight", "d_bias")
        margin = 2e-6 if dtype is torch.float32 else 2 * eps if gradient else eps
        # Written so that a NaN of ours fails.
        assert error <= FACTOR * torch_error + margin, f"{key}: error {error:.3g}, torch's {torch_error:.3g}"


@contextmanager
def poisoned_memory():
    """Whatever is allocated is NaN until it is written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


@contextmanager
def no_waiting():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("default")


@contextmanager
def plan_may_refuse(plan):
    """A plan may say that it is not for this layout; anything else is a failure."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if plan == "auto" or f"plan={plan}" not in str(error):
            raise
        pytest.skip(str(error))

"""Peak memory of one call, forward and backward, beyond its inputs and its gradients.

GPU: the allocator's high-water mark over what was allocated before, less the gradients.

CPU: the resident set's high-water mark (VmHWM of /proc/self/status) in a fresh process per peer. The process first runs
the peer on a small case, so that libraries are loaded and kernels compiled. It then makes the inputs, and gradients
that it writes to, so that their pages exist; returns free heap to the system (malloc_trim); and takes the resident set
as its baseline. Then it drops the gradients, resets the high-water mark, and runs the peer once, which makes its own
gradients. Peak less baseline is what the call needs beyond inputs and gradients: temporary tensors, buffers, allocator
waste.

`python -m bench.memory CASE PEER` is that fresh process; CASE is JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path

import torch

from bench.cases import HeadCase
from bench.environment import ROOT
from bench.peers import BUILDERS, Builder, Peer

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_HIGH_WATER = "5"  # man 5 proc_pid_clear_refs
# Wide enough to be computed like the case itself (a vocabulary-sized head has its own plan, which must be
# compiled here and not in the measured run), small enough to leave no trace.
SMALL_ROWS, SMALL_CLASSES = 256, 5000


class UnmeasurableError(RuntimeError):
    """The system does not report how much memory a process used."""


def peak_extra_bytes(case: HeadCase, peer: str) -> int:
    """Return the peak bytes of `peer`'s forward+backward beyond inputs and gradients.

    Raises UnmeasurableError if the system does not report them.
    """
    run = subprocess.run(
        [sys.executable, "-m", "bench.memory", _as_json(case), peer],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise UnmeasurableError(f"{peer}: {(run.stderr.strip().splitlines() or ['no message'])[-1]}")
    return int(json.loads(run.stdout.splitlines()[-1])["peak_extra_bytes"])


def peak_on_gpu(peer: Peer) -> int:
    """Return the peak of a peer that is not a graph: a graph's memory is reserved at its capture and not seen later."""
    peer.clear()
    peer.run()  # compiles, and creates what is only created once
    peer.clear()
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    total = peer.run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    gradients = [leaf.grad for leaf in peer.leaves if leaf.grad is not None]
    del total
    gradient_bytes = sum(gradient.numel() * gradient.element_size() for gradient in gradients)
    peer.clear()
    return max(0, peak - before - gradient_bytes)


def _as_json(case: HeadCase) -> str:
    return json.dumps({"N": case.N, "D": case.D, "sizes": case.sizes})


# --- the fresh process -----------------------------------------------------------------------------------


def main(described: str, peer: str) -> None:
    """Measure one peer of one case on a CPU, and print the bytes as JSON."""
    given = json.loads(described)
    case = HeadCase("memory", given["N"], given["D"], tuple(given["sizes"]))
    small = HeadCase(
        "warm-up", min(case.N, SMALL_ROWS), case.D, tuple(min(size, SMALL_CLASSES) for size in case.sizes)
    )
    build = BUILDERS[peer]
    _warm_up(build, small)
    print(json.dumps({"peak_extra_bytes": _peak_on_cpu(build(case.inputs(), "forward+backward"))}))


def _warm_up(build: Builder, small: HeadCase) -> None:
    peer = build(small.inputs(), "forward+backward")
    for _ in range(2):
        peer.clear()
        peer.run()


def _peak_on_cpu(peer: Peer) -> int:
    gradients = [torch.ones_like(leaf) for leaf in peer.leaves]
    gc.collect()
    _hand_free_memory_back()
    baseline = _status_bytes("VmRSS")
    del gradients
    reset_high_water()
    peer.run()
    return max(0, high_water_bytes() - baseline)


def reset_high_water() -> int:
    """Reset the recorded peak; return the bytes that are resident now."""
    _hand_free_memory_back()
    try:
        CLEAR_REFS.write_text(RESET_HIGH_WATER)
    except OSError as error:
        raise UnmeasurableError(f"the high-water mark cannot be reset: {error}") from error
    return _status_bytes("VmRSS")


def high_water_bytes() -> int:
    """Return the most bytes that were resident since `reset_high_water`."""
    return _status_bytes("VmHWM")


def _hand_free_memory_back() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status_bytes(key: str) -> int:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError as error:
        raise UnmeasurableError(f"{STATUS} cannot be read: {error}") from error
    values = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    if not values:
        raise UnmeasurableError(f"{STATUS} has no {key}")
    return int(values[0]) * 1024


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UnmeasurableError as unmeasurable:
        sys.exit(str(unmeasurable))

"""Compile every Triton kernel of the package for GPUs that need not be present, and report their resource use."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from .launch import Sample, family_of

NVIDIA_TARGET = re.compile(r"sm_(\d{2,3})")
JOBS_AT_ONCE, MOST_PROCESSES = 4, 8  # each of them loads torch and Triton
TESTED = {"sm_80", "sm_90", "sm_100", "gfx942"}  # the compiler knows them
_AFTER_THE_REASON = "Repro command"  # Triton's error ends with the whole code
MOST_SAID = 500  # characters of it
AMD_TARGET = re.compile(r"gfx[0-9a-f]{3,4}")


@dataclass(frozen=True)
class CompiledKernel:
    """One variant compiled for one target.

    registers: per thread (vector registers on AMD).
    spills: spilled bytes on NVIDIA, spilled registers on AMD.
    shared_bytes: shared memory of one program.
    """

    kernel: str
    variant: str
    target: str
    registers: int
    spills: int
    shared_bytes: int


def compile_all(targets: list[str], per_kernel: int | None = None) -> list[CompiledKernel]:
    """Compile the samples of every module in an on_triton folder for each target (sm_90, gfx942, ...).

    per_kernel: how many samples of each kernel to compile, counted from the last one; None means all.

    Uses up to eight cores, no driver and no device. Raises ValueError for a target of another form, RuntimeError under
    TRITON_INTERPRET=1 (the interpreter has nothing to compile) or if a kernel does not compile.
    """
    gpus = {target: _gpu_target(target) for target in targets}
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 interprets kernels instead of compiling them; unset it")
    package = importlib.import_module(__package__.rpartition(".")[0])
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    modules = sorted(i.name for i in found if ".on_triton." in i.name)
    jobs = [
        _Job(target, module, place)
        for target, gpu in gpus.items()
        for module in modules
        for place in _places(_samples_of(importlib.import_module(module), gpu), per_kernel)
    ]
    for target in gpus.keys() - TESTED:
        # Alone: of many jobs at once, those that are cancelled after an error may still end their processes.
        _results([next(job for job in jobs if job.target == target)], 1)
    return _results(jobs, min(MOST_PROCESSES, os.cpu_count() or 1))


def _results(jobs: list[_Job], n_processes: int) -> list[CompiledKernel]:
    try:
        # Spawn: a forked process would inherit locks held by threads that it does not have.
        with ProcessPoolExecutor(n_processes, get_context("spawn"), initializer=_be_quiet) as pool:
            return list(pool.map(_compile_job, jobs, chunksize=JOBS_AT_ONCE))
    except BrokenProcessPool as error:
        targets = " or ".join(dict.fromkeys(job.target for job in jobs))
        raise RuntimeError(
            f"the compiler ended abruptly for {targets}: it may not know such a GPU, or lack memory; compile for one "
            "target at a time"
        ) from error


def _places(samples: list[Sample], per_kernel: int | None) -> list[int]:
    """Return the indices of the last `per_kernel` samples of each kernel."""
    seen: Counter[Any] = Counter()
    places = []
    for place in reversed(range(len(samples))):
        kernel = samples[place].variant.kernel
        seen[kernel] += 1
        if per_kernel is None or seen[kernel] <= per_kernel:
            places.append(place)
    return places[::-1]


class _Job(NamedTuple):
    """One sample of a module, for one target."""

    target: str
    module: str
    place: int


def _be_quiet() -> None:
    """Discard what the compiler prints of a target that it does not know, thousands of lines: errors tell it."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _compile_job(job: _Job) -> CompiledKernel:
    gpu = _gpu_target(job.target)
    return _compile(_samples_of(importlib.import_module(job.module), gpu)[job.place], job.target, gpu)


def _samples_of(module: Any, gpu: Any) -> list[Sample]:
    """Return what the module's samples(), or samples_for(GPU family) if they differ by family, are."""
    if hasattr(module, "samples_for"):
        return list(module.samples_for(family_of(gpu.backend, gpu.arch)))
    return list(module.samples()) if hasattr(module, "samples") else []


def _gpu_target(target: str) -> Any:
    from triton.backends.compiler import GPUTarget

    nvidia = NVIDIA_TARGET.fullmatch(target)
    if nvidia:
        return GPUTarget("cuda", int(nvidia[1]), 32)
    if AMD_TARGET.fullmatch(target):
        # CDNA and GCN (gfx9) run wavefronts of 64, RDNA (gfx10 and later) of 32.
        return GPUTarget("hip", target, 64 if target.startswith("gfx9") else 32)
    raise ValueError(f"target {target!r} is neither sm_NN (NVIDIA, like sm_90) nor gfxNNN (AMD, like gfx942)")


def _compile(sample: Sample, target: str, gpu: Any) -> CompiledKernel:
    import triton
    from triton.compiler import ASTSource

    variant, kernel = sample.variant, sample.variant.kernel
    kinds = {arg: sample.types.get(arg, "constexpr") for arg in kernel.arg_names}
    # As in a launch with torch tensors, whose memory is aligned.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(kinds.values())
        if kind.startswith("*") or kind.endswith(":16")
    }
    signature = {arg: kind.removesuffix(":16") for arg, kind in kinds.items()}
    source = ASTSource(kernel, signature, variant.constexprs, aligned)
    try:
        compiled = triton.compile(source, target=gpu, options=variant.options)
    except Exception as error:
        said = " ".join(str(error).split(_AFTER_THE_REASON)[0].split())[:MOST_SAID]
        raise RuntimeError(
            f"{kernel.__name__} ({sample.name}) does not compile for {target}: {said}"
        ) from error
    read = _nvidia_usage if gpu.backend == "cuda" else _amd_usage
    registers, spills = read(compiled.asm, gpu)
    return CompiledKernel(kernel.__name__, sample.name, target, registers, spills, compiled.metadata.shared)


def _nvidia_usage(asm: dict[str, Any], gpu: Any) -> tuple[int, int]:
    """Return (registers, spilled bytes) as reported by the ptxas that Triton compiled with."""
    from triton.backends.nvidia.compiler import get_ptxas

    architecture = _find(r"\.target\s+(sm_\w+)", asm["ptx"])
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernel.ptx")
        ptx.write_text(asm["ptx"])
        command = [
            get_ptxas(gpu.arch).path,
            "-v",
            f"--gpu-name={architecture}",
            "-o",
            f"{ptx}.cubin",
            str(ptx),
        ]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(_find(r"Used (\d+) registers", report)), int(_find(r"(\d+) bytes spill stores", report))


def _amd_usage(asm: dict[str, Any], gpu: Any) -> tuple[int, int]:
    """Return (vector registers, spilled vector registers) from the metadata of the assembly."""
    del gpu
    text = asm["amdgcn"]
    # Scalar registers spill into lanes of vector registers, not to memory.
    spills = int(_find(r"\.vgpr_spill_count:\s*(\d+)", text))
    return int(_find(r"\.vgpr_count:\s*(\d+)", text)), spills


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the compiler's output has no {pattern!r}")
    return found[1]

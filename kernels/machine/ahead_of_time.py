"""Compile every Triton kernel of the package for GPUs that need not be present, and report their resource use."""

from __future__ import annotations

import importlib
import io
import os
import pkgutil
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, NamedTuple

from .launch import Sample, family_of

NVIDIA_TARGET = re.compile(r"sm_(\d{2,3})")
MOST_PROCESSES = 8  # each of them loads torch and Triton
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


Report = Callable[[int, int], object]


def compile_all(
    targets: list[str], per_kernel: int | None = None, report: Report = lambda done, of: None
) -> list[CompiledKernel]:
    """Compile the samples of every module in an on_triton folder for each target (sm_90, gfx942, ...).

    per_kernel: how many samples of each kernel to compile, counted from the last one; None means all.
    report: is told how many samples are compiled, of how many, after each of them.

    Uses up to eight cores, no driver and no device. Raises ValueError for a target of another form, RuntimeError under
    TRITON_INTERPRET=1 (the interpreter has nothing to compile) or, when all others are compiled, if a kernel is not.
    """
    gpus = {target: _gpu_target(target) for target in targets}
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 interprets kernels instead of compiling them; unset it")
    jobs = [job for target, gpu in gpus.items() for job in _jobs_of(target, gpu, per_kernel)]
    for target in gpus.keys() - TESTED:
        # Alone: of many jobs at once, those that are cancelled after an error may still end their processes.
        _results([next(job for job in jobs if job.target == target)], 1)
    return _results(jobs, min(MOST_PROCESSES, os.cpu_count() or 1), report)


def _jobs_of(target: str, gpu: Any, per_kernel: int | None) -> list[_Job]:
    """List the samples to compile, each of them once.

    The first ones of every kernel come first, which are those of everyday shapes: whoever stops after a minute has seen
    all kernels.
    """
    package = importlib.import_module(__package__.rpartition(".")[0])
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    jobs: list[tuple[int, _Job]] = []
    for module in sorted(i.name for i in found if ".on_triton." in i.name):
        samples = _samples_of(importlib.import_module(module), gpu)
        earlier: Counter[Any] = Counter()
        for place in _places(samples, per_kernel):
            kernel = samples[place].variant.kernel
            jobs.append((earlier[kernel], _Job(target, module, place)))
            earlier[kernel] += 1
    return [job for _, job in sorted(jobs, key=lambda item: item[0])]


def _results(
    jobs: list[_Job], n_processes: int, report: Report = lambda done, of: None
) -> list[CompiledKernel]:
    """Compile in other processes; return what comes of the jobs in their order."""
    failures: list[str] = []
    try:
        # Spawn: a forked process would inherit locks held by threads that it does not have.
        with ProcessPoolExecutor(n_processes, get_context("spawn"), initializer=_prepare) as pool:
            waiting = [pool.submit(_compile_job, job) for job in jobs]
            for done, future in enumerate(as_completed(waiting), 1):
                if isinstance(found := future.result(), str):
                    failures.append(found)
                report(done, len(jobs))
    except BrokenProcessPool as error:
        targets = " or ".join(dict.fromkeys(job.target for job in jobs))
        raise RuntimeError(
            f"the compiler ended abruptly for {targets}: it may not know such a GPU, or lack memory; compile for one "
            "target at a time"
        ) from error
    if failures:
        more = f" ({len(failures)} variants of {len(jobs)} do not compile)" if len(failures) > 1 else ""
        raise RuntimeError(f"{failures[0]}{more}")
    return [made for future in waiting if isinstance(made := future.result(), CompiledKernel)]


def _compiled_for(sample: Sample) -> str:
    """Return what the compiler is told, without names of samples."""
    _, variant, types = sample
    told = types, variant.constexprs, variant.options
    return repr((variant.kernel.__name__, *(sorted(each.items()) for each in told)))


def _places(samples: Sequence[Sample], per_kernel: int | None) -> list[int]:
    """Return the indices of the last `per_kernel` samples of each kernel, without those that are listed twice."""
    seen: Counter[Any] = Counter()
    known = set()
    places = []
    for place in reversed(range(len(samples))):
        kernel = samples[place].variant.kernel
        if (key := _compiled_for(samples[place])) in known:
            continue
        known.add(key)
        seen[kernel] += 1
        if per_kernel is None or seen[kernel] <= per_kernel:
            places.append(place)
    return places[::-1]


class _Job(NamedTuple):
    """One sample of a module, for one target."""

    target: str
    module: str
    place: int


def _prepare() -> None:
    """Have a process compile, and tell nothing but results.

    The compiler prints thousands of lines about a target that it does not know; errors tell it.
    """
    from triton import knobs

    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    # ptxas tells what a kernel uses only while it compiles it, and Triton then prints that.
    knobs.compilation.always_compile = knobs.nvidia.dump_ptxas_log = True


def _compile_job(job: _Job) -> CompiledKernel | str:
    """Return the kernel, or why it does not compile."""
    gpu = _gpu_target(job.target)
    try:
        return _compile(_samples_of(importlib.import_module(job.module), gpu)[job.place], job.target, gpu)
    except RuntimeError as error:
        return str(error)


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
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            compiled = triton.compile(source, target=gpu, options=variant.options)
    except Exception as error:
        said = " ".join(str(error).split(_AFTER_THE_REASON)[0].split())[:MOST_SAID]
        raise RuntimeError(
            f"{kernel.__name__} ({sample.name}) does not compile for {target}: {said}"
        ) from error
    usage = _nvidia_usage(printed.getvalue()) if gpu.backend == "cuda" else _amd_usage(compiled.asm["amdgcn"])
    return CompiledKernel(kernel.__name__, sample.name, target, *usage, compiled.metadata.shared)


def _nvidia_usage(printed: str) -> tuple[int, int]:
    """Return (registers, spilled bytes) as ptxas printed them when it made the kernel."""
    return int(_find(r"Used (\d+) registers", printed)), int(_find(r"(\d+) bytes spill stores", printed))


def _amd_usage(assembly: str) -> tuple[int, int]:
    """Return (vector registers, spilled vector registers) from the metadata of the assembly."""
    # Scalar registers spill into lanes of vector registers, not to memory.
    spills = int(_find(r"\.vgpr_spill_count:\s*(\d+)", assembly))
    return int(_find(r"\.vgpr_count:\s*(\d+)", assembly)), spills


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the compiler's output has no {pattern!r}")
    return found[1]

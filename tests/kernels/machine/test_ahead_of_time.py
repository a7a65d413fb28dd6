"""Every Triton kernel compiles without a GPU, without spills and within the shared memory of its target."""

from __future__ import annotations

import importlib
import pkgutil
import re
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("triton")

import triton

import mt2st_fast.kernels as kernels_package
from mt2st_fast.kernels import HeadLayout
from mt2st_fast.kernels.heads.on_triton import tile
from mt2st_fast.kernels.heads.on_triton.sample_heads import heads_of
from mt2st_fast.kernels.machine import ahead_of_time
from mt2st_fast.kernels.machine.ahead_of_time import CompiledKernel, compile_all
from mt2st_fast.kernels.machine.launch import FAMILIES, Sample

# Bytes that one program may use: NVIDIA's CUDA C programming guide, table of technical specifications per
# compute capability; 64 KiB of LDS on CDNA3.
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}

# Where a kernel sets no limit of registers, Triton 3.6's ptxas keeps to 64 for one that needs 65, and spills 4 bytes.
MOST_SPILLS = 4 if triton.__version__.startswith("3.6.") else 0

# Defined in kernels/*/on_triton; a kernel of which there is no sample is never compiled before a GPU runs it.
KERNELS = {
    name
    for source in Path(kernels_package.__file__).parent.rglob("on_triton/*.py")
    for name in re.findall(r"^def (\w+_kernel)\(", source.read_text(), re.MULTILINE)
}


def triton_modules() -> list[ModuleType]:
    """The modules that have samples."""
    prefix = f"{kernels_package.__name__}."
    names = [found.name for found in pkgutil.walk_packages(kernels_package.__path__, prefix)]
    modules = [importlib.import_module(name) for name in names if ".on_triton." in name]
    return [module for module in modules if hasattr(module, "samples") or hasattr(module, "samples_for")]


def check(kernels: list[CompiledKernel], targets: list[str]) -> None:
    assert {kernel.target for kernel in kernels} == set(targets)
    for target in targets:
        assert {kernel.kernel for kernel in kernels if kernel.target == target} == KERNELS
    assert [kernel for kernel in kernels if kernel.spills > MOST_SPILLS] == []
    assert [kernel for kernel in kernels if kernel.shared_bytes > SHARED_LIMIT[kernel.target]] == []
    assert all(0 < kernel.registers <= 512 for kernel in kernels)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_say_what_every_argument_is(family):
    """Either a type or a constant, constants last: what `Variant` runs by a handle are arguments in this order."""
    found = set()
    for module in triton_modules():
        samples = module.samples_for(family) if hasattr(module, "samples_for") else module.samples()
        for name, variant, types in samples:
            arguments, constants = variant.kernel.arg_names, variant.constexprs
            n = len(arguments) - len(constants)
            assert sorted(arguments[n:]) == sorted(constants), (variant.kernel.__name__, name)
            assert set(arguments[:n]) <= set(types), (variant.kernel.__name__, name)
            found.add(variant.kernel.__name__)
    assert found == KERNELS


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_two_variants_of_every_kernel_compile_without_spills(target):
    told = []
    kernels = compile_all([target], per_kernel=2, report=lambda *counts: told.append(counts))
    check(kernels, [target])
    assert told == [(done, len(kernels)) for done in range(1, len(kernels) + 1)]


@cache
def jobs(target: str = "sm_90") -> list[Sample]:
    """The samples that are compiled for a target, in order."""
    gpu = ahead_of_time._gpu_target(target)
    return [
        ahead_of_time._samples_of(importlib.import_module(job.module), gpu)[job.place]
        for job in ahead_of_time._jobs_of(target, gpu, None)
    ]


def test_the_first_variants_of_all_kernels_come_first_and_none_twice():
    found = [
        (variant.kernel.__name__, *map(repr, (types, variant.constexprs, variant.options)))
        for _, variant, types in jobs()
    ]
    assert len(set(found)) == len(found)
    assert {name for name, *_ in found[: len(KERNELS)]} == KERNELS


@pytest.mark.parametrize("what", ["smoothed", "weighted", "values", "many"])
@pytest.mark.parametrize(
    ("kernel", "plan"),
    [("row_loss_kernel", "packed"), ("row_loss_kernel", "chunked"), ("tile_forward_kernel", "")],
)
def test_every_way_of_losses_is_compiled_in_every_dtype(kernel, plan, what):
    named = [name.split() for name, variant, _ in jobs() if variant.kernel.__name__ == kernel]
    assert {name[0] for name in named if {what, *plan.split()} <= set(name)} == {"fp32", "bf16", "fp16"}


@pytest.mark.parametrize("family", FAMILIES)
def test_tiles_of_all_heights_are_compiled_of_heads_that_take_many_registers(family):
    """A height that is left out has spilled, unseen."""
    samples = list(tile.samples_for(family))
    for what in ("weighted", "several", "many"):
        heights = {
            tuple(map(int, re.search(r"(\d+)x\d+ D=(\d+)", name).groups()))
            for name, variant, _ in samples
            if variant.kernel is tile.tile_forward_kernel and name.startswith("fp32") and what in name
        }
        layout = HeadLayout(heads_of((30, 7, 5, 3), what))
        assert heights == {
            (tile.forward_blocks(N, D, 4, layout, family).rows, D) for N in (4096, 8192) for D in (768, 100)
        }


def test_all_kernels_that_do_not_compile_are_counted(monkeypatch):
    """The others are compiled all the same."""
    told = []

    class Pool:
        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def submit(self, compile_job, job):
            future = Future()
            made = CompiledKernel("a_kernel", str(job.place), job.target, 32, 0, 0)
            future.set_result(made if job.place % 2 else f"variant {job.place} is bad")
            return future

    monkeypatch.setattr(ahead_of_time, "ProcessPoolExecutor", Pool)
    of_all = [ahead_of_time._Job("sm_90", "x", place) for place in range(6)]
    with pytest.raises(RuntimeError, match=r"^variant \d is bad \(3 variants of 6 do not compile\)$"):
        ahead_of_time._results(of_all, 1, lambda *counts: told.append(counts))
    assert told[-1] == (6, 6)


@pytest.mark.long
def test_all_variants_compile_for_every_target():
    kernels = compile_all(list(SHARED_LIMIT))
    check(kernels, list(SHARED_LIMIT))
    assert len(kernels) > 2 * len(KERNELS) * len(SHARED_LIMIT)


@pytest.mark.parametrize("target", ["cuda", "sm90", "gfx", "sm_90x", ""])
def test_unknown_target_is_named(target):
    with pytest.raises(ValueError, match=rf"'{target}'.*sm_NN"):
        compile_all([target])


def test_interpreter_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        compile_all(["sm_90"])


@pytest.mark.parametrize("target", ["sm_10", "gfx000"])
def test_a_target_that_the_compiler_does_not_know_ends_in_one_short_error(target, capfd):
    with pytest.raises(RuntimeError, match=target) as error:
        compile_all([target], per_kernel=1)
    assert len(str(error.value)) < 1000
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")

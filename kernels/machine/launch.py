"""Launching Triton kernels: on the right device, with the right options, and by their compiled handles."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

HOPPER, BLACKWELL = 90, 100  # compute capabilities 9.0 and 10.0
FAMILIES = (
    "ampere",
    "hopper",
    "blackwell",
    "amd",
)  # the first also earlier ones and Ada, the third also later ones
# Triton versions whose compiled kernels are run by their handles, which no public interface documents. Other versions
# use Triton's regular launch.
HANDLES_OF = {"3.6", "3.7"}
ALL_REGISTERS = 255  # that a thread can have; without any limit, ptxas spills a few to fit another program
ALIGNMENT_BYTES = 16  # of a pointer; from this on Triton compiles wide accesses


def cdiv(n: int, d: int) -> int:
    """n / d, rounded up. Triton's own is a compile-time function whose call costs as much as a launch."""
    return -(-n // d)


def next_power_of_2(n: int) -> int:
    """The smallest power of two >= n, for n >= 1."""
    return 1 << (n - 1).bit_length()


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device current, as Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def family_of(backend: str, architecture: Any) -> str:
    """GPU family by which a kernel's block sizes may differ: one of FAMILIES."""
    if backend == "hip":
        return "amd"
    capability = int(architecture)
    return "blackwell" if capability >= BLACKWELL else "hopper" if capability >= HOPPER else "ampere"


@cache
def has_known_handles() -> bool:
    """Whether compiled kernels of the installed Triton can be run as `Variant` runs them: on NVIDIA's GPUs alone."""
    # Not importlib.metadata's version, which knows Triton under another name where torch is built for AMD.
    return torch.version.hip is None and ".".join(_triton_version().split(".")[:2]) in HANDLES_OF


def _triton_version() -> str:
    import triton

    return str(triton.__version__)


@cache
def gpu_family(device: torch.device) -> str:
    """`family_of` a device; "hopper" in the interpreter."""
    if torch.version.hip is not None:
        return "amd"
    if device.type != "cuda":
        return "hopper"
    major, minor = torch.cuda.get_device_capability(device)
    return family_of("cuda", 10 * major + minor)


def launch_options(warps: int, registers: int | None = None) -> dict[str, int]:
    """Return options of a launch. registers: most per thread, which only NVIDIA's compiler supports."""
    if registers is None or torch.version.hip is not None:
        return {"num_warps": warps}
    return {"num_warps": warps, "maxnreg": registers}


def roomy_options(warps: int, family: str) -> dict[str, int]:
    """Return options of a kernel which only Blackwell's compiler would have spill to fit another program."""
    return launch_options(warps, ALL_REGISTERS if family == "blackwell" else None)


class Variant:
    """A kernel with fixed compile-time arguments.

    Its parameters must be tensors, then integers, then the compile-time ones.

    Launching by the handle of an already compiled kernel costs the host a third of Triton's regular launch, which
    inspects every argument each time. What that would look at (dtypes, alignment, the integers in `known`) is the key
    here; all other integers must be in the kernel's `do_not_specialize`.
    """

    def __init__(self, kernel: Any, constexprs: dict[str, Any], options: dict[str, int]) -> None:
        self.kernel, self.constexprs, self.options = kernel, constexprs, options
        self._compiled: dict[Hashable, Any] = {}

    def launch(
        self, n_programs: int, tensors: Sequence[Tensor], integers: Sequence[int], known: Hashable = None
    ) -> None:
        """Run it on the tensors' device; do nothing if there are no programs."""
        if not n_programs:
            return
        first = tensors[0]
        if not first.is_cuda:  # in the interpreter
            self.kernel[(n_programs,)](*tensors, *integers, **self.constexprs, **self.options)
            return
        index = first.device.index
        if torch._C._cuda_getDevice() != index:
            with torch.cuda.device(index):
                self.launch(n_programs, tensors, integers, known)
            return
        pointers = [tensor.data_ptr() for tensor in tensors]
        unaligned = 0
        for pointer in pointers:
            unaligned = 2 * unaligned + (pointer % ALIGNMENT_BYTES > 0)
        key = (index, unaligned, known, *[tensor.dtype for tensor in tensors])
        compiled = self._compiled.get(key)
        if compiled is None or not has_known_handles():
            self._compiled[key] = self.kernel[(n_programs,)](
                *tensors, *integers, **self.constexprs, **self.options
            )
            return
        stream = torch._C._cuda_getCurrentRawStream(index)
        compiled.run(
            n_programs, 1, 1, stream, compiled.function, compiled.packed_metadata, None, None, None,
            *pointers, *integers, *self.constexprs.values(),
        )  # fmt: skip


class Sample(NamedTuple):
    """A variant as it is launched, to be compiled without a GPU; types: of its arguments, by name (see `types_of`)."""

    name: str
    variant: Variant
    types: dict[str, str]


def types_of(*declarations: str) -> dict[str, str]:
    """Return the types of arguments from declarations such as "*bf16 p_logits p_bias": a type, then the names.

    "i32:16" is an integer that launches know to be a multiple of 16; pointers are.
    """
    return {name: kind for kind, *names in map(str.split, declarations) for name in names}

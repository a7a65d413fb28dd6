"""How Triton kernels are launched: on whose device, with which options, and by their compiled handles."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

BLACKWELL = 100  # the compute capability, 10.0
# Whose compiled kernels are run by their handles, as no public interface says it; others go by Triton's front door.
HANDLES_OF = {"3.6", "3.7"}
ALIGNMENT_BYTES = 16  # of a pointer, from which on Triton compiles wide accesses


def cdiv(n: int, d: int) -> int:
    """n / d, rounded up. Triton's own is a compile-time function that costs a launch's time to call."""
    return -(-n // d)


def next_power_of_2(n: int) -> int:
    """The least power of two that is not less than n >= 1."""
    return 1 << (n - 1).bit_length()


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which may not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def family_of(backend: str, architecture: Any) -> str:
    """What a kernel's blocks may have to differ by: "amd", "blackwell" and later, or "nvidia" before."""
    if backend == "hip":
        return "amd"
    return "blackwell" if int(architecture) >= BLACKWELL else "nvidia"


@cache
def has_known_handles() -> bool:
    """Whether compiled kernels of the Triton at hand are run as `Variant` runs them."""
    return ".".join(version("triton").split(".")[:2]) in HANDLES_OF


@cache
def gpu_family(device: torch.device) -> str:
    """`family_of` a device; in the interpreter "nvidia"."""
    if torch.version.hip is not None:
        return "amd"
    if device.type != "cuda":
        return "nvidia"
    major, minor = torch.cuda.get_device_capability(device)
    return family_of("cuda", 10 * major + minor)


def launch_options(warps: int, registers: int | None = None) -> dict[str, int]:
    """Options of a launch; `registers` a thread at most, which only NVIDIA's compiler takes."""
    if registers is None or torch.version.hip is not None:
        return {"num_warps": warps}
    return {"num_warps": warps, "maxnreg": registers}


class Variant:
    """A kernel with its compile-time arguments, whose arguments are tensors, then integers, then those.

    A launch by the handle of what was compiled before costs the host a third of one by Triton's front door, which looks
    at every argument anew. What it would look for (dtypes, alignment, the integers in `known`) is the key here; all
    other integers have to be in the kernel's `do_not_specialize`.
    """

    def __init__(self, kernel: Any, constexprs: dict[str, Any], options: dict[str, int]) -> None:
        self._kernel, self._constexprs, self._options = kernel, constexprs, options
        self._compiled: dict[Hashable, Any] = {}

    def launch(
        self, n_programs: int, tensors: Sequence[Tensor], integers: Sequence[int], known: Hashable = None
    ) -> None:
        """Run it on the tensors' device; nothing where there are no programs."""
        if not n_programs:
            return
        first = tensors[0]
        if not first.is_cuda:  # the interpreter
            self._kernel[(n_programs,)](*tensors, *integers, **self._constexprs, **self._options)
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
            self._compiled[key] = self._kernel[(n_programs,)](
                *tensors, *integers, **self._constexprs, **self._options
            )
            return
        stream = torch._C._cuda_getCurrentRawStream(index)
        compiled.run(
            n_programs, 1, 1, stream, compiled.function, compiled.packed_metadata, None, None, None,
            *pointers, *integers, *self._constexprs.values(),
        )  # fmt: skip

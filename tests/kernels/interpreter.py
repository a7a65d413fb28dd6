"""Modules of the tests in processes whose Triton interprets its kernels: that is decided where triton is imported.

At every call of a device function the interpreter puts its own functions into triton.language, though the launch that
calls it has done so: looking through the language once more took half of all time. Here it is done once a launch. What
it makes anew for every tensor and follows from the tensor's type alone is made once a process.

python -m <this> MODULE ARGUMENT...
"""

from __future__ import annotations

import math
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[2]


def run_interpreted(module: str, *arguments: str) -> str:
    """What a module of the tests prints, run with interpreted kernels in a process of its own."""
    command = [sys.executable, "-m", __name__, module, *arguments]
    worker = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert worker.returncode == 0, worker.stderr[-4000:]
    return worker.stdout


def run_shares(module: str, folder: Path, shares: Sequence[tuple[str, ...]]) -> dict[str, np.ndarray]:
    """What a module stores as .npz: a process a share, with the file and the share as arguments, two at a time."""

    def of_share(number: int) -> dict[str, np.ndarray]:
        out = folder / f"{module}-{number}.npz"
        run_interpreted(module, str(out), *shares[number])
        with np.load(out) as stored:
            return dict(stored)

    with ThreadPoolExecutor(max_workers=2) as pool:
        parts = pool.map(of_share, range(len(shares)))
        return {name: value for part in parts for name, value in part.items()}


def poison_fresh_memory(on: bool) -> None:
    """Fill every torch.empty with NaN, so whatever a kernel leaves unwritten shows.

    torch.use_deterministic_algorithms would do so after it has imported torch's compiler, for a second.
    """
    torch._C._set_deterministic_algorithms(on)


def assert_as_accurate_as_torch(
    computed: Mapping[str, np.ndarray], name: str, margin: float, ours: str = "ours"
) -> None:
    """margin: what our largest error may exceed torch's by, relative to the largest true value."""
    value, torch_value, truth = (computed[f"{name}/{kind}"] for kind in (ours, "torch", "truth"))
    assert value.shape == truth.shape
    error = np.abs(value - truth).max(initial=0.0)
    allowed = np.abs(torch_value - truth).max(initial=0.0) + margin * np.abs(truth).max(initial=0.0)
    # Written so that a NaN of ours fails.
    assert error <= allowed, f"error {error:.3g} > {allowed:.3g}"


class _PatchOnce:
    """Triton's function of that name, which in a launch does nothing more for modules that it was called for."""

    def __init__(self, patch: Any) -> None:
        self._patch, self._scopes, self._patched = patch, list[Any](), set[str]()

    def __call__(self, fn: Any) -> Any:
        """Put the interpreter's functions in; what is returned to a launch takes all out that it put in."""
        if fn.__module__ not in self._patched:
            self._scopes.append(self._patch(fn))
            self._patched.add(fn.__module__)
        return self

    def restore(self) -> None:
        """At the end of a launch."""
        while self._scopes:
            self._scopes.pop().restore()
        self._patched.clear()


def _read_scalars_as_triton_3_7(patch: Any) -> Any:
    """Triton's function that teaches its tensors Python, with an integer that NumPy 2.4 converts, too: 3.6 failed."""

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    return patched


def _keep_what_types_say(interpreter: Any) -> None:
    """Make shapes, their sizes and NumPy's dtypes once for each type: that took a third of all time."""
    core, types, dtypes = interpreter.tl.core, dict[Any, dict[str, Any]](), dict[str, Any]()
    make_type, find_dtype = core.block_type.__init__, interpreter._get_np_dtype

    def block_type(self: Any, element: Any, shape: Any) -> None:
        key = (element.name, *(size.value if isinstance(size, core.constexpr) else size for size in shape))
        if key not in types:
            make_type(self, element, shape)
            types[key] = dict(self.__dict__)
        self.__dict__.update(types[key])

    def dtype_of(type_: Any) -> Any:
        element = type_.scalar
        if element.name not in dtypes:
            dtypes[element.name] = find_dtype(element)
        return dtypes[element.name]

    @cache
    def sizes_of(*shape: int) -> tuple[Any, Any]:
        return core.constexpr(math.prod(shape)), core.tuple([core.constexpr(size) for size in shape])

    def tensor(self: Any, handle: Any, type_: Any) -> None:
        self.handle, self.type, self.dtype = handle, type_, type_.scalar
        self.numel, self.shape = sizes_of(*(type_.shape.values if type_.is_block() else ()))

    core.block_type.__init__, core.tensor.__init__ = block_type, tensor
    interpreter._get_np_dtype = dtype_of


def main() -> None:
    """Run the module that is named first."""
    assert "triton" not in sys.modules
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    interpreter._patch_lang_tensor = _read_scalars_as_triton_3_7(interpreter._patch_lang_tensor)
    interpreter._patch_lang = _PatchOnce(interpreter._patch_lang)
    _keep_what_types_say(interpreter)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""Compile helpers only to code that kernels link, and optimize a kernel once, with all of its helpers.

For everything that it compiles, Numba links what that calls, optimizes all of it, and makes machine code and a function
that Python can call. A kernel here consists of some hundred helpers that call each other several levels deep: each
would be optimized once for every level above it. So a helper stays as it was written, and a kernel collects all
helpers, also those that only other helpers call, before the optimizer runs.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import require_global_compiler_lock
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering

_NEEDED = {
    JITCodeLibrary: (
        "finalize", "_raise_if_finalized", "_finalize_dynamic_globals", "_ensure_finalized",
        "_get_module_for_linking", "enable_object_caching",
    ),
    Compiler: ("define_pipelines",),
    NativeLowering: ("run_pass",),
}  # fmt: skip


def lacking(needed: dict[type, tuple[str, ...]]) -> list[str]:
    """Return which of these methods the classes lack."""
    return [
        f"{each.__name__}.{name}"
        for each, names in needed.items()
        for name in names
        if not hasattr(each, name)
    ]


if _lacking := lacking(_NEEDED):  # no part of Numba's interface: another version may lack it
    raise ImportError(f"this version of Numba has no {', '.join(_lacking)}")

_dynfunc: Any = importlib.import_module("numba._dynfunc")  # written in C: type checkers cannot see it


class _HelperLibrary(JITCodeLibrary):
    """Code for others to link, not optimized; `own` is without what it calls."""

    def finalize(self) -> None:
        require_global_compiler_lock()
        self._raise_if_finalized()
        self._finalize_dynamic_globals()
        self._finalized = True
        self.own = super()._get_module_for_linking()
        self._shared_module = None

    def _get_module_for_linking(self) -> Any:
        """Return the code with all that it calls, for a library that does not ask for more than this."""
        if self._shared_module is None:
            self._ensure_finalized()
            whole = self.own.clone()
            for library in _all_of(self._linking_libraries):
                whole.link_in(_alone(library), preserve=True)
            self._shared_module = whole
        return self._shared_module


class _KernelLibrary(JITCodeLibrary):
    """A kernel's code, optimized with that of all helpers."""

    def finalize(self) -> None:
        for library in _all_of(self._linking_libraries):
            if hasattr(library, "_reload_init"):  # from a version after 0.62 on
                self._reload_init.update(library._reload_init)
            self._final_module.link_in(_alone(library), preserve=True)
        self._linking_libraries.clear()
        super().finalize()


def _alone(library: Any) -> Any:
    """Return a library's code without other libraries of `_all_of`."""
    return library.own if isinstance(library, _HelperLibrary) else library._get_module_for_linking()


def _all_of(libraries: list[Any]) -> list[Any]:
    """Return libraries and, for helpers, also what they call, each once, and after all that call it.

    LLVM leaves out a function that nothing calls yet when its library is linked.
    """
    found: dict[Any, None] = {}

    def find(library: Any) -> None:
        if library not in found and isinstance(library, _HelperLibrary):
            for called in reversed(library._linking_libraries):
                find(called)
        found.setdefault(library)

    for library in reversed(libraries):
        find(library)
    return list(found)[::-1]


@ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
def _called_from_python(*_: Any) -> None:
    print("a kernel helper was called from Python; call a kernel that uses it", file=sys.stderr)


_REFUSAL = ctypes.cast(_called_from_python, ctypes.c_void_p).value


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerHelper(NativeLowering):
    _name = "lower_helper"

    def run_pass(self, state: Any) -> bool:
        name = state.func_id.func_qualname
        state.library = _HelperLibrary(state.targetctx.codegen(), name)
        state.flags.no_compile = True
        super().run_pass(state)
        lowered, library = state.cr, state.library
        # Numba identifies a compiled function by what Python would call; here that is a stand-in that refuses.
        stand_in = _dynfunc.make_function(
            lowered.fndesc.lookup_module(), name, "", _REFUSAL, lowered.env, (library,)
        )
        state.targetctx.insert_user_function(stand_in, lowered.fndesc, [library])
        state.cr = lowered._replace(cfunc=stand_in)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerKernel(NativeLowering):
    _name = "lower_kernel"

    def run_pass(self, state: Any) -> bool:
        state.library = _KernelLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return bool(super().run_pass(state))


# Passes of Numba's for what no kernel here contains.
_NOT_NEEDED = {
    "WithLifting", "InlineClosureLikes", "RewriteDynamicRaises", "MakeFunctionToJitFunction", "InlineInlinables",
    "FindLiterallyCalls", "LiteralUnroll", "LiteralPropagationSubPipelinePass", "InlineOverloads",
    "NoPythonSupportedFeatureValidation", "DumpParforDiagnostics",
}  # fmt: skip


class _KernelPasses(Compiler):
    lowering: Any

    def define_pipelines(self) -> Any:
        [pipeline] = super().define_pipelines()
        kept: dict[Any, str] = {}  # each pass once: Numba prunes dead branches three times
        for each, why in pipeline.passes:
            if each.__name__ not in _NOT_NEEDED:
                kept.setdefault(self.lowering if each is NativeLowering else each, why)
        pipeline.passes[:] = list(kept.items())
        return [pipeline]


class HelperCompiler(_KernelPasses):
    """Numba's compiler for functions that only compiled functions call."""

    lowering = _LowerHelper


class KernelCompiler(_KernelPasses):
    """Numba's compiler for functions that Python calls."""

    lowering = _LowerKernel

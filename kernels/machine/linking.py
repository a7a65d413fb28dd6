"""Compile helpers only to code that kernels link, and not also to machine code, which nobody would call.

For everything that it compiles, Numba makes machine code and a function that Python can call. Kernels here consist of
some hundred helpers, for which this took a quarter of the compile time of a first run.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering

_dynfunc: Any = importlib.import_module("numba._dynfunc")  # written in C: type checkers cannot see it


class _LinkedLibrary(JITCodeLibrary):
    """Optimized code for other libraries to link."""

    def _finalize_final_module(self) -> None:
        """Do what Numba does, except for handing the module to the engine that makes machine code."""
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


@ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
def _called_from_python(*_: Any) -> None:
    print("a kernel helper was called from Python; call a kernel that uses it", file=sys.stderr)


_REFUSAL = ctypes.cast(_called_from_python, ctypes.c_void_p).value


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerForLinking(NativeLowering):
    _name = "lower_for_linking"

    def run_pass(self, state: Any) -> bool:
        name = state.func_id.func_qualname
        state.library = _LinkedLibrary(state.targetctx.codegen(), name)
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


class HelperCompiler(Compiler):
    """Numba's compiler for functions that only compiled functions call."""

    def define_pipelines(self) -> Any:
        [pipeline] = super().define_pipelines()
        pipeline.passes[:] = [
            (_LowerForLinking if each is NativeLowering else each, why) for each, why in pipeline.passes
        ]
        return [pipeline]

"""Functions of kernels that are written as LLVM code."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

from numba.extending import intrinsic


def intrinsic_of(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make a function for kernels, of these types, from build(builder, *values), which returns a value or None."""

    def made(build: Callable[..., Any]) -> Any:
        def codegen(context, builder, signature, values):  # type: ignore[no-untyped-def]
            value = build(builder, *values)
            return context.get_dummy_value() if value is None else value

        def function(typing_context, *given):  # type: ignore[no-untyped-def]
            return result(*arguments), codegen

        function.__name__, function.__doc__ = build.__name__, build.__doc__
        names = ("typing_context", *(f"x{i}" for i in range(len(arguments))))
        parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        # Numba would take a star for one argument, a tuple.
        function.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        return intrinsic(function)

    return made

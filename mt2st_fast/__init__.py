"""Train on many tasks, finish on one: fused multi-task losses and a phase-aware trainer (MT2ST)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mt2st_fast.public import *  # noqa: F403
    from mt2st_fast.public import __all__ as __all__
else:  # a type checker would take every name for known

    def __getattr__(name: str) -> Any:
        """Load all names of `public` with the first that is asked for: they need torch, whose import takes seconds."""
        if name == "__all__" or not (name == "public" or name.startswith("__")):
            public = vars(import_module("mt2st_fast.public"))
            # Not all are there yet where one of its own modules asks.
            found = [each for each in ("__all__", *public.get("__all__", ())) if each in public]
            # What somebody has put in place of a name stays, as in a test.
            globals().update({each: public[each] for each in found if each not in globals()})
            if name in globals():  # a module that this has imported, too
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *import_module("mt2st_fast.public").__all__})

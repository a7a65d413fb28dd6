"""One way for imports: who may know whom, read from the sources with ast."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = "mt2st_fast.kernels"


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = ["mt2st_fast", *parts] if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(p): p for folder in ("mt2st_fast", "kernels") for p in (ROOT / folder).rglob("*.py")}


def imports_of(tree: ast.AST, module: str, is_package: bool) -> list[tuple[str, str | None, int]]:
    """(module, name or None, level) of every import, relative ones resolved."""
    found: list[tuple[str, str | None, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, None, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                base = package[: len(package) - node.level + 1]
                origin = ".".join([*base, origin] if origin else base)
            found += [(origin, alias.name, node.level) for alias in node.names]
    return found


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text("utf-8"))


@cache
def imports(module: str) -> list[tuple[str, str | None, int]]:
    return imports_of(tree_of(module), module, SOURCES[module].name == "__init__.py")


def names_a_module(origin: str, name: str | None, wanted: str) -> bool:
    """Whether an import brings in `wanted`, something in it or one of its submodules."""
    full = f"{origin}.{name}" if name else origin
    return any(text == wanted or text.startswith(f"{wanted}.") for text in (origin, full))


def test_the_walk_sees_all_forms_of_import():
    code = (
        "import a.b\nfrom c import d\ndef f():\n    from . import e\n    from ..g import h\nfrom .i import *"
    )
    assert imports_of(ast.parse(code), "p.q.r", is_package=False) == [
        ("a.b", None, 0),
        ("c", "d", 0),
        ("p.q.i", "*", 1),
        ("p.q", "e", 1),
        ("p.g", "h", 2),
    ]
    assert ("p.q.i", "j", 1) in imports_of(ast.parse("from .i import j"), "p.q", is_package=True)
    assert {
        "mt2st_fast",
        "mt2st_fast.training.trainer",
        "mt2st_fast.data.readers",
        "mt2st_fast.kernels.heads.op",
    } <= set(SOURCES)


def test_kernels_import_nothing_of_the_package():
    for module in SOURCES:
        if not module.startswith(KERNELS):
            continue
        for origin, name, level in imports(module):
            if origin.split(".")[0] == "mt2st_fast":
                assert level > 0, f"{module}: {origin} must be imported relatively"
                assert names_a_module(origin, name, KERNELS), f"{module} imports {origin} {name}"


# The loop, what it decides by, and what stands around it: only encoders, heads, optimizers and engines call kernels.
WITHOUT_KERNELS = (
    "training.trainer", "training.run", "training.schedules", "runs", "cli", "integrations", "exporting",
)  # fmt: skip
# These say what would run, and run nothing.
CHOICES = {"Choice", "OPS", "choose_backend", "NO_NUMBA", "is_set", "tuned_tables"}
ABOUT_KERNELS = ("cli.info", "cli.kernels", "cli.tune")


def test_what_stands_around_a_step_calls_no_kernel():
    for module in SOURCES:
        place = f"{module}.".removeprefix("mt2st_fast.")
        if (
            place.startswith(tuple(f"{name}." for name in WITHOUT_KERNELS))
            and place[:-1] not in ABOUT_KERNELS
        ):
            taken = {name for origin, name, _ in imports(module) if names_a_module(origin, name, KERNELS)}
            assert taken <= CHOICES, f"{module} takes {taken} from the kernels"


def test_nobody_imports_a_bare_kernels():
    for module in SOURCES:
        for origin, _, level in imports(module):
            assert level or origin.split(".")[0] != "kernels", f"{module} imports {origin}"


IMPORT_BARE = """
import sys, kernels
loaded = sorted(name for name in sys.modules if name.startswith(("kernels.", "torch")))
assert not loaded, loaded
try:
    import kernels.heads
except ModuleNotFoundError:
    sys.exit()
sys.exit("kernels.heads was imported")
"""


def test_a_bare_kernels_is_none_of_ours():
    """transformers imports any `kernels` there is, in a checkout this folder: its ops would replace the package's."""
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_BARE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


# From the first to the last: a module may import from those before it, never from those behind.
ORDER = ["data.readers", "data.batches", "model", "training", "words", "runs", "cli"]


def test_data_flows_one_way():
    for module in SOURCES:
        places = [i for i, name in enumerate(ORDER) if f"{module}.".startswith(f"mt2st_fast.{name}.")]
        for later in ORDER[places[0] + 1 :] if places else ():
            for origin, name, _ in imports(module):
                assert not names_a_module(origin, name, f"mt2st_fast.{later}"), f"{module} imports {later}"


def test_triton_and_numba_are_imported_only_where_they_are_used():
    for module, path in SOURCES.items():
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):  # what only a type checker reads loads nothing
            if (
                isinstance(node, ast.If)
                and isinstance(node.test, ast.Name)
                and node.test.id == "TYPE_CHECKING"
            ):
                node.body = []
        for origin, _, level in imports_of(tree, module, path.name == "__init__.py"):
            package = origin.split(".")[0]
            if not level and package in ("numba", "triton"):
                op, _, name = module.removeprefix(f"{KERNELS}.").partition(".")
                allowed = op == "machine" or name.startswith(f"on_{package}.")
                # For type checkers alone: Triton gives a rule its `tl` when it compiles it.
                allowed |= package == "triton" and op == "bags" and name.startswith("rules.")
                assert allowed, f"{module} imports {package}"

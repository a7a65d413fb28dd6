"""The structure that a change can count on: no circles, no import from a higher layer, nothing too long."""

from __future__ import annotations

import ast

import pytest

from tests.test_imports import KERNELS, ROOT, SOURCES, imports, tree_of

# Packages of kernels by layer: each may import from itself and from lower layers.
LAYERS = {
    "machine": 0, "heads": 1, "bags": 1, "text": 1, "log_linear": 1,
    "context": 2, "step": 2, "recurrent": 2, "convolution": 2,
}  # fmt: skip
# Packages of the training, and what each may import from: those before it.
ROOMS = ("inputs", "callbacks", "schedules", "optimizers", "processes", "checkpoints", "engines", "phases")
TRAINING = "mt2st_fast.training"
MOST_LINES, MOST_ARGUMENTS = 500, 12
# Signatures that are somebody else's, or a user's options by name.
LONG_SIGNATURES = {
    "mt2st_fast.words.word2vec.Word2Vec.__init__",  # gensim's
    "mt2st_fast.words.word2vec.Word2Vec.train",  # gensim's
    "mt2st_fast.words.supervised.train_supervised",  # fastText's
    "mt2st_fast.fasttext.train_unsupervised",  # fastText's
    "mt2st_fast.training.trainer.Trainer.__init__",
    "mt2st_fast.integrations.sklearn.MultiTaskTextClassifier.__init__",  # as scikit-learn wants them
    "mt2st_fast.integrations.sklearn.Word2VecTransformer.__init__",
}


def targets_of(module: str) -> set[str]:
    """The modules of the package that a module imports, typing-only imports too."""
    found = set()
    for origin, name, _ in imports(module):
        full = f"{origin}.{name}" if name else origin
        found |= {target for target in (full, origin) if target in SOURCES} if full not in SOURCES else {full}
    return found - {module}


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: targets_of(module) for module in SOURCES}
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            pytest.fail(f"a circle: {' -> '.join([*path[path.index(module) :], module])}")
        if module not in done:
            for target in sorted(graph[module]):
                # A package's __init__ hands on what its modules have: they may import one another.
                if not module.startswith(f"{target}."):
                    visit(target, [*path, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])


def package_of_kernels(module: str) -> str | None:
    """The package of kernels that a module is in; None outside of them."""
    return module.removeprefix(f"{KERNELS}.").split(".")[0] if module.startswith(f"{KERNELS}.") else None


def test_no_package_of_kernels_imports_from_its_own_layer_or_a_higher_one():
    for module in SOURCES:
        if package := package_of_kernels(module):
            for target in targets_of(module):
                other = package_of_kernels(target)
                allowed = other in (None, package) or LAYERS[other] < LAYERS[package]
                assert allowed, f"{module} imports {target}"


def test_these_are_the_packages_of_kernels():
    assert {package_of_kernels(module) for module in SOURCES} - {None} == set(LAYERS)


def room_of(module: str) -> str | None:
    """The package of the training that a module is in; None outside of them."""
    room = module.removeprefix(f"{TRAINING}.").split(".")[0] if module.startswith(f"{TRAINING}.") else ""
    return room if SOURCES.get(f"{TRAINING}.{room}", ROOT).name == "__init__.py" else None


def test_packages_of_the_training_import_from_those_before_them():
    assert {room_of(module) for module in SOURCES} - {None} == set(ROOMS)
    for module in filter(room_of, SOURCES):
        own = room_of(module)
        for target in targets_of(module):
            other = room_of(target)
            assert other in (None, own) or ROOMS.index(other) < ROOMS.index(own), f"{module} imports {target}"


def test_a_long_file_says_why():
    for path in (*SOURCES.values(), *(ROOT / "tests").rglob("*.py")):
        lines = path.read_text("utf-8").splitlines()
        assert len(lines) <= MOST_LINES or "long because" in "\n".join(lines[:12]), str(path)


def test_no_function_takes_more_than_a_dozen_arguments():
    for module in SOURCES:
        if ".on_" in module:  # compiled kernels take packed records and what they are of
            continue
        for name, node in functions(tree_of(module).body, module):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([a for a in arguments if a.arg not in ("self", "cls", "ctx")])
            assert count <= MOST_ARGUMENTS or name in LONG_SIGNATURES, f"{name} takes {count} arguments"


def test_modules_of_kernels_hold_no_tensors():
    """A tensor that is made while torch.compile traces the first call is a fake one, for good: see templates.py."""
    for module in SOURCES:
        if module.startswith(f"{KERNELS}.") and module != f"{KERNELS}.machine.templates":
            for statement in tree_of(module).body:
                if isinstance(statement, ast.Assign | ast.AnnAssign):
                    made = [node for node in ast.walk(statement) if is_called_of_torch(node)]
                    assert not made, f"{module}, line {statement.lineno}: {ast.unparse(statement)}"


def is_called_of_torch(node):
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and node.func.attr
        in ("arange", "empty", "full", "ones", "tensor", "zeros", "from_numpy", "as_tensor")
    )


def functions(body, prefix):
    """(dotted name, node) of every function in a body, also of nested ones and methods."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}.{node.name}", node
            yield from functions(node.body, f"{prefix}.{node.name}")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node.body, f"{prefix}.{node.name}")

"""One way for imports: who may know whom, read from the sources with ast."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

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


def imports(module: str) -> list[tuple[str, str | None, int]]:
    path = SOURCES[module]
    return imports_of(ast.parse(path.read_text("utf-8")), module, path.name == "__init__.py")


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


@pytest.mark.parametrize("module", sorted(m for m in SOURCES if m.startswith(KERNELS)))
def test_kernels_import_nothing_of_the_package(module):
    for origin, name, level in imports(module):
        if origin.split(".")[0] == "mt2st_fast":
            assert level > 0, f"{module}: {origin} must be imported relatively"
            assert names_a_module(origin, name, KERNELS), f"{module} imports {origin} {name}"


# What each module outside kernels/ may take from it; None = anything.
CHOICES = {"Choice", "choose_backend", "choose_plan"}
FROM_KERNELS: dict[str, set[str] | None] = {
    "mt2st_fast.public": None,
    "mt2st_fast.compiling": {"clock", "compile_seconds", "folder", "has_none_of"},
    "mt2st_fast.model.heads": None,
    "mt2st_fast.model.fused_call": {"HeadLayout"},
    "mt2st_fast.model.head_bank": {"POOLINGS", "HeadLayout", "Pooling", "lay_adjacent"},
    "mt2st_fast.model.row_shards": {"embedding_bag", "unique_ids"},
    "mt2st_fast.model.one_head": {"HeadSpec", "Kind", "REFERENCE", "asked_for"},
    "mt2st_fast.model.called_heads": {
        "REFERENCE",
        "HeadSpec",
        "accepted_targets",
        "asked_for",
        "head_correct",
        "row_losses",
    },
    "mt2st_fast.model.denominators": {"HeadSpec"},
    "mt2st_fast.model.over_tasks": {"HeadSpec", "MultitaskLoss"},
    "mt2st_fast.model.pooling": {"Pooling"},
    "mt2st_fast.model.encoders": None,
    "mt2st_fast.training.optim": None,
    "mt2st_fast.training.processes.board": {"raise_to", "wait_for"},
    "mt2st_fast.training.processes.gradients": {"sum_pieces"},
    "mt2st_fast.training.engines.bag_training": None,
    "mt2st_fast.training.dense_rules": {"Decay", "RowRule", "RowState", "rules"},
    "mt2st_fast.training.engines.stack_training": None,
    "mt2st_fast.training.engines.text_calls": None,
    "mt2st_fast.training.engines.text_gradients": None,
    "mt2st_fast.training.engines.text_training": None,
    "mt2st_fast.training.table_tasks": None,
    "mt2st_fast.serving.window_features": None,
    "mt2st_fast.training.context_run": {
        "BothTraining",
        "ContextOptions",
        "ContextTraining",
        "HierarchyTraining",
        "WalkTraining",
        "stream_key",
    },
    "mt2st_fast.words.word2vec_tables": {"WordRows"},
    "mt2st_fast.words.word2vec_options": {"WordRows"},
    "mt2st_fast.words.word2vec_device": {
        "WalkOptions",
        "WalkTraining",
        "WordSampler",
        "choose_walkers",
        "walk_obstacle",
    },
    "mt2st_fast.words.word2vec_queries": {"TreePaths", "tree_paths"},
    "mt2st_fast.words.gensim_vocabulary": {"kept_shares"},
    "mt2st_fast.words.keyed": {"NO_LOCKS", "kept_shares", "tree_paths"},
    "mt2st_fast.words.word2vec_run": {
        "BothTraining",
        "ContextTraining",
        "HierarchyTraining",
        "WalkTraining",
        "tree_paths",
        "word_sampler",
    },
    "mt2st_fast.model.word_tasks": None,
    "mt2st_fast.data.batches": {"take_bags"},
    "mt2st_fast.data.readers.stdlib": {"cache_folder"},
    "mt2st_fast.data.labelled_text": {"split_lines"},
    "mt2st_fast.data.line_bags": {"WordCounter", "split_lines"},
    "mt2st_fast.data.text.word_files": {"END", "PADDING", "WordCounter", "split_lines"},
    "mt2st_fast.data.word_batches": {
        "LocalBatch",
        "check_options",
        "draw_batch",
        "local_words",
        "stream_key",
        "word_sampler",
    },
    "mt2st_fast.model.tasks": {
        "HeadSpec",
        "Classification",
        "Metric",
        "MultiLabel",
        "Regression",
        "task_of_column",
    },
    "mt2st_fast.serving.scores": {"MACRO_F1"},
    "mt2st_fast.training.evaluation": {"HeadSpec"},
    "mt2st_fast.training.observations": {"HeadSpec"},
    "mt2st_fast.training.engines.held_parameters": {"NOTHING", "Moves"},
    "mt2st_fast.training.engines.kept_models": {"HeadLayout"},
    "mt2st_fast.training.engines.joined_rows": {"HeadSpec"},
    "mt2st_fast.training.engines.word_gradients": {"Beside"},
    "mt2st_fast.runs.config": {"ROOMS"},
    "mt2st_fast.runs.experiment": CHOICES,
}


@pytest.mark.parametrize("module", sorted(m for m in SOURCES if not m.startswith(KERNELS)))
def test_only_heads_and_encoders_call_kernels(module):
    taken = {name for origin, name, _ in imports(module) if names_a_module(origin, name, KERNELS)}
    # The commands that are about kernels: one compiles them, one times them.
    about_kernels = module in ("mt2st_fast.cli.kernels", "mt2st_fast.cli.tune")
    allowed = None if about_kernels else FROM_KERNELS.get(module, set())
    if module.startswith("mt2st_fast.cli") and allowed is not None:
        allowed = CHOICES | {"PLANS", "REFERENCE", "ROOMS", "RULES", "Room", "table_path"}
    assert allowed is None or taken <= allowed, f"{module} takes {taken} from the kernels"


def test_the_trainer_knows_no_kernel():
    names = [name for origin, name, _ in imports("mt2st_fast.training.trainer")]
    assert not any(
        names_a_module(origin, name, KERNELS) for origin, name, _ in imports("mt2st_fast.training.trainer")
    )
    assert not {"multitask_loss", "choose_backend", "HeadLayout", "HeadSpec"} & set(names)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_nobody_imports_a_bare_kernels(module):
    for origin, _, level in imports(module):
        assert level or origin.split(".")[0] != "kernels", f"{module} imports {origin}"


# From the first to the last: a module may import from those before it, never from those behind.
ORDER = ["data.readers", "data.batches", "model", "training", "words", "runs", "cli"]


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_data_flows_one_way(module):
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
                room, _, name = module.removeprefix(f"{KERNELS}.").partition(".")
                allowed = room == "machine" or name.startswith(f"on_{package}.")
                # For type checkers alone: Triton gives a rule its `tl` when it compiles it.
                allowed |= package == "triton" and room == "bags" and name.startswith("rules.")
                assert allowed, f"{module} imports {package}"

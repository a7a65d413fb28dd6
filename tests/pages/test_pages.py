"""Every code block of docs/ runs, in the order of its page, as a reader would run it.

Python blocks of a page share one namespace, all its blocks one folder. What needs a package that is not here is
skipped, and so is what comes after it on that page.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pages import shell
from tests.pages.blocks import DOCS, PAGES, ROOT, Block, blocks_of, page_before, text_of

OPTIONAL = ("fasttext", "gensim", "lightning", "onnxruntime", "torchjd", "tokenizers", "transformers")
LANGUAGES = ("python", "bash", "diff", "text")
MOST_NOT_RUN, MOST_PARSED = 2, 12
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
TESTED = [block for block in BLOCKS if not block.mark]


def _id(block: Block) -> str:
    return f"{block.page}:{block.line}"


class Reader:
    """Who goes through a page: what their program knows, their folder, and what was printed last."""

    def __init__(self, page: str, folder: Path) -> None:
        self._blocks = iter([block for block in blocks_of(page) if not block.mark])
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._folder, self._printed = folder, ""
        self._optional: set[str] = set()  # packages that the blocks so far import
        self.done: set[Block] = set()

    def read_to(self, wanted: Block) -> None:
        """Run the blocks up to this one, those that were run before excepted."""
        while wanted not in self.done:
            block = next(self._blocks)
            self.done.add(block)
            self._optional |= _optional_in(block)
            if not self._missing:
                with chdir(self._folder), warnings.catch_warnings():
                    if self._optional:  # other people's code warns of what is to come there
                        warnings.simplefilter("default")
                    getattr(self, f"_{block.language}")(block)
        if self._missing:
            pytest.skip(f"not installed: {', '.join(self._missing)}")

    @property
    def _missing(self) -> list[str]:
        return sorted(name for name in self._optional if importlib.util.find_spec(name) is None)

    def _python(self, block: Block) -> None:
        printed = io.StringIO()
        code = "\n" * (block.line - 1) + block.code  # so that a traceback names the line of the page
        with redirect_stdout(printed):
            exec(compile(code, str(DOCS / block.page), "exec"), self._names)
        self._printed = printed.getvalue()

    def _bash(self, block: Block) -> None:
        printed = [shell.run(statement, self._folder) for statement in shell.statements(block.code)]
        self._printed = "".join(printed)

    def _diff(self, block: Block) -> None:
        """Both sides run, each for itself, once the page has made what they are about."""
        for block_after in [b for b in self._rest() if b.language == "python"]:
            self.done.add(block_after)
            self._python(block_after)
        for side in "-+":
            lines = [line for line in block.code.splitlines() if line[:1] in (side, " ")]
            exec(compile("\n".join(line[1:] for line in lines), str(DOCS / block.page), "exec"), {**self._names})

    def _rest(self) -> list[Block]:
        rest = list(self._blocks)
        self._blocks = iter(rest)
        return rest

    def _text(self, block: Block) -> None:
        """What the block before has printed, with other numbers."""
        printed = " ".join(self._printed.split())
        for line in block.code.splitlines():
            wanted = re.escape(" ".join(line.split())).replace(r"\ ", " ")
            assert re.search(re.sub(r"\d[\d.,]*", r"[\\d.,]+", wanted), printed), f"not printed: {line}"


def _optional_in(block: Block) -> set[str]:
    """The optional packages that a block imports."""
    if block.language != "python":
        return set()
    imports = [node for node in ast.walk(ast.parse(block.code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [
        name
        for node in imports
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    ]
    return {name.removeprefix("mt2st_fast.integrations.").split(".")[0] for name in names} & set(OPTIONAL)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Reader]]:
    """By page; one that goes on from another finds the files of that one."""
    found: dict[str, Reader] = {}

    class Readers(dict[str, Reader]):
        def __missing__(self, page: str) -> Reader:
            folder = tmp_path_factory.mktemp(Path(page).stem)
            if (before := page_before(page)) is not None:
                self._finish(before)
                shutil.copytree(self.folders[before], folder, dirs_exist_ok=True)
            self.folders[page] = folder
            self[page] = Reader(page, folder)
            return self[page]

        folders: dict[str, Path] = {}  # noqa: RUF012 (made anew with the class)

        def _finish(self, page: str) -> None:
            for block in blocks_of(page):
                if not block.mark:
                    self[page].read_to(block)

    found = Readers()
    return found


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of plain torch wait for each other in small steps, beside busy processes for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("block", TESTED, ids=_id)
def test_a_block_runs(block: Block, readers: dict[str, Reader], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}.items():
        monkeypatch.setenv(name, str(value))  # a program for torchrun runs as the one process that there is
    readers[block.page].read_to(block)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.mark == "parsed"], ids=_id)
def test_a_command_would_be_taken(block: Block) -> None:
    assert block.language == "bash"
    for statement in shell.statements(block.code):
        shell.parse(statement)


def test_what_is_not_run_is_little_and_has_a_reason() -> None:
    for mark, most in (("not run", MOST_NOT_RUN), ("parsed", MOST_PARSED)):
        marked = [block for block in BLOCKS if block.mark == mark]
        assert len(marked) <= most, [_id(block) for block in marked]
        assert all(len(block.reason) > 10 for block in marked)
    assert len(TESTED) > len(BLOCKS) / 2


@pytest.mark.parametrize("page", PAGES)
def test_code_is_in_fences_of_a_known_language(page: str) -> None:
    assert {block.language for block in blocks_of(page)} <= set(LANGUAGES)
    outside = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"\n\n {4}\S", outside), "an indented block is not run: put it into a fence"


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_the_files_that_it_names_are_there(page: str) -> None:
    for name in re.findall(r"`((?:examples|bench|docs|tests)/[\w./-]+\.\w+)`", text_of(page)):
        assert (ROOT / name).is_file(), name


def test_the_readmes_commands_would_be_taken() -> None:
    blocks = [block for block in blocks_of("README.md") if block.language == "bash"]
    assert len(blocks) >= 4
    for block in blocks:
        for statement in shell.statements(block.code):
            shell.parse(statement)


def test_a_command_that_nobody_takes_is_found() -> None:
    for wrong in ("mt2st-fast train --no-such-flag", "mt2st-fast train --epochs many", "pip install '.[nothing]'",
                  "torchrun --no-such -m mt2st_fast train", "torchrun -m mt2st_fast train --no-such",
                  "python examples/nothing.py", "curl example.org"):  # fmt: skip
        with pytest.raises((Exception, SystemExit)):  # each program's own
            shell.parse(wrong)

"""Who goes through a page as a reader would: its Python in one program, its commands in one folder."""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import shutil
import warnings
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.pages import shell
from tests.pages.blocks import DOCS, Block, blocks_of, page_before

OPTIONAL = {
    "accelerate", "datasets", "fasttext", "gensim", "lightning", "onnxruntime", "sklearn", "skorch", "tokenizers",
    "torchjd", "transformers",
}  # fmt: skip
MADE_BY = {"wv": "gensim"}  # attributes of ours that are objects of a package


class Reader:
    """Runs the blocks of one page in `folder`, each once, in order. printed: by the block before."""

    def __init__(self, page: str, folder: Path) -> None:
        self.folder = folder
        self._blocks = [block for block in blocks_of(page) if not block.mark]
        self._read: set[Block] = set()
        self._names: dict[str, Any] = {"__name__": "__main__"}  # of the program so far
        self.printed = ""
        self._optional: set[str] = set()  # packages that the program imports

    def read_to(self, last: Block) -> None:
        """Run what was not run yet, up to this block. Skips the test where an optional package is missing."""
        for block in self._blocks[: self._blocks.index(last) + 1]:
            self._run(block)
        if self._missing:
            pytest.skip(f"not installed: {', '.join(self._missing)}")

    def read_all(self) -> None:
        """Run the whole page."""
        self.read_to(self._blocks[-1])

    @property
    def _missing(self) -> list[str]:
        return sorted(name for name in self._optional if importlib.util.find_spec(name) is None)

    def _run(self, block: Block) -> None:
        if block in self._read:
            return
        self._read.add(block)
        self._optional |= optional_in(block)
        if self._missing:
            return
        with chdir(self.folder), warnings.catch_warnings():
            if self._optional:  # other people's code warns of what is to come there
                warnings.simplefilter("default")
            run = {"python": self._python, "bash": self._bash, "diff": self._diff, "text": self.compare}
            run[block.language](block)

    def _python(self, block: Block) -> None:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(_compiled(block, block.code), self._names)
        self.printed = printed.getvalue()

    def _bash(self, block: Block) -> None:
        self.printed = "".join(
            shell.run(statement, self.folder) for statement in shell.statements(block.code)
        )

    def _diff(self, block: Block) -> None:
        """Both sides, each for itself, once the program of the page has made what they are about."""
        for other in self._blocks:
            if other.language == "python":
                self._run(other)
        for side in "-+":
            lines = [line[1:] for line in block.code.splitlines() if line[:1] in (side, " ")]
            exec(_compiled(block, "\n".join(lines)), {**self._names})

    def compare(self, block: Block) -> None:
        """Raises AssertionError for a line that the block before has not printed, be it with other numbers."""
        printed = " ".join(self.printed.split())
        for line in block.code.splitlines():
            wanted = re.escape(" ".join(line.split())).replace(r"\ ", " ")
            assert re.search(re.sub(r"\d[\d.,]*", r"[\\d.,]+", wanted), printed), f"not printed: {line}"


class Readers:
    """A reader a page; who reads a page that goes on from another finds the files which that one leaves."""

    def __init__(self, make_folder: Callable[[str], Path]) -> None:
        self._make_folder = make_folder
        self._readers: dict[str, Reader] = {}

    def of(self, page: str) -> Reader:
        """The one of this page."""
        if page not in self._readers:
            folder = self._make_folder(Path(page).stem)
            if (before := page_before(page)) is not None:
                self.of(before).read_all()
                shutil.copytree(self.of(before).folder, folder, dirs_exist_ok=True)
            self._readers[page] = Reader(page, folder)
        return self._readers[page]


def optional_in(block: Block) -> set[str]:
    """The optional packages that a block needs: those that it imports, and those whose objects it asks for."""
    if block.language != "python":
        return set()
    names: list[str] = []
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.Attribute):
            names.append(MADE_BY.get(node.attr, ""))
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.removeprefix("mt2st_fast.integrations.").split(".")[0] for name in names} & OPTIONAL


def _compiled(block: Block, code: str) -> Any:
    """So that a traceback names the line of the page."""
    return compile("\n" * (block.line - 1) + code, str(DOCS / block.page), "exec")

"""Every code block of docs/ runs, in the order of its page, as a reader would run it.

What needs a package that is not here is skipped, and so is what comes after it on that page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.pages import shell
from tests.pages.blocks import PAGES, ROOT, Block, blocks_of, text_of
from tests.pages.reader import Reader, Readers, optional_in

LANGUAGES = {"python", "bash", "diff", "text"}
MOST_NOT_RUN, MOST_PARSED = 2, 8
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
# One process of torchrun's, for a program that is written for several.
OF_TORCHRUN = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
WRONG = [
    "mt2st-fast train --no-such-flag",
    "mt2st-fast train --epochs many",
    "mt2st-fast predict",
    "mt2st-fast no-such-command",
    "torchrun --no-such -m mt2st_fast train",
    "torchrun -m mt2st_fast train --no-such-flag",
    "pip install -e '.[nothing]'",
    "python examples/nothing.py",
    "python -m bench.nothing",
    "curl example.org",
]


def _marked(mark: str) -> list[Block]:
    return [block for block in BLOCKS if block.mark == mark]


def _id(block: Block) -> str:
    return f"{block.page}:{block.line}"


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Readers:
    return Readers(tmp_path_factory.mktemp)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of plain torch wait for each other in small steps, beside busy processes for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("block", _marked(""), ids=_id)
def test_a_block_runs(block: Block, readers: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**OF_TORCHRUN, "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    readers.of(block.page).read_to(block)


@pytest.mark.parametrize("block", _marked("parsed"), ids=_id)
def test_commands_that_are_not_run_would_be_taken(block: Block) -> None:
    assert block.language == "bash"
    for statement in shell.statements(block.code):
        shell.parse(statement)


def test_the_readmes_commands_would_be_taken() -> None:
    blocks = [block for block in blocks_of("README.md") if block.language == "bash"]
    assert len(blocks) >= 4
    for block in blocks:
        for statement in shell.statements(block.code):
            shell.parse(statement)


@pytest.mark.parametrize("statement", WRONG)
def test_a_command_that_is_wrong_is_found(statement: str) -> None:
    # What the programs' own parsers raise, and no other error: that would be one of the test's own.
    with pytest.raises((AssertionError, SystemExit, shell.UsageError)):
        shell.parse(statement)


def test_output_that_was_not_printed_is_found(tmp_path: Path) -> None:
    reader = Reader("quickstart.md", tmp_path)
    reader.printed = "tone: accuracy   0.93\non test, 75 steps"
    reader.compare(Block("quickstart.md", 1, "text", "accuracy 0.5 on test\n75 steps\n"))
    with pytest.raises(AssertionError, match="not printed: 75 epochs"):
        reader.compare(Block("quickstart.md", 1, "text", "75 epochs\n"))


@pytest.mark.parametrize(
    ("code", "packages"),
    [
        ("import torchjd.aggregation as jd", {"torchjd"}),
        ("from mt2st_fast.integrations.lightning import RetireTasks", {"lightning"}),
        ('print(model.wv.most_similar("blue"))', {"gensim"}),  # imported by us
        ("from mt2st_fast import Word2Vec\nmodel.epochs", set()),
    ],
)
def test_what_a_block_needs_is_seen(code: str, packages: set[str]) -> None:
    assert optional_in(Block("gensim-fasttext.md", 1, "python", code)) == packages


def test_what_is_not_run_is_little_and_has_a_reason() -> None:
    assert len(_marked("not run")) <= MOST_NOT_RUN
    assert len(_marked("parsed")) <= MOST_PARSED
    assert all(len(block.reason) > 10 for block in BLOCKS if block.mark)


@pytest.mark.parametrize("page", PAGES)
def test_code_is_in_fences_of_a_known_language(page: str) -> None:
    assert {block.language for block in blocks_of(page)} <= LANGUAGES
    outside = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"\n\n {4}\S", outside), "an indented block is not run: put it into a fence"


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_the_files_that_it_names_are_there(page: str) -> None:
    for name in re.findall(r"`((?:bench|docs|examples|mt2st_fast|tests)/[\w./-]+\.\w+)`", text_of(page)):
        assert (ROOT / name).is_file(), name

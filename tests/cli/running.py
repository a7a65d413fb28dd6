"""Commands as the tests run them, and data that is small enough for it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mt2st_fast.cli import main

WORDS = {
    "the": "DET",
    "a": "DET",
    "dog": "NOUN",
    "cats": "NOUN",
    "tree": "NOUN",
    "runs": "VERB",
    "saw": "VERB",
}
QUICK = [
    "--epochs",
    "10",
    "--lr",
    "0.02",
    "--batch-size",
    "64",
    "--dim",
    "8",
    "--hidden",
    "16",
    "--buckets",
    "50",
]

QUICK_DOCUMENTS = [*QUICK]  # which have no window of words, and so no hidden layer over it
del QUICK_DOCUMENTS[(at := QUICK_DOCUMENTS.index("--hidden")) : at + 2]


def make_treebank(folder: Path) -> str:
    """A small CoNLL-U file whose tags follow from the words, as `--data` names it."""
    chance = random.Random(0)
    sentences = []
    for _ in range(120):
        words = [chance.choice(list(WORDS)) for _ in range(6)]
        lines = [
            f"{i}\t{w}\t{w}\t{WORDS[w]}\tX{WORDS[w]}\tNumber={'Plur' if w.endswith('s') else 'Sing'}\t0\troot\t_\t_"
            for i, w in enumerate(words, 1)
        ]
        sentences.append("\n".join(lines))
    path = folder / "tiny.conllu"
    path.write_text("\n\n".join(sentences) + "\n\n", encoding="utf-8")
    return f"conllu:{path}"


def run(*arguments: str) -> None:
    """A command that must succeed."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 0


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("mt2st-fast: ")
    assert error.count("\n") == 1, error
    return error


def write(path: Path, **values: Any) -> str:
    """A configuration file of these options, and its path."""
    keys = {name.replace("_", "-"): value for name, value in values.items()}
    # A value of JSON is one of TOML.
    as_toml = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    path.write_text(json.dumps(keys) if path.suffix == ".json" else as_toml)
    return str(path)

"""The site of docs/ can be built, and fetches nothing from anywhere. Needs the extra `docs`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages.blocks import PAGES, ROOT

pytest.importorskip("mkdocs", reason="the extra docs is not installed")
pytest.importorskip("material", reason="the extra docs is not installed")
pytest.importorskip("mkdocstrings_handlers.python", reason="the extra docs is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_built(site: Path) -> None:
    for page in PAGES:
        assert (site / page).with_suffix(".html").is_file()
    assert not [*site.rglob("*.py")]


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source)[^>]+src=\"?([^\"> ]+)", text)
        fetched += re.findall(r"<link[^>]+rel=\"?(?:stylesheet|preconnect|preload|icon)\"?[^>]*>", text)
        assert fetched
        assert not [address for address in fetched if re.search(r"(?:https?:)?//", address)], page


def test_docstrings_are_read_as_they_are_meant(site: Path) -> None:
    encoders = (site / "reference" / "encoders.html").read_text("utf-8")
    assert "(2*window+1) * dim" in encoders  # no emphasis
    training = (site / "reference" / "training.html").read_text("utf-8")
    assert re.search(r"<li>\s*<p><code>encoder</code>|<li><code>encoder</code>", training)

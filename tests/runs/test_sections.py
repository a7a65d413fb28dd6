"""report.html: whole in one file, and whatever a user calls things, it is text."""

from __future__ import annotations

import json
import re
from pathlib import Path

from mt2st_fast.runs.plots import plot_seconds
from mt2st_fast.runs.sections import Picture, Section, Table, page
from tests.cli.running import QUICK, run

NASTY = "<script>alert(1)</script> & \"x\" '|' \ud800"


def test_texts_are_texts() -> None:
    figure = plot_seconds({NASTY.replace("\ud800", ""): [[(0.0, 0.5), (1.0, 0.7)]]}, "quality <b>")
    section = Section(NASTY, [NASTY], [Table((NASTY, "n:"), [(NASTY, 3)])], [Picture(lambda: figure, NASTY)])
    text = page(NASTY, NASTY, [section], NASTY).decode()
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 9
    assert '<td class="number">3</td>' in text
    assert '<th class="number">n</th>' in text


def test_a_picture_is_no_wider_than_a_narrow_page() -> None:
    figure = plot_seconds({"switch": [[(0.0, 0.5), (1.0, 0.7)]]}, "quality")
    text = page(
        "title", "lead", [Section("curves", pictures=[Picture(lambda: figure, "curves")])], ""
    ).decode()
    (rule,) = re.findall(r"^img \{(.*)\}$", text, re.MULTILINE)
    assert "width: 100%" in rule
    assert "min-width" not in rule


def outside(text: str) -> list[str]:
    """What a page would ask the network for."""
    return [link for link in re.findall(r'(?:src|href)="([^"]*)"', text) if not link.startswith("data:")] + (
        re.findall(r"(?:url\(|@import|<link|<script|<iframe)", text)
    )


def test_a_run_and_a_comparison_leave_a_page(treebank: str, tmp_path: Path) -> None:
    run("train", "--data", treebank, "--out", str(tmp_path / "run"), *QUICK, "--aux", "xpos")
    run(
        "compare",
        "--data",
        treebank,
        "--out",
        str(tmp_path / "both"),
        *QUICK,
        "--strategies",
        "stl,switch",
        "--seeds",
        "1",
    )
    of_run, of_both = ((tmp_path / name / "report.html").read_text() for name in ("run", "both"))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert outside(of_run) == outside(of_both) == []
    assert of_run.count("data:image/svg+xml;base64,") == 2
    assert of_both.count("data:image/svg+xml;base64,") == 2
    assert f"{report['main']['test']:.4f} on test; best" in of_run
    for words in ("one kernel call", "NOUN", "precision", "What was read", "xpos"):
        assert words in of_run, words
    for words in ("stl", "switch", "seconds to target", "What was read", "tiny.conllu"):
        assert words in of_both, words

"""The map of parts and tasks, from the command line to the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mt2st_fast.runs.chosen_parts import chosen_parts, sections_of
from mt2st_fast.runs.plots import plain, plot_importance, svg
from mt2st_fast.runs.sections import sections_in_markdown
from mt2st_fast.training.history import History, PartRecord, SelectionRecord
from tests.cli.running import QUICK, run


def history_of(name: str = "aux") -> History:
    table, hidden, head = ("encoder/table",), ("encoder/hidden.weight",), (f"heads/linears.{name}.weight",)
    parts = (
        PartRecord("table, rows in 1 of 2 batches", table, 30, 60.0, {"main": 1.0, name: 0.0}, "frozen"),
        PartRecord("encoder/hidden", hidden, None, 20.0, {"main": 3.0, name: 0.0}, "trained"),
        PartRecord(f"heads/{name}", head, None, 20.0, {"main": 0.0, name: 0.0}, "retired"),
    )
    return History("main", selections=[SelectionRecord(7, "fisher", parts, 0.25)])


def test_shares_are_of_a_tasks_importance_and_of_what_a_step_moved() -> None:
    chosen = chosen_parts(history_of())
    assert chosen is not None
    assert chosen["frozen_cost_share"] == pytest.approx(0.75)  # the retired head does not count
    assert [part["importance_shares"]["main"] for part in chosen["parts"]] == [0.25, 0.75, 0.0]
    assert [part["importance_shares"]["aux"] for part in chosen["parts"]] == [
        0.0
    ] * 3  # nothing matters to it
    (section,) = sections_of(chosen)
    ((columns, rows),) = section.tables
    assert columns == ("part", "rows:", "numbers a step updated:", "main:", "aux:", "becomes")
    assert rows[0] == ("table, rows in 1 of 2 batches", "30", "60", "25.0%", "0.0%", "frozen")
    assert "75% of the numbers" in section.lines[0]
    assert sections_of(chosen_parts(History("main"))) == []


@pytest.mark.parametrize("name", [r"$\frac$", "_hidden", "a|b\nc"])
def test_tasks_of_any_name_are_drawn_and_written(name: str) -> None:
    chosen = chosen_parts(history_of(name))
    assert chosen is not None
    figure = plot_importance(chosen)
    assert svg(figure)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == [plain("main"), plain(name)]
    assert [text.get_text() for text in axes.texts] == ["25.0%", "0.0%", "75.0%", "0.0%", "0.0%", "0.0%"]
    lines = sections_in_markdown(sections_of(chosen))
    assert len({line.count("|") - line.count(r"\|") for line in lines if line.startswith("|")}) == 1


def test_the_command_line_trains_on_parts_and_draws_the_map(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["train", "--data", treebank, "--out", str(out), *QUICK, "--aux", "xpos,feats.Number"]
    run(*options, "--strategy", "selector", "--skip", "0.3")
    assert "importance.png" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    chosen = report["chosen_parts"]
    assert chosen["step"] == report["phases"][1]["first_step"]
    assert chosen["tasks"] == ["upos", "xpos", "feats.Number"]
    assert [phase["engine"] for phase in report["phases"]] == ["one kernel call"] * 2
    becomes = {part["name"]: part["becomes"] for part in chosen["parts"]}
    assert "frozen" in becomes.values()
    assert becomes["heads/upos"] == "trained"
    assert becomes["heads/xpos"] == "retired"
    assert chosen["frozen_cost_share"] >= 0.3
    assert (out / "importance.png").stat().st_size > 0
    assert "## Parts selected for the main task" in (out / "report.md").read_text()
    assert (out / "report.html").read_text().count("data:image/svg+xml;base64,") == 3
    run(*options, "--strategy", "switch")
    assert not (out / "importance.png").exists()
    assert "Parts selected" not in (out / "report.html").read_text()

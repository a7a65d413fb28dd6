"""`mt2st-fast report`: the same report again from what stands in a folder, or one line and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mt2st_fast.folder_lock import holding
from tests.cli.running import QUICK, fails, make_treebank, run

OF_A_RUN = ("report.json", "report.md", "report.html", "curves.png", "against.png", "importance.png")
OF_A_COMPARISON = ("compare.md", "compare.png", "report.html")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a run, which has chosen parts and another run beside it, and of a comparison."""
    folder = tmp_path_factory.mktemp("ended")
    data = ["--data", make_treebank(folder), *QUICK, "--aux", "xpos"]
    run(
        "train",
        *data,
        "--epochs",
        "2",
        "--strategy",
        "selector",
        "--against",
        "stl",
        "--out",
        str(folder / "train"),
    )
    compared = [
        "--epochs",
        "1",
        "--strategies",
        "stl,switch",
        "--seeds",
        "1",
        "--tune",
        "2",
        "--switch-at",
        "0.5",
    ]
    data.remove("--lr"), data.remove("0.02")
    run("compare", *data, *compared, "--out", str(folder / "compare"))
    return {"train": folder / "train", "compare": folder / "compare"}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(("command", "names"), [("train", OF_A_RUN), ("compare", OF_A_COMPARISON)])
def test_a_report_is_made_again_to_the_byte(
    command: str,
    names: tuple[str, ...],
    ended: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    again = shutil.copytree(ended[command], tmp_path / "again")
    before = files(again)
    for name in names:
        (again / name).unlink()
    capsys.readouterr()
    run("report", str(again))
    shown = " ".join(capsys.readouterr().out.split())
    assert shown == f"Written to {again}: {', '.join(names)}"
    assert files(again) == before


def test_a_report_follows_the_history(ended: dict[str, Path], tmp_path: Path) -> None:
    """What is shown is what stands there, not a copy of the report of before."""
    again = shutil.copytree(ended["train"], tmp_path / "again")
    lines = [json.loads(line) for line in (again / "history.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "evaluation":
            line["metrics"]["upos"] = 0.125 if line["step"] > 3 else None
    (again / "history.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run("report", str(again))
    report = json.loads((again / "report.json").read_text())
    assert report["main"]["best"] == report["tasks"]["upos"]["last_dev"] == 0.125
    assert "best on development 0.1250" in (again / "report.md").read_text()
    assert "best on development 0.1250" in (again / "report.html").read_text()
    shown = (again / "curves.png").read_bytes()
    assert shown != (ended["train"] / "curves.png").read_bytes()


def test_the_best_is_not_mistaken_for_the_model_that_was_tested(
    ended: dict[str, Path], tmp_path: Path
) -> None:
    """The model is that of the end; a best of some other step has no test result."""
    again = shutil.copytree(ended["train"], tmp_path / "again")
    lines = [json.loads(line) for line in (again / "history.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    for line, quality in zip(evaluations, [0.875, *[0.25] * (len(evaluations) - 1)], strict=True):
        line["metrics"]["upos"] = quality
    (again / "history.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run("report", str(again))
    test = json.loads((again / "report.json").read_text())["main"]["test"]
    for name in ("report.md", "report.html"):
        assert (
            f"accuracy at the end (the saved model): 0.2500 on development, {test:.4f} on test; best on development "
            f"0.8750 (step {evaluations[0]['step']})"
        ) in (again / name).read_text()


def spoil(folder: Path, file: str, content: str | None) -> None:
    path = folder / file
    path.unlink() if content is None else path.write_text(content)


@pytest.mark.parametrize(
    ("command", "file", "content", "words"),
    [
        ("train", "history.jsonl", None, ["history.jsonl", "no such file"]),
        ("train", "history.jsonl", "{", ["damaged"]),
        ("train", "history.jsonl", '{"kind": "dance", "step": 1}', ["damaged", "dance"]),
        ("train", "history.jsonl", '{"kind": "step", "step": 1}', ["damaged", "losses"]),
        ("train", "facts.json", "{", ["facts.json", "damaged"]),
        ("train", "facts.json", '{"format": "mt2st-fast run 0"}', ["facts.json", "run 0"]),
        ("train", "facts.json", '{"format": "mt2st-fast run 2"}', ["damaged", "main"]),
        ("train", "facts.json", None, ["is not finished", "train --resume --out"]),
        ("train", "compare.json", "{}", ["a run and a comparison", "move compare.json"]),
        ("compare", "compare.json", "{", ["compare.json", "damaged"]),
        ("compare", "compare.json", "[]", ["damaged"]),
        ("compare", "compare.json", "{}", ["damaged"]),
        ("compare", "compare.json", None, ["is not finished", "--resume"]),
    ],
)
def test_what_cannot_be_shown_is_one_line_and_nothing_is_written(
    command: str,
    file: str,
    content: str | None,
    words: list[str],
    ended: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    again = shutil.copytree(ended[command], tmp_path / "again")
    (again / "report.html").unlink()
    spoil(again, file, content)
    if command == "compare" and content is None:
        (again / "compare.progress.json").write_text("{}")
    before = files(again)
    error = fails(capsys, "report", str(again))
    for word in (str(again), *words):
        assert word in error
    assert files(again) == before


def swapped(lines: list[str]) -> list[str]:
    """With the first two steps in the other order."""
    first, second = [i for i, line in enumerate(lines) if json.loads(line)["kind"] == "step"][:2]
    return [lines[{first: second, second: first}.get(i, i)] for i in range(len(lines))]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lines: [], "has 0 records, but the run wrote"),
        (lambda lines: lines[:-2], "records, but the run wrote"),
        (lambda lines: lines + lines, "records, but the run wrote"),
        (lambda lines: lines[::-1], "ends at step"),
        (swapped, "has steps out of order"),
    ],
)
def test_a_history_that_is_not_whole_makes_no_report(
    change: Callable[[list[str]], list[str]],
    why: str,
    ended: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    again = shutil.copytree(ended["train"], tmp_path / "again")
    lines = (again / "history.jsonl").read_text().splitlines(keepends=True)
    (again / "history.jsonl").write_text("".join(change(lines)))
    before = files(again)
    error = fails(capsys, "report", str(again))
    assert f"{again / 'history.jsonl'}: is not the complete history of the run" in error
    assert why in error
    assert files(again) == before


def test_a_history_without_some_of_its_records_makes_no_report(
    ended: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = shutil.copytree(ended["train"], tmp_path / "again")
    history = again / "history.jsonl"
    lines = history.read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["kind"] != "evaluation"]
    history.write_text("".join(kept))
    told = fails(capsys, "report", str(again))
    assert f"has {len(kept)} records, but the run wrote {len(lines)}" in told


def test_what_is_no_folder_of_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in fails(capsys, "report", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    assert "neither facts.json nor compare.json" in fails(capsys, "report", str(tmp_path))
    assert "DIR" in fails(capsys, "report")


def test_a_run_at_work_is_left_alone(ended: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    before = files(ended["train"])
    with holding(ended["train"]):
        assert "another run is writing" in fails(capsys, "report", str(ended["train"]))
    assert files(ended["train"]) == before


def test_a_comparison_has_no_model(ended: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a comparison, which has no model" in fails(capsys, "predict", str(ended["compare"]), "x.txt")


@pytest.mark.parametrize(("command", "other"), [("train", "compare"), ("compare", "train")])
def test_neither_writes_over_the_other(
    command: str, other: str, ended: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(ended[other], folder)
    before = files(folder)
    error = fails(capsys, command, "--data", make_treebank(tmp_path), "--out", str(folder))
    assert "which would be lost; choose another folder" in error
    assert files(folder) == before

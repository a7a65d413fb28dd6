"""The summary of a GPU run is short and reports failures."""

from __future__ import annotations

from bench.cases import VOCABULARY
from bench.summary import MOST_COLUMNS, MOST_FAILURES, REASON, summary
from bench.test_report import record_of


def test_failures_are_named_with_the_first_line_of_their_error(tmp_path):
    lines = [
        "[gw3] [  1%] FAILED tests/on_gpu/test_x.py::test_a",
        *(f"FAILED tests/on_gpu/test_x.py::test_{i} - RuntimeError: {'long ' * 100}" for i in range(30)),
        "== 30 failed, 420 passed in 61.2s ==",
    ]
    (tmp_path / "tests.txt").write_text("\n".join(lines))
    said = summary(tmp_path, []).splitlines()
    assert said[1] == "30 failed, 420 passed in 61.2s"
    assert said[2].startswith("FAILED tests/on_gpu/test_x.py::test_0 - RuntimeError: long")
    assert all(len(line) <= MOST_COLUMNS for line in said)
    assert said[2 + MOST_FAILURES] == "and 5 more"


def test_tests_that_were_stopped_still_name_their_failures(tmp_path):
    lines = ["[gw0] [  1%] PASSED tests/on_gpu/a.py::b", "[gw0] [  2%] FAILED tests/on_gpu/a.py::c"]
    (tmp_path / "tests.txt").write_text("\n".join(lines))
    said = summary(tmp_path, []).splitlines()
    assert said[1:3] == ["not finished; 1 passed until then", lines[1]]
    lines.append(f"{REASON}tests/on_gpu/a.py::c: RuntimeError: an illegal memory access")
    (tmp_path / "tests.txt").write_text("\n".join(lines))
    said = summary(tmp_path, []).splitlines()
    assert said[1:4] == ["not finished; 1 passed until then", lines[2], ""]


def test_every_part_is_there_and_stays_short(tmp_path):
    (tmp_path / "safety.txt").write_text("noise\ncache emptied: ok\n========= ERROR SUMMARY: 0 errors\n")
    cuda = {"kind": "cuda"}
    found = [
        record_of("heads", VOCABULARY.name, "ours", 48_000.0, rounds=20, **cuda),
        record_of("step", "treebank tagger, N=512", "ours multi, graph", 93.5, direction="step", rounds=20, **cuda),
        record_of("bags", "one head", "ours", 1000.0, direction="a pass", tokens_per_second=2e9, **cuda),
        {
            **record_of("jobs", "mt2st-fast train", "ours on cuda", 0.0, **cuda),
            "value": 1.9e6, "unit": "tokens/s", "call_seconds": 9.0, "quality": 0.94,
            "phases": [{"active": ["a"], "engine": "cuda graph", "graph": "captured"}],
        },
    ]  # fmt: skip
    said = summary(tmp_path, found)
    for part in (
        "48,000",
        "93.5",
        "2,000.0",
        "1,900,000 tokens/s",
        "captured",
        "≥ 2,000,000, missed",
        "0 errors",
    ):
        assert part in said
    assert "noise" not in said
    assert len(summary(tmp_path, [])) < 1000

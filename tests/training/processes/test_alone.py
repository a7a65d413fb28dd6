"""A call that needs all processes ends in time if one makes it alone, with a line that says what to do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from mt2st_fast.errors import InputError, LostProcessError
from mt2st_fast.model import meeting
from mt2st_fast.model.meeting import _Meeting
from mt2st_fast.training.processes import watch
from mt2st_fast.training.processes.watch import (
    BEAT_SECONDS,
    SILENT_SECONDS,
    WAITING_SECONDS,
    Waiting,
    Watch,
)
from tests.training.processes.together import all_said, run_together, scenarios, started

ALONE = {
    "evaluated": "Trainer.evaluate was called by process 0 of 2 and needs all of them: process 1 of 2 did not come",
    "evaluated_by_fsdp": "Trainer.evaluate was called by process 0 of 2 and needs all of them",
    "vectors": "encoder.vectors() was called by process 0 of 2 and needs all of them",
    "fitted": "Trainer.fit or begin was called by process 0 of 2 and needs all of them: process 1 of 2 did not come",
    "gathered": "gather_rows was called by process 0 of 2 and needs all of them",
}
CROSSED = {"steps_and_no_more": ("Run.close", "Run.step"), "fitted_and_stepped": ("Run.step", "Trainer.fit")}
OTHERS = [
    "late",
    "different_calls",
    "more_batches",
    "within_a_run",
    "slow_passes",
    "in_a_new_group",
    *CROSSED,
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    return run_together("alone", [*ALONE, *OTHERS], tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("name", ALONE)
def test_a_call_that_one_makes_alone_ends_and_can_be_made_together(name: str, found: Any) -> None:
    first, second = found[name]
    assert first["line"].startswith(f"InputError: {ALONE[name]}")
    assert "call it in all processes" in first["line"]
    assert "\n" not in first["line"]
    assert 1.0 <= first["seconds"] < 120.0  # torch waits for half an hour
    assert first["together"] == second["together"]


def test_after_one_has_given_up_they_find_each_other_again(found: Any) -> None:
    first, second = (of_one["lines"] for of_one in found["late"])
    assert len(first) == 1
    assert second == []


def test_processes_that_begin_a_new_group_find_each_other(found: Any) -> None:
    assert [of_one.get("vectors") for of_one in found["in_a_new_group"]] == [9, 9], found["in_a_new_group"]


def test_different_calls_are_refused_at_once_in_both(found: Any) -> None:
    first, second = found["different_calls"]
    assert "process 1 of 2 calls gather_rows while process 0 calls Trainer.evaluate" in first["error"]
    assert "process 0 of 2 calls Trainer.evaluate while process 1 calls gather_rows" in second["error"]


def test_all_must_evaluate_as_many_batches(found: Any) -> None:
    for of_one in found["more_batches"]:
        assert "some processes have 1 held-out batch and others more" in of_one["error"]


@pytest.mark.long
def test_an_error_in_one_ends_the_evaluation_of_the_others(tmp_path: Path) -> None:
    with started(scenarios("alone", ["failing_batch"], tmp_path)) as processes:
        text, _ = processes[0].communicate(timeout=120.0)
        assert "mt2st-fast: process 1 of 2 stopped: a held-out batch has no target of any task" in text


def test_within_a_run_all_may_evaluate_and_save(found: Any) -> None:
    for of_one in found["within_a_run"]:
        assert "error" not in of_one, of_one
        assert of_one["steps"] == 2


def test_a_pass_that_waits_says_for_what(found: Any) -> None:
    first, second = (of_one["lines"] for of_one in found["slow_passes"])
    assert len(first) == 1
    assert "waited for others in a pass through an encoder whose table is divided by rows" in first[0]
    assert second == []


@pytest.mark.parametrize("name", CROSSED)
def test_messages_of_different_calls_are_not_mixed(name: str, found: Any) -> None:
    first, second = CROSSED[name]
    lines = (
        f"process 1 of 2 calls {second} while process 0 calls {first}: let all",
        f"process 0 of 2 calls {first} while process 1 calls {second}: let all",
    )
    for of_one in found[name]:
        assert any(line in of_one["error"] for line in lines), of_one


@pytest.mark.long
def test_messages_of_different_calls_are_found_by_gloo_too(tmp_path: Path) -> None:
    with started(scenarios("alone", ["steps_and_no_more_by_gloo"], tmp_path)) as processes:
        for said in all_said(processes):
            assert "process 1 of 2 calls Run.step while process 0 calls Run.close: let all" in said


@pytest.mark.long
def test_a_run_that_one_begins_alone_within_another_ends_all(tmp_path: Path) -> None:
    call = "Trainer.fit or begin within a run"
    line = f"{call} was called by process 1 of 2 and needs all of them: process 0 of 2 waits in Run.step"
    with started(scenarios("alone", ["fitted_within_a_run"], tmp_path)) as processes:
        first, second = all_said(processes)
    assert f"LostProcessError: process 1 of 2 stopped: {line}" in first
    assert f"InputError: {line}" in second


def test_a_fit_ends_when_the_other_process_has_left(tmp_path: Path) -> None:
    began = time.monotonic()
    with started(scenarios("alone", ["left_alone"], tmp_path)) as processes:
        said, _ = processes[0].communicate()
    assert "LostProcessError: Trainer.fit or begin was called by process 0 of 2 and needs all of them" in said
    assert "process 1 has left without it" in said
    assert time.monotonic() - began < 120.0


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan"])
def test_the_patience_is_a_number_of_seconds(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(meeting.VARIABLE, value)
    with pytest.raises(InputError, match=r"MT2ST_PATIENCE=.* is not a number of seconds above 0"):
        meeting._patience()
    monkeypatch.setenv(meeting.VARIABLE, "7.5")
    assert meeting._patience() == 7.5
    monkeypatch.setenv(meeting.VARIABLE, "")
    assert meeting._patience() == meeting.GIVE_UP_SECONDS


@pytest.mark.long
def test_a_checkpoint_that_one_saves_alone_ends_all(tmp_path: Path) -> None:
    line = "Run.save was called by process 0 of 2 and needs all of them: process 1 of 2 waits in"
    with started(scenarios("alone", ["saved"], tmp_path)) as processes:
        ends = all_said(processes)
    assert f"InputError: {line}" in ends[0]
    assert f"process 0 of 2 stopped: {line}" in ends[1]


def test_a_process_that_waits_long_in_a_message_tells_the_others() -> None:
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    other = dist.TCPStore("localhost", store.port, is_master=False, wait_for_workers=False)
    first, second = Watch(store, 0, 2), Watch(other, 1, 2)
    for seconds, said in ((0.0, None), (WAITING_SECONDS + 1.0, "process 0 of 2 waits in Run.step")):
        first._tell_waiting(Waiting(time.monotonic() - seconds, 7, "Run.step"))
        assert second.elsewhere(6) == said
        assert second.elsewhere(7) is None  # this one has sent it, too: the message only takes long
        assert first.elsewhere(6) is None
    first._tell_waiting(None)
    assert second.elsewhere(6) is None


def test_whoever_was_stopped_himself_takes_nobody_for_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Ctrl-Z, which stops all of them; when they go on, one looks first."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    other = dist.TCPStore("localhost", store.port, is_master=False, wait_for_workers=False)
    first, second = Watch(store, 0, 2), Watch(other, 1, 2)
    for passed in (1.0, 1.0, 1000.0):
        now += passed
        assert first._what_is_wrong() is second._what_is_wrong() is None
    for _ in range(int(SILENT_SECONDS)):
        now += BEAT_SECONDS
        store.add("beat/0", 1)
        assert second._what_is_wrong() is None
        lost = first._what_is_wrong()
    assert lost is not None
    assert lost.startswith("process 1 of 2 is lost")


def test_what_processes_wait_for_by_gloo_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    other = dist.TCPStore("localhost", store.port, is_master=False, wait_for_workers=False)
    first, second = Watch(store, 0, 2), Watch(other, 1, 2)
    long_ago = time.monotonic() - WAITING_SECONDS - 1.0
    first._tell_waiting(Waiting(long_ago, 7, "Run.close"))
    for number, call, crossed in ((6, "Run.step", False), (7, "Run.close", False), (7, "Run.step", True)):
        waiting = Waiting(long_ago, number, call)
        second._tell_waiting(waiting)
        line = "process 1 of 2 calls Run.step while process 0 calls Run.close"
        assert (second._crossed(waiting) or "").startswith(line) == crossed
    assert line in (first._what_is_wrong() or "")


def test_a_process_that_waits_long_in_a_message_says_for_whom(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "LOG_SECONDS", 7.0)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    first = Watch(store, 0, 2)
    waiting = Waiting(time.monotonic() - 8.0, 7, "Run.step")
    for each in (waiting, waiting, Waiting(time.monotonic(), 8, "Run.step")):
        first._log_waiting(each)
    assert caplog.messages == ["process 0 of 2 has waited in Run.step for process 1 of 2 for 7 seconds"]


def test_who_was_interrupted_in_a_meeting_is_not_taken_for_present(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    rank = 0
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _Meeting(store, 1, "evaluate").hold(60.0, lambda: None, interrupt)
    rank = 1
    with pytest.raises(InputError, match="the others did not wait any longer"):
        _Meeting(store, 1, "evaluate").hold(60.0, lambda: None, lambda: None)


def test_whoever_looks_for_the_end_when_the_last_one_has_just_come_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    store = dist.HashStore()
    meeting = _Meeting(store, 1, "evaluate")
    store.add("1/count", 1)
    assert not meeting._have_all_come()
    store.set("1/end", "all")  # the other one has come since this process has counted
    assert meeting._have_all_come()
    store.set("1/end", "off")
    with pytest.raises(InputError, match="the others did not wait any longer"):
        meeting._have_all_come()


def test_a_meeting_ends_as_soon_as_another_process_is_known_to_be_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    first = Watch(store, 0, 2)
    first.trouble = "process 1 of 2 stopped: no space left"
    with pytest.raises(LostProcessError, match="no space left"):
        _Meeting(dist.HashStore(), 1, "Run.save").hold(60.0, lambda: None, first.check)

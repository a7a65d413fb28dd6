"""Steps of other libraries: left out where they are not installed, and measured only if they take the same step."""

from __future__ import annotations

import importlib.util
from contextlib import redirect_stdout
from io import StringIO

import pytest
import torch

from bench import ledger, pages, step_peers
from bench.step_models import mlp_model


def model():
    return mlp_model(3, 20, torch.device("cpu"))


def test_a_library_that_is_not_installed_is_skipped_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    skipped = {}
    assert step_peers.library_steps(model(), skipped.__setitem__) == {}
    assert skipped == {
        name: f"the package {first} is not installed" for name, ((first, *_), *_) in step_peers.PEERS.items()
    }


def test_upgrad_also_needs_an_extra_of_torchjds(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "quadprog" else object())
    assert step_peers.obstacle("TorchJD, UPGrad") == "the package quadprog is not installed"
    assert step_peers.obstacle("TorchJD, PCGrad") is None


def test_a_peer_that_takes_another_step_is_not_measured(monkeypatch):
    def off(model):
        taken = step_peers.eager(model)
        with torch.no_grad():
            taken.encoder[0].weight += 2e-5
        return taken

    monkeypatch.setattr(step_peers, "obstacle", lambda name: None)
    peers = {"off": (("off",), off, "ours"), "eager again": (("eager",), step_peers.eager, "ours")}
    monkeypatch.setattr(step_peers, "PEERS", peers)
    skipped = {}
    assert list(step_peers.library_steps(model(), skipped.__setitem__)) == ["ours", "eager", "eager again"]
    assert list(skipped) == ["off"]
    assert "DifferentStepError: after one step, a weight of off is off by" in skipped["off"]


def test_a_step_that_changes_nothing_is_no_step():
    def idle(model):
        return step_peers.eager(model)._replace(step=lambda: None)

    with pytest.raises(step_peers.DifferentStepError, match="changes no weight"):
        step_peers.check_same_step("idle", idle, idle, model())


@pytest.mark.parametrize("name", step_peers.PEERS)
def test_an_installed_library_takes_the_step(name):
    if reason := step_peers.obstacle(name):
        pytest.skip(reason)
    _, build, like = step_peers.PEERS[name]
    step_peers.check_same_step(
        name, build, step_peers.ours if like == "ours" else step_peers.PEERS[like][1], model()
    )


def test_the_steps_of_libmtl_are_those_of_its_loop():
    library = pytest.importorskip("LibMTL")
    started = model()
    taken = step_peers.libmtl(started)
    for _ in started.batches:
        taken.step()
    by_steps = taken.weights()
    again = step_peers.libmtl(started)
    trainer = again.step.__self__
    with redirect_stdout(StringIO()):
        library.Trainer.train(trainer, started.batches, started.batches, epochs=1)
    assert torch.equal(again.weights(), by_steps)


def test_a_table_has_no_row_for_a_library_that_was_not_measured():
    found = ledger.latest(ledger.read())
    without = [record for record in found if record["direction"] != step_peers.LIBRARIES]
    rows = "\n".join(pages.TABLES["cpu"](without))
    assert "LibMTL" not in rows
    assert "its step with the main head alone" in rows

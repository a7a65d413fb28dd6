"""A model's folder: written whole, read back as it was, refused by name when a byte has changed."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from mt2st_fast.errors import InputError
from mt2st_fast.files import partial_folder
from mt2st_fast.model_folder import (
    DESCRIPTION,
    RUN_CONFIG,
    TENSORS,
    kind_of,
    model_in,
    read_model,
    write_model,
)

CONFIGURATION = {"words": ["a", "Ä", "\u2028", '"', "\ud800"], "rate": 0.1, "size": 3}


def written(folder):
    shared = torch.arange(6.0).reshape(2, 3)
    write_model(folder, "toy", CONFIGURATION, {"table": shared.t(), "same": shared})
    return folder


def test_what_was_written_is_read(tmp_path):
    kind, configuration, tensors = read_model(written(tmp_path / "deep" / "m"), "toy")
    assert (kind, configuration) == ("toy", CONFIGURATION)
    assert torch.equal(tensors["table"], torch.arange(6.0).reshape(2, 3).t())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["m"]


@pytest.mark.parametrize("name", [DESCRIPTION, TENSORS])
def test_a_changed_byte_is_found(tmp_path, name):
    path = written(tmp_path / "m") / name
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(InputError, match=str(tmp_path)):
            read_model(tmp_path / "m")
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match="damaged"):
        read_model(tmp_path / "m")


@pytest.mark.parametrize("other", [{"parts": []}, {"kind": "toy", "configuration": {}, "tensors_sha256": ""}])
def test_a_model_of_another_format_is_told_what_to_do_whatever_keys_that_has(tmp_path, other):
    (written(tmp_path / "m") / DESCRIPTION).write_text(json.dumps({"format": "mt2st-fast model 9", **other}))
    told = (
        r"m/model.json: is in the format 'mt2st-fast model 9', but this version reads .*; use the version of"
    )
    for find in (read_model, kind_of):
        with pytest.raises(InputError, match=told):
            find(tmp_path / "m")


def test_a_model_is_replaced_and_nothing_else_is(tmp_path):
    written(tmp_path / "m")
    write_model(tmp_path / "m", "toy", {"rate": 2}, {})
    assert read_model(tmp_path / "m")[1] == {"rate": 2}
    (tmp_path / "m" / "mine.txt").touch()
    with pytest.raises(InputError, match="is not a model"):
        written(tmp_path / "m")
    assert (tmp_path / "m" / "mine.txt").exists()


def test_a_configuration_that_is_no_json_leaves_what_was_there(tmp_path):
    written(tmp_path / "m")
    for value in (object(), float("nan")):
        with pytest.raises(InputError, match="the model cannot be saved"):
            write_model(tmp_path / "m", "toy", {"rate": value}, {})
    assert read_model(tmp_path / "m")[1] == CONFIGURATION
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_numbers_of_numpy_are_numbers(tmp_path):
    write_model(
        tmp_path / "m", "toy", {"size": np.int64(3), "rate": np.float32(0.5), "on": [np.bool_(True)]}, {}
    )
    assert read_model(tmp_path / "m")[1] == {"size": 3, "rate": 0.5, "on": [True]}


def test_threads_that_write_one_model_all_succeed_and_leave_it_whole(tmp_path):
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: written(tmp_path / "m"), range(40)))
    assert read_model(tmp_path / "m")[1] == CONFIGURATION
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_model_that_another_writer_puts_there_first_is_replaced(tmp_path, monkeypatch):
    rename, others = Path.rename, [tmp_path / "other"]
    written(others[0])

    def interrupted(self, target):
        if target == tmp_path / "m" and others:
            rename(others.pop(), target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    write_model(tmp_path / "m", "toy", {"rate": 2}, {})
    assert read_model(tmp_path / "m")[1] == {"rate": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_older_model_is_not_put_back_while_another_writer_replaces_the_newer_one(tmp_path, monkeypatch):
    rename = Path.rename
    written(tmp_path / "m")

    def then_moved_away(self, target):
        assert not self.name.endswith(".old")
        renamed = rename(self, target)
        if target == tmp_path / "m":
            rename(target, tmp_path / "old of another")
        return renamed

    monkeypatch.setattr(Path, "rename", then_moved_away)
    write_model(tmp_path / "m", "toy", {"rate": 2}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["old of another"]
    assert read_model(tmp_path / "old of another")[1] == {"rate": 2}


def test_a_reader_gets_one_model_while_another_is_put_in_its_place(tmp_path, monkeypatch):
    read_bytes, newer = Path.read_bytes, [{"rate": 2}]
    written(tmp_path / "m")

    def then_replaced(self):
        content = read_bytes(self)
        if newer:
            write_model(tmp_path / "m", "toy", newer.pop(), {"table": torch.zeros(2)})
        return content

    monkeypatch.setattr(Path, "read_bytes", then_replaced)
    _, configuration, tensors = read_model(tmp_path / "m")
    assert (configuration, list(tensors)) == ({"rate": 2}, ["table"])


@pytest.mark.parametrize(
    "find", [kind_of, lambda m: read_model(m)[:2], lambda m: read_model(model_in(m.parent))[:2]]
)
def test_a_reader_waits_for_a_model_that_is_being_replaced(find, tmp_path, monkeypatch):
    model, waited = written(tmp_path / "model"), []
    expected = find(model)
    (tmp_path / RUN_CONFIG).touch()
    monkeypatch.setattr("mt2st_fast.model_folder.time.sleep", lambda _: waited.append(old.rename(model)))
    with partial_folder(model) as partial:
        old = model.rename(tmp_path / f"{partial.name}.old")
        found = find(model)
    assert waited
    assert found == expected


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_ends_between_the_renames_leaves_the_old_model(tmp_path, monkeypatch, error):
    rename = Path.rename
    written(tmp_path / "m")

    def failing(self, target):
        if target == tmp_path / "m" and not self.name.endswith(".old"):
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(InputError if error is OSError else error):
        write_model(tmp_path / "m", "toy", {"rate": 2}, {})
    assert read_model(tmp_path / "m")[1] == CONFIGURATION
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_process_that_was_killed_between_the_renames_is_made_up_for(tmp_path):
    written(tmp_path / "m").rename(tmp_path / f".m.{os.getpid()}-7.old")  # this id was its own then
    with pytest.raises(InputError, match="cannot be saved"):
        write_model(tmp_path / "m", "toy", {"what": object()}, {})
    assert read_model(tmp_path / "m")[1] == CONFIGURATION
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_through_a_link_its_target_is_replaced(tmp_path):
    (tmp_path / "latest").symlink_to(written(tmp_path / "m"))
    write_model(tmp_path / "latest", "toy", {"rate": 2}, {})
    assert (tmp_path / "latest").is_symlink()
    assert read_model(tmp_path / "m")[1] == {"rate": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "m"]


def test_a_path_that_goes_up_and_a_name_that_is_too_long(tmp_path):
    written(tmp_path / "m")
    write_model(tmp_path / "m" / ".." / "m", "toy", {"rate": 2}, {})
    assert read_model(tmp_path / "m")[1] == {"rate": 2}
    with pytest.raises(InputError, match="cannot be written"):
        written(tmp_path / ("m" * 250))


def test_the_working_directory_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="the working directory"):
        written(Path("."))


def test_what_is_no_model_is_named(tmp_path):
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match=f"{folder}: is not a model"):
            read_model(folder)
    with pytest.raises(InputError, match="of the kind toy, not other"):
        read_model(written(tmp_path / "m"), "other")

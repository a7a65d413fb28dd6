"""Which plan computes: asked for, tuned on this device, or by the rules; always with a reason."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
import torch

from mt2st_fast.cli import main
from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind, Shape, choose_plan, multitask_loss
from mt2st_fast.kernels.heads import plans as choices
from mt2st_fast.kernels.heads import tuning
from tests.kernels.interpreter import run_interpreted

CPU = torch.device("cpu")
SMALL, WIDE = Shape(512, 64, 20, 10, 4), Shape(512, 64, 20017, 20000, 4)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes a tuned table for this device and makes it the one that counts."""
    path = tmp_path / "plans.json"
    monkeypatch.setenv(choices.TABLE_VARIABLE, str(path))
    choices.tuned_tables.cache_clear()

    def write(*rows):
        tables = {choices.device_key("numba", CPU): [dict(row, shape=row["shape"]._asdict()) for row in rows]}
        path.write_text(json.dumps(tables), encoding="utf-8")
        choices.tuned_tables.cache_clear()
        return path

    yield write
    choices.tuned_tables.cache_clear()


@pytest.mark.parametrize(
    ("backend", "shape", "plan"),
    [
        ("numba", SMALL, "tile"),
        ("numba", WIDE, "chunked"),
        ("numba", Shape(4096, 1024, 2017, 2000, 4), "chunked"),
        ("numba", Shape(4096, 256, 2017, 2000, 4), "tile"),
        ("triton", Shape(8192, 768, 45, 17, 2), "tile"),
        ("triton", Shape(16384, 1024, 256, 64, 2), "packed"),
        ("triton", Shape(8192, 1024, 1180, 1000, 2), "chunked"),
        ("triton", Shape(8192, 4096, 152000, 151936, 2), "chunked"),
        ("triton", Shape(32768, 4096, 152000, 1000, 2), "chunked"),
        ("triton", Shape(32768, 4096, 152000, 151936, 2), "chunked"),
    ],
)
def test_rules_choose_by_shape_and_say_why(backend, shape, plan):
    choice = choose_plan(backend, shape)
    assert choice.name == plan
    assert len(choice.reason) > 20


def test_a_plan_that_is_asked_for_wins(table):
    table({"shape": SMALL, "plan": "chunked", "ms": {"chunked": 1.0}})
    assert choose_plan("numba", SMALL, "tile", CPU) == choices.Choice("tile", "requested by plan=tile")


def test_a_tuned_shape_wins_over_the_rules_near_it_and_not_far_from_it(table):
    table(
        {"shape": SMALL, "plan": "chunked", "ms": {"chunked": 0.5, "tile": 0.7}},
        {"shape": WIDE, "plan": "tile", "ms": {"tile": 3.0}},
    )
    near = choose_plan("numba", SMALL._replace(N=700), "auto", CPU)
    assert near == choices.Choice(
        "chunked", "tuned on this device at N=512 D=64 S=20: chunked 0.5 ms, tile 0.7 ms"
    )
    assert choose_plan("numba", WIDE._replace(D=80), "auto", CPU).name == "tile"
    assert choose_plan("numba", SMALL._replace(N=1 << 20), "auto", CPU).name == "tile"
    assert choose_plan("numba", SMALL._replace(itemsize=2), "auto", CPU).name == "tile"  # tuned in float32
    assert choose_plan("triton", SMALL, "auto", CPU).name == "tile"  # another backend's table


def test_a_table_that_names_a_plan_of_another_time_is_passed_over(table):
    table({"shape": SMALL, "plan": "packed", "ms": {"packed": 0.1}})
    assert choose_plan("numba", SMALL, "auto", CPU).name == "tile"


def test_a_plan_that_a_backend_does_not_have_is_refused_by_name():
    with pytest.raises(
        ValueError, match="plan=packed is not supported by backend numba, which has tile, chunked"
    ):
        choose_plan("numba", SMALL, "packed", CPU)


def test_a_broken_table_is_named(table, monkeypatch):
    path = table()
    path.write_text("{not json", encoding="utf-8")
    choices.tuned_tables.cache_clear()
    with pytest.raises(
        ValueError, match=r"plans\.json is not a valid table of plans .*; remove it or run mt2st-fast tune"
    ):
        choose_plan("numba", SMALL, "auto", CPU)


def test_tuning_writes_a_table_that_is_used_and_keeps_other_rows(table, monkeypatch, capsys):
    path = table({"shape": SMALL._replace(itemsize=2), "plan": "tile", "ms": {"tile": 1.0}})
    monkeypatch.setattr(tuning, "GRID", (tuning.Trial(64, 16, (5, 3)), tuning.Trial(64, 16, (4000,))))
    monkeypatch.setitem(tuning.MOST_PRODUCTS, "cpu", 64 * 16 * 100.0)
    with pytest.raises(SystemExit) as left:
        main(["tune", "--device", "cpu"])
    assert left.value.code == 0
    assert "N=64 D=16 S=8: tile" in capsys.readouterr().out
    (rows,) = json.loads(path.read_text(encoding="utf-8")).values()
    assert [row["shape"]["itemsize"] for row in rows] == [2, 4]  # the trial that is too large was left out
    tuned = rows[1]
    assert set(tuned["ms"]) == set(choices.PLANS_OF["numba"])
    assert tuned["plan"] == min(tuned["ms"], key=tuned["ms"].get)
    choice = choose_plan("numba", Shape(64, 16, 8, 5, 4), "auto", CPU)
    assert choice.name == tuned["plan"]
    assert "tuned on this device" in choice.reason
    layout = HeadLayout((HeadSpec(Kind.SOFTMAX, 5), HeadSpec(Kind.SOFTMAX, 3)))
    targets = [torch.zeros(64, dtype=torch.int64)] * 2
    out = multitask_loss(torch.randn(64, 16), torch.randn(8, 16), None, targets, torch.ones(2), layout)
    assert out.total.isfinite()


def test_a_gpus_table_also_says_how_large_the_packed_plans_programs_are(table, tmp_path):
    pytest.importorskip("triton")
    from mt2st_fast.kernels.heads.on_triton import row_blocks

    table({"shape": SMALL, "plan": "tile", "ms": {"tile": 1.0}})
    shape = Shape(48, 8, 90, 50, 4)
    default, found = row_blocks.row_blocks(shape, CPU), tmp_path / "rows.json"
    assert default == row_blocks.CHOICES[row_blocks.DEFAULT]
    run_interpreted("tests.kernels.heads.interpret_tuning", str(found))
    rows = json.loads(found.read_text())
    assert [row["of"] for row in rows] == ["triton", "triton rows"]
    assert set(rows[1]["ms"]) == set(row_blocks.CHOICES)
    rows[1]["plan"] = "4 warps, 96 registers"
    tuning.save(rows, CPU, torch.float32)
    assert row_blocks.row_blocks(shape, CPU) == row_blocks.CHOICES["4 warps, 96 registers"]
    assert row_blocks.row_blocks(shape._replace(N=1 << 20), CPU) == default
    with row_blocks.use("8 warps"):
        assert row_blocks.row_blocks(shape, CPU).registers is None
    assert choose_plan("numba", SMALL, "auto", CPU).name == "tile"
    assert rows[0]["plan"] in choices.PLANS_OF["triton"]


def test_tables_that_two_processes_save_at_once_are_both_kept(table, monkeypatch):
    path = table({"shape": SMALL, "plan": "tile", "ms": {"tile": 1.0}})
    read_text, others = Path.read_text, []

    def meanwhile(self, **options):
        text = read_text(self, **options)
        if not others:
            shape = SMALL._replace(itemsize=8)._asdict()
            rows = [{"of": "numba", "shape": shape, "plan": "tile", "ms": {"tile": 1.0}}]
            others.append(threading.Thread(target=tuning.save, args=(rows, CPU, torch.float64)))
            others[0].start()
            others[0].join(0.2)
            assert others[0].is_alive()
        return text

    monkeypatch.setattr(Path, "read_text", meanwhile)
    rows = [{"of": "numba", "shape": SMALL._asdict(), "plan": "packed", "ms": {"packed": 1.0}}]
    tuning.save(rows, CPU, torch.float32)
    others[0].join()
    rows = [row for of_one in json.loads(path.read_text()).values() for row in of_one]
    assert sorted(row["shape"]["itemsize"] for row in rows) == [4, 8]


def test_a_table_that_cannot_be_written_is_refused_before_anything_is_timed(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MT2ST_PLANS", str(tmp_path / "file" / "plans.json"))
    monkeypatch.setattr(tuning, "tune", None)
    with pytest.raises(SystemExit):
        main(["tune", "--device", "cpu"])
    assert "plans.json cannot be written (Not a directory); set MT2ST_PLANS" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="a user has another home there")
def test_a_user_without_a_home_writes_nothing_to_the_working_directory(monkeypatch):
    def nobody(uid):
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME", "MT2ST_PLANS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert choices.table_path() == Path("/.cache/mt2st-fast/plans.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "gpu"], "--device gpu is unknown; available: auto, cpu, cuda, cuda:N"),
        (["--dtype", "float8"], "--dtype float8 is unknown; available: float32, bfloat16, float16"),
    ],
)
def test_bad_options_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["tune", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_table_that_was_asked_for_must_exist(table, monkeypatch, tmp_path, capsys):
    missing = tmp_path / "none.json"
    monkeypatch.setenv("MT2ST_PLANS", str(missing))
    with pytest.raises(
        ValueError, match=r"MT2ST_PLANS names .*none\.json, which does not exist; unset it, or"
    ):
        choose_plan("numba", SMALL, "auto", CPU)
    for arguments in (["info"], ["train", "--data", "text:x"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "none.json, which does not exist; unset it" in capsys.readouterr().err
    monkeypatch.setenv("MT2ST_PLANS", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"cannot be read \(Is a directory\); set MT2ST_PLANS to another file"
    ):
        choose_plan("numba", SMALL, "auto", CPU)
    with pytest.raises(SystemExit):
        main(["tune", "--device", "cpu"])
    assert f"{tmp_path} is a folder; set MT2ST_PLANS to the name of a file" in capsys.readouterr().err
    monkeypatch.delenv("MT2ST_PLANS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(missing))
    assert choose_plan("numba", SMALL, "auto", CPU).name == "tile"


def test_tuning_begins_with_a_table_that_cannot_be_read(table, monkeypatch):
    path = table()
    for damaged in (None, "{not json"):
        path.unlink() if damaged is None else path.write_text(damaged)
        choices.tuned_tables.cache_clear()
        tuning.tune(CPU, grid=())
        assert choose_plan("numba", SMALL, "auto", CPU).name == "tile"

"""What a run keeps of its options makes the same run again, and a run that goes on heeds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mt2st_fast.cli.options import COMMANDS, Given, resumed_config
from mt2st_fast.errors import InputError
from mt2st_fast.runs.comparison_options import ComparisonOptions
from mt2st_fast.runs.comparison_state import ComparisonState
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.config_file import config_file, read_config_file
from tests.cli.running import QUICK, fails, run, write


def test_the_kept_configuration_trains_the_same_again(treebank: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    options = ["--strategy", "diminish", "--nu", "2", "--seed", "7", "--patience", "9", "--aux", "xpos"]
    run(
        "train", "--data", treebank, *QUICK, "--epochs", "2", *options, "--device", "cpu", "--out", str(first)
    )
    run("train", "--config", str(first / "config.json"), "--out", str(second))
    for file in ("model/tensors.safetensors", "model/model.json", "vectors.txt", "config.json"):
        assert (first / file).read_bytes() == (second / file).read_bytes(), file
    kept = json.loads((first / "config.json").read_text())
    assert (kept["main"], kept["nu"], kept["epochs"], kept["seed"]) == ("upos", 2.0, 2.0, 7)
    assert "out" not in kept
    assert "resume" not in kept


def test_columns_are_kept_with_their_kinds_whatever_they_are_named(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A name with commas and quotation marks, which --aux could not say; and what the data decided."""
    rows = "".join(
        f"{'good' if i % 2 else 'bad'} film,{'pos' if i % 2 else 'neg'},{i % 5}.5\n" for i in range(100)
    )
    (tmp_path / "r.csv").write_text('text,mood,"stars, ""of 5"""\n' + rows)
    columns = ["--label-column", "mood", "--label-column", 'stars, "of 5":regression']
    run(
        "train",
        "--data",
        f"csv:{tmp_path / 'r.csv'}",
        *columns,
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "out"),
    )
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["tasks"]['stars, "of 5"']["metric"] == "r2"
    asked = request.getfixturevalue("asked")  # from here on nothing is trained
    config, _ = asked("train", "--config", str(tmp_path / "out/config.json"))
    assert json.loads(json.dumps(config.to_json())) == report["config"]
    assert config.batch_size is not None


def test_a_path_need_not_be_utf_8(tmp_path: Path) -> None:
    options, values = COMMANDS["train"], {"data": "conllu:/t\udce4ny.conllu", "init": "/v\udce4.txt"}
    (tmp_path / "run.json").write_bytes(config_file(options, values))
    (tmp_path / "run.toml").write_bytes(b'data = "conllu:/t\xe4ny.conllu"\ninit = "/v\xe4.txt"')
    for file in ("run.json", "run.toml"):
        assert read_config_file(tmp_path / file, "train", options) == values


def test_a_run_goes_on_with_a_file_that_says_the_same(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    out = tmp_path / "out"
    run("train", "--data", treebank, *QUICK, "--epochs", "1", "--out", str(out))
    asked = request.getfixturevalue("asked")  # from here on nothing is trained
    config, _ = asked("train", "--resume", "--config", str(out / "config.json"), "--out", str(out))
    assert (config.data, config.lr, config.batch_size) == (treebank, 0.02, 64)
    other = write(tmp_path / "other.toml", lr=0.5)
    error = fails(capsys, "train", "--resume", "--config", other, "--out", str(out))
    assert f"{other}: lr is 0.5, but the run in {out} has 0.02" in error
    (out / "config.json").write_text('{"lr": ')
    assert f"{out / 'config.json'}: is not valid JSON" in fails(
        capsys, "train", "--resume", "--out", str(out)
    )


def test_what_goes_on_writes_checkpoints_as_often_as_before(
    treebank: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    once = ["--data", treebank, *QUICK, "--epochs", "1", "--checkpoint-every", "0.5"]
    run("train", *once, "--out", str(tmp_path / "t"))
    (tmp_path / "c").mkdir()
    ComparisonState(Config(data=treebank), ComparisonOptions(), []).write(tmp_path / "c")
    (tmp_path / "c/config.json").write_text('{"checkpoint-every": 0.5}')
    asked = request.getfixturevalue("asked")  # from here on nothing is trained
    _, output = asked("train", "--resume", "--out", str(tmp_path / "t"))
    assert output.checkpoint_every == 0.5
    _, output = asked("train", "--resume", "--out", str(tmp_path / "t"), "--checkpoint-every", "10")
    assert output.checkpoint_every == 10.0  # which is the default, and given

    _, output, *_ = asked("compare", "--resume", "--out", str(tmp_path / "c"))
    assert output.checkpoint_every == 0.5


def test_columns_that_a_run_goes_on_with_are_its_own() -> None:
    given: Given = {"label_column": None}
    with pytest.raises(InputError, match="--main is stars"):
        resumed_config(Config(main="mood", aux=()), Config(main="stars", aux=()), given, Path("out"))


@pytest.mark.usefixtures("one_thread")
def test_the_kept_configuration_compares_the_same_again(treebank: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    small = [option for option in QUICK if option not in ("--lr", "0.02")]
    options = [
        "--strategies",
        "stl,switch",
        "--seeds",
        "1",
        "--epochs",
        "2",
        "--tune",
        "2",
        "--switch-at",
        "0.5",
    ]
    run("compare", "--data", treebank, *small, *options, "--target", "0.5", "--out", str(first))
    run("compare", "--config", str(first / "config.json"), "--out", str(second))
    assert (first / "config.json").read_bytes() == (second / "config.json").read_bytes()
    ours, theirs = (json.loads((folder / "compare.json").read_text()) for folder in (first, second))
    assert ours["tuning"] == theirs["tuning"]
    assert ours["tuning"]["fixed"] == ["switch_at"]
    assert list(ours["targets"]) == list(theirs["targets"]) == ["given", "stl_best"]
    for name in ("stl", "switch"):
        assert ours["strategies"][name]["test_median"] == theirs["strategies"][name]["test_median"]


def test_a_comparison_keeps_no_option_of_a_strategy_that_its_data_decided(tmp_path: Path) -> None:
    """Every arm finds the switch point anew for every seed, and not all arms take one."""
    rows = [f"w{i * 7 % 61} {'ABCDEF'[i * i % 11 % 6]} {'XYZ'[i * i % 11 % 3]}" for i in range(2_000)]
    sentences = ["\n".join(rows[i : i + 10]) for i in range(0, len(rows), 10)]
    for name, some in (("train", sentences), ("dev", sentences[:20]), ("test", sentences[20:40])):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(some) + "\n")
    columns = ["--data", f"columns:{tmp_path}", "--main", "col2", "--aux", "col1", "--label-fraction", "0.1"]
    asked = [*columns, "--seeds", "1", "--epochs", "0.5", "--evaluations", "2", "--device", "cpu"]
    for strategies in ("stl,mtl", "mtl,switch"):
        first, second = tmp_path / f"{strategies} first", tmp_path / f"{strategies} second"
        run("compare", *asked, "--strategies", strategies, "--out", str(first))
        assert "switch-at" not in json.loads((first / "config.json").read_text())
        run("compare", "--config", str(first / "config.json"), "--out", str(second))
        compared = json.loads((second / "compare.json").read_text())
        assert compared["config"]["strategy_options"] == {}
        assert compared["config"]["self_training"] is True
        if "switch" in strategies:
            (one,) = compared["strategies"]["switch"]["seeds"]
            assert one["labelled_by"] == ["col1"]

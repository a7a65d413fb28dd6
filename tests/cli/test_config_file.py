"""--config: every flag is a key of a file, flags win over it, and what a run keeps makes the same run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from mt2st_fast.cli import app
from mt2st_fast.cli.options import COMMANDS
from mt2st_fast.errors import InputError
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.config_file import read_config_file
from mt2st_fast.runs.options import KINDS, Option
from mt2st_fast.training.schedules import strategies, strategy_options
from tests.cli.running import fails, run, write

TEXTS = {
    "strategy": "stl",
    "against": "mtl",
    "lr_decay": "none",
    "precision": "bfloat16",
    "device": "cpu",
    "backend": "numba",
    "backward": "fused",
}
NAMES = {"strategies": ("stl",), "engine": ("torch",), "label_column": ("stars:regression", "mood")}


def another(option: Option) -> Any:
    """A value that is not the option's default and that it takes."""
    if option.kind in (int, float):
        for value in (2, 3, 5) if option.kind is int else (0.5, 1.0, 2.0):
            try:
                option.check(value)
            except InputError:
                continue
            if value != option.default:
                return value
    if option.kind is bool:
        return True
    return NAMES.get(option.name, ("a", "b")) if option.kind is tuple else TEXTS.get(option.name, "word")


def as_flags(option: Option, value: Any) -> list[str]:
    if option.repeated:
        return [argument for each in value for argument in (option.flag, each)]
    if option.kind is bool:
        return [option.flag]
    return [option.flag, ",".join(value) if isinstance(value, tuple) else str(value)]


def value_of(found: tuple[Any, ...], name: str) -> Any:
    """What a command has of an option, in one of its dataclasses."""
    config = found[0]
    if name == "label_column":
        return (config.main, *config.aux)
    if name in strategy_options():
        return config.strategy_options[name]
    (part,) = [part for part in found[::-1] if hasattr(part, name)][:1]
    return getattr(part, name)


@pytest.mark.parametrize("file", ["run.toml", "run.json"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_a_key(command: str, file: str, tmp_path: Path, asked) -> None:
    """All of them, as flags and as keys, in two turns: some do not go together."""
    options = COMMANDS[command]
    values = {name: another(option) for name, option in options.items() if name != "resume"}
    if "strategies" in values:  # every option of a strategy must have one that takes it
        values["strategies"] = tuple(strategies())
    of_fused = {"backend", "graph", "backward", "predict_context"}
    of_columns = {"main", "aux", "lr", *of_fused, "window", "hidden"}
    for data, left_out in (
        ("conllu:some.conllu", {"label_column", "tune", "engine"}),
        ("csv:some.csv", of_columns),
    ):
        said = {name: value for name, value in (values | {"data": data}).items() if name not in left_out}
        flags = [argument for name, value in said.items() for argument in as_flags(options[name], value)]
        by_flag = asked(command, *flags)
        by_file = asked(command, "--config", write(tmp_path / file, **said))
        assert not isinstance(by_flag, str), by_flag
        assert by_file == by_flag
        for name, value in said.items():
            assert value_of(by_file, name) == value != options[name].default, name


@pytest.mark.parametrize("command", COMMANDS)
def test_resume_is_a_key(command: str, tmp_path: Path, asked) -> None:
    by_flag = asked(command, "--resume")
    assert "to resume in" in by_flag
    path = write(tmp_path / "run.toml", resume=True)
    assert asked(command, "--config", path).startswith(by_flag.strip())
    assert not isinstance(asked(command, "--config", path, "--no-resume"), str)


@pytest.mark.parametrize("command", COMMANDS)
def test_there_is_no_other_flag(command: str) -> None:
    of_typer = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    flags = {flag for parameter in of_typer for flag in parameter.opts if flag.startswith("--")}
    assert flags - {"--help", "--config"} == {option.flag for option in COMMANDS[command].values()}


def test_flags_win(tmp_path: Path, asked) -> None:
    path = write(tmp_path / "run.toml", lr=0.5, dim=8, graph=True, strategy="diminish", nu=2, aux=["a"])
    config, *_ = asked("train", "--config", path)
    assert (config.lr, config.dim, config.graph, config.aux) == (0.5, 8, True, ("a",))
    assert config.strategy_options == {"nu": 2.0}
    config, *_ = asked(
        "train", "--config", path, "--lr", "0.01", "--no-graph", "--nu", "3", "--aux", "b, c", "--dim", "64"
    )
    assert config == Config(
        graph=False, strategy="diminish", aux=("b", "c"), strategy_options={"nu": 3.0}
    )  # 0.01 and 64 are the defaults, and given


def test_tasks_are_said_in_one_way_and_flags_win(tmp_path: Path, asked) -> None:
    columns = write(tmp_path / "a.toml", data="csv:x.csv", label_column=["stars", "mood"])
    tasks = write(tmp_path / "b.toml", data="csv:x.csv", main="stars", aux=["mood"])
    of = {
        "columns": asked("train", "--config", columns),
        "aux by flag": asked("train", "--config", columns, "--aux", "plot"),
        "columns by flag": asked("train", "--config", tasks, "--label-column", "plot"),
    }
    assert {name: (found[0].main, found[0].aux) for name, found in of.items()} == {
        "columns": ("stars", ("mood",)),
        "aux by flag": ("stars", ("plot",)),
        "columns by flag": ("plot", ()),
    }
    both = write(tmp_path / "c.toml", data="csv:x.csv", label_column=["stars"], main="stars")
    assert "use only one of the two" in asked("train", "--config", both)
    assert "--label-column is for csv:PATH" in asked("train", "--label-column", "stars")


def test_what_the_file_gives_is_not_tuned(tmp_path: Path, asked) -> None:
    path = write(tmp_path / "run.toml", tune=2, lr=0.1, strategies=["stl", "switch"])
    assert asked("compare", "--config", path)[-1] == ["lr"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("lrr = 1", ["'lrr'", "train", "did you mean 'lr'?"]),
        ("batch_size = 8", ["'batch_size'", "did you mean 'batch-size'?"]),
        ("strategies = ['stl']", ["'strategies'", "did you mean 'strategy'?"]),
        ("seeds = 3", ["'seeds'", "did you mean 'seed'?"]),
        ("zzz = 3", ["'zzz'", "--help"]),
        ("config = 'x'", ["'config'"]),
        ("[training]\nlr = 0.1", ["'training'", "not in a table"]),
        ("lr = 'fast'", ['lr must be a number, not "fast"']),
        ("lr = -1", ["lr must be positive", "-1"]),
        ("lr = nan", ["lr must be", "nan"]),
        ("lr = true", ["lr must be a number, not true"]),
        ("lr = [0.1]", ["lr must be a number, not [0.1]"]),
        ("lr = 2020-01-01", ["lr must be a number, not 2020-01-01"]),
        ("lr = {at = 1}", ["lr must be a number, not a table of keys"]),
        ("[lr]\nat = 1", ["lr must be a number, not a table of keys"]),
        ("epochs = '2'", ['epochs must be a number, not "2"; write 2 without quotes']),
        ("dim = 8.0", ["dim must be a whole number of at least 1, not 8.0"]),
        ("dim = '8'", ['dim must be a whole number of at least 1, not "8"; write 8 without quotes']),
        ("dim = true", ["dim must be a whole number of at least 1, not true"]),
        ("graph = 'true'", ['graph must be true or false, not "true"; write true without quotes']),
        ("main = true", ['main must be a string, not true; write "true"']),
        ("main = 9223372036854775808", ['main must be a string, not 9223372036854775808; write "9']),
        (
            "backward = false",
            [
                "backward must be a string, not false; backward 'false' is unknown",
                "available: auto, autograd, fused",
            ],
        ),
        ("main = ['upos']", ['main must be a string, not ["upos"]']),
        ("aux = 'xpos, deprel'", ['not "xpos, deprel"; write ["xpos", "deprel"]']),
        ("aux = ['xpos', [1, true]]", ['aux must be a list of strings, not ["xpos", [1, true]]']),
        ("batch-size = 0", ["batch-size must be a whole number of at least 1"]),
        ("seed = 9223372036854775808", ["seed must be at most"]),
        ("dropout = 1", ["dropout must be", "0.99"]),
        ("label-fraction = 2", ["label-fraction must be", "2"]),
        ("init = ''", ["init is empty; set a path, or leave it out"]),
        ("data = 3", ["data must be a string"]),
        ("data = 'parquet:x'", ["data 'parquet:x'", "conllu:PATH"]),
        ("aux = 'xpos'", ["aux must be a list of strings"]),
        ("aux = [1]", ["aux must be a list of strings"]),
        ("graph = 'yes'", ["graph must be true or false"]),
        ("resume = 1", ["resume must be true or false"]),
        ("strategy = 'swich'", ["strategy 'swich' is unknown (did you mean 'switch'?)", "stl"]),
        ("precision = 'float'", ["precision 'float'", "bfloat16"]),
        ("lr-decay = 'cosine'", ["lr-decay 'cosine'", "linear, none"]),
        ("device = 'gpu'", ["device 'gpu'", "cuda:N"]),
        ("backend = 'cuda'", ["backend 'cuda'", "numba"]),
        ("switch-at = 2", ["switch-at must be", "at most 1"]),
        ("checkpoint-every = 0", ["checkpoint-every must be positive"]),
        ("min-delta = 0.1", ["min_delta 0.1", "patience"]),
        ("nu = 2", ["--nu is not an option of switch", "(nu in "]),
        ("main = 'mood'", ["no task 'mood'", "(main in "]),
        ("main = 'upos'\nmain = 'xpos'", ["is not valid TOML", "verwrite"]),
        ("lr = ", ["is not valid TOML", "nvalid value"]),
        ("main = '\udce4'", ["main is not UTF-8"]),
    ],
)
def test_what_cannot_be_used_is_one_line_with_file_and_key(
    content: str, words: list[str], treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    data = [] if content.startswith("data") else ["--data", treebank]
    error = fails(capsys, "train", *data, "--config", str(path), "--out", str(tmp_path / "out"))
    for word in words:
        assert word in error
    if not content.startswith("min-delta"):  # which is about two options, and names them
        assert str(path) in error
    assert not [left for left in (tmp_path / "out").rglob("*") if left.is_file()]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"lrr": 1}', ["'lrr'", "did you mean 'lr'?"]),
        ('{"lr": NaN}', ["lr must be", "nan"]),
        ('{"lr": null}', [": lr is null; leave it out"]),
        ('{"lr": 0.1, "lr": 0.2}', [": lr occurs twice; remove one"]),
        ('{"lr": 0.1', ["is not valid JSON", "line 1"]),
        ('["lr", 0.1]', ["expected an object of keys and values, found", "0.1]"]),
        ("lr = 0.1", ["is not valid JSON"]),
        ("", ["is not valid JSON"]),
    ],
)
def test_a_file_of_json_is_refused_as_well(
    content: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    error = fails(capsys, "train", "--config", str(path), "--out", str(tmp_path / "out"))
    for word in (str(path), *words):
        assert word in error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("strategies = ['stl', 'magic']", ["strategies 'magic'", "switch"]),
        ("strategies = []", ["strategies is empty"]),
        ("engine = ['torch', 'torch']", ["engine names torch twice"]),
        ("strategy = 'magic'", ["strategy 'magic'", "switch"]),
        ("strategy = 'stl'\nstrategies = ['stl']", ["strategy is for train", "leave strategy out"]),
        ("seeds = 0", ["seeds must be"]),
        ("tune = 1", ["--tune 1", "(tune in "]),
        ("target = inf", ["target must be a finite number"]),
        ("plateau-margin = 0", ["plateau-margin must be positive"]),
    ],
)
def test_compare_refuses_as_well(
    content: str, words: list[str], treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(content)
    error = fails(
        capsys, "compare", "--data", treebank, "--config", str(path), "--out", str(tmp_path / "out")
    )
    for word in (str(path), *words):
        assert word in error


@pytest.mark.parametrize("name", ["none.toml", "folder"])
def test_a_file_that_is_none_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    assert str(tmp_path / name) in fails(capsys, "train", "--config", str(tmp_path / name))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["window", "hidden"])
def test_an_option_of_taggers_is_told_to_have_no_effect_on_documents(
    command: str, name: str, tmp_path: Path, asked, caplog: pytest.LogCaptureFixture
) -> None:
    default = getattr(Config, name)

    def told(*arguments: str) -> list[str]:
        caplog.clear()
        assert not isinstance(asked(command, *arguments), str)
        return [record.getMessage() for record in caplog.records if f"--{name}" in record.getMessage()]

    for data in ("csv:some.csv", "jsonl:some.jsonl"):
        line = f"--{name} is for word labels and has no effect where rows are documents, as in {data}"
        for value in (7, default):
            assert told("--data", data, f"--{name}", str(value)) == [line]
        assert told("--config", write(tmp_path / "run.toml", data=data, **{name: 7})) == [line]
        kept = write(tmp_path / "kept.toml", data=data, **{name: default})  # as a run keeps all its options
        assert told("--config", kept) == told("--data", data) == []
    assert getattr(asked(command, "--data", "conllu:x", f"--{name}", "7")[0], name) == 7


@pytest.mark.parametrize(
    ("of_run", "flags", "compared"),
    [
        ({"strategy": "switch", "against": "none"}, [], ("stl", "mtl", "diminish", "switch")),
        (
            {"strategy": "squaring", "alpha": 0.5, "against": "stl"},
            [],
            ("stl", "mtl", "diminish", "switch", "squaring"),
        ),
        ({"strategy": "switch"}, ["--strategies", "stl,adaptive"], ("stl", "adaptive")),
    ],
)
def test_the_strategies_of_the_file_of_a_run_are_compared_with_the_default_ones(
    of_run: dict[str, Any], flags: list[str], compared: tuple[str, ...], tmp_path: Path, asked
) -> None:
    path = write(tmp_path / "run.json", dim=8, **of_run)
    config, _, comparison, _ = asked("compare", "--config", str(path), *flags)
    assert comparison.strategies == compared
    assert config.dim == 8
    assert config.strategy_options == ({"alpha": 0.5} if "alpha" in of_run else {})


def test_seeds_that_count_up_stay_below_the_largest(asked) -> None:
    largest = 2**53 - 1
    for n, seed in ((1, largest - 1), (3, largest - 3)):
        assert not isinstance(asked("compare", "--seed", str(seed), "--seeds", str(n)), str)
        error = asked("compare", "--seed", str(seed + 1), "--seeds", str(n))
        assert f"--seed {seed + 1} is too large for --seeds {n}, as seeds count up from --seed" in error
    assert "--seed" in asked("train", "--seed", str(largest + 1))
    assert asked("train", "--seed", str(largest))[0].seed == largest


# A value of each type of TOML, and what takes it.
OF_EACH_TYPE = {"'x'": (str,), "true": (bool,), "7": (int, float), "0.5": (float,), "['x']": (tuple,), "[1]": (),
                "[['x']]": (), "{a = 1}": (), "[{a = 1}]": (), "2020-01-01": (), "07:32:00": ()}  # fmt: skip


@pytest.mark.parametrize("command", ["train", "compare"])
def test_every_option_says_what_was_given_and_what_is_due(command: str, tmp_path: Path) -> None:
    path, known = tmp_path / "run.toml", COMMANDS[command]
    for option in known.values():
        for value, takers in OF_EACH_TYPE.items():
            if option.kind in takers:
                continue
            path.write_text(f"{option.key} = {value}\n")
            with pytest.raises(InputError) as refused:
                read_config_file(path, command, known)
            assert str(refused.value).startswith(f"{path}: {option.key} must be {KINDS[option.kind]}")
            given = value.replace("'", '"').replace("{a = 1}", "a table of keys")
            assert f", not {given}" in str(refused.value)


def test_a_path_may_begin_with_the_home_folder(
    treebank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No shell expands ~ in a file, in --out=~/x or in csv:~/x."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text("data = 'conllu:~/tiny.conllu'\ninit = '~/tiny.vec'\nout = '~/out'\n")
    assert "--init ~/tiny.vec has vectors of 3 numbers" in fails(capsys, "train", "--config=~/run.toml")
    run("train", "--config=~/run.toml", "--dim", "3", "--epochs", "0.1", "--buckets", "20")
    assert (tmp_path / "out" / "report.md").exists()
    run("predict", "out", "~/tiny.conllu", "--out=~/tagged")
    assert (tmp_path / "tagged").exists()
    assert not (tmp_path / "~").exists()
    assert "no such file" in fails(capsys, "train", "--data", "csv:~nobody-of-this-name/x.csv")

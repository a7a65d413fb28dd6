"""Lists of names on the command line: any name can be said, and none is said twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from mt2st_fast.cli.tasks import names_between_commas, tasks_named
from mt2st_fast.errors import InputError
from tests.cli.running import fails, run


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("a, b ,,c", ("a", "b", "c")),
        ('"c,d",a', ("c,d", "a")),
        ('a , "c, ""d"""', ("a", 'c, "d"')),
        ('"c,d":multilabel,a', ("c,d:multilabel", "a")),
        ('5" pipe,a', ('5" pipe', "a")),
        ("", ()),
    ],
)
def test_names_stand_between_commas(option: str, names: tuple[str, ...]) -> None:
    assert names_between_commas(option, "--aux") == names


@pytest.mark.parametrize("option", ['"c,d', 'a,"c,d'])
def test_an_open_quotation_mark_is_refused(option: str) -> None:
    with pytest.raises(InputError, match=f"^--aux {option}: a quotation mark is not closed"):
        names_between_commas(option, "--aux")


def test_a_task_is_named_once() -> None:
    with pytest.raises(InputError, match=r"^--tasks names 'tone' twice; name it once$"):
        tasks_named("tone,topic, tone")


def test_a_task_with_a_comma_can_be_trained_predicted_and_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        'text,tone,"c,d"\n' + "".join(f"film {i},{'xy'[i % 2]},{'pq'[i % 2]}\n" for i in range(40))
    )
    train = ["train", "--data", f"csv:{table}", "--main", "tone", "--epochs", "1", "--dim", "4"]
    hint = 'quote a name with a comma, here "c,d"'
    assert hint in fails(capsys, *train, "--aux", "c,d", "--out", str(tmp_path / "run"))
    run(*train, "--aux", '"c,d"', "--out", str(tmp_path / "run"))
    (tmp_path / "x.txt").write_text("film\n")
    capsys.readouterr()
    run("predict", str(tmp_path / "run"), str(tmp_path / "x.txt"), "--tasks", '"c,d",tone')
    assert len(capsys.readouterr().out.split("\t")) == 2
    run("test", str(tmp_path / "run"), f"csv:{table}", "--tasks", '"c,d"')
    assert hint in fails(capsys, "predict", str(tmp_path / "run"), str(tmp_path / "x.txt"), "--tasks", "c,d")

"""`mt2st-fast test` on data of any size: nothing is split where nothing has to be taken out of training text."""

from __future__ import annotations

from pathlib import Path

import pytest

from mt2st_fast.data import open_data
from tests.cli.running import fails, run
from tests.serving.test_text_model import made

ROW = "1\tdie\tdie\tNOUN\t_\t_\t0\troot\t_\t_\n"
SPLIT = ("train", "dev", "test")


def table(path: Path, n: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("text,pos\n" + "".join(f"die Katze {i},{('NOUN', 'ADJ')[i % 2]}\n" for i in range(n)))
    return path


@pytest.fixture
def model(tmp_path: Path) -> str:
    made("document").save(tmp_path / "model")
    return str(tmp_path / "model")


def rows_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> int:
    """The rows that a command says that it has measured."""
    run("test", *arguments)
    line = next(line for line in capsys.readouterr().out.splitlines() if "accuracy" in line)
    return int(line.split("│")[4].strip())


@pytest.mark.parametrize("n", [1, 2, 3, 40])
@pytest.mark.parametrize("name", ["one.csv", "test.csv", "train.csv"])
def test_every_row_of_a_file_is_measured(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], n: int, name: str
) -> None:
    data = f"csv:{table(tmp_path / name, n)}"
    assert rows_of(capsys, model, data) == n
    assert rows_of(capsys, model, data, "--part", "all") == n
    if name == "test.csv":
        assert rows_of(capsys, model, data, "--part", "test") == n


def test_a_treebank_of_two_sentences_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("token").save(tmp_path / "model")
    upos = tmp_path / "two.conllu"
    upos.write_text((ROW + "\n") * 2)
    columns = tmp_path / "two.txt"
    columns.write_text("# columns: word pos\ndie NOUN\n\ndie VERB\n")
    assert rows_of(capsys, str(tmp_path / "model"), f"columns:{columns}") == 2
    splits = open_data(f"conllu:{upos}", "upos", (), measured=SPLIT)
    assert [splits.parts[part].n_rows for part in SPLIT] == [2, 0, 0]


def test_a_folder_without_training_text_is_measured(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = table(tmp_path / "alone" / "test.csv", 2).parent
    assert rows_of(capsys, model, f"csv:{folder}") == 2
    assert rows_of(capsys, model, f"csv:{folder}", "--part", "test") == 2
    error = fails(capsys, "test", model, f"csv:{folder}", "--part", "dev")
    assert (
        f"{folder}: has no dev rows, because its files are named as test only; choose another part, or all"
        in error
    )
    table(folder / "dev.csv", 3)
    assert rows_of(capsys, model, f"csv:{folder}", "--part", "dev") == 3
    assert rows_of(capsys, model, f"csv:{folder}", "--part", "all") == 5


def test_a_part_that_training_took_out_of_its_text_is_those_rows(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"csv:{table(tmp_path / 'some.csv', 40)}"
    splits = open_data(data, "pos", ())
    for part in SPLIT:
        assert rows_of(capsys, model, data, "--part", part) == splits.parts[part].n_rows
        ours = open_data(data, "pos", (), measured=(part,)).parts[part]
        words = [splits.vocabulary.words[t] for t in splits.parts[part].tokens]
        assert [splits.vocabulary.words[t] for t in ours.tokens] == words
    small = f"csv:{table(tmp_path / 'small.csv', 2)}"
    assert "too few sentences or documents to split (2); use --part all to measure all of them" in fails(
        capsys, "test", model, small, "--part", "test"
    )


def test_what_the_model_was_trained_on_is_split_as_then_whatever_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its training rows must not be measured as test rows because the file is named so."""
    file = table(tmp_path / "alone" / "test.csv", 40)
    for data in (f"csv:{file}", f"csv:{file.parent}"):
        model = made("document")
        model.source = data
        model.save(tmp_path / "model")
        assert rows_of(capsys, str(tmp_path / "model"), data, "--part", "test") == 4


def test_the_spelling_of_a_path_does_not_decide_which_rows_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = table(tmp_path / "alone" / "test.csv", 40)
    monkeypatch.chdir(tmp_path)
    trained = str(tmp_path / "run")
    run(
        *["train", "--data", "csv:alone/test.csv", "--main", "pos", "--epochs", "1", "--dim", "4", "--out"],
        trained,
    )
    capsys.readouterr()
    monkeypatch.chdir(tmp_path / "alone")
    for data in (f"csv:{file}", "csv:test.csv", "csv:./test.csv", "csv:.", f"csv:{file.parent}"):
        assert rows_of(capsys, trained, data, "--part", "test") == 4, data
        run("test", trained, data, "--part", "all")
        assert "the model was trained on this data: its training rows are included" in capsys.readouterr().out


def test_training_text_that_is_measured_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = table(tmp_path / "f" / "train.csv", 40).parent
    table(folder / "test.csv", 5)
    model = made("document")
    model.source = f"csv:{folder}"
    model.save(tmp_path / "model")
    for name, is_told in (("train.csv", True), ("test.csv", False)):
        run("test", str(tmp_path / "model"), f"csv:{folder / name}")
        said = " ".join(capsys.readouterr().out.split())
        assert ("the results include rows that it was trained on" in said) == is_told


def test_rows_without_labels_are_told(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bare.csv"
    file.write_text("text,pos\ndie Katze,\n")
    assert f"csv:{file}: no row has a label for 'pos'" in fails(capsys, "test", model, f"csv:{file}")


def test_a_number_that_is_undefined_is_a_dash(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "equal.csv"
    file.write_text("text,pos,length\n" + "die Katze,NOUN,0.1\n" * 40)
    run("test", model, f"csv:{file}", "--tasks", "length")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "r2" in line]
    assert [cell.strip() for cell in line.split("│")[1:4]] == ["length", "r2", "–"]


def test_what_was_noted_in_the_data_is_said(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"die Katze {i},{'nan' if i == 4 else i}\n" for i in range(9))
    (tmp_path / "other.csv").write_text(f"text,length\n{rows}")
    run("test", model, f"csv:{tmp_path / 'other.csv'}", "--tasks", "length")
    assert "column 'length': nan in 1 cell counts as unlabelled" in capsys.readouterr().out


def test_a_run_and_its_measurement_say_which_held_out_rows_are_training_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model = tmp_path / "data", str(tmp_path / "run")
    folder.mkdir()
    rows = [f"die Katze sitzt heute auf Dach {i},{('NOUN', 'ADJ')[i % 2]}\n" for i in range(60)]
    for part, chosen in (("train", rows[:40]), ("dev", rows[40:50]), ("test", rows[35:60])):
        (folder / f"{part}.csv").write_text("".join(["text,pos\n", *chosen]))
    data = f"csv:{folder}"
    run("train", "--data", data, "--main", "pos", "--epochs", "1", "--dim", "4", "--out", model)
    note = "in the training text too, word for word: 5 of 25 test documents (20 % of the rows)"
    assert capsys.readouterr().out.count(note) == 1
    for part, expected in (("test", 1), ("dev", 0), ("train", 0)):
        run("test", model, data, "--part", part)
        assert capsys.readouterr().out.count(note) == expected

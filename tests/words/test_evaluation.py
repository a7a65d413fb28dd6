"""Word evaluation: the figures are right where they can be known otherwise, and the picture can be read."""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy import stats

from mt2st_fast.cli import main
from mt2st_fast.errors import InputError
from mt2st_fast.words.evaluation import draw_words, evaluate, principal_plane, render, write_evaluation
from mt2st_fast.words.vectors import WordVectors

datapath = pytest.importorskip("gensim.test.utils").datapath


def random_vectors(words: list[str], D: int = 25, seed: int = 0) -> WordVectors:
    return WordVectors(words, np.random.default_rng(seed).normal(size=(len(words), D)))


def wordsim() -> list[tuple[str, str, float]]:
    lines = Path(datapath("wordsim353.tsv")).read_text().splitlines()
    fields = [line.split("\t") for line in lines if not line.startswith("#")]
    return [(a.lower(), b.lower(), float(score)) for a, b, score in fields]


def capitals() -> list[list[str]]:
    """The questions of the first section, in lower case."""
    lines = Path(datapath("questions-words.txt")).read_text().splitlines()
    end = next(i for i, line in enumerate(lines[1:], 1) if line.startswith(":"))
    return [line.lower().split() for line in lines[1:end]]


def test_correlations_are_those_of_scipy_over_the_known_pairs() -> None:
    pairs = wordsim()
    words = sorted({word for a, b, _ in pairs for word in (a, b)})[::2]
    vectors = random_vectors(words)
    unit = vectors.vectors / np.linalg.norm(vectors.vectors, axis=1, keepdims=True)
    known = [(a, b, score) for a, b, score in pairs if a in vectors.index_of and b in vectors.index_of]
    cosines = [float(unit[vectors.index_of[a]] @ unit[vectors.index_of[b]]) for a, b, _ in known]
    found = evaluate(vectors)["pairs"]["WordSim-353"]
    assert (found["pairs"], found["used"]) == (len(pairs), len(known))
    assert 50 < len(known) < 200
    assert found["oov_share"] == pytest.approx(1 - len(known) / len(pairs))
    scores = [score for _, _, score in known]
    assert found["spearman"] == pytest.approx(stats.spearmanr(scores, cosines)[0], abs=1e-6)
    assert found["pearson"] == pytest.approx(stats.pearsonr(scores, cosines)[0], abs=1e-6)


def test_analogies_that_hold_are_answered() -> None:
    """A capital is its country plus the same step: every question is right; one broken country is not."""
    questions = capitals()
    country_of = {c: d for c, d, _, _ in questions} | {c: d for _, _, c, d in questions}
    countries = sorted(set(country_of.values()))
    basis = np.eye(len(countries) + 1)
    words = [*countries, *country_of]
    table = [basis[i] for i in range(len(countries))]
    table += [basis[countries.index(country)] + 0.8 * basis[-1] for country in country_of.values()]
    result = evaluate(WordVectors(words, table))["analogies"]
    found = result["sections"]["capital-common-countries"]
    assert (found["questions"], found["used"], found["accuracy"]) == (len(questions), len(questions), 1.0)
    assert result["sections"]["family"] == {
        "questions": 506, "used": 0, "oov_share": 1.0, "correct": 0, "accuracy": None
    }  # fmt: skip
    assert result["questions"] == 19544

    table[words.index("greece")] = -basis[-1]
    broken = evaluate(WordVectors(words, table))["analogies"]["sections"]["capital-common-countries"]
    assert broken["correct"] <= len(questions) - sum(answer == "greece" for *_, answer in questions)
    assert broken["correct"] > len(questions) / 2


def test_only_the_most_frequent_take_part() -> None:
    words = sorted({word for a, b, _ in wordsim() for word in (a, b)})
    counts = np.arange(len(words))  # the file begins with the rarest
    vectors = WordVectors(words, random_vectors(words).vectors, counts)
    few = evaluate(vectors, most_frequent=100)
    frequent = set(words[-100:])
    used = sum(a in frequent and b in frequent for a, b, _ in wordsim())
    assert few["pairs"]["WordSim-353"]["used"] == used
    assert few["most_frequent"] == 100


def test_case_is_not_regarded() -> None:
    pairs = wordsim()
    words = sorted({word for a, b, _ in pairs for word in (a, b)})
    lower, upper = random_vectors(words), random_vectors([word.upper() for word in words])
    assert evaluate(lower)["pairs"] == evaluate(upper)["pairs"]
    assert evaluate(lower)["pairs"]["WordSim-353"]["oov_share"] == 0


@pytest.mark.parametrize("words", [["a", "b"], ["tiger", "cat", "x"], ["語", "слово", "b c", "$x$"]])
def test_what_cannot_be_measured_is_none(words: list[str], tmp_path: Path) -> None:
    vectors = random_vectors(words, D=1)
    result = evaluate(vectors)
    assert result["pairs"]["SimLex-999"]["spearman"] is None
    assert result["analogies"]["accuracy"] is None
    write_evaluation(result, vectors, "v", tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {"vectors": "v", **result}


def test_equal_cosines_have_no_correlation() -> None:
    words = sorted({word for a, b, _ in wordsim() for word in (a, b)})
    found = evaluate(WordVectors(words, np.ones((len(words), 1))))["pairs"]["WordSim-353"]
    assert found["used"] > 300
    assert found["spearman"] is None
    assert found["pearson"] is None


def test_zero_vectors_are_left_out() -> None:
    words = sorted({word for a, b, _ in wordsim() for word in (a, b)})
    table = random_vectors(words).vectors.copy()
    table[::3] = 0
    result = evaluate(WordVectors(words, table))
    assert result["zero_vectors"] == len(words[::3])
    kept = set(words) - set(words[::3])
    used = sum(a in kept and b in kept for a, b, _ in wordsim())
    assert result["pairs"]["WordSim-353"]["used"] == used
    with pytest.raises(InputError, match="zero"):
        evaluate(WordVectors(["a", "b"], [[0, 0], [1, 0]]))


def test_neighbours_of_given_and_of_frequent_words() -> None:
    vectors = WordVectors(["horse", "mares", "chair", "stool"], [[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    given = evaluate(vectors, queries=("stool", "unicorn"), neighbours=2)
    assert given["neighbours"] == {"stool": ["chair", "mares"]}
    assert given["unknown_queries"] == ["unicorn"]
    assert evaluate(vectors, neighbours=1)["neighbours"] == {
        "horse": ["mares"],
        "mares": ["horse"],
        "chair": ["stool"],
        "stool": ["chair"],
    }


def test_markdown_keeps_its_tables() -> None:
    vectors = WordVectors(["a|b", "c", "d"], [[1, 0], [1, 0.1], [0, 1]])
    text = render(evaluate(vectors, queries=("a|b", "c")), "v")
    assert "| a\\|b | c, d |" in text
    assert "| c | a\\|b, d |" in text


# The picture


def test_labels_do_not_overlap_and_stay_inside(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = sorted({"".join(chance.choice(letters, chance.integers(2, 12))) for _ in range(800)})
    labels = draw_words(random_vectors(words), tmp_path / "words.png")
    assert len(labels) > 100
    assert not any(a.overlaps(b) for a, b in combinations(labels.values(), 2))
    picture = imread(tmp_path / "words.png")
    height, width = picture.shape[:2]
    assert all(0 < b.x0 < b.x1 < width and 0 < b.y0 < b.y1 < height for b in labels.values())
    # What was said to be covered holds ink, so the picture is the one whose labels were measured.
    for box in list(labels.values())[:20]:
        pixels = picture[height - int(box.y1) : height - int(box.y0), int(box.x0) : int(box.x1), :3]
        assert pixels.min() < 0.3


def test_words_that_cannot_be_drawn_leave_their_dots(tmp_path: Path) -> None:
    words = [f"語{chr(0x4E00 + i)}" for i in range(50)] + ["drawn", "слово"]
    assert set(draw_words(random_vectors(words), tmp_path / "words.png")) == {"drawn", "слово"}


@pytest.mark.parametrize(("N", "D"), [(252, 7), (3, 50), (50, 1), (2, 2)])
def test_the_plane_is_that_of_the_principal_components(N: int, D: int) -> None:
    vectors = np.random.default_rng(2).normal(size=(N, D)) * np.arange(1, D + 1)
    places, share = principal_plane(vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    centred = torch.tensor(unit - unit.mean(axis=0))
    values = torch.linalg.svdvals(centred).numpy()
    spread = np.linalg.norm(places, axis=0)
    assert spread[0] == pytest.approx(values[0], abs=1e-12)
    if len(values) > 1:
        assert spread[1] == pytest.approx(values[1], abs=1e-12)
    assert share == pytest.approx((values[:2] ** 2).sum() / (values**2).sum())
    assert abs(places[:, 0] @ places[:, 1]) < 1e-9


# The command


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


@pytest.mark.parametrize("suffix", [".txt", ".bin", ".safetensors"])
def test_the_command_writes_a_report(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = sorted({word for a, b, _ in wordsim() for word in (a, b)})
    path = tmp_path / f"v{suffix}"
    random_vectors(words).write(path)
    assert call("evaluate", str(path), "--out", str(tmp_path / "out"), "--words", "tiger, none") == 0
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert result["pairs"]["WordSim-353"]["used"] == 353
    for text in (f"{result['pairs']['WordSim-353']['spearman']:.4f}", "tiger", "Without a vector: none"):
        assert text in shown
    assert "| WordSim-353 |" in (tmp_path / "out" / "evaluation.md").read_text()
    assert imread(tmp_path / "out" / "words.png").std() > 0.01


def test_without_out_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    random_vectors(["[bold]", "tiger", "cat"]).write(tmp_path / "v.txt")
    assert call("evaluate", "v.txt", "--words", "[bold]") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["v.txt"]


def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.txt").write_text("2 2\na 1 2\nb 1\n")
    (tmp_path / "zero.txt").write_text("2 2\na 0 0\nb 0 0\n")
    random_vectors(["a", "b", "c"]).write(tmp_path / "good.txt")
    for arguments, name in [
        ((str(tmp_path / "none.txt"),), "none.txt"),
        ((str(tmp_path / "bad.txt"),), "bad.txt:3"),
        ((str(tmp_path / "zero.txt"),), "zero"),
        ((str(tmp_path / "good.txt"), "--out", "/proc/x"), "/proc/x"),
        ((str(tmp_path / "good.txt"), "--neighbours", "0"), "neighbours"),
        (("good.docx",), "good.docx"),
        ((), "vectors"),
    ]:
        assert call("evaluate", *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("mt2st-fast: ")
        assert error.count("\n") == 1
        assert name in error.lower()
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    assert call("evaluate", str(tmp_path / "good.txt")) == 2
    assert "pip install gensim" in capsys.readouterr().err

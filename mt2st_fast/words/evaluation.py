"""How good word vectors are: human similarity judgements, analogies, neighbours, and a picture.

The measures are those of gensim and scipy. The data sets SimLex-999, WordSim-353 and questions-words are English and
come with gensim's test data. Needs the extra `words`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from mt2st_fast.data.text.lines import open_lines
from mt2st_fast.errors import InputError
from mt2st_fast.files import write_atomically, writing_atomically
from mt2st_fast.markdown import markdown_table
from mt2st_fast.numbers import spells_number
from mt2st_fast.spelling import counted
from mt2st_fast.words.vectors import WordVectors, frequent_words, telling_neighbours

PAIR_SETS = {"SimLex-999": "simlex999.txt", "WordSim-353": "wordsim353.tsv"}
ANALOGIES = "questions-words.txt"
EVALUATION_FILES = ("evaluation.json", "evaluation.md", "words.png")

_DOTS, _LABELS = 600, 250


def evaluate(
    vectors: WordVectors,
    *,
    queries: Sequence[str] = (),
    neighbours: int = 5,
    most_frequent: int = 300_000,
) -> dict[str, Any]:
    """Compute all measures as a JSON-able dictionary; what cannot be measured is None.

        queries        words to show the neighbours of; by default some frequent words
        neighbours     how many neighbours for each
        most_frequent  only this many words take part in pairs and analogies (gensim's restrict_vocab)

    Words are compared without regard to case, as gensim does. Vectors of length zero have no direction and are left
    out. Raises InputError where gensim is missing or fewer than two vectors are left.
    """
    directed = np.flatnonzero(np.linalg.norm(vectors.vectors, axis=1) > 0)
    if len(directed) < 2:
        raise InputError("fewer than two words have a nonzero vector; there is nothing to compare")
    order = vectors.by_frequency()
    order = order[np.isin(order, directed)]
    in_order = len(order) == len(vectors) and bool((np.diff(order) > 0).all())
    ranked = vectors if in_order else vectors.select(order)
    keyed = ranked.to_keyed_vectors()
    known = [query for query in queries if query in ranked.index_of]
    near = (
        {word: [other for other, _ in found] for word, found in ranked.nearest(known, neighbours).items()}
        if queries
        else telling_neighbours(ranked, neighbours=neighbours)
    )
    return {
        "words": len(vectors),
        "dimension": vectors.dim,
        "zero_vectors": len(vectors) - len(directed),
        "most_frequent": min(most_frequent, len(ranked)),
        "pairs": {name: _pairs(keyed, file, most_frequent) for name, file in PAIR_SETS.items()},
        "analogies": _analogies(keyed, most_frequent),
        "neighbours": near,
        "unknown_queries": [query for query in queries if query not in ranked.index_of],
    }


def _data(name: str) -> Path:
    from gensim.test.utils import datapath

    path = Path(datapath(name))
    if not path.is_file():
        raise InputError(
            f"gensim is installed without its test data ({name}); install it from PyPI: pip install gensim"
        )
    return path


def _pairs(keyed: Any, name: str, most_frequent: int) -> dict[str, Any]:
    """Return the correlation of cosine and human score over the pairs whose words are known."""
    path = _data(name)
    lines = [line for _, line in open_lines(path) if line and not line.startswith("#")]
    pairs = [
        fields for line in lines if len(fields := line.upper().split("\t")) == 3 and spells_number(fields[2])
    ]
    known_words = {word.upper() for word in keyed.index_to_key[:most_frequent]}
    used = sum(first in known_words and second in known_words for first, second, _ in pairs)
    result: dict[str, Any] = {
        "pairs": len(pairs),
        "used": used,
        "oov_share": 1 - used / len(pairs),
        "spearman": None,
        "pearson": None,
    }
    if used > 2:
        with warnings.catch_warnings():  # scipy warns where all scores are equal and no correlation exists
            warnings.simplefilter("ignore")
            pearson, spearman, _ = keyed.evaluate_word_pairs(str(path), restrict_vocab=most_frequent)
        result |= {"spearman": _number(spearman[0]), "pearson": _number(pearson[0])}
    return result


def _analogies(keyed: Any, most_frequent: int) -> dict[str, Any]:
    """Return, by section, the share of questions "a is to b as c is to?" whose answer is the nearest word."""
    path = _data(ANALOGIES)
    questions: dict[str, int] = {}
    for _, line in open_lines(path):
        if line.startswith(": "):
            section = line[2:].strip()
            questions[section] = 0
        elif len(line.split()) == 4:
            questions[section] += 1
    _, sections = keyed.evaluate_word_analogies(str(path), restrict_vocab=min(most_frequent, len(keyed)))
    answered = {
        s["section"]: (len(s["correct"]), len(s["correct"]) + len(s["incorrect"])) for s in sections[:-1]
    }
    return {
        **_accuracy(
            sum(c for c, _ in answered.values()),
            sum(u for _, u in answered.values()),
            sum(questions.values()),
        ),
        "sections": {name: _accuracy(*answered[name], total) for name, total in questions.items()},
    }


def _accuracy(correct: int, used: int, questions: int) -> dict[str, Any]:
    return {
        "questions": questions,
        "used": used,
        "oov_share": 1 - used / questions,
        "correct": correct,
        "accuracy": correct / used if used else None,
    }


def _number(value: float) -> float | None:
    return None if value != value else float(value)


def write_evaluation(result: dict[str, Any], vectors: WordVectors, name: str, folder: Path) -> None:
    """Write evaluation.json, evaluation.md and words.png into `folder`."""
    text = json.dumps({"vectors": name, **result}, indent=2, ensure_ascii=False)
    write_atomically(folder / "evaluation.json", text.encode("utf-8", "replace"))
    write_atomically(folder / "evaluation.md", render(result, name).encode("utf-8", "replace"))
    draw_words(vectors, folder / "words.png")


def pair_rows(result: dict[str, Any]) -> list[list[str]]:
    """Rows of data set, Spearman, Pearson, pairs used, out of vocabulary."""
    return [
        [
            name,
            shown(found["spearman"]),
            shown(found["pearson"]),
            f"{found['used']} of {found['pairs']}",
            f"{found['oov_share']:.1%}",
        ]
        for name, found in result["pairs"].items()
    ]


def analogy_rows(result: dict[str, Any]) -> list[list[str]]:
    """Rows of section, accuracy, right answers, questions used, out of vocabulary; the total comes last."""
    return [
        [
            name,
            "–" if found["accuracy"] is None else f"{found['accuracy']:.1%}",
            f"{found['correct']:,}",
            f"{found['used']:,} of {found['questions']:,}",
            f"{found['oov_share']:.1%}",
        ]
        for name, found in [*result["analogies"]["sections"].items(), ("all", result["analogies"])]
    ]


def shown(value: float | None) -> str:
    """Format a correlation; None is a dash."""
    return "–" if value is None else f"{value:.4f}"


def render(result: dict[str, Any], name: str) -> str:
    """The evaluation as Markdown."""
    neighbours = [(word, ", ".join(near)) for word, near in result["neighbours"].items()]
    lines = [
        f"# {name}",
        "",
        f"{counted(result['words'], 'word')} of dimension {result['dimension']}; the {result['most_frequent']:,} most "
        "frequent are used for pairs and analogies. OOV: the share of pairs or questions left out because a word is "
        "not among these.",
        "",
        *markdown_table(("similarity", "Spearman:", "Pearson:", "pairs used:", "OOV:"), pair_rows(result)),
        "",
        *markdown_table(
            ("analogies", "accuracy:", "right:", "questions used:", "OOV:"), analogy_rows(result)
        ),
        "",
        *markdown_table(("word", "nearest neighbours"), neighbours),
        "",
        "![frequent words by the first two principal components](words.png)",
        "",
    ]
    return "\n".join(lines)


def draw_words(vectors: WordVectors, path: Path) -> dict[str, Bbox]:
    """Draw frequent words by the first two principal components of their unit vectors; labels never overlap.

    Every dot is a word. Words are labelled where there is room, those of more than three letters first: the most
    frequent short words are function words, which say little. Returns the labels and the pixels that they cover.
    """
    rows = frequent_words(vectors, _DOTS)
    if len(rows) < 3:
        rows = vectors.by_frequency()[:_DOTS]
    words = [vectors.words[t] for t in rows]
    places_n2, share = principal_plane(vectors.vectors[rows])
    figure = Figure(figsize=(12, 9), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.scatter(places_n2[:, 0], places_n2[:, 1], s=9, color="C0", alpha=0.45, linewidths=0)
    axes.set(
        title=f"{len(words):,} frequent words by two principal components ({share:.0%} of the variance)",
        xticks=[],
        yticks=[],
    )
    axes.margins(0.06)
    canvas.draw()  # fixes the layout, which the labels must not change
    figure.set_layout_engine("none")
    labels = _label(axes, words, places_n2, canvas)
    with writing_atomically(path) as file:
        figure.savefig(file, format="png", dpi=figure.dpi)
    return labels


def principal_plane(vectors_td: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the places (N, 2) of unit vectors on their first two principal components, and their share of the
    variance.
    """
    unit_td = vectors_td / np.maximum(np.linalg.norm(vectors_td, axis=1, keepdims=True), 1e-12)
    centred_td = unit_td.astype(np.float64) - unit_td.mean(axis=0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred_td, full_matrices=False)
    places = np.zeros((len(vectors_td), 2))
    kept = min(2, len(s))
    places[:, :kept] = u[:, :kept] * s[:kept]
    # The sign of a component is arbitrary: the largest number is made positive, so that pictures are comparable.
    signs = np.sign(places[np.abs(places).argmax(axis=0), [0, 1]])
    total = float(np.square(s).sum())
    return places * np.where(signs == 0, 1, signs), float(np.square(s[:2]).sum()) / total if total else 0.0


def _label(
    axes: Axes, words: Sequence[str], places_n2: np.ndarray, canvas: FigureCanvasAgg
) -> dict[str, Bbox]:
    """Draw the labels that fit, on one of the four sides of their dots, and return where they are."""
    renderer = canvas.get_renderer()
    signs = font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    frame = axes.get_window_extent(renderer)
    taken: dict[str, Bbox] = {}
    for i in sorted(range(len(words)), key=lambda i: len(words[i]) <= 3):
        word, place = words[i], places_n2[i]
        if len(taken) == _LABELS:
            break
        if len(word) > 25 or any(ord(sign) not in signs for sign in word):
            continue  # too long, or the font lacks one of its characters
        for dx, dy, across, up in ((4, 0, "left", "center"), (-4, 0, "right", "center"),
                                   (0, 4, "center", "bottom"), (0, -4, "center", "top")):  # fmt: skip
            label: Text = axes.annotate(
                word,
                place,
                (dx, dy),
                textcoords="offset points",
                ha=across,
                va=up,
                fontsize=9,
                parse_math=False,
            )
            box = label.get_window_extent(renderer).padded(1)
            inside = frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)
            if inside and not any(box.overlaps(other) for other in taken.values()):
                taken[word] = box
                break
            label.remove()
    return taken

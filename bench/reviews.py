"""python -m bench.reviews FOLDER: 1,000 film reviews, as in the run that MT2ST's authors have published.

FOLDER is the Large Movie Review Dataset (Maas et al. 2011): train/pos, train/neg, test/pos and test/neg. Of its 50,000
reviews 1,000 are drawn, 750 for training and 250 for measuring, as the authors do. (They draw from a table that has the
reviews in another order, so their reviews are different ones.) `train_supervised` trains with its defaults; seconds are
those of the whole call, including reading the file.
"""

from __future__ import annotations

import random
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console

from mt2st_fast.words.supervised import train_supervised

console = Console(width=120)
PARTS = ("train/pos", "train/neg", "test/pos", "test/neg")
N_TRAIN, N_TEST = 750, 250


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of the Large Movie Review Dataset.")],
    draws: Annotated[int, typer.Option(min=1, help="Number of times to draw 1,000 reviews.")] = 5,
    epoch: Annotated[int, typer.Option(min=1, help="Epochs of training.")] = 5,
) -> None:
    """Print accuracy and seconds of every draw."""
    reviews = sorted(path for part in PARTS for path in (folder / part).glob("*.txt"))
    if len(reviews) < N_TRAIN + N_TEST:
        raise SystemExit(f"{folder}: has {len(reviews)} reviews in {', '.join(PARTS)}, but 1,000 are needed")
    found = []
    with tempfile.TemporaryDirectory() as name:
        for draw in range(draws):
            train, test = _written(reviews, draw, Path(name))
            started = time.perf_counter()
            model = train_supervised(train, epoch=epoch)
            seconds = time.perf_counter() - started
            (accuracy,) = model.test(test).values()
            found.append((accuracy, seconds))
            console.print(f"draw {draw}: accuracy {accuracy:.3f} in {seconds:.2f} s", highlight=False)
    accuracies, all_seconds = zip(*found, strict=True)
    console.print(
        f"median {median(accuracies):.3f} in {median(all_seconds):.2f} s; lowest {min(accuracies):.3f}; slowest "
        f"{max(all_seconds):.2f} s, including loading the kernels",
        highlight=False,
    )


def _written(reviews: Sequence[Path], draw: int, folder: Path) -> list[Path]:
    """Write and return files of `__label__` lines for training and measuring."""
    chosen = random.Random(draw).sample(reviews, N_TRAIN + N_TEST)
    made = []
    for name, own in (("train", chosen[:N_TRAIN]), ("test", chosen[N_TRAIN:])):
        path = folder / f"{name}{draw}.txt"
        path.write_text("".join(map(_line, own)), encoding="utf-8")
        made.append(path)
    return made


def _line(review: Path) -> str:
    words = re.findall(r"[^\W_]+", review.read_text(encoding="utf-8").replace("<br />", " ").lower())
    return f"__label__{review.parent.name} {' '.join(words)}\n"


if __name__ == "__main__":
    typer.run(main)

"""Walkers of context prediction in the interpreter: what they draw, and every step as the formula says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from mt2st_fast.kernels.context import walkers as context_walkers
from mt2st_fast.kernels.context.batch import WordSampler, word_sampler
from mt2st_fast.kernels.context.on_triton import training as kernels
from mt2st_fast.kernels.context.walkers import WalkOptions, WalkTraining, choose_walkers
from tests.kernels.context.walker_cases import CASES, FALL, LEAST, RATE
from tests.kernels.interpreter import run_shares

MODES = ("skipgram", "cbow")
SHARES = [("skipgram",), ("cbow", "draws")]
# Relative to the change of a table: float32 sums of a few hundred steps that build on one another.
MARGIN = 2e-5


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Everything that the workers store, computed once: the interpreter takes minutes, so two share them."""
    return run_shares(
        "tests.kernels.context.interpret_walkers", tmp_path_factory.mktemp("interpreter"), SHARES
    )


class Case:
    """What was stored of a case, and the words that were kept, stretch by stretch."""

    def __init__(self, computed, mode, name):
        self.cbow, self.prefix, self.computed = mode == "cbow", f"{mode}/{name}/", computed
        _, _, _, options, self.stretch = CASES[name]
        self.window, self.walkers = options.get("window", 5), options["walkers"]
        self.negatives = options.get("negatives", 5)
        self.n_stretches = -(-len(self["tokens"]) // self.stretch)

    def __getitem__(self, what):
        return self.computed[self.prefix + what]

    def positions(self, s):
        """Where in the scratch the kept words of stretch s stand."""
        return range(s * self.stretch, s * self.stretch + self["counts"][s])

    def around(self, s):
        """The places of the windows of the kept words of stretch s, those of the words themselves left out."""
        places, at = self["places"], self.positions(s)
        for i in at:
            reach, sentence = places[i] % 256, places[i] // 256
            yield (
                i,
                [j for j in at if j != i and abs(j - i) <= reach and places[j] // 256 == sentence],
            )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", MODES)
def test_kept_words_stand_side_by_side_with_their_sentences(computed, mode, name):
    case = Case(computed, mode, name)
    tokens, bounds = case["tokens"], case["text bounds"]
    sentence_of = np.searchsorted(bounds, np.arange(len(tokens)), side="right")
    for s in range(case.n_stretches):
        raw = slice(s * case.stretch, (s + 1) * case.stretch)
        known = [(w, u) for w, u in zip(tokens[raw], sentence_of[raw], strict=True) if w >= 0]
        at = list(case.positions(s))
        assert 1 <= len(at) <= len(known)
        # Kept words are some of the known ones, in their order: each is found behind the one before.
        rest, numbers = iter(known), []
        for i in at:
            numbers.append(next(u for w, u in rest if w == case["words"][i]))
        places = case["places"][at]
        assert ((places % 256 >= 1) & (places % 256 <= case.window)).all()
        assert len(set(places // 256)) <= len({u for _, u in known})


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", MODES)
def test_rows_are_the_window_and_negatives_that_count_for_the_pairs_they_are_not_of(computed, mode, name):
    case = Case(computed, mode, name)
    words, rows, shares = case["words"], case["rows"], case["shares"]
    n_pairs = 0
    for s in range(case.n_stretches):
        for i, around in case.around(s):
            neighbours = [words[j] for j in around]
            met = [words[i]] * bool(around) if case.cbow else neighbours
            first = 1 if case.cbow else 2 * case.window
            assert [row for row in rows[i, :first] if row >= 0] == met
            assert np.array_equal(shares[i, :first], rows[i, :first] >= 0)
            each = case.negatives / (rows.shape[1] - first)
            for row, share in zip(rows[i, first:], shares[i, first:], strict=True):
                others = sum(word != row for word in met)
                assert (row >= 0) == (share > 0)
                assert row < 0 or share == pytest.approx(each * others)
            if case.cbow:
                assert [row for row in case["window"][i] if row >= 0] == neighbours
            n_pairs += len(met)
    assert case["found"][1] == n_pairs
    assert (n_pairs == 0) == (name == "no pairs")


def steps_by_torch(case):
    """(inputs, outputs, loss) of the steps one by one, in float64: the walkers one after another, as interpreted."""
    x, y = (torch.from_numpy(case[f"{table}/before"]).double() for table in ("inputs", "outputs"))
    total = 0.0
    for walker in range(case.walkers):
        for r, s in enumerate(range(walker, case.n_stretches, case.walkers)):
            rate = max(LEAST, RATE - FALL * r * case.walkers * case.stretch)
            for i in case.positions(s):
                known = case["rows"][i] >= 0
                if not known.any():
                    continue
                first = 1 if case.cbow else 2 * case.window
                sign = torch.where(torch.arange(len(known)) < first, -1.0, 1.0).double()[known]
                share = torch.from_numpy(case["shares"][i][known]).double()
                rows = torch.from_numpy(case["rows"][i][known]).long()
                inputs = case["window"][i] if case.cbow else case["words"][[i]]
                inputs = torch.from_numpy(inputs[inputs >= 0]).long()
                h = x[inputs].mean(0).requires_grad_()
                met = y[rows].requires_grad_()
                loss = (share * torch.nn.functional.softplus(sign * (met @ h))).sum()
                loss.backward()
                total += loss.item()
                y.index_add_(0, rows, met.grad, alpha=-rate)
                # CBOW: word2vec's own step teaches every word of the window the whole gradient of the mean.
                x.index_add_(0, inputs, h.grad.expand(len(inputs), -1), alpha=-rate)
    return x, y, total


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", MODES)
def test_every_step_is_that_of_the_formula(computed, mode, name):
    case = Case(computed, mode, name)
    *tables, loss = steps_by_torch(case)
    for table, truth in zip(("inputs", "outputs"), tables, strict=True):
        before, after = (torch.from_numpy(case[f"{table}/{when}"]).double() for when in ("before", "after"))
        moved = (truth - before).norm()
        assert (moved > 0) == (name != "no pairs")
        assert (after - truth).norm() <= MARGIN * moved
    assert case["found"][0] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("what", ["parts", "launches", "streamed", "the same seed", "another seed"])
@pytest.mark.parametrize("mode", MODES)
def test_draws_are_those_of_the_place_in_the_text(computed, mode, what):
    assert computed[f"{mode}/{what}"]


@pytest.mark.parametrize("mode", MODES)
def test_a_run_learns_topics_and_brings_the_vectors_back(computed, mode):
    losses = computed[f"{mode}/losses"]
    assert losses[-1] < losses[0] - 0.3
    assert computed[f"{mode}/gap"] > 0.4
    assert computed[f"{mode}/finite"].tolist() == [True, False]


def test_draws_have_word2vecs_shares(computed):
    kept, expected = computed["draws/kept"], computed["draws/expected kept"]
    assert np.abs(kept - expected).max() < 4 * np.sqrt(expected.max())
    assert (kept[1:3] <= [200, 60]).all()
    reach = computed["draws/reach"]
    assert len(reach) == 5
    assert reach / reach.sum() == pytest.approx(np.full(5, 0.2), abs=0.06)
    drawn = computed["draws/drawn"]
    assert drawn / drawn.sum() == pytest.approx(computed["draws/expected drawn"], abs=0.03)


# --- how many walkers, and of which sizes ----------------------------------------------------------------


def walkers_for(n_words: int, counts: np.ndarray, **options: object) -> int:
    return choose_walkers(n_words, counts, word_sampler(counts, 1e-3), WalkOptions(**options))


def test_short_texts_and_those_of_few_words_have_fewer_walkers():
    zipf = np.maximum(1, 1_000_000 // np.arange(1, 30_000))
    assert walkers_for(10**7, zipf) == context_walkers.MOST_WALKERS
    assert walkers_for(100_000, zipf) == 100_000 // context_walkers.WALKER_WORDS
    assert walkers_for(10, zipf) == 1
    few = walkers_for(10**7, zipf[:20])
    assert 1 < few < 40
    assert walkers_for(10**7, zipf[:20], window=10) < few
    assert walkers_for(10**7, zipf[:20], negatives=20) < few


def test_shares_of_negatives_are_those_of_the_table():
    counts = np.array([90, 7, 2, 1])
    shares = context_walkers._drawn_shares(word_sampler(counts))
    assert shares == pytest.approx(counts**0.75 / (counts**0.75).sum(), abs=1e-8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("D", "window"), [(1, 1), (100, 5), (100, 16), (300, 10), (512, 8)])
def test_blocks_hold_a_position(D, window, mode):
    cbow = mode == "cbow"
    blocks = kernels.choose_blocks(D, window, cbow)
    assert blocks.columns >= D
    assert blocks.window >= 2 * window
    assert kernels.negatives_of(blocks, window, cbow) >= kernels.LEAST_NEGATIVES
    assert blocks.rows * blocks.columns <= kernels.MOST_ELEMENTS
    for size in blocks[:3]:
        assert size & (size - 1) == 0


@pytest.mark.parametrize(("D", "window"), [(513, 5), (100, 17), (512, 16)])
def test_too_large_positions_are_refused(D, window):
    with pytest.raises(ValueError, match=f"window {window} and {D} columns"):
        kernels.choose_blocks(D, window, False)


def test_a_cpu_has_no_walkers():
    tables = [np.zeros((3, 8), np.float32) for _ in range(2)]
    sampler: WordSampler = word_sampler(np.ones(3))
    with pytest.raises(RuntimeError, match="it runs on cuda"):
        WalkTraining(*tables, sampler, WalkOptions(), torch.device("cpu"))
    with pytest.raises(ValueError, match="positive"):
        WalkTraining(*tables, sampler, WalkOptions(window=0), torch.device("cpu"))

"""The bag benchmarks compare like with like, at a size that CI can bear."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.bag_cases import CLASSES, FAMILIES, Documents, bags_of, our_step, run_ours, torch_step
from bench.word_report import word_sections
from mt2st_fast import BagEncoder

N, L, V, DIM = 400, 20, 5_000, 8


def test_a_bag_has_torchs_features():
    words = Documents.make(N, L, V).words
    table = torch.nn.EmbeddingBag(V, DIM, mode="mean")
    encoder = BagEncoder(V, DIM)
    with torch.no_grad():
        encoder.table.copy_(table.weight)
    ids, starts = bags_of(words)
    torch.testing.assert_close(encoder((ids, starts)), table(ids.long(), starts[:-1]))


def test_documents_tell_their_labels(tmp_path):
    train, test = Documents.make(4 * N, L, V), Documents.make(N, L, V, seed=1)
    files = train.write(tmp_path / "train"), test.write(tmp_path / "test")
    run = run_ours(*files, 15, dim=DIM, batch_size=64)
    assert run.accuracy > 0.4, f"chance is {1 / CLASSES}"
    assert 0 < run.train_seconds < run.seconds


def test_a_single_family_is_written_as_fasttext_reads_it(tmp_path):
    documents = Documents.make(3, L, V)
    lines = documents.write(tmp_path / "train", FAMILIES[:1]).read_text().splitlines()
    assert [line.split()[0] for line in lines] == [f"__label__{label}" for label in documents.labels[:, 0]]
    assert all(len(line.split()) == 1 + L for line in lines)


@pytest.mark.parametrize(
    "make", [our_step, lambda *a: torch_step(*a, sparse=True), lambda *a: torch_step(*a, sparse=False)]
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_every_peer_takes_steps(make):
    documents = Documents.make(64, L, V)
    step = make(V, DIM, documents.words, documents.labels)
    for _ in range(3):
        step()


def record(peer, ratio=None, others_cpu_share=0.0):
    return {
        "suite": "bags",
        "case": "documents",
        "shape": "N",
        "direction": "a pass",
        "unit": "microseconds",
        "peer": peer,
        "p50": 2e6,
        "ratio": None if ratio is None else {"of": "", "of_medians": ratio, "p25": ratio, "p75": ratio},
        "accuracy": 0.5,
        "others_cpu_share": others_cpu_share,
        "device": {"kind": "cpu"},
    }


@pytest.mark.parametrize(("ratio", "verdict"), [(3.1, "≥ 3, met"), (2.9, "≥ 3, missed")])
def test_the_report_says_what_is_met(ratio, verdict):
    text = "\n".join(word_sections([record("ours, one head", ratio), record("fasttext, one run")]))
    assert verdict in text
    assert "Not yet measured." in text, "nothing of gensim"


def test_a_disturbed_record_is_marked():
    text = "\n".join(word_sections([record("ours, one head", 3.1, others_cpu_share=0.4)]))
    assert "met (disturbed by 40%)" in text


def test_labels_are_spread():
    labels = Documents.make(N, L, V).labels
    assert labels.shape == (N, len(FAMILIES))
    assert np.bincount(labels.ravel(), minlength=CLASSES).min() > N / CLASSES

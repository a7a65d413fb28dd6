"""The bag benchmarks compare like with like, at a size that CI can bear."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.accuracy import InaccurateError
from bench.bag_cases import CLASSES, FAMILIES, Documents, bags_of, our_step, run_ours, torch_step
from bench.bags_gpu import CPU, Sizes, Update, UpdateCase, make_pass, measure_gpu
from bench.environment import describe
from bench.word_report import gpu_word_section, word_sections
from mt2st_fast import BagEncoder
from mt2st_fast.kernels.bags import reference as reference_embedding
from mt2st_fast.kernels.bags.rules import ADAM

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
    run = run_ours(*files, 15, dim=DIM, batch_size=64, lr=0.2)
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


def test_a_disturbed_record_decides_nothing():
    text = "\n".join(word_sections([record("ours, one head", 3.1, others_cpu_share=0.4)]))
    assert "≥ 3, undecided (disturbed)" in text


def test_labels_are_spread():
    labels = Documents.make(N, L, V).labels
    assert labels.shape == (N, len(FAMILIES))
    assert np.bincount(labels.ravel(), minlength=CLASSES).min() > N / CLASSES


# --- on a GPU: the same path at a tiny size --------------------------------------------------------------

TINY = Sizes(
    documents=80,
    L=20,
    V=V,
    dim=DIM,
    cpu_batch=20,
    batches=(40,),
    updates=(
        UpdateCase("rows", V=300, D=DIM, U=50),
        UpdateCase("rows, Adam", V=300, D=DIM, U=50, kind=ADAM),
        UpdateCase("bags", V=V, D=DIM, B=30, L=20),
        UpdateCase("bags on a long table", V=60_000, D=DIM, B=30, L=20),
    ),
)


@pytest.fixture
def short_copies(monkeypatch):
    monkeypatch.setattr("bench.floors.COPY_BYTES", {"cpu": 1 << 16})


def test_passes_and_updates_are_measured_and_reported(short_copies):
    threads = torch.get_num_threads()
    cpu = torch.device("cpu")
    made = list(measure_gpu(describe(cpu), cpu, rounds=1, sizes=TINY))
    assert torch.get_num_threads() == threads
    passes = [record for record in made if record["direction"] == "a pass"]
    assert [record["peer"] for record in passes] == [CPU, "ours, B=40"] * 2
    for record in passes:
        assert record["tokens_per_second"] == pytest.approx(80 * 20 / record["p50"] * 1e6, rel=1e-2)
    updates = [record for record in made if record["direction"] == "update"]
    assert [record["case"] for record in updates] == [case.name for case in TINY.updates]
    for record in updates:
        assert record["ratio"]["of_medians"] == pytest.approx(record["p50"] / record["floor_us"], rel=1e-1)
    text = "\n".join(gpu_word_section(made))
    assert text.count("≥ 20, ") == 2
    assert text.count("≤ 2, ") == len(TINY.updates)


def test_bytes_of_updates_are_those_of_gradient_rows_and_state():
    rows = UpdateCase("", V=9, D=10, U=4)
    assert rows.floor_bytes(4) == 4 * (8 + 40) + 2 * 4 * (40 + 4)
    assert rows._replace(kind=ADAM).floor_bytes(4) - rows.floor_bytes(4) == 2 * 4 * 80
    bags = UpdateCase("", V=9, D=10, B=3, L=5, dtype=torch.bfloat16)
    assert bags.floor_bytes(7) == 4 * 15 + 8 * 4 + 4 * 3 + 3 * 20 + 2 * 7 * (20 + 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", TINY.updates, ids=lambda case: case.name)
def test_an_update_that_does_nothing_is_not_measured(case, dtype):
    update = Update(case, torch.device("cpu"))
    update.check()
    if dtype is torch.bfloat16:
        # Cases for which a GPU has kernels, but a CPU only the oracle.
        update.case, update.kernels = case._replace(dtype=dtype), reference_embedding
        update.table = update.table.to(dtype)
        update.check()

    class Idle:
        update_rows = update_from_bags = staticmethod(lambda *_: None)

    update.kernels = Idle
    with pytest.raises(InaccurateError, match=case.name):
        update.check()


def test_a_pass_moves_the_table_as_a_cpus_own_steps_do():
    documents = Documents.make(40, 20, V)
    made = make_pass(documents, TINY, 5, 40, torch.device("cpu"))
    torch.manual_seed(0)
    step = our_step(V, DIM, documents.words, documents.labels)
    made.run()
    step()
    table = next(cell.cell_contents for cell in step.__closure__ if hasattr(cell.cell_contents, "table"))
    torch.testing.assert_close(made.table, table.table)


def test_a_gpu_without_records_is_not_estimated():
    assert gpu_word_section([]).count("Not yet measured.") == 2

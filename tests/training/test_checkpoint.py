"""A run that stops and is resumed in fresh objects ends in the very bits of one that never stopped."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mt2st_fast import (
    Callback,
    Classification,
    Diminish,
    InputError,
    MultiTask,
    MultiTaskHeads,
    Switch,
    Trainer,
)
from mt2st_fast.data import Corpus, TargetColumn, TokenBatches
from mt2st_fast.files import write_atomically
from mt2st_fast.model.encoders import WindowEncoder

EPOCHS, PER_EPOCH = 5, 6
SCHEDULES = {
    "switch": Switch(at=0.5),  # in the middle of the third epoch
    "switch-at-epoch": Switch(at_epoch=2),
    "diminish": Diminish(eta={"feats.Number": 1.0, "score": 4.0}, floor=0.05),
}


class InterruptedRunError(Exception):
    pass


class Interrupt(Callback):
    """Stops as a crash would at the end of an epoch, or as a user would after a step."""

    def __init__(self, epoch=None, step=None):
        self.at_epoch, self.at_step = epoch, step

    def on_epoch_end(self, trainer):
        if self.at_epoch is not None and trainer.epoch == self.at_epoch:
            raise InterruptedRunError

    def on_step(self, trainer):
        if trainer.step == self.at_step:
            trainer.stop_requested = True


class Stateful:
    """Batches in an order that depends on the epoch, and where it stands: what mt2st_fast.data does."""

    def __init__(self, batches):
        self.batches, self.epoch, self.position = batches, 0, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        while True:
            order = np.random.default_rng(self.epoch).permutation(len(self.batches))
            batch = self.batches[order[self.position]]
            self.position += 1
            if ends := self.position == len(self.batches):
                self.epoch, self.position = self.epoch + 1, 0
            yield batch
            if ends:
                return

    def state_dict(self):
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        self.epoch, self.position = state["epoch"], state["position"]


class Rows:
    """The toy problem row by row, for a DataLoader."""

    def __init__(self, toy):
        self.batches = toy.batches(PER_EPOCH)

    def __len__(self):
        return 32 * PER_EPOCH

    def __getitem__(self, row):
        inputs, targets = self.batches[row // 32]
        return inputs[row % 32], {name: target[row % 32] for name, target in targets.items()}


def own_generator(toy):
    return DataLoader(Rows(toy), batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(17))


DATA = {
    "stateful": lambda toy: Stateful(toy.batches(PER_EPOCH)),
    "data-loader": lambda toy: DataLoader(Rows(toy), batch_size=32, shuffle=True),
    "own-generator": own_generator,
    "by-task": lambda toy: {
        "tag": DataLoader(Rows(toy), batch_size=32, shuffle=True),
        "feats.Number": Stateful(
            [(x, {"feats.Number": y["feats.Number"]}) for x, y in toy.batches(4, seed=2)]
        ),
        "score": [(x, {"score": y["score"]}) for x, y in toy.batches(5, seed=3)],
    },
}


def everything(trainer):
    """Every parameter and all of the optimizer's state."""
    tensors = {f"encoder.{k}": v for k, v in trainer.encoder.state_dict().items()}
    tensors |= {f"heads.{k}": v for k, v in trainer.heads.state_dict().items()}
    for i, values in trainer.run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in values.items()}
    return {key: value.clone() for key, value in tensors.items()}


def run(toy, data, schedule, path=None, *, stop=None, resume=False, seed=4, **options):
    """A run in fresh objects; (history, everything)."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    train = data(toy)
    if isinstance(train, dict) and "tag" in train:
        rows = train["tag"]
        train["tag"] = _OnlyMain(rows)
    decay = {} if "optimizer" in options else {"weight_decay": 0.05}
    options = {"lr": 1e-2, "lr_decay": "linear", "log_every": 4} | decay | options
    trainer = Trainer(
        toy.encoder(dropout=0.3), toy.heads(), schedule=schedule, callbacks=[stop] if stop else [], **options
    )
    history = trainer.fit(
        train,
        val=toy.batches(2, seed=9),
        epochs=EPOCHS,
        evaluate_every=4,
        checkpoint=path,
        resume=resume,
    )
    return history, everything(trainer)


class _OnlyMain:
    """A loader whose batches keep the main task's targets only."""

    def __init__(self, loader):
        self.loader = loader

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for inputs, targets in self.loader:
            yield inputs, {"tag": targets["tag"]}


def assert_same_run(ours, theirs):
    assert ours[0] == theirs[0]
    assert ours[1].keys() == theirs[1].keys()
    for key, value in ours[1].items():
        assert torch.equal(value, theirs[1][key]), key


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("data", DATA)
def test_interrupted_after_any_epoch(toy, tmp_path, data, schedule):
    straight = run(toy, DATA[data], SCHEDULES[schedule])
    for epoch in range(1, EPOCHS + 1):
        path = tmp_path / f"{epoch}.safetensors"
        with pytest.raises(InterruptedRunError):
            run(toy, DATA[data], SCHEDULES[schedule], path, stop=Interrupt(epoch=epoch))
        # Another seed: whatever is random must come from the checkpoint.
        assert_same_run(run(toy, DATA[data], SCHEDULES[schedule], path, resume=True, seed=999), straight)


@pytest.mark.parametrize("step", [1, 4, 14, 15, 16, 29])
@pytest.mark.parametrize("data", DATA)
def test_stopped_between_epochs(toy, tmp_path, data, step):
    path = tmp_path / "run.safetensors"
    schedule = SCHEDULES["switch"]
    straight = run(toy, DATA[data], schedule)
    stopped, _ = run(toy, DATA[data], schedule, path, stop=Interrupt(step=step))
    assert len(stopped.steps) < len(straight[0].steps)
    assert_same_run(run(toy, DATA[data], schedule, path, resume=True, seed=999), straight)


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "float16", "clip_norm": 1.0},
        {"precision": "bfloat16"},
        {"accumulate": 2},
        {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)},
        {"optimizer": lambda parameters: torch.optim.Adagrad([{"params": [p]} for p in parameters], lr=0.1)},
    ],
    ids=["float16", "bfloat16", "accumulate", "sgd", "groups"],
)
def test_options_resume_as_well(toy, tmp_path, options):
    path = tmp_path / "run.safetensors"
    arguments = (toy, DATA["data-loader"], SCHEDULES["switch-at-epoch"])
    straight = run(*arguments, **options)
    run(*arguments, path, stop=Interrupt(step=7), **options)
    run(*arguments, path, resume=True, seed=999, stop=Interrupt(step=10), **options)  # stopped twice
    assert_same_run(run(*arguments, path, resume=True, seed=5, **options), straight)


@pytest.mark.parametrize("self_training", [False, True])
def test_batches_of_the_data_package_resume(tmp_path, self_training):
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 20, 300).astype(np.int32)
    main = np.where(generator.random(300) < 0.3, tokens.astype(np.int64) % 3, -100)
    corpus = Corpus(
        tokens,
        np.arange(0, 301, 10),
        {
            "main": TargetColumn("classes", ("a", "b", "c"), main),
            "aux": TargetColumn("classes", ("a", "b"), tokens.astype(np.int64) % 2),
        },
    )

    def go(path=None, stop=None, resume=False, seed=1):
        torch.manual_seed(seed)
        encoder = WindowEncoder(20, 4, window=1, hidden=8, dropout=0.2)
        heads = MultiTaskHeads(8, {"main": Classification(3), "aux": Classification(2)}, "main")
        trainer = Trainer(
            encoder, heads, schedule=Switch(at=0.5), log_every=3, callbacks=[stop] if stop else []
        )
        train = TokenBatches(corpus, 32, 1, "main", self_training=self_training)
        history = trainer.fit(train, epochs=4, checkpoint=path, resume=resume)
        return history, everything(trainer)

    straight = go()
    assert [bool(phase.own_labels) for phase in straight[0].phases] == [False, self_training]
    for step in (1, 13, 19, 20, 21, 30, 39):
        path = tmp_path / f"{step}.safetensors"
        go(path, Interrupt(step=step))
        assert_same_run(go(path, resume=True, seed=9), straight)


def test_a_finished_run_resumes_to_nothing(toy, tmp_path):
    path = tmp_path / "run.safetensors"
    straight = run(toy, DATA["stateful"], SCHEDULES["switch"], path)
    assert_same_run(run(toy, DATA["stateful"], SCHEDULES["switch"], path, resume=True, seed=7), straight)


def test_tied_parameters_are_stored(tmp_path, toy):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(toy.features, toy.features)
            self.second = nn.Linear(toy.features, toy.features)
            self.second.weight = self.first.weight

        def forward(self, inputs):
            return self.second(self.first(inputs).relu())

    path = tmp_path / "run.safetensors"
    trainer = Trainer(Tied(), toy.heads(features=toy.features))
    trainer.fit(toy.batches(2), epochs=1, checkpoint=path)
    again = Trainer(Tied(), toy.heads(features=toy.features))
    again.fit(toy.batches(2), epochs=1, checkpoint=path, resume=True)
    assert torch.equal(again.encoder.second.weight, trainer.encoder.first.weight)


# --- atomic writing ------------------------------------------------------------------------------------


def fail(*_, **__):
    raise OSError("no space left on device")


@pytest.mark.parametrize("spoil", [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"])
def test_a_failing_write_leaves_the_old_checkpoint_and_nothing_else(toy, tmp_path, monkeypatch, spoil):
    path = tmp_path / "run.safetensors"
    run(toy, DATA["stateful"], SCHEDULES["switch"], path, stop=Interrupt(step=8))
    old = path.read_bytes()
    monkeypatch.setattr(*spoil, fail)
    with pytest.raises(OSError, match="no space left"):
        run(toy, DATA["stateful"], SCHEDULES["switch"], path, resume=True)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))
    monkeypatch.setattr(Path, "replace", lambda a, b: calls.append("replace") or replace(a, b))
    write_atomically(tmp_path / "new" / "file", b"content")
    assert calls == ["fsync", "replace"]
    assert (tmp_path / "new" / "file").read_bytes() == b"content"


# --- files that do not serve ---------------------------------------------------------------------------


def assert_refused(toy, path, message, **options):
    with pytest.raises(InputError, match=message) as refused:
        run(toy, DATA["stateful"], options.pop("schedule", SCHEDULES["switch"]), path, resume=True, **options)
    assert "\n" not in str(refused.value)


@pytest.fixture
def checkpoint(toy, tmp_path):
    path = tmp_path / "run.safetensors"
    run(toy, DATA["stateful"], SCHEDULES["switch"], path, stop=Interrupt(step=8))
    return path


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(toy, checkpoint, kept):
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    assert_refused(toy, checkpoint, "is damaged and cannot be read")


def test_a_file_with_a_broken_header_is_refused(toy, checkpoint):
    content = bytearray(checkpoint.read_bytes())
    content[40:60] = b"\xff" * 20
    checkpoint.write_bytes(content)
    assert_refused(toy, checkpoint, "is damaged")


def test_a_pickle_is_never_executed(toy, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    path = tmp_path / "run.pt"
    for write in (lambda: path.write_bytes(pickle.dumps(Bomb())), lambda: torch.save({"a": Bomb()}, path)):
        write()
        assert_refused(toy, path, "is damaged|is not a checkpoint")
        assert not (tmp_path / "exploded").exists()


def test_other_safetensors_are_refused(toy, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    assert_refused(toy, path, "is not a checkpoint of this version")


def test_a_missing_file_is_named(toy, tmp_path):
    assert_refused(toy, tmp_path / "nowhere", "no checkpoint at .*nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": MultiTask()}, r"made with schedule Switch\(.*this run has MultiTask"),
        ({"schedule": Switch(at=0.6)}, "made with schedule Switch"),
        (
            {"accumulate": 2},
            "made with accumulate 1, this run has 2; use accumulate 1 again, or start a new run",
        ),
        ({"precision": "bfloat16"}, "made with precision float32, this run has bfloat16"),
        (
            {"optimizer": lambda parameters: torch.optim.SGD([{"params": [p]} for p in parameters], lr=0.1)},
            "made with AdamW, this run has SGD; use the same optimizer",
        ),
        ({"lr": 1e-5}, "made with lr 0.01, this run has 1e-05"),
        ({"weight_decay": 0.5}, "made with weight_decay 0.05, this run has 0.5"),
        ({"lr_decay": "none"}, "made with lr_decay linear, this run has none"),
        (
            {"clip_norm": 1.0},
            "has 1.0; use clip_norm None again, or start a new run",
        ),
    ],
    ids=[
        "schedule",
        "switch point",
        "accumulate",
        "precision",
        "optimizer",
        "lr",
        "weight_decay",
        "lr_decay",
        "clip_norm",
    ],
)
def test_a_run_with_other_settings_is_refused(toy, checkpoint, options, message):
    assert_refused(toy, checkpoint, message, **options)


def test_another_encoder_is_refused(toy, checkpoint):
    trainer = Trainer(
        nn.Linear(toy.features, 8), toy.heads(), schedule=SCHEDULES["switch"], lr_decay="linear"
    )
    with pytest.raises(InputError, match="does not match the encoder"):
        trainer.fit(toy.batches(PER_EPOCH), epochs=EPOCHS, checkpoint=checkpoint, resume=True)

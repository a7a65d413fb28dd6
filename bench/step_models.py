"""The models for measuring whole training steps, and the batches that they cycle through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn

from bench.environment import ROOT
from mt2st_fast import Classification, MultiTaskHeads, WindowEncoder
from mt2st_fast.data import evaluation_batches, open_data
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.experiment import Experiment
from mt2st_fast.runs.experiment_parts import evaluation_rows
from mt2st_fast.training.inputs.batch import Batch
from mt2st_fast.training.optimizers.row_sparse import LazyAdam

EWT = ROOT.parent / "shared" / "data" / "ud_english_ewt"
EWT_AUXILIARY = (
    "xpos", "deprel", "feats.Number", "feats.VerbForm", "feats.Tense", "feats.Person", "feats.Case",
    "feats.Degree",
)  # fmt: skip
TREEBANK_HEADS = (17, 50, 49, 4, 3)  # parts of speech of two kinds, relations, and two features

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class StepModel:
    """The start of every step: each one trains copies of the encoder and the heads."""

    encoder: nn.Module
    heads: MultiTaskHeads
    batches: Sequence[Batch]
    make_optimizer: MakeOptimizer
    # For the copy without row-sparse gradients, where there is one.
    make_dense_optimizer: MakeOptimizer | None = None
    held_out: Batch | None = None  # for evaluation only

    @property
    def device(self) -> torch.device:
        """The device of its parameters and batches."""
        return self.batches[0][1][self.heads.main].device

    @property
    def shape(self) -> str:
        """N and the classes of the heads as text."""
        sizes = [task.head.size for task in self.heads.tasks.values()]
        return f"N={len(self.batches[0][1][self.heads.main])} C={sizes}"


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Torch's fastest AdamW."""
    return torch.optim.AdamW(parameters, lr=1e-3, fused=True)


def embedding_model(V: int, D: int, N: int, L: int, sizes: Sequence[int], device: torch.device) -> StepModel:
    """A bag-of-words encoder over random bags of L tokens, trained by SGD; on a GPU the batches are on the device."""
    torch.manual_seed(1)
    tasks = {f"task{k}": Classification(size) for k, size in enumerate(sizes)}
    batches: list[Batch] = [
        (
            torch.randint(V, (N, L)).to(device),
            {name: torch.randint(task.classes, (N,)).to(device) for name, task in tasks.items()},
        )
        for _ in range(8)
    ]
    heads = MultiTaskHeads(D, tasks, "task0").to(device)
    return StepModel(nn.EmbeddingBag(V, D).to(device), heads, batches, lambda p: torch.optim.SGD(p, lr=0.1))


def mlp_model(K: int, N: int, device: torch.device) -> StepModel:
    """Two linear layers on 64 features of N rows under K heads of 5 classes, trained by AdamW."""

    def encoder() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())

    return _with_small_heads(encoder, (64,), 128, K, N, device)


def layered_mlp_model(
    make: Callable[[], tuple[nn.Module, ...]], K: int, N: int, device: torch.device
) -> StepModel:
    """The same with layers of your own behind each linear layer."""

    def encoder() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 128), *make(), nn.Linear(128, 128), *make())

    return _with_small_heads(encoder, (64,), 128, K, N, device)


def convolution_model(K: int, N: int, device: torch.device) -> StepModel:
    """A Conv1d over 24 positions of 8 channels, and the maximum over positions."""

    def encoder() -> nn.Module:
        return nn.Sequential(nn.Conv1d(8, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten())

    return _with_small_heads(encoder, (8, 24), 64, K, N, device)


class _TextCNN(nn.Module):
    """Convolutions of three widths over the embeddings of words, and the maximum of each over time."""

    def __init__(self, V: int, E: int, C: int) -> None:
        super().__init__()
        self.words = nn.Embedding(V, E)
        self.convolutions = nn.ModuleList(nn.Conv1d(E, C, width) for width in (3, 4, 5))

    def forward(self, words: Tensor) -> Tensor:
        """(N, 3 C) the features of words (N, L)."""
        features = self.words(words).transpose(1, 2)
        return torch.cat([torch.relu(each(features)).amax(2) for each in self.convolutions], 1)


def text_convolution_model(K: int, N: int, device: torch.device, L: int = 40, C: int = 100) -> StepModel:
    """Three convolutions over L words of a vocabulary of 5,000, as in text classifiers, under K heads of 5 classes."""
    model = _with_small_heads(lambda: _TextCNN(5000, 64, C), (L,), 3 * C, K, N, device)
    words = [torch.randint(5000, (N, L)).to(device) for _ in model.batches]
    batches: list[Batch] = [(each, batch[1]) for each, batch in zip(words, model.batches, strict=True)]
    return replace(model, batches=batches)


def recurrent_model(K: int, N: int, device: torch.device, kind: type[nn.Module] = nn.GRU) -> StepModel:
    """A GRU, or another kind of recurrent layer, over 12 positions of 16 features, and its last state."""
    return _with_small_heads(lambda: _LastState(kind(16, 64, batch_first=True)), (12, 16), 64, K, N, device)


class _LastState(nn.Module):
    def __init__(self, cells: nn.Module) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, D) the last state of sequences (N, T, D)."""
        last = self.cells(inputs)[1]
        return (last[0] if isinstance(last, tuple) else last)[0]  # type: ignore[no-any-return]


def _with_small_heads(
    make_encoder: Callable[[], nn.Module], row: Sequence[int], D: int, K: int, N: int, device: torch.device
) -> StepModel:
    """An encoder from N rows of this shape to (N, D) under K heads of 5 classes, trained by AdamW."""
    torch.manual_seed(1)
    encoder = make_encoder().to(device)
    tasks = {f"task{k}": Classification(5) for k in range(K)}
    batches: list[Batch] = [
        (torch.randn(N, *row).to(device), {name: torch.randint(5, (N,)).to(device) for name in tasks})
        for _ in range(8)
    ]
    return StepModel(encoder, MultiTaskHeads(D, tasks, "task0").to(device), batches, adamw)


def ewt_model(device: torch.device) -> StepModel:
    """The model of `train` for the English Web Treebank: parts of speech and eight auxiliary tasks."""
    splits = open_data(f"conllu:{EWT}", main="upos", auxiliary=EWT_AUXILIARY)
    experiment = Experiment.prepare(Config(device="cpu"), splits)
    trainer, lr = experiment.trainer, experiment.config.lr
    batches = list(islice(iter(experiment.train), 16))
    n_rows = evaluation_rows(splits.dev, splits.tasks)
    return StepModel(
        trainer.encoder,
        trainer.heads,
        batches,
        lambda p: LazyAdam(p, lr=lr, fused=True),
        lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=0, fused=True),
        next(iter(evaluation_batches(splits.dev, n_rows, experiment.config.window, splits.tasks))),
    )


def tagger_model(
    device: torch.device, N: int = 512, V: int = 10_000, dim: int = 64, window: int = 2, hidden: int = 128
) -> StepModel:
    """A model as `train` makes it for a treebank, on random words: a row-sparse window encoder and five heads."""
    torch.manual_seed(1)
    subwords = torch.randint(V, 2 * V, (V, 4))  # for every type, hashed into V further rows
    rows_of_type = torch.cat([torch.arange(V).unsqueeze(1), subwords], dim=1)
    encoder = WindowEncoder(
        V,
        dim,
        window=window,
        hidden=hidden,
        dropout=0.3,
        sparse=True,
        rows_of_type=rows_of_type,
        num_rows=2 * V,
    )
    tasks = {f"task{k}": Classification(size) for k, size in enumerate(TREEBANK_HEADS)}
    heads = MultiTaskHeads(encoder.out_features, tasks, "task0")
    # Words distributed as in a text: a batch has the frequent ones many times.
    shares = 1 / torch.arange(1, V + 1, dtype=torch.float64)
    batches: list[Batch] = [
        (
            torch.multinomial(shares, N * (2 * window + 1), replacement=True).view(N, -1).to(device),
            {name: torch.randint(task.classes, (N,)).to(device) for name, task in tasks.items()},
        )
        for _ in range(16)
    ]
    return StepModel(
        encoder.to(device),
        heads.to(device),
        batches,
        lambda p: LazyAdam(p, lr=1e-2, fused=True),
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0, fused=True),
    )

"""The device that a Word2Vec is trained on, and what cannot be trained on a GPU."""

from __future__ import annotations

import torch

from mt2st_fast.errors import InputError
from mt2st_fast.kernels.context.batch import WordSampler
from mt2st_fast.kernels.context.walkers import WalkOptions, WalkTraining, choose_walkers, walk_obstacle
from mt2st_fast.words.word2vec_options import LearningOptions
from mt2st_fast.words.word_tables import WordTables

CPU = torch.device("cpu")
DEVICES = "available: cpu, cuda, auto (cuda if there is a GPU that can train this model)"


def training_device(name: str, options: LearningOptions, *, has_tasks: bool, is_locked: bool) -> torch.device:
    """Return the device that a Word2Vec's `device` stands for.

    has_tasks, is_locked: whether it has auxiliary tasks, and locked vectors. Raises InputError for a device that is not
    available, and for one that cannot train such a model; "auto" falls back to the CPU instead.
    """
    if name == "cpu":
        return CPU
    there = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda") if there and not _obstacle(options, has_tasks, is_locked) else CPU
    device = _cuda_device(name)
    if not there:
        raise InputError(
            f"device={name!r} is not available: torch sees no CUDA device here; use device='cpu'"
        )
    if reason := _obstacle(options, has_tasks, is_locked):
        raise InputError(f"device={name!r} {reason}; use device='cpu'")
    return device


def _cuda_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = CPU
    if device.type != "cuda":
        raise InputError(f"device {name!r} is unknown; {DEVICES}")
    return device


def _obstacle(options: LearningOptions, has_tasks: bool, is_locked: bool) -> str | None:
    """Return what keeps a GPU from training such a model, or None."""
    if options.hs:
        return "does not train hierarchical softmax (hs=1)"
    if options.max_n:
        return "does not train character n-grams (max_n)"
    if has_tasks:
        return "does not train auxiliary tasks (tasks)"
    if not options.shrink_windows:
        return "does not train windows of fixed width (shrink_windows=False)"
    if not options.cbow_mean and not options.sg:
        return "does not train the sum of a window (cbow_mean=0)"
    if not options.sorted_vocab:
        return "does not train words in an order other than by count (sorted_vocab=0)"
    if is_locked:
        return "does not train with locked vectors (wv.vectors_lockf)"
    return walk_obstacle(options.mode, options.window, options.vector_size)


def walkers_over(
    tables: WordTables, options: LearningOptions, sampler: WordSampler, n_words: int, device: torch.device
) -> WalkTraining:
    """Copy tables to a device, for training on a text of n_words."""
    assert tables.output_vectors is not None  # hierarchical softmax alone has none, and is an obstacle
    walk = WalkOptions(options.mode, options.window, options.negative)
    walkers = choose_walkers(n_words, tables.counts, sampler, walk)
    walk = WalkOptions(walk.mode, walk.window, walk.negatives, walkers)
    return WalkTraining(tables.input_rows, tables.output_vectors, sampler, walk, device)

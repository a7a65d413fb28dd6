"""The device that a Word2Vec is trained on, and what cannot be trained on a GPU."""

from __future__ import annotations

from typing import Any

import torch

from mt2st_fast.data.tokens import Tokens
from mt2st_fast.errors import InputError
from mt2st_fast.kernels.context.batch import WordSampler
from mt2st_fast.kernels.context.walkers import WalkOptions, WalkTraining, choose_walkers, walk_obstacle

CPU = torch.device("cpu")
DEVICES = "available: cpu, cuda, auto (cuda if there is a GPU that can train this model)"


def mode_of(model: Any) -> str:
    """ "skipgram" or "cbow"."""
    return "skipgram" if model.sg else "cbow"


def training_device(model: Any) -> torch.device:
    """Return the device that model.device stands for.

    Raises InputError for a device that is not available, and for one that cannot train such a model; "auto" falls back
    to the CPU instead.
    """
    name = str(model.device)
    if name == "cpu":
        return CPU
    there = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda") if there and _obstacle(model) is None else CPU
    device = _cuda_device(name)
    if not there:
        raise InputError(
            f"device={name!r} is not available: torch sees no CUDA device here; use device='cpu'"
        )
    if reason := _obstacle(model):
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


def _obstacle(model: Any) -> str | None:
    """Return what keeps a GPU from training the model, or None."""
    if model.hs:
        return "does not train hierarchical softmax (hs=1)"
    if model.max_n:
        return "does not train character n-grams (max_n)"
    if model.tasks:
        return "does not train auxiliary tasks (tasks)"
    if not model.shrink_windows:
        return "does not train windows of fixed width (shrink_windows=False)"
    if not model.cbow_mean and not model.sg:
        return "does not train the sum of a window (cbow_mean=0)"
    if not model.sorted_vocab:
        return "does not train words in an order other than by count (sorted_vocab=0)"
    if len(model.lock_factors()):
        return "does not train with locked vectors (wv.vectors_lockf)"
    return walk_obstacle(mode_of(model), model.window, model.vector_size)


def walkers_over(model: Any, text: Tokens, sampler: WordSampler, device: torch.device) -> WalkTraining:
    """Copy the model's tables to a device, for training on a text in ids of its words."""
    options = WalkOptions(mode_of(model), model.window, model.negative)
    walkers = choose_walkers(len(text.ids), model.counts, sampler, options)
    options = WalkOptions(options.mode, options.window, options.negatives, walkers)
    return WalkTraining(model.input_rows, model.output_vectors, sampler, options, device)

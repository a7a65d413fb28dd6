"""Runs a batch's inputs through the user's encoder and checks the result, with a one-line error message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from mt2st_fast.model.task_features import TaskFeatures, features_and_mask


def encode_shared(encoder: Callable[[Any], Any], inputs: Any) -> tuple[Tensor, Tensor | None]:
    """As `encode`, for comparing tasks on shared features; raises TypeError if each task has its own."""
    features, mask = encode(encoder, inputs)
    if isinstance(features, TaskFeatures):
        raise TypeError(
            "features that all tasks share are needed here, but the encoder has separate features per task"
        )
    return features, mask


def encode(encoder: Callable[[Any], Any], inputs: Any) -> tuple[Tensor | TaskFeatures, Tensor | None]:
    """Return the features, and the mask of what is real in them if the encoder returns one.

    Raises TypeError if the encoder fails on a dictionary or on numbers that it was not made for, or returns something
    else.
    """
    try:
        encoded = encoder(inputs)
    except (AttributeError, KeyError, TypeError) as error:
        if (why := _unfit(inputs, type(encoder).__name__)) is None:
            raise
        reason = str(error).strip().splitlines()[:1]
        raise TypeError(f"{why} ({': '.join([type(error).__name__, *reason])})") from error
    return features_and_mask(encoded)


def _unfit(inputs: Any, encoder: str) -> str | None:
    """Return what may be wrong with inputs on which an encoder has failed, and the fix; None if nothing seems to be."""
    parts = inputs if isinstance(inputs, Mapping) else {"": inputs}
    untensored = {name: kind for name, part in parts.items() if (kind := _untensored(part)) is not None}
    if untensored:
        name, kind = next(iter(untensored.items()))
        which = f"the input {name} of a batch is" if name else "the inputs of a batch are"
        return (
            f"{which} {kind}, not a tensor, and {encoder} does not take it; pass torch.as_tensor(...), or "
            'with_format("torch") of a data set of Hugging Face'
        )
    if not isinstance(inputs, Mapping):
        return None
    return (
        f"a batch has the inputs {', '.join(map(str, inputs))}, which {encoder} does not take as a dictionary; every "
        "key that is not a task is an input, so remove those that are not"
    )


def _untensored(part: Any) -> str | None:
    """Return what holds numbers outside of tensors, in words; None for all else."""
    if isinstance(part, np.ndarray):
        return "an array of NumPy" if part.dtype.kind in "biuf" else None
    if not isinstance(part, list):
        return None
    inner = part
    while isinstance(inner, list) and inner:
        inner = inner[0]
    return "a list of numbers" if isinstance(inner, int | float) else None

"""Runs a batch's inputs through the user's encoder and checks the result, with a one-line error message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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

    Raises TypeError if the encoder fails on a dictionary that it was not made for, or returns something else.
    """
    try:
        encoded = encoder(inputs)
    except (AttributeError, KeyError, TypeError) as error:
        if not isinstance(inputs, Mapping):
            raise
        reason = str(error).strip().splitlines()[:1]
        raise TypeError(
            f"a batch has the inputs {', '.join(map(str, inputs))}, which {type(encoder).__name__} does not take as "
            "a dictionary; every key that is not a task is an input, so remove those that are not "
            f"({': '.join([type(error).__name__, *reason])})"
        ) from error
    return features_and_mask(encoded)

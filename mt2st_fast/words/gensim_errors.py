"""Errors that are also what gensim raises in their place, for code that catches its types."""

from __future__ import annotations

from mt2st_fast.errors import InputError


class NoWordsError(InputError, RuntimeError):
    """There are no words, or not the vectors that are asked for: nothing to train or to ask."""


class NoSuchNameError(InputError, AttributeError):
    """A name of gensim's that is not here, or a file that is none of our models."""


class NotATextError(InputError, TypeError):
    """What was given as text holds something else than lists of words."""

"""Errors that are also of the type that gensim raises in the same place, for code that catches those."""

from __future__ import annotations

from mt2st_fast.errors import InputError


class NoWordsError(InputError, RuntimeError):
    """The model or the text has no words, or the model lacks the vectors that are needed."""


class NoSuchNameError(InputError, AttributeError):
    """A name of gensim's that is not available here, or a file that is none of our models."""


class NotATextError(InputError, TypeError):
    """The text contains something other than lists of words."""

"""Errors that name an option carry its name, so that a command can call it by its flag."""

from __future__ import annotations

import pickle

from mt2st_fast.errors import InputError, OptionError


def test_an_error_names_its_option_and_takes_another_name() -> None:
    error = OptionError("too few words; use a smaller ", "min_count", " or more text")
    assert str(error) == "too few words; use a smaller min_count or more text"
    assert str(error.calling_it("--min-count")) == "too few words; use a smaller --min-count or more text"
    assert isinstance(error, InputError)


def test_it_passes_between_processes() -> None:
    error = OptionError("use a smaller ", "min_count")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)

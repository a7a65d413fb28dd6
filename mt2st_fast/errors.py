"""The exception that the command line prints as one line of advice."""

from __future__ import annotations


class InputError(ValueError):
    """User input that cannot be used; the message is one line that names the problem and the fix."""


class OptionError(InputError):
    """An error whose message names an option, as Python calls it, between what is `before` it and `after` it."""

    def __init__(self, before: str, option: str, after: str = "") -> None:
        super().__init__(before, option, after)

    def __str__(self) -> str:
        return "".join(self.args)

    def calling_it(self, option: str) -> OptionError:
        """Return the same error with another name of the option, such as that of a flag."""
        before, _, after = self.args
        return OptionError(before, option, after)


class LostProcessError(InputError):
    """Another process is gone, or has stopped, and this one cannot continue alone."""


INTERRUPTED = "mt2st-fast: interrupted"  # what a command says that Ctrl-C ends; its exit code is 130

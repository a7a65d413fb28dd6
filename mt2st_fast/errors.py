"""The exception that the command line prints as one line of advice."""


class InputError(ValueError):
    """User input that cannot be used; the message is one line that names the problem and the fix."""


class LostProcessError(InputError):
    """Another process is gone, or has stopped, and this one cannot continue alone."""


INTERRUPTED = "mt2st-fast: interrupted"  # what a command says that Ctrl-C ends; its exit code is 130

"""The exception that the command line prints as one line of advice."""


class InputError(ValueError):
    """User input that cannot be used; the message is one line that names the problem and the fix."""

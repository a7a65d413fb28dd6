"""The one exception that the command line turns into a line of advice."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line that names it and the fix."""

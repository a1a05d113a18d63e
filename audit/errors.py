"""The one exception that is shown to people."""


class InputError(ValueError):
    """Bad input, told in one sentence: what was wrong (with the value), where, and how to mend it."""

"""The one exception that is shown to people."""


class InputError(ValueError):
    """Bad input, told in one sentence: what was wrong (with the value), where, and how to mend it."""


class Cancelled(Exception):
    """Somebody asked to stop; what was done so far is kept."""

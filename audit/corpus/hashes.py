"""What counts as the hash of a picture's file: tables of training sets hold any text in such a column."""

from __future__ import annotations

import string

ALGORITHMS = {32: "md5", 64: "sha256", 128: "sha512"}
"""Digests that tables of training sets hold, by their number of hex digits."""


def digest(text: str) -> str:
    """A digest in lower-case hex; empty where the text is none.

    >>> digest(" " + "AB" * 16), digest("unknown"), digest("ab")
    ('abababababababababababababababab', '', '')
    """
    found = text.strip().lower()
    return found if len(found) in ALGORITHMS and set(found) <= set(string.hexdigits) else ""

"""Quantities as people say them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds, minutes or hours.

    Examples
    --------
    >>> duration(0.2), duration(600), duration(36_000)
    ('1 s', '10 min', '10.0 h')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:,.1f} h"


def disk(number: float) -> str:
    """Bytes.

    Examples
    --------
    >>> disk(12), disk(2_500_000)
    ('12 bytes', '2.5 MB')
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:,.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"

"""Cells of CSV that a spreadsheet does not run."""

from __future__ import annotations

import re

FORMULA = re.compile(r"[\s']*[=+\-@]")


def safe_cell(value: object) -> object:
    """Text that a spreadsheet would run as a formula, with an apostrophe before it; numbers as they are.

    So has text that looks as if it had one already, so that `plain_cell` gives back what there was.
    """
    return "'" + value if isinstance(value, str) and FORMULA.match(value) else value


def plain_cell(text: str) -> str:
    """Text as it was before `safe_cell`."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text

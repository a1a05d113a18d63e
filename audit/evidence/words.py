"""What exhibits say, by key: ``assets/exhibit/LANGUAGE.json``, so that another language is another file."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from audit.errors import InputError
from audit.settings import ROOT

ASSETS = ROOT / "assets" / "exhibit"
ENGLISH = "en"


class Words:
    """The texts of one language. What is filled in is never read as a pattern itself."""

    def __init__(self, path: Path):
        self.texts: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))

    def __call__(self, key: str, /, **values: object) -> str:
        return self.texts[key].format(**values) if values else self.texts[key]

    def __contains__(self, key: str) -> bool:
        return key in self.texts

    def of_kind(self, key: str, kind: str, /, **values: object) -> str:
        """The text for one kind of verdict, or the one for any other."""
        return self(f"{key}.{kind}" if f"{key}.{kind}" in self else f"{key}.other", **values)

    def count(self, what: str, n: int) -> str:
        """So many of something, in words."""
        one, many = self.texts[f"count.{what}"].split("|")
        return (one if n == 1 else many).format(n=f"{n:,}")


def languages() -> list[str]:
    """Those for which there are texts."""
    return sorted(path.stem for path in ASSETS.glob("*.json"))


@lru_cache
def words(language: str = ENGLISH) -> Words:
    """The texts of a language, read once; InputError where there are none."""
    if language not in languages():
        raise InputError(f"There are no texts in the language {language[:20]!r}.")
    return Words(ASSETS / f"{language}.json")


def amount(value: float | None, missing: str = "–") -> str:
    """A distance or another large number, for people: whole from 100 on, else with two digits after the point."""
    if value is None:
        return missing
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"


def share(value: float) -> str:
    """A share in per cent, with as many digits as say something."""
    percent = 100 * value
    return f"{percent:.0f}%" if percent >= 10 else f"{percent:.1f}%" if percent >= 1 else f"{percent:.2g}%"

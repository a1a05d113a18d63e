"""The report as PDF/A-2a and PDF/UA-1: tagged for screen readers, fonts embedded, equal byte for byte each time."""

from __future__ import annotations

import io
import json
import tempfile
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import typst
from fontTools.ttLib import TTFont
from PIL import Image

from audit.errors import InputError
from audit.evidence.words import ASSETS
from audit.images import COMPARE_SIZE

REPORT = "report.pdf"
TEMPLATE = "report.typ"
STANDARDS: list[typst.PDFStandard] = ["a-2a", "ua-1"]
TIMESTAMP = 0
"""What the PDF says it was made at: nothing of the exhibit depends on a clock."""
LETTERS = ("OpenSans-Regular.ttf", "DejaVuSans.ttf")
LONGEST_WORD = 64
"""A longer run of letters may be broken anywhere, or it would leave the page."""
ZERO_WIDTH_SPACE = "\u200b"


def pdf(document: Mapping[str, Any], pictures: Mapping[str, bytes]) -> bytes:
    """The report of a document (`audit.evidence.document`) with its pictures by name."""
    try:
        return _compile(letters(document, covered), pictures)
    except typst.TypstError:
        # a script whose letters the fonts have, but not all the forms that it is set in
        try:
            return _compile(letters(document, str.isascii), pictures)
        except typst.TypstError as error:
            raise InputError(f"The report could not be set: {error.message[:200]}") from error


def _compile(document: Mapping[str, Any], pictures: Mapping[str, bytes]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:  # typst reads pictures from files alone, below its root
        root = Path(folder)
        (root / TEMPLATE).write_bytes((ASSETS / TEMPLATE).read_bytes())
        (root / "document.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        for name, data in pictures.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(enlarged(data))
        made = typst.compile(
            root / TEMPLATE,
            root=root,
            font_paths=fonts(),
            ignore_system_fonts=True,
            pdf_standards=STANDARDS,
            timestamp=TIMESTAMP,
            format="pdf",
        )
    assert isinstance(made, bytes)
    return made


@lru_cache(maxsize=1)
def fonts() -> typst.Fonts:
    """Those that ship with Verbatim and with typst, read once."""
    return typst.Fonts(include_system_fonts=False, font_paths=[str(ASSETS / "fonts")])


@lru_cache(maxsize=1)
def _covered() -> frozenset[int]:
    return frozenset().union(
        *(TTFont(ASSETS / "fonts" / name, lazy=True).getBestCmap() or {} for name in LETTERS)
    )


def covered(character: str) -> bool:
    """Whether the report's fonts have a letter."""
    return ord(character) in _covered()


def printable(text: str, has: Callable[[str], bool]) -> str:
    """A text in which what is invisible, turns the direction of writing or has no letter stands as its number.

    >>> printable("a\\u202eb", covered)
    'a{U+202E}b'
    """
    return "".join(
        character
        if character in " \n" or (unicodedata.category(character)[0] != "C" and has(character))
        else f"{{U+{ord(character):04X}}}"
        for character in text
    )


def letters(content: Any, has: Callable[[str], bool]) -> Any:
    """A document whose texts are `printable`, with places at which long words may be broken."""
    if isinstance(content, str):
        return " ".join(map(breakable, printable(content, has).split(" ")))
    if isinstance(content, Mapping):
        return {
            key: value if key in ("file", "language") else letters(value, has)
            for key, value in content.items()
        }
    if isinstance(content, (list, tuple)):
        return [letters(value, has) for value in content]
    return content


def breakable(word: str) -> str:
    if len(word) <= LONGEST_WORD:
        return word
    return ZERO_WIDTH_SPACE.join(word[start : start + 16] for start in range(0, len(word), 16))


def enlarged(png: bytes) -> bytes:
    """A picture for print: a small one brought to the size at which it is compared, as that is done."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        if max(picture.size) >= COMPARE_SIZE:
            return png
        factor = COMPARE_SIZE / max(picture.size)
        size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        stream = io.BytesIO()
        picture.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()

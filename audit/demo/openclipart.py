"""Reads the pictures of Debian's ``openclipart-png`` and ``openclipart-svg`` packages with their metadata.

Title, keywords, author and licence stand in the RDF block of each SVG; the PNG beside it is its rendering.
All of it is dedicated to the public domain (/usr/share/doc/openclipart-png/copyright).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from audit.errors import InputError

ROOT = Path("/usr/share/openclipart")
DC = "{http://purl.org/dc/elements/1.1/}"
CC = "{http://web.resource.org/cc/}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


@dataclass(frozen=True)
class ClipArt:
    """One picture of the package, not yet decoded."""

    path: Path
    """The PNG."""
    source: str
    """Its name inside the package, such as ``animals/bat_orlando_karam_.png``."""
    title: str
    keywords: tuple[str, ...]
    author: str
    licence: str


def read_all(root: Path = ROOT) -> list[ClipArt]:
    """Every PNG with the metadata of its SVG, in name order.

    Raises
    ------
    InputError
        If the packages are not installed.
    """
    if not (root / "png").is_dir() or not (root / "svg").is_dir():
        raise InputError(
            f"{root} has no png and svg folders; "
            "install Debian's packages openclipart-png and openclipart-svg."
        )
    return [read(path, root) for path in sorted((root / "png").rglob("*.png"))]


def read(path: Path, root: Path = ROOT) -> ClipArt:
    """One PNG with the metadata of its SVG; what is missing there is empty."""
    relative = path.relative_to(root / "png")
    title, keywords, author, licence = _metadata(root / "svg" / relative.with_suffix(".svg"))
    return ClipArt(path, relative.as_posix(), title, keywords, author, licence)


def _metadata(svg: Path) -> tuple[str, tuple[str, ...], str, str]:
    try:
        work = ElementTree.parse(svg).getroot().find(f".//{CC}Work")
    except (OSError, ElementTree.ParseError):
        work = None
    if work is None:
        return "", (), "", ""
    keywords = [_text(item) for item in work.findall(f"{DC}subject/{RDF}Bag/{RDF}li")]
    licence = work.find(f"{CC}license")
    resource = "" if licence is None else licence.get(f"{RDF}resource", "")
    return (
        _text(work.find(f"{DC}title")),
        tuple(keyword for keyword in keywords if keyword),
        _text(work.find(f"{DC}creator/{CC}Agent/{DC}title")),
        "Public domain" if resource.endswith("PublicDomain") or "publicdomain" in resource else resource,
    )


def _text(element: ElementTree.Element | None) -> str:
    return "" if element is None or element.text is None else re.sub(r"\s+", " ", element.text).strip()

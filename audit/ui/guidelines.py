"""The labelling guidelines out of ``assets/guidelines.md``, with examples made of the demo's own pictures."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import streamlit as st

from audit.errors import InputError
from audit.images import decode, resize
from audit.settings import DEMO, ROOT
from audit.ui.labelling import Example, Section
from audit.ui.pictures import data_uri
from audit.ui.prepared import picture_key

FILE = ROOT / "assets" / "guidelines.md"
FISH, HOUSE, FLOWER, DAISY = "2f6650091820", "12a50fee5af6", "1cbec9aa340f", "244ec1e0e9e6"
FAMILY = ("01173d7f0dba-0", "01173d7f0dba-1")
LABEL = re.compile(r"\d · (\w+),")
MADE = "Made for this page from the picture on the right; no model drew it."


def parse(text: str) -> list[Section]:
    """Sections of our own plain Markdown: headings, paragraphs and lists, their stars taken away."""
    sections = []
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        sections.append(Section(title.strip(), tuple(map(_block, re.split(r"\n\s*\n", body.strip())))))
    return sections


def _block(text: str) -> str | list[str]:
    lines = [" ".join(line.replace("*", "").split()) for line in text.splitlines()]
    return [line[2:] for line in lines] if all(line.startswith("- ") for line in lines) else " ".join(lines)


@st.cache_resource(show_spinner=False, max_entries=2)
def guidelines(blur: bool) -> tuple[list[Section], dict[str, str]]:
    """The sections, and the pictures of their examples by key."""
    pictures: dict[str, str] = {}
    shown = _examples(pictures, blur)
    sections = [
        replace(each, examples=tuple(shown.get(match[1], ()))) if (match := LABEL.match(each.title)) else each
        for each in parse(FILE.read_text(encoding="utf-8"))
    ]
    return sections, pictures


def _examples(pictures: dict[str, str], blur: bool) -> dict[str, list[Example]]:
    """Label -> examples; none where the demo's pictures are not at hand."""

    def example(words: str, left: np.ndarray, right: np.ndarray, alts: tuple[str, str]) -> Example:
        keys = []
        for image in (left, right):
            key = picture_key(image, blur)
            pictures[key] = data_uri(image, blur=blur)
            keys.append(key)
        return Example(words, (keys[0], keys[1]), alts)

    try:
        fish, house, flower, daisy = map(_picture, (FISH, HOUSE, FLOWER, DAISY))
        one, two = map(_picture, FAMILY)
    except InputError:
        return {}
    return {
        "MV": [
            example(
                f"MV: softer and noisier, but the same drawing. {MADE}",
                _softened(fish),
                fish,
                ("A blurred copy of a drawing", "The drawing"),
            )
        ],
        "RV": [
            example(
                f"RV, where the drawing on the right belongs to another caption. {MADE}",
                _softened(house),
                house,
                ("A blurred copy of another drawing", "The drawing"),
            )
        ],
        "TV": [
            example(
                "TV: two training images of one family. All but one region is the same.",
                one,
                two,
                ("A drawing with a region of its own", "The same drawing with another region"),
            )
        ],
        "N": [
            example(
                "N: the same kind of thing, drawn twice.",
                flower,
                daisy,
                ("A drawing", "Another drawing of the same kind"),
            )
        ],
        "PV": [
            example(
                f"PV: a piece of the right picture, mirrored and moved onto another one. {MADE}",
                _patched(daisy, fish),
                fish,
                ("A drawing with a piece of another one", "The drawing that the piece is from"),
            )
        ],
    }


def _picture(name: str) -> np.ndarray:
    return resize(decode(DEMO / "corpus" / "images" / f"{name}.webp", name))


def _softened(image: np.ndarray) -> np.ndarray:
    """As copies come out of a model: a little softer, with some noise."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(0).normal(0.0, 0.02, image.shape)
    return np.clip(gaussian_filter(image, (1.5, 1.5, 0.0)) + noise, 0.0, 1.0).astype(np.float32)


def _patched(below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """The middle of one picture, mirrored, in a corner of another."""
    patched = below.copy()
    patched[128:240, 128:240] = above[72:184, 72:184][:, ::-1]
    return patched

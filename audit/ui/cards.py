"""A training image as a card: picture, caption, to whom it is owed, and what is claimed about it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from audit.corpus.stored import is_local, open_stored
from audit.errors import InputError
from audit.images import resize
from audit.ui import remote
from audit.ui.claims import Claim, badge
from audit.ui.pictures import png, strip_png
from audit.ui.removal import REMOVED, removed
from audit.ui.text import count, escape, literal, shorten

if TYPE_CHECKING:
    from audit.corpus.reader import Row
    from audit.records import Neighbour
    from audit.retrieval.search import PictureCache

DEAD = "This picture's file is missing or damaged, so it could not be compared: a dead link, not a copy."
STRIP = 4
"""Pictures that stand for a group in a list."""
THUMBNAIL = 128


def attribution(title: str, author: str, licence: str, source: str) -> str:
    """To whom a picture is owed, in one line; what is not known is said to be so.

    A title of any length leaves room for the author.
    """
    return " · ".join(
        [
            *([f"“{shorten(title, 60)}”"] if title else []),
            f"by {shorten(author)}" if author else "author not known",
            shorten(licence) or "licence not known",
        ]
        + ([source] if source else [])
    )


def owed(stored: Row | Neighbour) -> None:
    """To whom a picture is owed, in small letters."""
    literal(
        attribution(stored.title, stored.author, stored.licence, stored.source or stored.url), style="owed"
    )


def owed_together(rows: Sequence[Row]) -> None:
    """To whom the pictures of a `strip` are owed: each author and licence once, with the sources of theirs."""
    sources: dict[tuple[str, str], list[str]] = {}
    for row in rows[:STRIP]:
        found = sources.setdefault((row.author, row.licence), [])
        if (source := row.source or row.url) not in found:
            found.append(source)
    for (author, licence), found in sources.items():
        literal(attribution("", author, licence, ", ".join(filter(None, found))), style="owed")


def why_none(stored: Row | Neighbour) -> str:
    """Why a training picture cannot be shown."""
    return REMOVED if removed(stored) else DEAD


def picture(stored: Row | Neighbour, *, blur: bool) -> None:
    """A training picture, losslessly, from its file or as soon as it is fetched; or a sentence that says why not."""
    remote.as_they_come([stored], partial(_picture, stored, blur))


def _picture(stored: Row | Neighbour, blur: bool) -> None:
    if removed(stored):
        st.info(REMOVED, icon=":material/visibility_off:")
        return
    try:
        if remote.elsewhere(stored):
            shown = remote.picture(stored, blur=blur)
        else:
            shown = png(open_stored(stored), blur=blur)
    except InputError as error:
        st.warning(DEAD if is_local(stored) else escape(str(error)), icon=":material/link_off:")
        return
    if shown is None:
        remote.waiting(stored)
        return
    words = f"Training image with the caption: {shorten(stored.caption, 200)}" + (
        " (blurred)" if blur else ""
    )
    st.image(shown, output_format="PNG", width="stretch", alt=words)


def strip(rows: Sequence[Row], pictures: PictureCache, *, blur: bool) -> None:
    """The first training pictures of a group in a line; what cannot be shown is told, and no grey stands for it."""
    rows = rows[:STRIP]
    remote.as_they_come(rows, partial(_strip, rows, pictures, blur))


def _strip(rows: Sequence[Row], pictures: PictureCache, blur: bool) -> None:
    found: list[tuple[Row, np.ndarray]] = []
    coming = dead = hidden = 0
    for row in rows:
        if removed(row):
            hidden += 1
            continue
        try:
            if remote.elsewhere(row) and remote.fetched(row) is None:
                coming += 1
                continue
            pixels = pictures.get(row)
        except InputError:
            pixels = None
        if pixels is None:
            dead += 1
        else:
            found.append((row, resize(pixels.astype(np.float32) / 255.0, THUMBNAIL)))
    of = count(len(rows), "picture", "pictures")
    if found:
        words = f"{len(found)} of the group's pictures; the first has the caption: {shorten(found[0][0].caption, 200)}"
        line = strip_png([tile for _, tile in found], STRIP, blur=blur)
        st.image(line, output_format="PNG", width="stretch", alt=words)
    if coming:
        st.markdown(f":material/downloading: Fetching {coming} of {of} …")
    if hidden:
        st.markdown(f":material/visibility_off: {hidden} of {of} were removed from view.")
    if dead:
        st.markdown(f":material/link_off: {dead} of {of} could not be opened.")


def card(
    stored: Row | Neighbour,
    *,
    blur: bool,
    claims: tuple[Claim, ...] = (),
    number: str = "",
) -> None:
    """Picture, claims with their number, caption, attribution."""
    picture(stored, blur=blur)
    if claims or number:
        with st.container(horizontal=True, gap="xxsmall", vertical_alignment="center"):
            for claim in claims:
                badge(claim)
            if number:
                st.markdown(f":small[{escape(number)}]", width="content")
    literal(stored.caption, style="clamp")
    owed(stored)

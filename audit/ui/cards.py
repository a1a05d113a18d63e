"""A training image as a card: picture, caption, to whom it is owed, and what is claimed about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from audit.corpus.stored import is_local, open_stored
from audit.errors import InputError
from audit.ui import remote
from audit.ui.claims import Claim, badge
from audit.ui.pictures import png
from audit.ui.removal import REMOVED, removed
from audit.ui.text import escape, literal, shorten

if TYPE_CHECKING:
    from audit.corpus.reader import Row
    from audit.records import Neighbour

DEAD = "This picture's file is missing or damaged, so it could not be compared: a dead link, not a copy."


def attribution(title: str, author: str, licence: str, source: str) -> str:
    """To whom a picture is owed, in one line; what is not known is said to be so."""
    return " · ".join(
        [
            *([f"“{title}”"] if title else []),
            f"by {author}" if author else "author not known",
            licence or "licence not known",
        ]
        + ([source] if source else [])
    )


def why_none(stored: Row | Neighbour) -> str:
    """Why a training picture cannot be shown."""
    return REMOVED if removed(stored) else DEAD


def picture(stored: Row | Neighbour, *, blur: bool) -> None:
    """A training picture, losslessly, from its file or as soon as it is fetched; or a sentence that says why not."""
    if removed(stored):
        st.info(REMOVED, icon=":material/visibility_off:")
        return
    try:
        image = open_stored(stored) if is_local(stored) or not stored.url else remote.picture(stored)
    except InputError as error:
        st.warning(DEAD if is_local(stored) else escape(str(error)), icon=":material/link_off:")
        return
    if image is None:
        remote.waiting(stored)
        return
    words = f"Training image with the caption: {shorten(stored.caption, 200)}" + (
        " (blurred)" if blur else ""
    )
    st.image(png(image, blur=blur), output_format="PNG", width="stretch", alt=words)


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
    literal(attribution(stored.title, stored.author, stored.licence, stored.source or stored.url))

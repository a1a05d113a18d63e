"""A training image as a card: picture, caption, to whom it is owed, and what is claimed about it."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from audit.errors import InputError
from audit.images import decode
from audit.ui.claims import Claim, badge
from audit.ui.pictures import png
from audit.ui.text import escape, literal, shorten

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


def picture(path: str | Path, caption: str, *, blur: bool) -> None:
    """A training picture from its file, losslessly, or a sentence where it cannot be read."""
    try:
        image = decode(Path(path))
    except InputError:
        st.warning(DEAD, icon=":material/link_off:")
        return
    words = f"Training image with the caption: {shorten(caption, 200)}" + (" (blurred)" if blur else "")
    st.image(png(image, blur=blur), output_format="PNG", width="stretch", alt=words)


def card(
    path: str | Path,
    caption: str,
    owed: str,
    *,
    blur: bool,
    claims: tuple[Claim, ...] = (),
    number: str = "",
) -> None:
    """Picture, claims with their number, caption, attribution."""
    picture(path, caption, blur=blur)
    if claims or number:
        with st.container(horizontal=True, gap="xxsmall", vertical_alignment="center"):
            for claim in claims:
                badge(claim)
            if number:
                st.markdown(f":small[{escape(number)}]", width="content")
    literal(caption, style="clamp")
    literal(owed)

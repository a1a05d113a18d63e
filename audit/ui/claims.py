"""The three claims and the six verdicts: one table of names, colours and what each of them says.

Colours are names of the theme's palette (.streamlit/config.toml), so that each is right in light and dark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import streamlit as st

from audit.records import Verdict, VerdictKind
from audit.ui.text import escape

Colour = Literal["blue", "orange", "violet", "gray", "green", "red"]


@dataclass(frozen=True)
class Claim:
    """Something that is said about a training image, no more and no less than `meaning`."""

    name: str
    colour: Colour
    icon: str
    meaning: str


RETRIEVED = Claim("retrieved", "blue", ":material/search:", "near; not yet a copy")
VERIFIED = Claim(
    "verified",
    "orange",
    ":material/straighten:",
    "pixel distance under its threshold, and under half that of one colour",
)
CONFIRMED = Claim("confirmed", "violet", ":material/how_to_reg:", "people looked and agree")
CLAIMS = (RETRIEVED, VERIFIED, CONFIRMED)


@dataclass(frozen=True)
class Outcome:
    """How a verdict is named to people, and which claim it makes (None: none)."""

    title: str
    meaning: str
    colour: Colour
    icon: str
    claim: Claim | None


OUTCOMES = {
    VerdictKind.MV: Outcome(
        "Copy of the caption's own training image",
        "Matching verbatim: the picture that stood beside this caption in training came back.",
        VERIFIED.colour,
        ":material/content_copy:",
        VERIFIED,
    ),
    VerdictKind.RV: Outcome(
        "Copy of another training image",
        "Retrieved verbatim: a training picture came back that belongs to another caption.",
        VERIFIED.colour,
        ":material/content_copy:",
        VERIFIED,
    ),
    VerdictKind.TV: Outcome(
        "Copy of a template",
        "Template verbatim: a training picture came back but for the regions in which its family varies.",
        VERIFIED.colour,
        ":material/dashboard_customize:",
        VERIFIED,
    ),
    VerdictKind.PV: Outcome(
        "A piece of a training image",
        "Patch verbatim: a piece of a training picture came back elsewhere in the picture, mirrored, scaled or recoloured. "
        "A calibrated score says so, no pixel distance: this is not verified.",
        RETRIEVED.colour,
        ":material/extension:",
        RETRIEVED,
    ),
    VerdictKind.N: Outcome(
        "No copy found",
        "Every check that was asked for was made and none holds.",
        "gray",
        ":material/check_circle:",
        None,
    ),
    VerdictKind.U: Outcome(
        "Undetermined",
        "No check holds, but not every check could be made, so a copy is not ruled out.",
        "gray",
        ":material/help:",
        None,
    ),
}


def badge(claim: Claim) -> None:
    """The claim as a small coloured label, its meaning at the pointer."""
    st.badge(
        claim.name, icon=claim.icon, color=claim.colour, help=f"{claim.name.capitalize()}: {claim.meaning}."
    )


def legend() -> None:
    """The three claims with their meanings, on one line where there is room."""
    with st.container(horizontal=True, gap="small", key="legend", vertical_alignment="center"):
        for claim in CLAIMS:
            st.markdown(
                f":{claim.colour}-badge[{claim.icon} {claim.name}] :small[{claim.meaning}]", width="content"
            )


def verdict_card(verdict: Verdict, caption_id: str) -> None:
    """The verdict on a caption in one line and its reason in one sentence."""
    outcome = OUTCOMES[verdict.kind]
    with st.container(border=True, key=f"verdict-{caption_id}"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown(f"### :{outcome.colour}[{outcome.icon} {outcome.title}]", width="content")
            if outcome.claim is not None:
                badge(outcome.claim)
            st.badge(verdict.kind.value, color="gray", help=outcome.meaning)
        st.markdown(escape(verdict.reason))
        st.caption(
            "Decided by the thresholds alone; nobody has confirmed it yet."
            if outcome.claim is not None
            else outcome.meaning
        )

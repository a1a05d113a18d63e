"""Two pictures beside, over and against each other: the comparison view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import streamlit as st
from streamlit.components.v2 import component

from audit.images import resize
from audit.ui.claims import Claim
from audit.ui.overlays import difference, outlined
from audit.ui.pictures import data_uri
from audit.ui.url import MODES

HERE = Path(__file__).parent
NO_MASK = "No template of the library covers this training image, so there is no mask."

_component = component(
    "verbatim_comparison",
    css=(HERE / "comparison.css").read_text(encoding="utf-8"),
    js=(HERE / "comparison.js").read_text(encoding="utf-8"),
)


@dataclass(frozen=True)
class Side:
    """One of the two pictures."""

    image: np.ndarray
    """(H, W, 3) float32 in [0, 1]."""
    label: str
    short: str
    alt: str
    claim: Claim | None = None
    note: str = ""


@dataclass(frozen=True)
class Masked:
    """The template that covers the training image."""

    template: Side
    mask: np.ndarray
    """(256, 256) bool, True where the family is unchanged."""


def comparison(
    one: Side,
    other: Side,
    *,
    sentences: dict[str, str],
    mode: str,
    key: str,
    blur: bool = False,
    masked: Masked | None = None,
    on_change: Callable[[], None],
) -> str:
    """Show the comparison view; returns the way of comparing that was chosen last.

    Parameters
    ----------
    sentences
        What each mode shows, in a sentence, by mode; those of ``difference`` and ``masked`` hold the distances.
    """
    left, right = resize(one.image), resize(other.image)
    # what was chosen in the view since: told the mode before it, the view would go back to that
    since = (st.session_state.get(key) or {}).get("mode")
    mode = since if since in MODES else mode
    data = {
        "one": _side(one, blur),
        "other": _side(other, blur),
        "difference": {
            "src": data_uri(difference(left, right), blur=blur),
            "alt": f"Absolute difference between {one.label} and {other.label}",
        },
        "masked": None,
        "no_mask": NO_MASK,
        "sentences": sentences,
        "mode": mode,
    }
    if masked is not None:
        data["template"] = _side(masked.template, blur)
        data["masked"] = {
            "src": data_uri(difference(left, resize(masked.template.image), masked.mask), blur=blur),
            "alt": f"Absolute difference between {one.label} and {masked.template.label} inside the mask",
            "outline": data_uri(outlined(masked.mask)),
        }
    chosen = _component(data=data, default={"mode": mode}, key=key, on_mode_change=on_change).mode
    return chosen if chosen in MODES else mode


def _side(side: Side, blur: bool) -> dict[str, str]:
    return {
        "src": data_uri(side.image, blur=blur),
        "label": side.label,
        "short": side.short,
        "alt": side.alt + (" (blurred)" if blur else ""),
        "claim": side.claim.name if side.claim else "",
        "note": side.note,
    }

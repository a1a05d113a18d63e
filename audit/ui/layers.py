"""One-step pictures with heatmaps over them, above the full samples: one column a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import streamlit as st
from streamlit.components.v2 import component

from audit.ui.overlays import INFERNO, heat
from audit.ui.pictures import data_uri
from audit.ui.url import OVERLAYS

HERE = Path(__file__).parent

_component = component(
    "verbatim_layers",
    css=(HERE / "layers.css").read_text(encoding="utf-8"),
    js=(HERE / "layers.js").read_text(encoding="utf-8"),
)


@dataclass(frozen=True)
class Heatmap:
    """A heatmap that can be laid over the pictures."""

    name: str
    """One of `OVERLAYS`."""
    title: str
    sentence: str
    values: np.ndarray
    """(h, w), of all seeds together."""
    low: float
    high: float
    unit: str = ""

    def picture(self, height: int, width: int) -> np.ndarray:
        """The heatmap, coloured, (height, width, 3)."""
        return heat(self.values, height, width, self.low, self.high)


@dataclass(frozen=True)
class Column:
    """The pictures of one seed."""

    seed: int
    one_step: np.ndarray
    full: np.ndarray | None
    note: str = ""
    verified: bool = False


def layers(
    columns: list[Column],
    heatmaps: list[Heatmap],
    *,
    waiting: str,
    overlay: str,
    opacity: int,
    key: str,
    on_change: Callable[[], None],
    blur: bool = False,
) -> tuple[str, int]:
    """Show the pictures; returns the heatmap and the opacity that were chosen last."""
    # what was chosen in the view since: told what was before it, the view would go back to that
    overlay, opacity = _valid(st.session_state.get(key) or {}, overlay, opacity)
    height, width = columns[0].one_step.shape[:2]
    coloured = {heatmap.name: data_uri(heatmap.picture(height, width)) for heatmap in heatmaps}
    data = {
        "columns": [_column(column, coloured, waiting, blur) for column in columns],
        "overlays": [
            {
                "id": "none",
                "title": "None",
                "sentence": "Above, the picture after one step; below, the full sample.",
            }
        ]
        + [
            {
                "id": heatmap.name,
                "title": heatmap.title,
                "sentence": heatmap.sentence,
                "low": f"{heatmap.low:.3g}{heatmap.unit}",
                "high": f"{heatmap.high:.3g}{heatmap.unit}",
            }
            for heatmap in heatmaps
        ],
        "labels": {"one": "One step", "full": "Full sample"},
        "gradient": ["rgb({:.0f} {:.0f} {:.0f})".format(*(255 * colour)) for colour in INFERNO],
        "overlay": overlay,
        "opacity": opacity,
    }
    chosen = _component(
        data=data,
        default={"overlay": overlay, "opacity": opacity},
        key=key,
        on_overlay_change=on_change,
        on_opacity_change=on_change,
    )
    return _valid(chosen, overlay, opacity)


def _valid(state: Mapping[str, object], overlay: str, opacity: int) -> tuple[str, int]:
    """What a browser says was chosen, where it is a choice at all."""
    name, share = state.get("overlay"), state.get("opacity")
    return (
        name if isinstance(name, str) and name in OVERLAYS else overlay,
        share if isinstance(share, int) and 0 <= share <= 100 else opacity,
    )


def _column(column: Column, coloured: dict[str, str], waiting: str, blur: bool) -> dict[str, object]:
    return {
        "title": f"Seed {column.seed}",
        "one": data_uri(column.one_step, blur=blur),
        "one_alt": f"Picture after one denoising step from seed {column.seed}"
        + (" (blurred)" if blur else ""),
        "heat": coloured,
        "full": None if column.full is None else data_uri(column.full, blur=blur),
        "full_alt": f"Full sample from seed {column.seed}" + (" (blurred)" if blur else ""),
        "note": column.note,
        "verified": column.verified,
        "waiting": waiting,
    }

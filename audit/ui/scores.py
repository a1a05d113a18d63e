"""The scores of a caption as positions among ordinary captions, each with one plain sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from audit.errors import InputError
from audit.ui.plots import distribution, position
from audit.ui.text import escape

if TYPE_CHECKING:
    from audit.runs.one_caption import Look
    from audit.scores.calibration import Calibration

FALSE_ALARMS = 0.01
"""The dotted line: one ordinary caption in a hundred scores higher."""


@dataclass(frozen=True)
class Meaning:
    """How a score is told."""

    name: str
    title: str
    what: str


MEANINGS = (
    Meaning(
        "dcs",
        "Denoising confidence (DCS)",
        "How sure the model is of its picture after a single step from pure noise.",
    ),
    Meaning(
        "magnitude",
        "Pull of the caption (magnitude)",
        "How far the caption draws the first step away from what the model would do without one.",
    ),
    Meaning(
        "ecs",
        "Edge consistency (ECS)",
        "Share of the picture where the same edges come out of different noise.",
    ),
)


def calibration_for(target, guidance: float, seeds: tuple[int, ...]) -> tuple[Calibration | None, str]:
    """The ordinary captions to compare with, or why there are none."""
    from audit.runs.calibrate import find_calibration  # torch comes with it, so not before a model is there

    try:
        found = find_calibration(target.sha256, guidance, seeds, target.noise_source)
        if found is not None:
            return found, ""
        whole = find_calibration(target.sha256, guidance, noise=target.noise_source)
    except InputError as error:
        return None, escape(str(error))
    if whole is not None:
        known = ", ".join(str(seed) for seed in whole.seeds)
        return None, f"Ordinary captions were scored at the seeds {known}; choose among these to compare."
    return None, (
        f"No ordinary captions were scored yet with this model at guidance {guidance:g}, so the values stand alone; "
        f"`python -m audit calibrate` does it."
    )


def judgement(share_below: float) -> str:
    """What a position among ordinary captions means."""
    if share_below >= 0.99:
        return "An ordinary caption hardly ever scores this high."
    if share_below >= 0.95:
        return "Unusually high for an ordinary caption."
    return "Within what is ordinary."


def sentence(look: Look, calibration: Calibration | None, name: str) -> str:
    """Position and judgement of a score; empty where there is nothing to compare with."""
    if calibration is None or name not in calibration.values or name not in look.scores:
        return ""
    value = look.scores[name].value
    return (
        f"{position(value, calibration.values[name])} {judgement(calibration.percentile(name, value) / 100)}"
    )


def score_panels(look: Look, calibration: Calibration | None, note: str) -> None:
    """One panel a score."""
    if note:
        st.info(note, icon=":material/straighten:")
    dark = st.context.theme.type == "dark"
    text_colour, marker = ("#e8e6e1", "#f0944d") if dark else ("#1c2430", "#b3470a")
    grid = st.grid(3, min_column_width=270, border=True)
    for meaning in MEANINGS:
        with grid.cell():
            st.markdown(f"**{meaning.title}**", help=meaning.what)
            if meaning.name not in look.scores:
                st.caption(
                    "Not defined for this model: its noise schedule ends in pure noise (zero terminal SNR)."
                )
                continue
            value = look.scores[meaning.name].value
            told = sentence(look, calibration, meaning.name)
            if not told:
                st.markdown(f"{value:.4g}")
                st.caption(meaning.what)
                continue
            ordinary = calibration.values[meaning.name]  # type: ignore[union-attr]
            st.plotly_chart(
                distribution(
                    value,
                    ordinary,
                    colour=marker,
                    text_colour=text_colour,
                    threshold=_threshold(calibration, meaning.name),
                ),
                key=f"plot-{meaning.name}",
                config={"displayModeBar": False},
                theme=None,
                alt=f"{meaning.title}: {value:.4g}. {told}",
            )
            st.markdown(escape(told))
            if meaning.name == "ecs" and (bare := sentence(look, calibration, "ecs_g1")):
                st.caption(escape(f"Without guidance ({look.scores['ecs_g1'].value:.3g}): {bare}"))
    if calibration is not None:
        st.caption(
            escape(
                f"Grey: {calibration.captions:,} ordinary captions ({calibration.source}), same model, guidance and "
                f"seeds. Dotted: one in {1 / FALSE_ALARMS:.0f} of them scores higher."
            )
        )


def score_rows(looks: list[Look], calibration: Calibration | None) -> list[dict[str, object]]:
    """A row a caption: each score and the percentage of ordinary captions below it."""
    rows = []
    for look in looks:
        row: dict[str, object] = {"caption_id": look.caption_id, "caption": look.caption}
        for name, score in look.scores.items():
            row[name] = score.value
            known = calibration is not None and name in calibration.values
            row[f"{name}_percentile"] = calibration.percentile(name, score.value) if known else None  # type: ignore[union-attr]
        rows.append(row)
    return rows


def _threshold(calibration: Calibration | None, name: str) -> float | None:
    try:
        return calibration.threshold(name, FALSE_ALARMS) if calibration else None
    except InputError:
        return None

"""The sections of the prompt lab, each one function; the page puts them in order."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from audit.records import CheckStatus, Verdict, VerdictKind
from audit.ui import composer, url
from audit.ui.layers import Column, Heatmap, layers
from audit.ui.pictures import data_uri
from audit.ui.scores import score_rows
from audit.ui.text import escape, literal
from audit.ui.url import Lab

if TYPE_CHECKING:
    from audit.runs.one_caption import Look, Proof
    from audit.scores.calibration import Calibration

STATE, MARK, GENERATION = "lab-state", "lab-mark", "lab-generation"


def current() -> tuple[Lab, list[str]]:
    """The state of this tab: what it last was, or what its address says where that was changed from outside."""
    params = {name: st.query_params.get_all(name) for name in st.query_params if name != "model"}
    here = st.session_state.get(STATE)
    problems: list[str] = []
    if here is not None and st.session_state.get(MARK) == _mark(params):
        state = here
    elif here is not None and not params:  # back from another page
        state = here
    else:
        state, problems = url.read_lab(params)
        st.session_state[GENERATION] = st.session_state.get(GENERATION, 0) + 1
        composer.fill(state)
    if "lab-seeds" not in st.session_state:
        composer.fill(state)
    return state, problems


def remember(state: Lab) -> None:
    """Keep the state for this tab and write it into the address."""
    st.session_state[STATE] = state
    params = url.write_lab(state)
    if url.length(params) > url.MAX_LENGTH:
        params.pop("caption")
    written = {name: value if isinstance(value, list) else [value] for name, value in params.items()}
    st.session_state[MARK] = _mark(written)
    now = {name: st.query_params.get_all(name) for name in st.query_params}
    wanted = written | {name: values for name, values in now.items() if name == "model"}
    if wanted != now:
        st.query_params.from_dict(wanted)


def choose(**changes: object) -> None:
    """Callback of buttons: change the state that the next run shows."""
    st.session_state[STATE] = replace(st.session_state[STATE], **changes)  # type: ignore[arg-type]


def component_key(name: str, state: Lab) -> str:
    """Key of a component that forgets what was set in it when the caption or the link changes."""
    return f"{name}-{st.session_state.get(GENERATION, 0)}-{hash((state.captions, state.chosen))}"


def overview(looks: list[Look], calibration: Calibration | None, verdicts: dict[str, Verdict], state: Lab, blur: bool) -> Lab:
    """A row a caption; the one that is picked is looked at below."""
    rows = []
    for look, scores in zip(looks, score_rows(looks, calibration), strict=True):
        verdict = verdicts.get(look.caption)
        row = {"picture": data_uri(_thumbnail(look.pictures[0]), blur=blur), "caption": look.caption}
        row |= {name: scores[f"{name}_percentile"] if calibration else scores.get(name) for name in ("dcs", "magnitude", "ecs")}
        row["verdict"] = verdict.kind.value if verdict else ""
        rows.append(row)
    share = lambda title: (  # noqa: E731
        st.column_config.ProgressColumn(title, min_value=0, max_value=100, format="%.1f%%", help="Ordinary captions below")
        if calibration
        else st.column_config.NumberColumn(title, format="%.4g")
    )
    picked = st.dataframe(
        rows,
        hide_index=True,
        row_height=64,
        on_select="rerun",
        selection_mode="single-row",
        key=f"overview-{st.session_state.get(GENERATION, 0)}-{hash(state.captions)}",
        column_config={
            "picture": st.column_config.ImageColumn("One step", width="small"),
            "caption": st.column_config.TextColumn("Caption", width="large"),
            "dcs": share("DCS"),
            "magnitude": share("Magnitude"),
            "ecs": share("ECS"),
            "verdict": st.column_config.TextColumn("Verdict", help="Empty: not generated in full yet"),
        },
    ).selection.rows
    st.caption("Pick a row to look at its caption below.")
    return replace(state, chosen=picked[0], neighbour="", sample=None) if picked and picked[0] != state.chosen else state


def pictures(look: Look, proof: Proof | None, state: Lab, *, waiting: str, blur: bool) -> Lab:
    """One-step pictures with heatmaps above the full samples."""
    samples = {sample.seed: sample for sample in proof.samples} if proof else {}
    distances = best_distances(proof) if proof else {}
    verified = proof.verdict.seed if proof and proof.verdict.kind in (VerdictKind.MV, VerdictKind.RV, VerdictKind.TV) else None
    columns = [
        Column(
            seed,
            look.pictures[place],
            samples[seed].image if seed in samples else None,
            note=f"distance {distances[seed]:,.0f}" if seed in distances else "",
            verified=seed == verified,
        )
        for place, seed in enumerate(look.seeds)
    ]
    overlay, opacity = layers(
        columns,
        heatmaps(look),
        waiting=waiting,
        overlay=state.overlay,
        opacity=state.opacity,
        key=component_key("layers", state),
        blur=blur,
    )
    return replace(state, overlay=overlay, opacity=opacity)


def heatmaps(look: Look) -> list[Heatmap]:
    """The heatmaps that this look has, with what they show."""
    found = []
    if "dcs" in look.scores and look.scores["dcs"].heatmap is not None:
        values = look.scores["dcs"].heatmap
        found.append(
            Heatmap(
                "dcs",
                "DCS",
                "Bright where the model takes away most of the noise at once; a square is a position of its latent "
                f"picture. Mean of {len(look.seeds)} {'seed' if len(look.seeds) == 1 else 'seeds'}.",
                (values,),
                float(values.min()),
                float(values.max()),
            )
        )
    edges = look.scores["ecs"].heatmap
    if edges is not None:
        count = len(look.scores["ecs"].seeds)
        found.append(
            Heatmap(
                "ecs",
                "ECS",
                f"Bright where an edge appears in many of the {count} one-step pictures, dark where in none.",
                (100 * edges,),
                0.0,
                100.0,
                "%",
            )
        )
    return found


def checks_table(verdict: Verdict) -> None:
    """Every check behind the verdict with its numbers."""
    names = {VerdictKind.TV: "Template", VerdictKind.MV: "Own training image", VerdictKind.RV: "Other training images"}
    rows = []
    for check in verdict.checks:
        made = check.status is CheckStatus.CHECKED
        rows.append(
            {
                "Check": names[check.kind],
                "Status": escape(check.status.value),
                "Smallest distance": f"{check.distance:,.0f}" if check.distance is not None else "–",
                "Copy below": f"{check.threshold:,.0f}",
                "Outcome": ("**:orange[holds]**" if check.holds else "does not hold") if made else "–",
                "Compared": f"{check.looked_at:,}",
                "Seed": "–" if check.seed is None else str(check.seed),
                "Against": escape(check.image_id or "–"),
                "Note": escape(check.note or "–"),
            }
        )
    st.table(rows, hide_index=True, border="horizontal", alt="Checks behind the verdict")
    st.caption(
        "Distances are sums of squared differences over 256×256×3 values between 0 and 1; the masked one of a template "
        "is divided by the share of the picture that the mask covers. *Compared* counts pairs of a sample and a picture."
    )


def best_distances(proof: Proof) -> dict[int, float]:
    """Seed -> smallest distance of its sample to a neighbour."""
    raise NotImplementedError


def _mark(params: dict[str, list[str]]) -> str:
    return repr(sorted(params.items()))


def _thumbnail(image: np.ndarray) -> np.ndarray:
    step = max(1, image.shape[0] // 96)
    return image[::step, ::step]

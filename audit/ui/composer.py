"""Where captions and settings are given: typed, several, out of the training set, or from a small file."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import streamlit as st

from audit.errors import InputError
from audit.settings import settings
from audit.ui import bench
from audit.ui.guard import show_error
from audit.ui.url import MAX_GUIDANCE, MAX_SEEDS, MAX_STEPS, Lab, check_captions, parse_seeds, seeds_text

ONE, SEVERAL, TRAINING, FILE = "One caption", "Several", "From the training set", "From a file"
SOURCES = (ONE, SEVERAL, TRAINING, FILE)


def fill(state: Lab) -> None:
    """Put a state that came by a link into the widgets."""
    several = len(state.captions) > 1
    st.session_state["lab-source"] = SEVERAL if several else ONE
    st.session_state["lab-one"] = state.captions[0] if state.captions else ""
    st.session_state["lab-several"] = "\n".join(state.captions)
    st.session_state["lab-seeds"] = seeds_text(state.seeds)
    st.session_state["lab-steps"] = state.steps
    st.session_state["lab-guidance"] = state.guidance


def composer(state: Lab) -> Lab | None:
    """Show the form; returns the state that was asked for, None while nobody asked."""
    with st.container(border=True, key="composer"):
        source = st.segmented_control(
            "Captions",
            SOURCES,
            required=True,
            key="lab-source",
            label_visibility="collapsed",
            width="stretch",
        )
        with st.form("lab-form", border=False):
            lines = _captions(source)
            with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
                seeds = st.text_input(
                    "Seeds",
                    key="lab-seeds",
                    width=140,
                    help=f"Each seed is another starting noise. Whole numbers such as 0-3 or 1, 5, 9; up to {MAX_SEEDS}.",
                )
                steps = st.number_input(
                    "Steps",
                    1,
                    MAX_STEPS,
                    key="lab-steps",
                    width=120,
                    help="Denoising steps of a full sample. The scores look at one step only.",
                )
                guidance = st.number_input(
                    "Guidance",
                    0.0,
                    MAX_GUIDANCE,
                    step=0.5,
                    format="%.1f",
                    key="lab-guidance",
                    width=130,
                    help="How strongly the caption is followed. Published audits use 7.5.",
                )
                asked = st.form_submit_button(
                    "Audit", type="primary", icon=":material/search_insights:", width=130
                )
    if not asked:
        return None
    try:
        captions = check_captions(lines())
        return replace(
            Lab(mode=state.mode, overlay=state.overlay, opacity=state.opacity, pieces=state.pieces),
            captions=captions,
            seeds=parse_seeds(seeds),
            steps=int(steps),
            guidance=float(guidance),
        )
    except InputError as error:
        show_error(error)
        return None


def _captions(source: str | None):
    """The widget of a source; returns a function that gives its lines once the form is sent."""
    limits = settings()
    if source == SEVERAL:
        text = st.text_area(
            "Captions, one a line",
            key="lab-several",
            height=130,
            placeholder=f"One caption a line, up to {limits.max_captions}",
            help="Ctrl+Enter starts the audit.",
        )
        # a caption may hold the other signs that splitlines cuts at
        return lambda: [line.strip() for line in text.split("\n")]
    if source == TRAINING:
        have = bench.training_set()
        captions = have.captions if have is not None else []
        if have is None:
            hint = "No training set is open"
        elif captions:
            hint = "Type to search the training captions"
        else:
            hint = f"The captions of {len(have.index):,} pictures are too many to list: search them on the Training set page"
        picked = st.selectbox(
            "A caption of the training set",
            captions,
            index=None,
            key="lab-picked",
            placeholder=hint,
            disabled=not captions,
        )
        return lambda: [picked or ""]
    if source == FILE:
        upload = st.file_uploader(
            f"A .txt or .csv of up to {limits.max_captions} captions",
            ["txt", "csv"],
            key="lab-file",
            max_upload_size=1,
        )
        return lambda: _read(upload)
    text = st.text_input(
        "Caption",
        key="lab-one",
        placeholder="Type a caption as it may stand in the training set, then press Enter",
    )
    return lambda: [text.strip()]


def _read(upload) -> list[str]:
    if upload is None:
        raise InputError(
            "No file was chosen; choose a .txt with one caption a line, or a .csv with a caption column."
        )
    if not upload.getvalue().strip():
        raise InputError("The file is empty; write one caption a line into it.")
    from audit.runs.captions import read_captions

    suffix = Path(upload.name).suffix.lower()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"captions{suffix}"
        path.write_bytes(upload.getvalue())
        try:
            return read_captions(path)
        except InputError as error:
            told = str(error).replace(str(path), "you sent").replace(path.name, "you sent")
            raise InputError(told) from error

"""The sections of the home page."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from audit.corpus.reader import Row
from audit.records import VerdictKind
from audit.targets.catalogue import KNOWN
from audit.ui import bench, frame, model_sidebar
from audit.ui.cards import picture
from audit.ui.claims import OUTCOMES
from audit.ui.examples import examples
from audit.ui.text import count, literal


def in_use() -> None:
    """The model and the training set, in numbers."""
    target, have = bench.target(), bench.training_set()
    left, right = st.columns(2, border=True)
    with left:
        st.markdown("**Model in use**")
        if target is None:
            model_sidebar.wait_for_model()
        else:
            literal(KNOWN[target.name].title if target.name in KNOWN else target.name, style="title")
            literal(f"Pictures of {target.image_size}×{target.image_size} px · sha256 {target.sha256[:12]}…")
            if target.name == "demo":
                st.markdown(
                    ":small[A demonstration: a small model trained until it remembers part of its pictures. It does not "
                    "generalise, and it is not an image generator.]"
                )
    with right:
        st.markdown("**Training set in use**")
        if have is None:
            model_sidebar.wait_for_training_set()
        else:
            literal(f"{len(have.index):,} pictures with captions", style="title")
            repeated = sum(map(len, have.families.values()))
            literal(
                f"{repeated:,} of them in {count(len(have.families), 'family', 'families')} of near-duplicates · "
                f"{count(len(have.templates), 'template', 'templates')} known"
            )
            st.page_link(
                "pages/training_set.py", label="Look at the training set", icon=":material/photo_library:"
            )
    if target is not None and (sentence := bench.mismatch(target)):
        st.warning(sentence, icon=":material/warning:")


def prepared() -> None:
    """Three captions of the demo that open the prompt lab filled in."""
    found = examples()
    if not found:
        return
    st.header("Begin with one of these", anchor=False)
    blur = frame.blurred()
    grid = st.grid(3, min_column_width=250, border=True)
    for example in found:
        outcome = OUTCOMES[VerdictKind(example.expected)]
        with grid.cell():
            st.markdown(f"#### {example.title}")
            if example.picture:
                with st.container(width=180):
                    picture(Row(example.caption, Path(example.picture), example.caption), blur=blur)
            literal(example.caption, style="body")
            literal(example.why)
            with st.container(key=f"example-{example.expected}"):
                st.page_link(
                    "pages/prompt_lab.py",
                    label="Open in the prompt lab",
                    icon=":material/arrow_forward:",
                    query_params={"caption": example.caption},
                    width="stretch",
                    help=f"Planted as: {outcome.title}.",
                )
    st.caption(
        "The captions come from the half of the demo's captions on which nothing was tuned. What the model makes of them "
        "is decided when you open them."
    )


def next_steps() -> None:
    """What to do after the first look."""
    st.header("What to do next", anchor=False)
    one, two, three = st.columns(3)
    one.markdown(
        "**1. Ask about your own captions.** Type them in the prompt lab, or send a small .txt or .csv file."
    )
    two.markdown(
        "**2. Audit your own model.** Choose a folder or a hub name in the sidebar, and point `VERBATIM_INDEX` at an "
        "index of its training set (`python -m audit index build`)."
    )
    three.markdown(
        "**3. Go through a long list.** The page *Batch audits*, or `python -m audit run captions.txt --out run`, scores "
        "any number of captions, generates the highest in full, and goes on where it was stopped."
    )

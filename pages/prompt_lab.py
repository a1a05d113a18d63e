"""Prompt lab: ask the model for captions and see whether what comes back is a copy."""

from functools import partial

import streamlit as st

from audit.ui import bench, evidence, frame, lab, model_sidebar, scores, trail
from audit.ui.claims import verdict_card
from audit.ui.composer import composer
from audit.ui.lab import LAB
from audit.ui.text import escape, literal

frame.through_app()
frame.heading(
    "Prompt lab",
    "Give the model a caption; see what it draws, how unusual that is, and whether it is a copy of a training image.",
)
model_sidebar.check_link()
state, problems = LAB.current()
for problem in problems:
    st.warning(escape(problem), icon=":material/link_off:")
state = composer(state) or state
LAB.remember(state)
if not state.captions:
    st.info(
        "Type a caption above and press Enter, or pick one from the training set.", icon=":material/edit:"
    )
    st.stop()

target = bench.target()
if target is None:
    model_sidebar.wait_for_model()
    st.stop()
looks = bench.looks(target, state.captions, state.seeds, state.guidance)
if looks is None:
    st.stop()

calibration, note = scores.calibration_for(target, state.guidance, state.seeds)
blur = frame.blurred()
if len(looks) > 1:
    state = lab.overview(target, looks, calibration, state, blur=blur)
look = looks[state.chosen]
trail.viewed(look.caption_id, what="caption in the prompt lab", caption=look.caption)
wanted = lab.is_wanted(target, look, state)
if wanted:
    bench.begin_proof(target, look.caption, state.seeds, state.steps, state.guidance)

st.divider()
literal(look.caption, style="title")
if look.truncated:
    st.caption(f"The model reads only the first {target.max_tokens} of this caption's {look.tokens} tokens.")
answer, saved, drawn = st.container(), st.empty(), st.container()
st.header("How unusual the first step is", anchor=False)
scores.score_panels(look, calibration, note)
with drawn:
    st.header("What the model draws", anchor=False)
    shown = st.empty()
    with shown.container():
        state = lab.pictures(
            look, None, state, waiting="Generating …" if wanted else "Not generated yet", blur=blur
        )
LAB.remember(state)

have = bench.training_set()
with saved:
    lab.download(target, looks, calibration, have, state)
with answer:
    if (sentence := bench.mismatch(target)) is not None:
        st.warning(sentence, icon=":material/warning:")
    if have is None:
        model_sidebar.wait_for_training_set()
        st.stop()
    if not wanted:
        lab.offer_proof(target, look, state)
        st.stop()
    proof = bench.proof(target, look.caption, state.seeds, state.steps, state.guidance)
if proof is None:
    lab.by_likeness(target, look, state, blur=blur)
    st.stop()

with answer:
    proof = lab.moved_pieces(target, proof, state)
    verdict_card(proof.verdict, look.caption_id)
    lab.pieces_found(proof, have, blur=blur)
    lab.offer_pieces(proof, state)
    with st.expander("The checks behind it", icon=":material/fact_check:"):
        lab.checks_table(proof.verdict)
with shown.container():
    state = lab.pictures(look, proof, state, waiting="", blur=blur)
st.header("Nearest training images", anchor=False)
near = lab.nearest(proof, bench.NEIGHBOURS)
if not near:
    st.info("No training image was retrieved; the index is empty.", icon=":material/info:")
    st.stop()
image_id, sample = lab.chosen_pair(state, proof, near, have)
lab.neighbour_cards(near, proof, have, image_id, blur=blur)
st.header("Compare", anchor=False)
state = lab.compare(state, proof, image_id, sample, have, blur=blur)
with saved:
    lab.download(
        target,
        looks,
        calibration,
        have,
        state,
        proof,
        partial(evidence.proof_files, proof, near, have, image_id, sample),
    )
LAB.remember(state)

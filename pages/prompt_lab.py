"""Prompt lab: ask the model for captions and see whether what comes back is a copy."""

import streamlit as st

from audit.ui import bench, frame, lab, model_sidebar, scores
from audit.ui.composer import composer
from audit.ui.guard import show_error
from audit.ui.text import literal

frame.through_app()
frame.heading(
    "Prompt lab",
    "Give the model a caption and see what it draws, how unusual that is, and whether it is a copy of a training image.",
)
model_sidebar.check_link()
state, problems = lab.current()
for problem in problems:
    st.warning(problem, icon=":material/link_off:")
state = composer(state) or state

target = bench.target()
if not state.captions:
    lab.remember(state)
    st.info("Type a caption above and press Enter, or pick one from the training set.", icon=":material/edit:")
    st.stop()
if target is None:
    lab.remember(state)
    model_sidebar.wait_for_model()
    st.stop()

looks = bench.looks(target, state.captions, state.seeds, state.guidance)
lab.remember(state)
if looks is None:
    st.stop()
calibration, note = scores.calibration_for(target, state.guidance, state.seeds)
blur = frame.blurred()
dark = st.context.theme.type == "dark"

if len(looks) > 1:
    st.header("All captions", anchor=False)
    state = lab.overview(looks, calibration, {}, state, blur)
look = looks[state.chosen]

st.divider()
literal(look.caption, style="title")
if look.truncated:
    st.caption(f"The model reads only the first {target.max_tokens} of this caption's {look.tokens} tokens.")
answer = st.container()
st.header("What the model draws", anchor=False)
drawn = st.container()
st.header("How unusual the first step is", anchor=False)
scores.score_panels(look, calibration, note, dark=dark)
with drawn:
    state = lab.pictures(look, None, state, waiting="Generating …", blur=blur)
lab.remember(state)

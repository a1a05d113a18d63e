"""Training set: search it by text or picture, and see what repeats in it."""

import streamlit as st

from audit.ui import bench, frame, model_sidebar, trail, training
from audit.ui.text import escape
from audit.ui.training import SEARCH

frame.through_app()
frame.heading(
    "Training set",
    "What the model was trained on: search it by words or by a picture, and see what repeats in it.",
)
model_sidebar.check_link()
state, problems = SEARCH.current()
for problem in problems:
    st.warning(escape(problem), icon=":material/link_off:")

have = bench.training_set()
if have is None:
    SEARCH.remember(state)
    model_sidebar.wait_for_training_set()
    st.stop()

state = training.view_switch(state, have)
if state.view == "families":
    state = training.family(state, have) if state.family and have.families else training.families(state, have)
else:
    state = training.pictures(state, have)
SEARCH.remember(state)
trail.viewed("training set", what="training images", searched=state.query, like=state.like or state.family)

"""Duplicates: what repeats in the training set, with which captions, and how often a run gave it back."""

import streamlit as st

from audit.ui import bench, duplicates, frame, model_sidebar, trail
from audit.ui.duplicates import REPEATED
from audit.ui.text import escape

frame.through_app()
frame.heading(
    "Duplicates",
    "What repeats in the training set, with which captions, and how often a run gave it back.",
)
model_sidebar.check_link()
state, problems = REPEATED.current()
for problem in problems:
    st.warning(escape(problem), icon=":material/link_off:")

have = bench.training_set()
if have is None:
    REPEATED.remember(state)
    model_sidebar.wait_for_training_set()
    st.stop()
found = duplicates.known(have) or duplicates.look(have)
if found is None:
    REPEATED.remember(state)
    st.stop()

trail.viewed("duplicates", what="training images", cluster=state.cluster)
if not state.cluster:
    duplicates.summary(found)
state, joined = duplicates.choose(state, found, have)
if state.cluster:
    state = duplicates.cluster(state, found, joined, have)
else:
    state = duplicates.chart(state, joined)
    state = duplicates.listing(state, found, joined, have)
REPEATED.remember(state)

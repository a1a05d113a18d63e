"""Templates: pictures that families of training images share, their masks, and what came back of them."""

import streamlit as st

from audit.ui import bench, frame, model_sidebar, templates, trail
from audit.ui.templates import LIBRARY
from audit.ui.text import escape

frame.through_app()
frame.heading(
    "Templates",
    "Pictures that several training images share but for a region of their own, and which captions bring them back.",
)
model_sidebar.check_link()
state, problems = LIBRARY.current()
for problem in problems:
    st.warning(escape(problem), icon=":material/link_off:")

have = bench.training_set()
if have is None:
    LIBRARY.remember(state)
    model_sidebar.wait_for_training_set()
    st.stop()

trail.viewed("templates", what="training images", template=state.template)
state, found = templates.choose_run(state, have)
LIBRARY.remember(state)
state = templates.one(state, have, found) if state.template else templates.every(state, have, found)
LIBRARY.remember(state)

"""Review: people look at what the machine found, and say what it is."""

import streamlit as st

from audit.ui import bench, frame, model_sidebar, removal, review, reviewer, trail
from audit.ui.desk import seat
from audit.ui.review import REVIEW
from audit.ui.text import escape

frame.through_app()
state, problems = REVIEW.current()
if not state.queue:
    frame.heading(
        "Review",
        "Thresholds are relaxed on purpose; people confirm. Look at one generated picture after the other beside the training "
        "images that it may be a copy of, and say with one key what it is.",
    )
model_sidebar.check_link()
for problem in problems:
    st.warning(escape(problem), icon=":material/link_off:")
REVIEW.remember(state)

person = reviewer.who()
if person is None or not state.queue:
    seat().leave()
if person is None:
    st.stop()
if not state.queue:
    reviewer.badge(person)
    review.listing(person)
    review.new(person)
    removal.section(person, bench.training_set())
    reviewer.people(person)
    st.stop()
if bench.training_set() is None:
    model_sidebar.wait_for_training_set()
    st.stop()
trail.viewed(state.queue, what="queue", task=state.task)
review.label(state, person)

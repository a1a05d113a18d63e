"""Results: one run, its scores and verdicts, whatever its size."""

import streamlit as st

from audit.ui import frame, model_sidebar, results, trail
from audit.ui.results import FOUND
from audit.ui.text import escape

frame.through_app()
frame.heading(
    "Results",
    "What a run found: which captions score unlike ordinary ones, which pictures came back, and out of how many.",
)
model_sidebar.check_link()
state, problems = FOUND.current()
for problem in problems:
    st.warning(escape(problem), icon=":material/link_off:")

state, job, found = results.choose(state)
FOUND.remember(state)
if job is None or found is None:
    st.stop()
trail.viewed(job.name, what="run")
results.summary(job, found)
state, threshold = results.distribution(state, found)
state = results.listing(state, found, threshold)
results.export(state, job, found, threshold)
results.set_aside()
state = results.compare(state, job, found)
FOUND.remember(state)

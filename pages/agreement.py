"""Agreement: how far people agree with each other, with the machine, and with what is known to be right."""

import streamlit as st

from audit.review.roles import Action
from audit.ui import agreement, bench, frame, model_sidebar, reviewer, trail
from audit.ui.agreement import AGREED
from audit.ui.text import escape

frame.through_app()
frame.heading(
    "Agreement",
    "How far people agree with each other, with the machine, and with what is known to be right.",
)
model_sidebar.check_link()
state, problems = AGREED.current()
for problem in problems:
    st.warning(escape(problem), icon=":material/link_off:")
AGREED.remember(state)

person = reviewer.who()
if person is None:
    st.stop()
reviewer.store().require(person, Action.SEE_LABELS)
chosen = agreement.choose(state)
if chosen is None:
    st.stop()
AGREED.remember(chosen)
trail.viewed(chosen.queue or "all queues", what="labels")
found = agreement.figures(chosen.queue, chosen.by, reviewer.store().root().sha256, person)
agreement.summary(found)
if not found.labels:
    agreement.flagged(person, found)
    st.info("Nobody has labelled an item of it yet. Label on the page Review.", icon=":material/info:")
    st.page_link("pages/review.py", label="Go to Review", icon=":material/rate_review:")
    st.stop()
agreement.of_all(found)
agreement.of_two(found)
agreement.machine(found, chosen.by)
agreement.people(found)
agreement.flagged(person, found)
agreement.download(found, agreement.masks(bench.training_set(), found), chosen)

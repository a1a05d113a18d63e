"""Audit trail: who loaded which model, ran, viewed, labelled and exported what, for auditors."""

import streamlit as st

from audit.review.roles import Action
from audit.ui import audit_trail, frame, model_sidebar, reviewer
from audit.ui.audit_trail import TRAIL
from audit.ui.text import escape

frame.through_app()
frame.heading("Audit trail", "Who loaded which model, ran, viewed, labelled and exported what, and when.")
model_sidebar.check_link()
state, problems = TRAIL.current()
for problem in problems:
    st.warning(escape(problem), icon=":material/link_off:")
TRAIL.remember(state)

person = reviewer.who()
if person is None:
    st.stop()
reviewer.store().require(person, Action.SEE_TRAIL)
state = audit_trail.listing(state, person)
audit_trail.whole(person)
TRAIL.remember(state)

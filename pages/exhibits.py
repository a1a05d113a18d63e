"""Exhibits: what was asked, what came back, what it matches, and how anyone can check it."""

import streamlit as st

from audit.errors import InputError
from audit.ui import exhibits, frame, model_sidebar, reviewer
from audit.ui.exhibits import EXHIBITS
from audit.ui.text import escape

frame.through_app()
state, problems = EXHIBITS.current()
if not state.exhibit:
    frame.heading("Exhibits", "Findings written down so that others can read them, and check every number.")
model_sidebar.check_link()
for problem in problems:
    st.warning(escape(problem), icon=":material/link_off:")
reviewer.recall()
if not reviewer.sees_labels():
    st.info(reviewer.NO_EXHIBITS, icon=":material/visibility_off:")
    st.stop()
try:
    if state.export and state.exhibit:
        state = exhibits.one(state)
    elif state.export:
        state = exhibits.listing(state)
    else:
        exhibits.every(state)
except InputError as error:
    st.warning(escape(str(error)), icon=":material/link_off:")
    st.button("All exhibits", on_click=EXHIBITS.change, kwargs={"export": "", "exhibit": "", "root": ""})
EXHIBITS.remember(state)

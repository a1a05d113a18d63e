"""Home."""

import streamlit as st

from audit.ui import frame

frame.through_app()
st.title("Verbatim")

"""The dashboard: navigation, theme and the model in use. `streamlit run app.py`."""

from pathlib import Path

import streamlit as st

from audit.ui import bench, desk, frame, model_sidebar, reviewer
from audit.ui.guard import guarded

ASSETS = Path(__file__).parent / "assets"

st.set_page_config(
    page_title="Verbatim",
    page_icon=str(ASSETS / "logo-icon.svg"),
    layout="wide",
    menu_items={
        "About": "**Verbatim** finds which training images a text-to-image model gives back, and proves it."
    },
)
st.logo(str(ASSETS / "logo.svg"), icon_image=str(ASSETS / "logo-icon.svg"), size="large")
frame.styles()
bench.owner()

review = st.Page("pages/review.py", title="Review", icon=":material/rate_review:")
exhibits = st.Page("pages/exhibits.py", title="Exhibits", icon=":material/gavel:")
everything = [
    st.Page("pages/home.py", title="Home", icon=":material/home:", default=True),
    st.Page("pages/prompt_lab.py", title="Prompt lab", icon=":material/science:"),
    st.Page("pages/batch.py", title="Batch audits", icon=":material/queue:"),
    st.Page("pages/results.py", title="Results", icon=":material/table_chart:"),
    review,
    st.Page("pages/agreement.py", title="Agreement", icon=":material/handshake:"),
    exhibits,
    st.Page("pages/training_set.py", title="Training set", icon=":material/photo_library:"),
    st.Page("pages/duplicates.py", title="Duplicates", icon=":material/filter_none:"),
    st.Page("pages/templates.py", title="Templates", icon=":material/layers:"),
    st.Page("pages/audit_trail.py", title="Audit trail", icon=":material/history:"),
]


def start() -> None:
    """Where a reader without a link begins."""
    st.switch_page(exhibits)


if not guarded(reviewer.admitted)():
    st.navigation(everything, position="hidden")
    st.stop()
reader = guarded(reviewer.reads_only)() is not False  # where that cannot be told, too
page = st.navigation([st.Page(start, title="Start", default=True), exhibits] if reader else everything)
if page is not review:
    desk.seat().leave()
if not reader:
    guarded(model_sidebar.show)()
guarded(frame.run)(page)

"""What every page has: heading, the three claims, and the few styles that the theme does not cover."""

from __future__ import annotations

from contextvars import ContextVar

import streamlit as st
from streamlit.navigation.page import Page as StreamlitPage
from streamlit.runtime.pages_manager import PagesManager

from audit.settings import settings
from audit.ui.claims import legend

IN_APP = ContextVar("IN_APP", default=False)
"""Whether app.py runs the page."""
STYLES = """
<style>
.stMainBlockContainer { max-width: 1240px; padding-top: 3.2rem; }
.verbatim-title { font: 600 1.45rem/1.3 "Source Serif", Georgia, serif; unicode-bidi: plaintext; overflow-wrap: anywhere; }
.verbatim-body { line-height: 1.45; unicode-bidi: plaintext; overflow-wrap: anywhere; }
.verbatim-quiet { font-size: 0.875rem; line-height: 1.4; opacity: 0.82; unicode-bidi: plaintext; overflow-wrap: anywhere; }
.verbatim-clamp { font-size: 0.9rem; line-height: 1.35; unicode-bidi: plaintext; overflow-wrap: anywhere;
  display: -webkit-box; -webkit-line-clamp: 3; -webkit-box-orient: vertical; overflow: hidden; }
.verbatim-owed { font-size: 0.8rem; line-height: 1.35; opacity: 0.82; unicode-bidi: plaintext; overflow-wrap: anywhere;
  display: -webkit-box; -webkit-line-clamp: 4; -webkit-box-orient: vertical; overflow: hidden; }
[data-testid="stCaptionContainer"], [data-testid="stCaptionContainer"] p { color: inherit !important; opacity: 0.9; }
[data-testid^="stBaseButton-primary"] p { color: light-dark(#ffffff, #12161c); }
.st-key-legend { row-gap: 0.2rem; }
[class*="st-key-example-"] a { border: 1px solid rgba(128, 136, 148, 0.55); border-radius: 6px; justify-content: center; }
:focus-visible { outline: 3px solid var(--primary-color, #4f8fcb); outline-offset: 2px; }
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
</style>
"""


def through_app() -> None:
    """Run the whole app where Streamlit ran a page alone.

    It takes a folder named ``pages`` for its older kind of app until `st.navigation` is called for the first time, so
    a link straight to a page, opened first after the start, would show the page without its frame.
    """
    if not IN_APP.get():
        PagesManager.uses_pages_directory = False
        st.rerun()


def run(page: StreamlitPage) -> None:
    """Run a page inside the app."""
    mark = IN_APP.set(True)
    try:
        page.run()
    finally:
        IN_APP.reset(mark)


def styles() -> None:
    """Once a run, before anything else."""
    # popovers stand outside of what Streamlit marks as light or dark
    scheme = "dark" if st.context.theme.type == "dark" else "light"
    st.html(f'{STYLES}<style>[data-testid="stPopoverBody"] {{ color-scheme: {scheme}; }}</style>')


def heading(title: str, what: str) -> None:
    """The page's name, one sentence on what it is for, and the legend of claims."""
    st.title(title, anchor=False)
    st.markdown(what)
    legend()


def blurred() -> bool:
    """Whether pictures are shown blurred; the switch stands in the sidebar."""
    return bool(st.session_state.get("blur", settings().blur))

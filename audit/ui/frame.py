"""What every page has: heading, the three claims, and the few styles that the theme does not cover."""

from __future__ import annotations

import streamlit as st

from audit.ui.claims import legend

STYLES = """
<style>
.stMainBlockContainer { max-width: 1240px; padding-top: 3.2rem; }
.verbatim-title { font: 600 1.45rem/1.3 "Source Serif", Georgia, serif; unicode-bidi: plaintext; overflow-wrap: anywhere; }
.verbatim-body { line-height: 1.45; unicode-bidi: plaintext; overflow-wrap: anywhere; }
.verbatim-quiet { font-size: 0.875rem; line-height: 1.4; opacity: 0.82; unicode-bidi: plaintext; overflow-wrap: anywhere; }
.verbatim-clamp { font-size: 0.9rem; line-height: 1.35; unicode-bidi: plaintext; overflow-wrap: anywhere;
  display: -webkit-box; -webkit-line-clamp: 3; -webkit-box-orient: vertical; overflow: hidden; }
.st-key-legend { row-gap: 0.2rem; }
:focus-visible { outline: 3px solid var(--primary-color, #4f8fcb); outline-offset: 2px; }
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
</style>
"""


def styles() -> None:
    """Once a run, before anything else."""
    st.html(STYLES)


def heading(title: str, what: str) -> None:
    """The page's name, one sentence on what it is for, and the legend of claims."""
    st.title(title, anchor=False)
    st.markdown(what)
    legend()

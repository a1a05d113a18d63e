"""Text from outside on the screen: shown as it is, never as Markdown or HTML."""

from __future__ import annotations

import html
import re

import streamlit as st

MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~:$&^=@])")


def escape(text: str) -> str:
    """Text for places that read Markdown, with every sign that could mean something made literal."""
    return MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def literal(text: str, *, style: str = "quiet") -> None:
    """Text as it is, in its own writing direction. `style` is one of `audit.ui.frame.STYLES`."""
    st.html(f'<div class="verbatim-{style}" dir="auto">{html.escape(text)}</div>')


def shorten(text: str, length: int = 80) -> str:
    """Text cut at `length` characters with an ellipsis."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def count(number: int, one: str, many: str) -> str:
    """A number with its noun."""
    return f"{number:,} {one if number == 1 else many}"

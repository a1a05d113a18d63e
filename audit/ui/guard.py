"""Errors told in one sentence: bad input by its own, anything else with a number to find in the log."""

from __future__ import annotations

import errno
import functools
import logging
import secrets
from collections.abc import Callable
from concurrent.futures import CancelledError

import streamlit as st

from audit.errors import InputError
from audit.ui.owner import Stopped
from audit.ui.text import escape

DISK_IS_FULL = "The disk is full; make room and try again. What was entered is kept."

log = logging.getLogger(__name__)


def show_error(error: BaseException) -> None:
    """The sentence of an error, in the page."""
    if isinstance(error, InputError):
        st.error(escape(str(error)), icon=":material/error:")
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        st.error(DISK_IS_FULL, icon=":material/error:")
    elif isinstance(error, Stopped | CancelledError):
        st.info("This was stopped, here or by somebody who asked for the same; ask again to start it anew.")
    else:
        reference = secrets.token_hex(4)
        log.error("reference %s", reference, exc_info=error)
        st.error(
            f"Something went wrong here that Verbatim did not foresee. What you entered is kept; try again. "
            f"The log of the server has the details under {reference}.",
            icon=":material/error:",
        )


def guarded(function: Callable) -> Callable:
    """A page or part of one in which an error becomes a sentence and the rest goes on."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except Exception as error:
            show_error(error)

    return run

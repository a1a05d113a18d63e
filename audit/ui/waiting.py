"""Waiting for the model's owner: what is done, how long it takes, and a button to stop.

The script thread never computes: it waits a moment for the result, then hands over to a fragment that looks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import streamlit as st

from audit.ui.owner import Job, Owner
from audit.ui.text import escape

SILENT = 1.5
"""Seconds without a word: most answers are there by then."""
PATIENCE = 4.0
"""Seconds on the script thread before the fragment takes over."""
LOOK_AGAIN = 0.3
"""Seconds between two looks at the progress; the result itself is taken the moment it is there."""
STOPPED = "stopped jobs"


def ask(
    owner: Owner, key: str, label: str, work: Callable[[Job], Any], *, priority: int, again: str
) -> Any | None:
    """The result of a job, or None while there is none: then the page says why.

    Parameters
    ----------
    again
        Label of the button that starts a stopped job once more.

    Raises
    ------
    Exception
        Whatever the work raised.
    """
    stopped = stopped_jobs()
    if key in stopped:
        st.info(f"{escape(label)}: stopped.", icon=":material/stop_circle:")
        st.button(again, key=f"again-{key}", on_click=stopped.discard, args=(key,))
        return None
    job = owner.submit(key, label, work, priority)
    return wait(owner, job, stoppable=True)


def stopped_jobs() -> set[str]:
    """Keys of the jobs that were stopped in this tab: they start again only when asked."""
    return st.session_state.setdefault(STOPPED, set())


def wait(owner: Owner, job: Job, *, stoppable: bool) -> Any | None:
    """The result of `job`, or None when it takes longer: the page runs again once it is there."""
    if finished(job, SILENT):
        return job.future.result()
    bar, button = st.empty(), st.empty()
    if stoppable:
        button.button("Stop", key=f"stop-{job.key}", icon=":material/stop:", on_click=_stop, args=(job,))
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        bar.progress(job.share, progress_text(owner, job))
        if finished(job, LOOK_AGAIN):
            bar.empty()
            button.empty()
            return job.future.result()
    bar.empty()
    button.empty()
    _watch(owner, job, stoppable)
    return None


def finished(job: Job, seconds: float) -> bool:
    """Whether the job ends within `seconds`."""
    try:
        job.future.exception(timeout=seconds)
    except TimeoutError:
        return False
    except CancelledError:  # told where the result is asked for
        return True
    return True


def progress_text(owner: Owner, job: Job) -> str:
    """What happens now, and for how long yet, in one line."""
    before = owner.ahead(job)
    if before:
        return f"Waiting for {before} other {'job' if before == 1 else 'jobs'} before: {escape(job.label)}"
    left = job.seconds_left()
    return escape(job.label) + (f" · about {duration(left)} left" if left is not None else " …")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


@st.fragment(run_every=0.3)
def _watch(owner: Owner, job: Job, stoppable: bool) -> None:
    if job.future.done():
        st.rerun()
    st.progress(job.share, progress_text(owner, job))
    if stoppable:
        st.button("Stop", key=f"halt-{job.key}", icon=":material/stop:", on_click=_stop, args=(job,))


def _stop(job: Job) -> None:
    job.stop()
    stopped_jobs().add(job.key)

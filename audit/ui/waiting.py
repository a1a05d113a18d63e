"""Waiting for the model's owner: what is done, how long it takes, and a button to stop.

The script thread never computes: it waits a moment for the result, then hands over to a fragment that looks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import streamlit as st

from audit.ui.guard import show_error
from audit.ui.owner import Job, Owner, Stopped
from audit.ui.text import escape
from audit.units import duration

SILENT = 1.5
"""Seconds without a word: most answers are there by then."""
PATIENCE = 4.0
"""Seconds on the script thread before the fragment takes over."""
LOOK_AGAIN = 0.3
"""Seconds between two looks at the progress; the result itself is taken the moment it is there."""
ASKED = "asked jobs"


def ask(
    owner: Owner,
    key: str,
    label: str,
    work: Callable[[Job], Any],
    *,
    priority: int,
    again: str,
    place: str = "",
    patience: float = PATIENCE,
) -> Any | None:
    """The result of a job, or None while there is none: then the page says why.

    Parameters
    ----------
    again
        Label of the button that starts a failed or stopped job once more.
    place
        Tells two places of a page apart that ask for the same job.
    patience
        Seconds that the rest of the page waits for it; 0 where there is something to show meanwhile.
    """
    job = begin(owner, key, label, work, priority)
    if not job.stopped() and not wait(owner, job, place, patience):
        return None
    error = failure(job)
    if error is None:
        return job.future.result()
    show_error(error)
    st.button(again, key=f"again-{place}-{key}", on_click=_forget, args=(key,))
    return None


def begin(owner: Owner, key: str, label: str, work: Callable[[Job], Any], priority: int) -> Job:
    """This tab's job of a key; one that failed or was stopped, here or in another tab, stays until asked again."""
    jobs: dict[str, Job] = st.session_state.setdefault(ASKED, {})
    for other, job in list(jobs.items()):
        if job.future.done() and failure(job) is None:  # its result is the owner's to keep
            del jobs[other]
    if key not in jobs or owner.kept(key) is not None:
        jobs[key] = owner.submit(key, label, work, priority)
    return jobs[key]


def failure(job: Job) -> BaseException | None:
    """Why a job that ended, or was told to, has no result; None where it has one."""
    return Stopped(f"{job.label} was stopped.") if job.stopped() else job.future.exception()


def so_far(key: str) -> Any | None:
    """What this tab's job of a key has found before its end."""
    job = st.session_state.get(ASKED, {}).get(key)
    return job.so_far if job else None


def wait(owner: Owner, job: Job, place: str, patience: float) -> bool:
    """Whether `job` ends within some seconds; otherwise the page runs again once it does."""
    if finished(job, min(SILENT, patience)):
        return True
    bar, button = st.empty(), st.empty()
    _stop_button(button, job, f"stop-{place}")
    end = time.monotonic() + patience
    ended = False
    while not ended and time.monotonic() < end:
        bar.progress(job.share, progress_text(owner, job))
        ended = finished(job, LOOK_AGAIN)
    bar.empty()
    button.empty()
    if not ended:
        _watch(owner, job, place, job.so_far is not None)
    return ended


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


@st.fragment(run_every=0.3)
def _watch(owner: Owner, job: Job, place: str, shown: bool) -> None:
    if job.future.done() or job.stopped() or (job.so_far is not None) != shown:
        st.rerun()
    st.progress(job.share, progress_text(owner, job))
    _stop_button(st, job, f"halt-{place}")


def _stop_button(where: Any, job: Job, key: str) -> None:
    where.button("Stop", key=f"{key}-{job.key}", icon=":material/stop:", on_click=job.stop)


def _forget(key: str) -> None:
    st.session_state[ASKED].pop(key, None)

"""The one thread that owns the loaded model: pages hand in jobs and wait for futures.

Pipelines are neither thread-safe nor small, so one model is loaded at a time for everybody at this dashboard and one
thread computes. Short jobs go before long ones, also between two steps of a long one that runs; equal jobs are one
job; results are kept, within a bound on their size, so that looking again computes nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from audit.errors import InputError

log = logging.getLogger(__name__)

KEPT_BYTES = 512_000_000
"""Results kept in all; the least recently used go first."""
LOADING, SHORT, LONG = 0, 1, 2
"""Priorities: what waits with a lower number is done first."""


def job_key(kind: str, **parts: object) -> str:
    """sha256 over everything that decides a result; parts must be JSON values."""
    return hashlib.sha256(json.dumps([kind, parts], sort_keys=True).encode()).hexdigest()


class Stopped(Exception):
    """Somebody pressed stop."""


class Job:
    """One piece of work, waiting, running or done."""

    def __init__(
        self,
        key: str,
        label: str,
        work: Callable[[Job], Any],
        priority: int,
        between: Callable[[], None] = lambda: None,
    ):
        self.key = key
        self.between = between
        self.label = label
        self.work = work
        self.priority = priority
        self.future: Future = Future()
        self.share = 0.0
        """How much is done, 0 to 1."""
        self.so_far: Any = None
        """What the work has found before its end, for a page to show meanwhile."""
        self.started: float | None = None
        self._stop = threading.Event()

    def progress(self, share: float, label: str | None = None) -> None:
        """Called by the work; raises Stopped where it was stopped."""
        if self._stop.is_set():
            raise Stopped(f"{self.label} was stopped.")
        self.share = min(max(share, 0.0), 1.0)
        if label:
            self.label = label
        if self.share < 1.0:  # at the end nothing may stand before the result
            self.between()

    def waits(self) -> bool:
        """Asked again and again by work that waits for others: whether it was stopped. Short jobs are done meanwhile."""
        if not self._stop.is_set():
            self.between()
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask the work to end; one that has not started never does."""
        self._stop.set()
        self.future.cancel()

    def stopped(self) -> bool:
        return self._stop.is_set()

    def seconds_left(self) -> float | None:
        """Estimate from what is done so far; None while nothing is."""
        if self.started is None or self.share < 0.02:
            return None
        return (time.monotonic() - self.started) * (1.0 - self.share) / self.share


class Owner:
    """Queue, thread and results."""

    def __init__(self, prepare: Callable[[], None] = lambda: None):
        self.held: dict[str, Any] = {}
        """What stays loaded, by place (``model``, ``training set``)."""
        self.holding: dict[str, Job] = {}
        """The last job that loaded something into a place; its exception says why it could not."""
        self._jobs: dict[str, Job] = {}
        self._results: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._waiting: queue.PriorityQueue[tuple[int, int, Job | None]] = queue.PriorityQueue()
        self._number = itertools.count()
        self._lock = threading.RLock()
        self._prepare = prepare
        threading.Thread(target=self._run, name="model-owner", daemon=True).start()

    def hold(
        self,
        place: str,
        label: str,
        work: Callable[[Job], Any],
        fetch: Callable[[Job], object] | None = None,
    ) -> Job:
        """Put what `work` returns into `place`; what was there stays in use until then, or if `work` fails.

        The last one asked for wins: another that still waits for the same place is dropped.

        Parameters
        ----------
        fetch
            Done before, on a thread of its own: the owner goes on with its jobs meanwhile.
        """

        def load(job: Job) -> None:
            self.held[place] = work(job)

        key = f"{place} {label}"
        with self._lock:
            before = self.holding.get(place)
            if before is not None and not before.future.done():
                if before.key == key and not before.stopped():
                    return before
                before.stop()
            job = Job(key, label, load, LOADING)
            self.holding[place] = job
        if fetch is None:
            self._enqueue(job)
        else:
            threading.Thread(target=self._fetch, args=(job, fetch), name="fetch", daemon=True).start()
        return job

    def close(self) -> None:
        """End the thread after the running job."""
        self._waiting.put((-1, next(self._number), None))

    def submit(self, key: str, label: str, work: Callable[[Job], Any], priority: int = SHORT) -> Job:
        """The job of this key: a finished one when its result is kept, the waiting one, or a new one."""
        with self._lock:
            known = self._jobs.get(key)
            if known is not None and not known.stopped() and not known.future.done():
                return known
            between = self._do_short if priority == LONG else lambda: None
            job = Job(key, label, work, priority, between)
            if key in self._results:
                self._results.move_to_end(key)
                job.future.set_result(self._results[key][0])
            else:
                self._enqueue(job)
            return job

    def kept(self, key: str) -> Any | None:
        """The result of this key if it is there already."""
        with self._lock:
            if key not in self._results:
                return None
            self._results.move_to_end(key)
            return self._results[key][0]

    def ahead(self, job: Job) -> int:
        """How many jobs are done before this one."""
        with self._lock:
            waiting = [entry for entry in self._jobs.values() if entry is not job and not entry.future.done()]
        if job.started is not None:
            return 0
        return sum(1 for entry in waiting if entry.started is not None or entry.priority <= job.priority)

    def _enqueue(self, job: Job) -> None:
        with self._lock:
            self._jobs[job.key] = job
        self._waiting.put((job.priority, next(self._number), job))

    def _fetch(self, job: Job, fetch: Callable[[Job], object]) -> None:
        job.started = time.monotonic()
        try:
            fetch(job)
        except BaseException as error:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)
        else:
            job.started = None
            self._enqueue(job)

    def _run(self) -> None:
        self._prepare()
        while True:
            job = self._waiting.get()[2]
            if job is None:
                return
            self._take(job)

    def _do_short(self) -> None:
        """Short jobs that came while a long one runs: called on this thread between two of its steps."""
        while True:
            try:
                priority, number, job = self._waiting.get_nowait()
            except queue.Empty:
                return
            if priority != SHORT or job is None:
                self._waiting.put((priority, number, job))
                return
            self._take(job)

    def _take(self, job: Job) -> None:
        if job.future.set_running_or_notify_cancel():
            self._do(job)
        with self._lock:
            if self._jobs.get(job.key) is job:
                del self._jobs[job.key]

    def _do(self, job: Job) -> None:
        job.started = time.monotonic()
        try:
            result = job.work(job)
            if job.priority != LOADING:
                self._keep(job.key, result)
            job.future.set_result(result)
        except InputError as error:
            job.future.set_exception(error)
        except BaseException as failure:
            if not job.stopped():
                log.exception("%s failed", job.label)
            job.future.set_exception(Stopped(f"{job.label} was stopped.") if job.stopped() else failure)

    def _keep(self, key: str, result: Any) -> None:
        with self._lock:
            self._results[key] = (result, nbytes(result))
            while sum(size for _, size in self._results.values()) > KEPT_BYTES and len(self._results) > 1:
                self._results.popitem(last=False)


def nbytes(value: Any) -> int:
    """Bytes of all arrays inside a value made of dataclasses, lists, tuples and dicts."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if is_dataclass(value) and not isinstance(value, type):
        return sum(nbytes(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, dict):
        return sum(nbytes(entry) for entry in value.values())
    if isinstance(value, list | tuple):
        return sum(nbytes(entry) for entry in value)
    return 0

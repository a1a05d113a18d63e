"""The one thread: order, sharing, stopping, keeping."""

import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

from audit.errors import InputError
from audit.ui import owner as module
from audit.ui.owner import LONG, SHORT, Owner, Stopped, job_key, nbytes


@pytest.fixture
def owner():
    made = Owner()
    yield made
    made.close()


def blocked(owner):
    """A job that keeps the thread busy until the event is set."""
    started, go = threading.Event(), threading.Event()

    def work(job):
        started.set()
        go.wait(5)
        job.progress(0.5)
        return "blocked"

    job = owner.submit("blocker", "Blocker", work)
    assert started.wait(5)
    return job, go


def test_results_come_back_and_are_kept(owner):
    calls = []
    for _ in range(2):
        assert owner.submit("k", "Work", lambda job: calls.append(1) or "result").future.result(5) == "result"
    assert calls == [1]


def test_all_work_is_done_by_one_thread(owner):
    names = [
        owner.submit(str(n), "Work", lambda job: threading.current_thread().name).future.result(5)
        for n in range(5)
    ]
    assert set(names) == {"model-owner"}


def test_short_jobs_go_before_long_ones_and_loading_before_both(owner):
    order = []
    blocker, go = blocked(owner)
    long = owner.submit("long", "Long", lambda job: order.append("long"), LONG)
    short = owner.submit("short", "Short", lambda job: order.append("short"), SHORT)
    hold = owner.hold("model", "Load", lambda job: order.append("load"))
    assert (owner.ahead(blocker), owner.ahead(hold), owner.ahead(short), owner.ahead(long)) == (0, 1, 2, 3)
    go.set()
    for job in (long, short, hold):
        job.future.result(5)
    assert order == ["load", "short", "long"]


def test_a_short_job_is_done_between_two_steps_of_a_long_one(owner):
    order, started, go = [], threading.Event(), threading.Event()

    def steps(job):
        started.set()
        go.wait(5)
        job.progress(0.5)
        order.append("long ends")

    long = owner.submit("long", "Long", steps, LONG)
    assert started.wait(5)
    short = owner.submit("short", "Short", lambda job: order.append("short"), SHORT)
    other = owner.submit("other", "Other", lambda job: order.append("other long"), LONG)
    go.set()
    for job in (long, short, other):
        job.future.result(5)
    assert order == ["short", "long ends", "other long"]


def test_a_short_job_is_done_while_a_long_one_waits_for_others(owner):
    """A picture that a server keeps to itself holds nobody up; and what waits for it can be stopped."""
    started = threading.Event()

    def waiting(job):
        started.set()
        while not job.waits():
            time.sleep(0.01)

    long = owner.submit("long", "Long", waiting, LONG)
    assert started.wait(5)
    assert owner.submit("short", "Short", lambda job: "short", SHORT).future.result(5) == "short"
    long.stop()
    assert long.future.result(5) is None


def test_equal_keys_are_one_job(owner):
    _, go = blocked(owner)
    first = owner.submit("same", "Work", lambda job: object())
    assert owner.submit("same", "Work", lambda job: object()) is first
    go.set()
    first.future.result(5)


def test_stop_ends_a_running_job_and_a_new_one_can_start(owner):
    job, go = blocked(owner)
    job.stop()
    again = owner.submit("blocker", "Blocker", lambda job: "again")
    go.set()
    with pytest.raises(Stopped):
        job.future.result(5)
    assert again.future.result(5) == "again"


def test_a_stopped_waiting_job_never_starts(owner):
    ran = []
    _, go = blocked(owner)
    waiting = owner.submit("waiting", "Waiting", lambda job: ran.append(1))
    waiting.stop()
    go.set()
    owner.submit("after", "After", lambda job: None).future.result(5)
    assert waiting.future.cancelled()
    assert ran == []


def test_a_failed_job_does_not_end_the_thread_and_is_not_kept(owner):
    def fail(job):
        raise InputError("Not so.")

    with pytest.raises(InputError, match="Not so"):
        owner.submit("k", "Work", fail).future.result(5)
    assert owner.submit("k", "Work", lambda job: 1).future.result(5) == 1


def test_what_is_held_stays_when_its_successor_cannot_be_loaded(owner):
    owner.hold("model", "First", lambda job: "first").future.result(5)

    def fail(job):
        raise InputError("No UNet.")

    job = owner.hold("model", "Second", fail)
    with pytest.raises(InputError):
        job.future.result(5)
    assert owner.held["model"] == "first"
    assert owner.holding["model"] is job


def test_the_last_one_asked_for_is_held(owner):
    _, go = blocked(owner)
    first = owner.hold("model", "First", lambda job: "first")
    assert owner.hold("model", "First", lambda job: "again") is first
    second = owner.hold("model", "Second", lambda job: "second")
    go.set()
    second.future.result(5)
    assert first.future.cancelled()
    assert owner.held["model"] == "second"


def test_jobs_go_on_while_something_is_fetched(owner):
    arrived = threading.Event()
    threads = []

    def fetch(job):
        threads.append(threading.current_thread().name)
        assert arrived.wait(5)

    job = owner.hold("model", "Load", lambda job: threads.append(threading.current_thread().name), fetch)
    assert owner.submit("k", "Work", lambda job: "done").future.result(5) == "done"
    assert "model" not in owner.held
    arrived.set()
    job.future.result(5)
    assert threads == ["fetch", "model-owner"]


def test_what_cannot_be_fetched_is_told_and_not_loaded(owner):
    def fetch(job):
        raise InputError("The hub is away.")

    job = owner.hold("model", "Load", lambda job: "model", fetch)
    with pytest.raises(InputError, match="The hub is away"):
        job.future.result(5)
    assert "model" not in owner.held


def test_a_model_dropped_while_it_was_fetched_is_not_loaded(owner):
    arrived = threading.Event()
    first = owner.hold("model", "First", lambda job: "first", lambda job: arrived.wait(5))
    owner.hold("model", "Second", lambda job: "second").future.result(5)
    arrived.set()
    time.sleep(0.05)
    owner.submit("after", "After", lambda job: None).future.result(5)
    assert first.future.cancelled()
    assert owner.held["model"] == "second"


def test_kept_results_are_bounded(owner, monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 1000)
    calls = []

    def work(job):
        calls.append(job.key)
        return np.zeros(400, dtype=np.uint8)

    for key in ("a", "b", "a", "c", "b"):
        owner.submit(key, "Work", work).future.result(5)
        time.sleep(0.01)
    assert calls == ["a", "b", "c", "b"]


def test_nbytes_looks_into_records():
    @dataclass
    class Record:
        image: np.ndarray
        more: list

    array = np.zeros((2, 3), dtype=np.float32)
    assert nbytes(Record(array, [{"x": array}, (array, "text")])) == 72


def test_estimate_follows_progress(owner):
    seen = []

    def work(job):
        seen.append(job.seconds_left())
        time.sleep(0.05)
        job.progress(0.5)
        seen.append(job.seconds_left())

    owner.submit("k", "Work", work).future.result(5)
    assert seen[0] is None
    assert 0.04 < seen[1] < 1.0


def test_job_key_depends_on_every_part():
    keys = {
        job_key("look", caption="a", seeds=[0]),
        job_key("look", caption="a", seeds=[1]),
        job_key("prove", caption="a", seeds=[0]),
    }
    assert len(keys) == 3
    assert job_key("look", a=1, b=2) == job_key("look", b=2, a=1)

"""At which queue a tab labels or decides, and when what it holds there goes back to the others."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from threading import Lock

import streamlit as st

from audit.errors import InputError
from audit.review.queue import Queue
from audit.review.roles import Person

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Desk:
    """Who does what in which queue."""

    queue: Queue
    person: Person
    task: str

    @property
    def session(self) -> str:
        """Names it, for the view's outbox."""
        return "\n".join((self.queue.name, self.person.name, self.task))

    @property
    def key(self) -> str:
        """Of the view."""
        return f"labelling {self.session}"


class Sitting:
    """How many tabs of one person sit at one queue, of all of this dashboard."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.tabs: Counter[tuple[str, str]] = Counter()

    def change(self, desk: Desk, by: int) -> int:
        with self.lock:
            self.tabs[desk.queue.name, desk.person.name] += by
            return self.tabs[desk.queue.name, desk.person.name]


class Seat:
    """The desk that one tab sits at."""

    def __init__(self, sitting: Sitting):
        self.sitting = sitting
        self.desk: Desk | None = None

    def take(self, desk: Desk) -> None:
        """Sit down, and leave the desk before."""
        if self.desk is None or self.desk.session != desk.session:
            self.leave()
            self.sitting.change(desk, 1)
            self.desk = desk

    def leave(self) -> None:
        """Give back what is held, unless another tab of the same person still sits there."""
        desk, self.desk = self.desk, None
        if desk is None or self.sitting.change(desk, -1):
            return
        try:
            desk.queue.give_back(desk.person)
        except InputError as error:  # what is held is free again when its time has run out
            log.warning("what %s held was not given back: %s", desk.person.name, error)


@st.cache_resource(show_spinner=False)
def _sitting() -> Sitting:
    return Sitting()


@st.cache_resource(show_spinner=False, scope="session", on_release=Seat.leave)
def seat() -> Seat:
    """This tab's; left when the tab is closed."""
    return Seat(_sitting())

"""The state of a page in a tab: what the address says, what was chosen since, and the address written anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import streamlit as st

from audit.ui import url

State = TypeVar("State")


@dataclass(frozen=True)
class PageState(Generic[State]):
    """How one page keeps its state.

    The address decides when it was changed from outside (a link, the back button); otherwise the tab's own state
    holds, also where it is too long for an address.
    """

    name: str
    read: Callable[[Mapping[str, Sequence[str]]], tuple[State, list[str]]]
    write: Callable[[State], Mapping[str, str | list[str]]]
    fill: Callable[[State], None]
    """Puts a state into the page's widgets."""
    filled: str
    """A widget's key, gone from the session when the page was left."""

    def current(self) -> tuple[State, list[str]]:
        """The state, and a sentence for each part of the address that was left out."""
        params = _params()
        here = self._get("state")
        problems: list[str] = []
        left = self.filled not in st.session_state
        ours = self._get("mark") == _mark(params) or st.session_state.pop(f"{self.name} touched", False)
        if here is not None and (ours or (left and not params)):
            state = here
        else:
            state, problems = self.read(params)
            self._set("generation", self.generation + 1)
            self.fill(state)
        if left:
            self.fill(state)
        self._set("state", state)
        self._set("mark", _mark(params))
        return state, problems

    def remember(self, state: State) -> None:
        """Keep the state and write it into the address, the model's name beside it."""
        self._set("state", state)
        params = dict(self.write(state))
        if url.length(params) > url.MAX_LENGTH:
            params = {name: value for name, value in params.items() if name != "caption"}
        written = {name: value if isinstance(value, list) else [value] for name, value in params.items()}
        self._set("mark", _mark(written))
        model = st.query_params.get_all("model")[-1:]
        if written != _params():
            st.query_params.from_dict({"model": model, **written} if model else written)

    def change(self, **changes: Any) -> None:
        """Callback of buttons: what the next run shows."""
        self._set("state", replace(self._get("state"), **changes))

    def touch(self) -> None:
        """Callback of views: this run was begun on the page itself, not by a link.

        Keys are quicker than a browser hears of its new address: it sends the one before with them.
        """
        self._set("touched", True)

    @property
    def generation(self) -> int:
        """Counts how often the state came from outside: part of the keys of widgets that then start anew."""
        return self._get("generation") or 0

    def _get(self, what: str) -> Any:
        return st.session_state.get(f"{self.name} {what}")

    def _set(self, what: str, value: Any) -> None:
        st.session_state[f"{self.name} {what}"] = value


def _params() -> dict[str, list[str]]:
    return {name: st.query_params.get_all(name) for name in st.query_params if name != "model"}


def _mark(params: Mapping[str, list[str]]) -> str:
    return repr(sorted(params.items()))

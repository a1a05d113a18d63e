"""Who may do what: four roles, and a table of what each may do. The store asks here, within each transaction."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from enum import StrEnum

from audit.errors import InputError
from audit.review.events import EventKind

LONGEST_NAME = 80


class Role(StrEnum):
    """What somebody is to a review."""

    AUDITOR = "auditor"
    """Runs it: fills queues, gives roles, removes pictures from view."""
    ANNOTATOR = "annotator"
    """Labels, without seeing what others said."""
    ADJUDICATOR = "adjudicator"
    """Labels, and decides where two annotators disagree."""
    READER = "reader"
    """Reads what was decided, and changes nothing."""


class Action(StrEnum):
    """What somebody may want to do."""

    READ = "look at queues and one's own progress"
    SEE_LABELS = "see everybody's labels"
    LABEL = "label"
    EDIT_MASK = "save a mask"
    ADJUDICATE = "decide where two annotators disagree"
    FILL = "fill a queue"
    IMPORT = "import labels"
    HIDE = "remove a picture from view or bring it back"
    GIVE_ROLE = "give roles"
    GIVE_ACCESS = "give somebody a link"
    SEE_TRAIL = "read the audit trail"
    LOG = "be named in the trail"
    """What anybody does leaves its mark, a reader's looking too."""


ALLOWED: dict[Role, frozenset[Action]] = {
    Role.AUDITOR: frozenset(Action),
    Role.ADJUDICATOR: frozenset(
        {Action.READ, Action.SEE_LABELS, Action.LABEL, Action.EDIT_MASK, Action.ADJUDICATE, Action.LOG}
    ),
    Role.ANNOTATOR: frozenset({Action.READ, Action.LABEL, Action.EDIT_MASK, Action.LOG}),
    Role.READER: frozenset({Action.READ, Action.SEE_LABELS, Action.LOG}),
}
"""An annotator does not see others' labels: two that see each other's are one."""

NEEDS: dict[EventKind, Action] = {
    EventKind.REMOVED_FROM_VIEW: Action.HIDE,
    EventKind.RESTORED_TO_VIEW: Action.HIDE,
    EventKind.MODEL_LOADED: Action.LOG,
    EventKind.RUN_STARTED: Action.LOG,
    EventKind.VIEWED: Action.LOG,
    EventKind.EXPORTED: Action.LOG,
    EventKind.GUEST: Action.GIVE_ACCESS,
}
"""What appending an event by itself takes. The others come with a change of a queue or of a role, and only there."""


class Refused(InputError):
    """Somebody may not do this."""


@dataclass(frozen=True)
class Person:
    """Somebody at the dashboard, as `audit.review.store.Store.enter` knows them."""

    name: str
    role: Role
    """When they entered: for what is shown. The store asks again, since it may be another by now."""
    signed_in: bool = False
    """By a login, not by a name that they gave."""


def require(person: Person | Role, action: Action) -> None:
    """Refuse what a role may not do, in a sentence."""
    role = person.role if isinstance(person, Person) else person
    if action not in ALLOWED[role]:
        able = " or ".join(sorted(each.value for each in Role if action in ALLOWED[each]))
        raise Refused(
            f"The role {role.value} may not {action.value}; ask somebody with the role {able}, or ask an auditor "
            "for another role."
        )


def person_name(name: str) -> str:
    """A name in one form, whatever keyboard it came from; e-mail addresses in small letters."""
    name = " ".join(unicodedata.normalize("NFC", name).split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise InputError(f"{name[:80]!r} is no name; give 1 to {LONGEST_NAME} characters.")
    return name.lower() if "@" in name else name

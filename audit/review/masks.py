"""Masks that people edit: each version is a file beside the template library, and an event that tells of it.

The file is written while the end of the chain is held, before its event: where the event fails, the same edits sent again
find the file by its answer, and only the event is made up for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from audit.errors import InputError
from audit.review.events import Event, EventKind, Finding
from audit.review.queue import append, sent
from audit.review.roles import Action, Person
from audit.runs.templates import as_found, versions_of
from audit.verbatim.editing import starts_as_found
from audit.verbatim.versions import saved_of, template_sha256, versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from audit.review.store import Store
    from audit.verbatim.editing import Edit
    from audit.verbatim.templates import TemplateLibrary
    from audit.verbatim.versions import MaskVersion


def save_mask(
    store: Store,
    person: Person,
    library: TemplateLibrary,
    folder: Path,
    template_id: str,
    edits: Sequence[Edit],
    *,
    number: int,
    answer_id: str,
    item_id: str = "",
    difference: np.ndarray | None = None,
) -> MaskVersion:
    """Save an edited mask as the next version of its template, and the event that tells of it; sent twice, it is one.

    Parameters
    ----------
    library
        With the masks that were edited.
    folder
        Of all templates' versions.
    number
        The version that was edited; 0 for the mask as it was found. It does not matter where the edits start from that
        mask (`audit.verbatim.editing.starts_as_found`): two people draw at a time, and neither loses theirs.
    answer_id
        As `audit.review.queue.Answer` has one.
    item_id
        At which it was edited.
    difference
        What thresholds are taken of (`audit.verbatim.editing.apply`).

    Raises
    ------
    InputError
        If the template is not in the library, if there is a newer version, or if the edited mask proves nothing.
    """
    template = next((each for each in library.templates if each.template_id == template_id), None)
    if template is None:
        raise InputError("The template is not in the library any more; nothing was saved.")
    used = library.versions.get(template_id)
    with store.change(person, Action.EDIT_MASK) as change:
        there = saved_of(folder, template_id, used.base_sha256 if used else template_sha256(template))
        version = next((each for each in there if each.answer_id == answer_id), None)
        if version is None:
            newest = there[-1].number if there else 0
            edited = newest if starts_as_found(edits) else number
            if not edited == newest == (used.number if used else 0):
                raise InputError(
                    "Somebody saved another version of this mask meanwhile. Open the mask again, and draw once more."
                )
            version = library.save_mask(
                template_id,
                edits,
                who=person.name,
                versions=folder,
                difference=difference,
                answer_id=answer_id,
            )
        if sent(change, answer_id, EventKind.MASK_SAVED, person, template_id) is None:
            body = {
                "number": version.number,
                "base_sha256": version.base_sha256,
                "parent_sha256": version.parent_sha256,
                "sha256": version.sha256,
                "item_id": item_id,
                "answer_id": answer_id,
            }
            append(change, EventKind.MASK_SAVED, person, template_id, body)
    return version


def mask_findings(store: Store, library: Path) -> Iterator[Finding]:
    """Versions of a library's masks that are not those that events tell of.

    Events of templates that are not in the library, or had another mask when they were found, are passed over.
    """
    told: dict[str, dict[int, Event]] = {}
    for event in store.events([EventKind.MASK_SAVED]):
        told.setdefault(event.subject, {})[event.body["number"]] = event
    for template in as_found(library):
        base = template_sha256(template)
        there = {each.number: each.sha256 for each in versions(versions_of(library), template)[0]}
        yield from _differing(template.template_id, base, told.get(template.template_id, {}), there)


def _differing(
    name: str, base: str, told: Mapping[int, Event], there: Mapping[int, str]
) -> Iterator[Finding]:
    for number, event in told.items():
        if event.body.get("base_sha256", base) == base and there.get(number) != event.body["sha256"]:
            yield Finding(
                event.number,
                f"Version {number} of the mask of {name} is missing, or is not the one that event {event.number} tells of.",
            )
    for number in sorted(there.keys() - told.keys()):
        yield Finding(0, f"No event tells of version {number} of the mask of {name}; nobody saved it here.")

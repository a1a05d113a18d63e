"""Masks of templates as people edited them: each saved as a new version, none ever over another.

A folder of versions stands beside a template library, never in it: the library is replaced whole when it is made
again. Each version is one file, ``FOLDER/<first 32 hex digits of the name's sha256>/00001.json``, linked to its
number once it is on the disk: a kill leaves it whole or not at all, and two writers get two numbers.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from audit.errors import InputError
from audit.files import sync_to_disk
from audit.records import Template
from audit.verbatim.editing import SIZE, Edit, apply, from_json, starts_as_found, to_json
from audit.verbatim.masks import check_mask

MAX_NAME = 200
"""Characters of who edited."""
MAX_BYTES = 8_000_000
"""Of one version's file."""
KEYS = ("template_id", "who", "when", "edits", "base_sha256", "parent_sha256", "sha256", "mask")


@dataclass(frozen=True)
class MaskVersion:
    """One edited mask of a template."""

    template_id: str
    number: int
    """From 1 on; 0 would be the mask as it was found."""
    who: str
    when: str
    """UTC, ISO 8601."""
    edits: tuple[Edit, ...]
    base_sha256: str
    """`template_sha256` with the mask as it was found."""
    parent_sha256: str
    """With the mask that these edits were made on, also where they start from the one that was found."""
    sha256: str
    """With this mask."""
    mask: np.ndarray
    """(256, 256) bool, True where the members are unchanged."""
    answer_id: str = ""
    """What it was sent as."""


def template_sha256(*templates: Template) -> str:
    """Hex sha256 over names, masks and pictures of templates, in order."""
    digest = hashlib.sha256()
    for template in templates:
        digest.update(template.template_id.encode("utf-8", "surrogatepass") + b"\0")
        digest.update(np.packbits(template.mask).tobytes())
        digest.update(np.ascontiguousarray(template.image, np.float32).tobytes())
    return digest.hexdigest()


def save_version(
    folder: Path,
    template: Template,
    edits: Sequence[Edit],
    *,
    who: str,
    before: MaskVersion | None = None,
    found: np.ndarray | None = None,
    difference: np.ndarray | None = None,
    answer_id: str = "",
) -> MaskVersion:
    """Apply edits to a template's mask and save it under the next number.

    Parameters
    ----------
    folder
        Of all templates' versions.
    template
        With the mask that the edits were made on.
    before
        The version that this mask is of; None where it is the one that was found.
    found
        The mask as it was found, (256, 256) bool, where there is a version before.
    difference
        What thresholds are taken of (`audit.verbatim.editing.apply`).
    answer_id
        What the edits were sent as: names the version that they made, whoever sends them again.

    Raises
    ------
    InputError
        If the edited mask covers too little to prove anything, or nothing was edited.
    """
    if not (edits[1:] if starts_as_found(edits) else edits):
        raise InputError("Nothing was edited, so there is no new version of the mask to save.")
    if not who.strip() or len(who) > MAX_NAME:
        raise InputError(f"A mask is edited by somebody; give a name of 1 to {MAX_NAME} characters.")
    mask = apply(template.mask, edits, difference, template.mask if before is None else found)
    check_mask(template.image, mask)
    parent = template_sha256(template)
    texts = {
        "template_id": template.template_id,
        "who": who,
        "when": datetime.now(UTC).isoformat(timespec="microseconds"),
        "base_sha256": before.base_sha256 if before else parent,
        "parent_sha256": parent,
        "sha256": template_sha256(replace(template, mask=mask)),
        "answer_id": answer_id,
    }
    content = texts | {
        "edits": to_json(edits),
        "mask": base64.b64encode(np.packbits(mask).tobytes()).decode(),
    }
    place = _place(folder, template.template_id)
    place.mkdir(parents=True, exist_ok=True)
    number = int(_linked(place, json.dumps(content) + "\n").stem)
    return MaskVersion(number=number, edits=tuple(edits), mask=mask, **texts)


def beside(library: Path) -> Path:
    """Where the versions of a library's masks are looked for if nothing else is said: ``templates.versions``."""
    return library.with_name(f"{library.name}.versions")


def chosen(folder: Path, template: Template, number: int | None) -> tuple[MaskVersion | None, list[str]]:
    """The newest version of a template as it was found, or that of a number, and what is wrong with others.

    None where its mask is the one that was found, as number 0 asks for.
    """
    found, faults = versions(folder, template)
    if number is None:
        return (found[-1] if found else None), faults
    version = next((each for each in found if each.number == number), None)
    if version is None and number:
        raise InputError(
            f"There is no version {number} of the mask of {template.template_id[:80]}; there are "
            f"{', '.join(str(each.number) for each in found) or 'none'}."
        )
    return version, faults


def versions(folder: Path, template: Template) -> tuple[list[MaskVersion], list[str]]:
    """The versions of a template, oldest first, and what is wrong with those that cannot be read.

    `template` is as it was found. Versions of another mask or picture that went by its name are passed over.
    """
    found, faults = [], []
    paths = _numbered(_place(folder, template.template_id))
    base = template_sha256(template) if paths else ""
    for path in paths:
        try:
            version = _read(path, template.template_id)
        except InputError as error:
            faults.append(str(error))
            continue
        if version.base_sha256 != base:
            continue
        if version.sha256 == template_sha256(replace(template, mask=version.mask)):
            found.append(version)
        else:
            faults.append(_damaged(path, template.template_id))
    return sorted(found, key=lambda version: version.number), faults


def drawn_alone(saved: Sequence[MaskVersion]) -> list[MaskVersion]:
    """Those of one template's versions, oldest first, in which no other person's drawing is.

    They start from the mask as it was found, or go back to it over versions of nobody else. One whose parent is not
    among `saved` is none: nobody knows whose that was.
    """
    alone: list[MaskVersion] = []
    owner: dict[str, str] = {}  # by hash of the newest version with that mask; empty where others drew in it
    for version in saved:
        by_themselves = (
            starts_as_found(version.edits)
            or version.parent_sha256 == version.base_sha256
            or owner.get(version.parent_sha256) == version.who
        )
        owner[version.sha256] = version.who if by_themselves else ""
        if by_themselves:
            alone.append(version)
    return alone


def saved_of(folder: Path, template_id: str, base_sha256: str) -> list[MaskVersion]:
    """The versions of a template with that hash as it was found, oldest first, without those that cannot be read."""
    found = []
    for path in _place(folder, template_id).glob("[0-9]*.json"):
        with suppress(InputError):
            found.append(_read(path, template_id))
    return sorted(
        (each for each in found if each.base_sha256 == base_sha256), key=lambda version: version.number
    )


def version_path(template_id: str, number: int) -> str:
    """Where a version lies in a folder of versions."""
    return f"{_place(Path(), template_id)}/{number:05d}.json"


def _place(folder: Path, template_id: str) -> Path:
    # a template's name comes from outside and is no file name
    return Path(folder) / hashlib.sha256(template_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _numbered(place: Path) -> list[Path]:
    """The files of versions: what else lies there, as the copy that a synchronised folder makes, is none."""
    return sorted(path for path in place.glob("*.json") if re.fullmatch("[0-9]+", path.stem))


def _linked(place: Path, text: str) -> Path:
    """The file of the next free number, with this text."""
    with tempfile.NamedTemporaryFile("w", dir=place, prefix=".new-", encoding="utf-8") as partial:
        partial.write(text)
        partial.flush()
        os.fsync(partial.fileno())
        number = max((int(path.stem) for path in _numbered(place)), default=0)
        while True:
            number += 1
            path = place / f"{number:05d}.json"
            try:
                os.link(partial.name, path)  # unlike a rename, never over another's
            except FileExistsError:
                continue
            sync_to_disk(place)
            return path


def _read(path: Path, template_id: str) -> MaskVersion:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} is too large")
        content = json.loads(path.read_text(encoding="utf-8"))
        texts = {name: content[name] for name in KEYS}
        edits = from_json(texts.pop("edits"))
        bits = np.frombuffer(base64.b64decode(texts.pop("mask"), validate=True), np.uint8)
        mask = np.unpackbits(bits).astype(bool).reshape(SIZE)
        texts["answer_id"] = content.get("answer_id", "")  # the first versions had none
        if texts["template_id"] != template_id or not all(isinstance(text, str) for text in texts.values()):
            raise ValueError(f"{path} is of another template")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(_damaged(path, template_id)) from error
    return MaskVersion(number=int(path.stem), edits=edits, mask=mask, **texts)


def _damaged(path: Path, template_id: str) -> str:
    return f"Version {path.stem} of the mask of {template_id[:80]} is damaged; move {path} away."

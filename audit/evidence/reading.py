"""Exhibits read for presentation: a gallery of them, and one with all of its parts. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from audit.errors import InputError
from audit.evidence.consistency import WRONG, read_facts
from audit.evidence.document import document
from audit.evidence.export import CAPTION_ID
from audit.evidence.facts import EXHIBIT, GENERATED, NEIGHBOURS, TRAINING
from audit.evidence.manifest import MANIFEST, Finding, compare
from audit.evidence.untrusted import read_folder
from audit.images import sha256


@dataclass(frozen=True)
class Exhibit:
    """One exhibit in memory."""

    name: str
    """Its folder: the caption_id."""
    root: str
    """sha256 of its manifest."""
    files: Mapping[str, bytes]
    """Everything in it, by name."""
    facts: Mapping[str, Any]
    """``exhibit.json``."""
    findings: tuple[Finding, ...]
    """What is not as its manifest says; a page that shows it has to say so. `audit.evidence.verify` checks more."""

    @classmethod
    def open(cls, folder: Path) -> Exhibit:
        """Read an exhibit; InputError where it is none, or so damaged that it cannot be shown."""
        files = read_folder(folder)
        if EXHIBIT not in files or MANIFEST not in files:
            raise InputError(f"{folder.name} is no exhibit: it has no {EXHIBIT} or no {MANIFEST}.")
        exhibit = cls(
            folder.name, sha256(files[MANIFEST]), files, read_facts(files[EXHIBIT]), tuple(compare(files))
        )
        try:
            caption = exhibit.facts["caption"]["id"]
            shown = [exhibit.document["pair"][side]["file"] for side in ("left", "right")]
        except WRONG as error:
            raise InputError(f"{folder.name} cannot be shown: its {EXHIBIT} is damaged.") from error
        if caption != folder.name:
            raise InputError(f"{folder.name} cannot be shown: the exhibit of another caption lies there.")
        if not all(name is None or name in files for name in shown):
            raise InputError(f"{folder.name} cannot be shown: one of its pictures is missing.")
        return exhibit

    @cached_property
    def document(self) -> dict[str, Any]:
        """What its report says, as `audit.evidence.document.document` lays it out: texts, claims, figures, tables."""
        return document(self.facts)

    @property
    def generated(self) -> bytes:
        """The generated picture, PNG."""
        return self.files[GENERATED]

    @property
    def training_sha256(self) -> frozenset[str]:
        """sha256 of the training pictures' files that the exhibit shows."""
        shown = [self.facts["training_image"]] if TRAINING in self.files else []
        if NEIGHBOURS in self.files:
            shown += [each for each in self.facts["neighbours"] if not each.get("hidden")]
        return frozenset(str(each.get(name) or "") for each in shown for name in ("sha256", "file_sha256"))

    @property
    def training(self) -> bytes | None:
        """The training image, PNG; None where the exhibit holds none."""
        return self.files.get(TRAINING)


def gallery(folder: Path) -> list[str]:
    """Names of the exhibits in a folder, in order; `Exhibit.open` reads each."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; give one with exhibits.")
    return sorted(
        path.name
        for path in folder.iterdir()
        if CAPTION_ID.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    )

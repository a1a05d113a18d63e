"""The manifest of an exhibit: ``SHA256SUMS``, which ``sha256sum -c`` reads, and whose own sha256 is the root.

Lines are sorted by name, so equal files give an equal manifest; the root stands for every byte of the exhibit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from audit.errors import InputError
from audit.images import sha256
from audit.records import readable

MANIFEST = "SHA256SUMS"
SIGNATURE = MANIFEST + ".sig"
"""Beside the manifest, and not in it: it signs the manifest."""
LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*)")


class Change(StrEnum):
    """What is wrong with one of an exhibit's files."""

    CHANGED = "changed"
    MISSING = "missing"
    ADDED = "added"
    SWAPPED = "swapped"
    """It holds what another file held."""
    DAMAGED = "damaged"
    """It cannot be read as what it is."""
    INCONSISTENT = "inconsistent"
    """It is as the manifest says, and contradicts another file."""
    UNKNOWN = "unknown"
    """Nothing outside the exhibit vouches for it."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was exported."""

    file: str
    change: Change
    sentence: str


def manifest_bytes(hashes: Mapping[str, str]) -> bytes:
    """``SHA256SUMS`` of files by name."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items())).encode()


def read_manifest(data: bytes) -> dict[str, str]:
    """Hashes by name; InputError where a line is none that `manifest_bytes` writes, or the order is another."""
    try:
        lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{MANIFEST} holds other characters than a list of hashes does.") from error
    if lines.pop() != "":
        raise InputError(f"{MANIFEST} does not end with a whole line.")
    hashes: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        found = LINE.fullmatch(line)
        if found is None:
            raise InputError(f"Line {number} of {MANIFEST} is no hash with a file's name: {line[:90]!r}.")
        hashes[found[2]] = found[1]
    if manifest_bytes(hashes) != data:
        raise InputError(f"{MANIFEST} names a file twice, or its lines are not in order.")
    return hashes


def compare(files: Mapping[str, bytes]) -> list[Finding]:
    """Every file that is not as the manifest among them says; a manifest that cannot be read is the only finding."""
    if MANIFEST not in files:
        return [Finding(MANIFEST, Change.MISSING, f"{MANIFEST} is missing, so nothing can be checked.")]
    try:
        recorded = read_manifest(files[MANIFEST])
    except InputError as error:
        return [Finding(MANIFEST, Change.DAMAGED, str(error))]
    hashes = {name: sha256(data) for name, data in files.items() if name not in (MANIFEST, SIGNATURE)}
    of_hash = {digest: name for name, digest in recorded.items()}
    findings = []
    for name in sorted(recorded.keys() | hashes.keys()):
        if name not in hashes:
            findings.append(Finding(name, Change.MISSING, f"{name} is missing."))
        elif name not in recorded:
            what, shown = of_hash.get(hashes[name]), readable(name)
            copy = f"; it is a copy of {what}" if what else ""
            findings.append(Finding(shown, Change.ADDED, f"{shown} was added after the export{copy}."))
        elif hashes[name] != recorded[name]:
            findings.append(_changed(name, hashes[name], recorded[name], of_hash.get(hashes[name])))
    return findings


def _changed(name: str, now: str, before: str, other: str | None) -> Finding:
    if other:
        return Finding(name, Change.SWAPPED, f"{name} holds what {other} held at the export.")
    return Finding(
        name, Change.CHANGED, f"{name} was changed: its sha256 is {now[:16]}…, recorded is {before[:16]}…."
    )

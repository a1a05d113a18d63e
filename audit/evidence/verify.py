"""Whether an exhibit is what was exported: offline, from a folder or a zip that anybody may have made.

Three things vouch for it: the manifest for its files, the register (or the root that was shown at the export) for the
manifest, and a signature for both. What none of them can see, a contradiction between the files may tell.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audit.errors import InputError
from audit.evidence import register
from audit.evidence.consistency import WRONG, contradictions, read_facts
from audit.evidence.export import CAPTION_ID, UNFINISHED
from audit.evidence.facts import EXHIBIT, GENERATED, ONE_STEP
from audit.evidence.manifest import MANIFEST, SIGNATURE, Change, Finding, compare, read_manifest
from audit.evidence.regenerate import regenerate
from audit.evidence.signature import armoured, signed_by
from audit.evidence.untrusted import read_folder, read_picture, read_zip, write_zip
from audit.images import sha256

if TYPE_CHECKING:
    from audit.targets.base import Target

MAX_SIGNATURE = 100_000
MAX_MANIFEST = 64_000_000
"""Bytes of the manifest over all exhibits of an export: half a million of them."""


@dataclass(frozen=True)
class Anchor:
    """What vouches for roots from outside of an exhibit."""

    path: Path | None
    """The register's file."""
    entries: Mapping[tuple[str, str], Sequence[register.Entry]]
    """Its entries by kind and root: signed and not, the same exhibit has one of each."""
    root: str | None = None
    """The root that was shown at the export."""
    signers: Path | None = None
    """A file of allowed signers."""

    @classmethod
    def open(cls, path: Path | None, root: str | None = None, signers: Path | None = None) -> Anchor:
        """A register, by default the one of the settings if there is one; InputError for one named that is not there."""
        if path is not None and not path.is_file():
            raise InputError(f"There is no register {path}; check the path.")
        if signers is not None and not signers.is_file():
            raise InputError(f"There is no file of signers {signers}; check the path.")
        where = path or register.register_path()
        if not where.is_file():
            return cls(None, {}, root, signers)
        entries = defaultdict(list)
        for entry in register.read(where):
            entries[entry.kind, entry.root].append(entry)
        return cls(where, dict(entries), root, signers)


def verify(path: Path, anchor: Anchor, target: Target | None = None) -> dict[str, Any]:
    """Check an exhibit, its zip, or all exhibits of an export; with a target, make their pictures again.

    Returns
    -------
    ``verified``, and ``findings`` with file, change and sentence each; what was `not_checked`, and why; and for each
    exhibit its ``root``, the entry of the register, who signed it, and how far a picture made again was.

    Raises
    ------
    InputError
        If there is nothing at the path that could be an exhibit.
    """
    if not path.exists():
        raise InputError(f"There is no folder or zip {path}; check the path.")
    faults = register.faults(anchor.path) if anchor.path else []
    broken = [Finding(str(anchor.path), Change.CHANGED, fault) for fault in faults]
    look = _export if path.is_dir() and is_export(path) else _one
    found = look(path.resolve(), anchor, target)
    findings = [*map(asdict, broken), *found.pop("findings")]
    return {"path": str(path), "verified": not findings, "findings": findings, **found}


def is_export(folder: Path) -> bool:
    """Whether a folder holds exhibits, and is none itself."""
    names = set(os.listdir(folder))
    if names & {EXHIBIT, "pictures", "report.pdf", "report.html"}:
        return False
    return any(CAPTION_ID.fullmatch(name) for name in names)


def _export(folder: Path, anchor: Anchor, target: Target | None) -> dict[str, Any]:
    """All exhibits of an export, each by itself, and the list of them."""
    names = sorted(os.listdir(folder))
    there = set(filter(CAPTION_ID.fullmatch, names))
    recorded, root, findings, unchecked = _listed(folder, anchor)
    for name in names:
        if name.startswith(UNFINISHED):
            unchecked.append(f"{name}: an export was stopped while it was written.")
        elif name not in there | {MANIFEST, SIGNATURE} and name.removesuffix(".zip") not in there:
            findings.append(Finding(name, Change.ADDED, f"{name!r} is not of this export."))
    told, exhibits = [*map(asdict, findings)], {}
    for name in sorted(there.union(recorded or ())):
        if name not in there:
            told.append(asdict(Finding(name, Change.MISSING, f"The exhibit {name} is missing.")))
            continue
        listed = recorded.get(name) if recorded is not None else None
        if recorded is not None and listed is None:
            told.append(asdict(Finding(name, Change.ADDED, f"The exhibit {name} is not of this export.")))
        # without a register, what vouches for the list vouches for those on it
        each = replace(anchor, root=None if anchor.path else listed)
        for path, prefix in ((folder / name, name), (folder / f"{name}.zip", f"{name}.zip")):
            if not path.is_dir() and not path.is_file():
                continue
            found = _one(path, each, target if path.is_dir() else None)
            if listed is not None and anchor.path and found["root"] not in (None, listed):
                sentence = f"{prefix}/{MANIFEST} is not the one that this export lists."
                told.append(asdict(Finding(f"{prefix}/{MANIFEST}", Change.CHANGED, sentence)))
            told += [finding | {"file": f"{prefix}/{finding['file']}"} for finding in found.pop("findings")]
            exhibits[prefix] = found
    return {"root": root, "findings": told, "not_checked": unchecked, "exhibits": exhibits}


def _listed(
    folder: Path, anchor: Anchor
) -> tuple[dict[str, str] | None, str | None, list[Finding], list[str]]:
    """The roots that an export lists by exhibit (None where it has no list), its own, findings, and what was not checked."""
    try:
        data = _manifest(folder)
        if data is None:
            sentence = (
                f"Whether an exhibit is missing: {MANIFEST}, which lists them, is not there. An export that was stopped "
                "has none; the same command goes on with it."
            )
            return None, None, [], [sentence]
        recorded = {name.split("/")[0]: digest for name, digest in read_manifest(data).items()}
    except InputError as error:
        return None, None, [Finding(MANIFEST, Change.DAMAGED, str(error))], []
    root = sha256(data)
    findings, unchecked, entries = _vouched(root, register.EXPORT, anchor)
    files = {MANIFEST: data}
    if (folder / SIGNATURE).is_file() and not (folder / SIGNATURE).is_symlink():
        with open(folder / SIGNATURE, "rb") as stream:
            files[SIGNATURE] = stream.read(MAX_SIGNATURE)
    _, unsigned = _signature(files, entries, anchor)
    return recorded, root, [*findings, *unsigned], unchecked


def _manifest(folder: Path) -> bytes | None:
    """The manifest over all exhibits; None where there is none."""
    path = folder / MANIFEST
    if path.is_symlink():
        raise InputError(f"{MANIFEST} is a link; it is not followed.")
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_MANIFEST:
        raise InputError(f"{MANIFEST} is larger than any of ours.")
    return path.read_bytes()


def _one(path: Path, anchor: Anchor, target: Target | None) -> dict[str, Any]:
    """One exhibit."""
    nothing = {"root": None, "register": [], "signed_by": None, "regenerated": None, "not_checked": []}
    try:
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise InputError(f"{path.name} is no ordinary folder or file.")
        files = read_folder(path) if path.is_dir() else read_zip(path)
    except InputError as error:
        return nothing | {"findings": [asdict(Finding(path.name, Change.DAMAGED, str(error)))]}
    findings = [_told(each, files) for each in compare(files)]
    root = sha256(files[MANIFEST]) if MANIFEST in files else None
    unchecked: list[str] = []
    entries: Sequence[register.Entry] = ()
    if root is not None:
        vouched, unchecked, entries = _vouched(root, register.EXHIBIT, anchor)
        findings += vouched
    signer, unsigned = _signature(files, entries, anchor)
    findings += unsigned
    regenerated = None
    if any(each.file not in (MANIFEST, SIGNATURE) or each.change is Change.DAMAGED for each in findings):
        unchecked = [
            *unchecked,
            "Whether the files agree with each other, since they are not those exported.",
        ]
    elif root is not None:
        contradicting, more = contradictions(files)
        findings += contradicting
        unchecked = [*unchecked, *more]
        if not contradicting:
            unchecked += _not_copied(files)
            if target is not None:
                regenerated, again = _again(files, target)
                findings += again
    if path.is_file() and not findings:
        findings += _repacked(path, files)
    return {
        "root": root,
        "register": [{"entry": each.number, "when": each.when, "who": each.who} for each in entries],
        "signed_by": signer,
        "regenerated": regenerated,
        "findings": [*map(asdict, findings)],
        "not_checked": unchecked,
    }


def _told(finding: Finding, files: Mapping[str, bytes]) -> Finding:
    """A changed picture that cannot be opened any more is damaged."""
    if finding.change is not Change.CHANGED or not finding.file.endswith(".png"):
        return finding
    try:
        read_picture(files[finding.file], finding.file)
    except InputError as error:
        return Finding(finding.file, Change.DAMAGED, f"{finding.sentence} {error}")
    return finding


def _vouched(
    root: str, kind: str, anchor: Anchor
) -> tuple[list[Finding], list[str], Sequence[register.Entry]]:
    """Whether something outside vouches for a root: findings, what could not be checked, and the register's entries."""
    entries = anchor.entries.get((kind, root), ())
    findings, unchecked = [], []
    if anchor.root is not None and anchor.root != root:
        sentence = (
            f"The root is {root}, not the {anchor.root[:80]} that was given: the manifest was made anew."
        )
        findings.append(Finding(MANIFEST, Change.CHANGED, sentence))
    if anchor.path is None:
        if anchor.root is None:
            unchecked.append(
                f"Whether {MANIFEST} is the one that was exported: no register is at hand. Compare the root {root} "
                "with the one that was shown at the export, or give --register or --root."
            )
    elif not entries and anchor.root != root:
        findings.append(
            Finding(
                MANIFEST,
                Change.UNKNOWN,
                f"The register {anchor.path} has no {kind} with the root {root}: the manifest was made anew, or another "
                "register is the right one (--register).",
            )
        )
    return findings, unchecked, entries


def _signature(
    files: Mapping[str, bytes], entries: Sequence[register.Entry], anchor: Anchor
) -> tuple[str | None, list[Finding]]:
    """Who signed the manifest, and what is wrong with the signature."""
    expected = {entry.signed_by for entry in entries}
    if SIGNATURE not in files or MANIFEST not in files:
        if expected and "" not in expected:
            sentence = f"The register says that it was signed with {', '.join(sorted(expected))}; the signature is missing."
            return None, [Finding(SIGNATURE, Change.MISSING, sentence)]
        if anchor.signers is not None:
            return None, [
                Finding(SIGNATURE, Change.MISSING, "There is no signature, and signers were given.")
            ]
        return None, []
    try:
        signer = signed_by(files[MANIFEST], files[SIGNATURE], anchor.signers)
    except InputError as error:
        return None, [Finding(SIGNATURE, Change.CHANGED, str(error))]
    if not armoured(files[SIGNATURE]):
        return signer, [Finding(SIGNATURE, Change.CHANGED, f"{SIGNATURE} holds more than the signature.")]
    if expected and signer.split(", ")[-1] not in expected:
        told = ", ".join(sorted(each or "no key" for each in expected))
        sentence = f"It is signed with {signer}; the register says {told}."
        return signer, [Finding(SIGNATURE, Change.CHANGED, sentence)]
    return signer, []


def _not_copied(files: Mapping[str, bytes]) -> Iterator[str]:
    """What cannot be computed again where the training image was not copied."""
    training = read_facts(files[EXHIBIT]).get("training_image")
    if isinstance(training, dict) and not training.get("copied"):
        yield "The distances, since the training image is not in the exhibit; its hash is."


def _again(files: Mapping[str, bytes], target: Target) -> tuple[dict[str, Any] | None, list[Finding]]:
    """The pictures made again."""
    facts = read_facts(files[EXHIBIT])
    pictures = {"generated": files[GENERATED], "one_step": files[ONE_STEP]}
    try:
        made = regenerate(facts, pictures, target)
    except WRONG as error:
        if isinstance(error, InputError):
            raise
        return None, [Finding(EXHIBIT, Change.DAMAGED, f"{EXHIBIT} asks for what cannot be generated.")]
    if made["within"]:
        return made, []
    sentence = (
        f"Made again from seed {facts['sampling']['seed_shown']}, the pictures are {made['distance']:,.2f} and "
        f"{made['distance_of_one_step']:,.2f} (one step) away from those recorded; the tolerance is {made['tolerance']:g}."
    )
    return made, [Finding(GENERATED, Change.INCONSISTENT, sentence)]


def _repacked(path: Path, files: dict[str, bytes]) -> list[Finding]:
    """The zip against the one that its files give: what it holds besides them was not exported."""
    folder = str(read_facts(files[EXHIBIT])["caption"]["id"])
    with tempfile.TemporaryDirectory() as place:
        again = Path(place) / "again.zip"
        write_zip(files, folder, again)
        if again.read_bytes() == path.read_bytes():
            return []
    sentence = (
        f"The files in {path.name} are as exported, but the zip around them was changed or packed anew."
    )
    return [Finding(path.name, Change.CHANGED, sentence)]

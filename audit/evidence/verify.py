"""Whether an exhibit is what was exported: offline, from a folder or a zip that anybody may have made.

Three things vouch for it: the manifest for its files, the register (or the root that was shown at the export) for the
manifest, and a signature for both. What none of them can see, a contradiction between the files may tell.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audit.errors import InputError
from audit.evidence import register
from audit.evidence.consistency import WRONG, contradictions, read_facts
from audit.evidence.export import CAPTION_ID
from audit.evidence.facts import EXHIBIT, GENERATED, ONE_STEP
from audit.evidence.manifest import MANIFEST, SIGNATURE, Change, Finding, compare, read_manifest
from audit.evidence.plan import PLAN, UNFINISHED, Plan
from audit.evidence.regenerate import check_target, regenerate
from audit.evidence.signature import armoured, signed_by
from audit.evidence.untrusted import read_folder, read_picture, read_zip, write_zip
from audit.images import sha256
from audit.records import readable

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
    named: bool = True
    """Whether it was said that this register is the right one."""

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
        return cls(where, dict(entries), root, signers, named=path is not None)

    def all_of(self, kind: str) -> Iterator[register.Entry]:
        """The register's entries of one kind."""
        return (entry for each in self.entries.values() for entry in each if entry.kind == kind)

    def about(self, names: Collection[str]) -> Anchor:
        """What vouches for exhibits of these captions, where nobody named a register.

        The one of this computer says nothing of exhibits that were brought to it: if it has none of these captions, or
        if signers vouch for them.
        """
        if self.signers is None and any(entry.name in names for entry in self.all_of(register.EXHIBIT)):
            return self
        return replace(self, path=None, entries={})


@dataclass(frozen=True)
class Listed:
    """What an export holds: by its list; where that is gone by the register; of a stopped one by its plan."""

    exhibits: Mapping[str, str | None] | None = None
    """Roots by exhibit, as far as they are told of; None where nothing tells which there are."""
    zips: Mapping[str, str] | None = None
    """sha256 by name; None where nothing tells of them."""
    root: str | None = None
    signed_by: str | None = None
    findings: Sequence[Finding] = ()
    unchecked: Sequence[str] = ()
    unfinished: Set[str] = frozenset()
    """Names that a stopped export leaves."""


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
    whole = path.is_dir() and is_export(path)
    if not anchor.named:
        anchor = anchor.about(set(os.listdir(path)) if whole else {path.stem, _caption_of(path)})
    faults = register.faults(anchor.path) if anchor.path else []
    broken = [Finding(str(anchor.path), Change.CHANGED, fault) for fault in faults]
    found = (_export if whole else _one)(path.resolve(), anchor, target)
    findings = [*map(asdict, broken), *found.pop("findings")]
    if anchor.path is None and anchor.signers is None and not findings:
        signer = found["signed_by"]
        found["not_checked"] += [
            f"Whether {signer} is who should have signed it: neither a register nor --signers tells."
            if signer
            else "Whether a signature was removed: no register at hand tells whether it was signed."
        ]
    return {"path": str(path), "verified": not findings, "findings": findings, **found}


def _caption_of(path: Path) -> str:
    """The caption_id that an exhibit states; empty where it states none."""
    try:
        files = read_folder(path) if path.is_dir() else read_zip(path)
        return str(read_facts(files[EXHIBIT])["caption"]["id"])
    except WRONG:
        return ""


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
    listed = _listed(folder, there, anchor)
    members = there if listed.exhibits is None else set(listed.exhibits)
    packed = listed.zips or {}
    zips = {f"{name}.zip" for name in there | members} if listed.zips is None else set(packed)
    told, exhibits = [*map(asdict, listed.findings)], {}
    looked_at = {name for name in (MANIFEST, SIGNATURE) if _ordinary(folder / name)}
    for name in sorted({*names, *members, *packed} - looked_at - listed.unfinished):
        path = folder / name
        if not os.path.lexists(path):
            told.append(asdict(Finding(name, Change.MISSING, f"{name} is missing.")))
            continue
        if name not in members | zips:
            shown = readable(name)
            told.append(asdict(Finding(shown, Change.ADDED, f"{shown!r} is not of this export.")))
        if name in there or name in zips:
            found = _member(path, listed, anchor, target)
            told += [finding | {"file": f"{name}/{finding['file']}"} for finding in found.pop("findings")]
            exhibits[name] = found
            if name in packed and _sha256(path) != packed[name]:
                told.append(
                    asdict(Finding(name, Change.CHANGED, f"{name} is not the one that was exported."))
                )
    return {
        "root": listed.root,
        "signed_by": listed.signed_by,
        "findings": told,
        "not_checked": [*listed.unchecked],
        "exhibits": exhibits,
    }


def _member(path: Path, listed: Listed, anchor: Anchor, target: Target | None) -> dict[str, Any]:
    """One exhibit of an export, or its zip, by itself and against the list."""
    root = (listed.exhibits or {}).get(path.name.removesuffix(".zip"))
    # without a register, what vouches for the list vouches for those on it
    found = _one(
        path, replace(anchor, root=None if anchor.path else root), None if path.is_file() else target
    )
    if root is not None and anchor.path and found["root"] not in (None, root):
        sentence = f"{MANIFEST} is not the one that this export holds under the name {path.name}."
        found["findings"].append(asdict(Finding(MANIFEST, Change.CHANGED, sentence)))
    if listed.root is not None and not anchor.path and not found["findings"]:
        if bool(found["signed_by"]) != bool(listed.signed_by):
            change, is_not = (Change.MISSING, "is not") if listed.signed_by else (Change.ADDED, "is")
            sentence = f"It {is_not} signed, other than the list of this export."
            found["findings"].append(asdict(Finding(SIGNATURE, change, sentence)))
        elif found["signed_by"] != listed.signed_by:
            sentence = (
                f"It is signed with {found['signed_by']}, the list of this export with {listed.signed_by}."
            )
            found["findings"].append(asdict(Finding(SIGNATURE, Change.CHANGED, sentence)))
    return found


def _sha256(path: Path) -> str | None:
    """Of a file's content; None where it is no ordinary file."""
    if not _ordinary(path):
        return None
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _ordinary(path: Path) -> bool:
    """Whether it is a file, and no link, folder or pipe."""
    return path.is_file() and not path.is_symlink()


def _listed(folder: Path, there: Set[str], anchor: Anchor) -> Listed:
    """What an export holds, and what is wrong with what tells of it."""
    try:
        data = _manifest(folder)
        if data is None:
            return _unlisted(folder, there, anchor)
        recorded = read_manifest(data)
    except InputError as error:
        return Listed(findings=[Finding(MANIFEST, Change.DAMAGED, str(error))])
    files = {MANIFEST: data}
    if _ordinary(folder / SIGNATURE):
        with open(folder / SIGNATURE, "rb") as stream:
            files[SIGNATURE] = stream.read(MAX_SIGNATURE)
    outside = _outside(files, register.EXPORT, anchor)
    plan = _plan(folder)
    finished = plan is not None and plan.sha256 in {entry.export for entry in outside.entries}
    return Listed(
        exhibits={
            name.removesuffix(f"/{MANIFEST}"): digest for name, digest in recorded.items() if "/" in name
        },
        zips={name: digest for name, digest in recorded.items() if "/" not in name},
        root=sha256(data),
        signed_by=outside.signed_by,
        findings=outside.findings,
        unchecked=outside.unchecked,
        unfinished={PLAN} if finished else frozenset(),  # it was stopped at its very end
    )


def _unlisted(folder: Path, there: Set[str], anchor: Anchor) -> Listed:
    """What an export without a list holds: it was stopped, or the list was removed."""
    plan = _plan(folder)
    exports = {entry.export for entry in anchor.all_of(register.EXHIBIT)}
    if plan is not None and (anchor.path is None or plan.sha256 in exports):
        left = len(set(plan.captions) - set(there))
        sentence = (
            f"Whether an exhibit is missing: the export was stopped, and {left} of {len(plan.captions)} exhibits are not "
            "there. The same command goes on with it."
        )
        return Listed(
            dict.fromkeys(plan.captions), unchecked=[sentence], unfinished=_unfinished(plan) - there
        )
    sentence = f"{MANIFEST}, which lists the exhibits of this export, is missing; to check one exhibit alone, give its own folder."
    missing = [Finding(MANIFEST, Change.MISSING, sentence)]
    finished = {entry.export: entry.number for entry in anchor.all_of(register.EXPORT) if entry.export}
    roots: dict[str, dict[str, str]] = {name: {} for name in finished}
    for entry in anchor.all_of(register.EXHIBIT):
        if entry.export in finished:
            roots[entry.export][entry.name] = entry.root
    which = max(finished, key=lambda name: (len(roots[name].keys() & there), finished[name]), default=None)
    if which is None or not roots[which].keys() & there:
        return Listed(findings=missing)
    return Listed(roots[which], findings=missing)


def _unfinished(plan: Plan) -> set[str]:
    """Names that a stopped export may leave: what is not there yet, half of it, and what it goes on with."""
    exhibits, zips = plan.captions, [f"{name}.zip" for name in plan.captions]
    partials = (f"{name}.partial" for name in (PLAN, MANIFEST, SIGNATURE, *zips))
    return {PLAN, *exhibits, *(f"{UNFINISHED}{name}" for name in exhibits), *partials}


def _plan(folder: Path) -> Plan | None:
    """What a stopped export left to go on with; None where there is nothing, or nothing that can be read."""
    path = folder / PLAN
    if not _ordinary(path) or path.stat().st_size > MAX_MANIFEST:
        return None
    try:
        return Plan.read(path.read_bytes())
    except InputError:
        return None


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
    outside = _outside(files, register.EXHIBIT, anchor) if MANIFEST in files else Outside()
    findings += outside.findings
    unchecked = [*outside.unchecked]
    regenerated = None
    if any(each.file not in (MANIFEST, SIGNATURE) or each.change is Change.DAMAGED for each in findings):
        unchecked.append("Whether the files agree with each other, since they are not those exported.")
    elif MANIFEST in files:
        contradicting, more = contradictions(files)
        findings += contradicting
        unchecked += more
        if not contradicting:
            findings += _named(path, files)
            unchecked += _not_copied(files)
        if target is not None and not findings:
            regenerated, again = _again(files, target)
            findings += again
    if path.is_file() and not findings:
        findings += _repacked(path, files)
    return {
        "root": sha256(files[MANIFEST]) if MANIFEST in files else None,
        "register": [{"entry": each.number, "when": each.when, "who": each.who} for each in outside.entries],
        "signed_by": outside.signed_by,
        "regenerated": regenerated,
        "findings": [*map(asdict, findings)],
        "not_checked": unchecked,
    }


def _named(path: Path, files: Mapping[str, bytes]) -> Iterator[Finding]:
    """An exhibit that is named as that of another caption is; any other name is its owner's business."""
    name, told = path.name.removesuffix(".zip"), read_facts(files[EXHIBIT])["caption"]["id"]
    if CAPTION_ID.fullmatch(name) and name != told:
        yield Finding(EXHIBIT, Change.SWAPPED, f"{path.name} holds the exhibit of the caption {told}.")


def _told(finding: Finding, files: Mapping[str, bytes]) -> Finding:
    """A changed picture that cannot be opened any more is damaged."""
    if finding.change is not Change.CHANGED or not finding.file.endswith(".png"):
        return finding
    try:
        read_picture(files[finding.file], finding.file)
    except InputError as error:
        return Finding(finding.file, Change.DAMAGED, f"{finding.sentence} {error}")
    return finding


@dataclass(frozen=True)
class Outside:
    """What stands outside of a manifest and says of it."""

    findings: Sequence[Finding] = ()
    unchecked: Sequence[str] = ()
    entries: Sequence[register.Entry] = ()
    """Of the register."""
    signed_by: str | None = None


def _outside(files: Mapping[str, bytes], kind: str, anchor: Anchor) -> Outside:
    """Whether register, root or signature vouch for a manifest."""
    root = sha256(files[MANIFEST])
    entries = anchor.entries.get((kind, root), ())
    findings, unchecked = _vouched(root, kind, anchor, entries)
    signer, unsigned = _signature(files, entries, anchor)
    if anchor.path is None and anchor.signers is not None and not unsigned:
        unchecked = []  # a signer who is allowed vouches for it
    return Outside([*findings, *unsigned], unchecked, entries, signer)


def _vouched(
    root: str, kind: str, anchor: Anchor, entries: Sequence[register.Entry]
) -> tuple[list[Finding], list[str]]:
    """Whether the register or the root that was shown vouch for a root: findings, and what could not be checked."""
    findings, unchecked = [], []
    if anchor.root is not None and anchor.root != root:
        sentence = (
            f"The root is {root}, not the {anchor.root[:80]} that was given: the manifest was made anew."
        )
        findings.append(Finding(MANIFEST, Change.CHANGED, sentence))
    if anchor.path is None:
        if anchor.root is None:
            unchecked.append(
                f"Whether {MANIFEST} is the one that was exported: no register at hand tells of it. Compare the root "
                f"{root} with the one that was shown at the export, or give --register or --root."
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
    return findings, unchecked


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
    check_target(facts, target)
    try:
        made = regenerate(facts, pictures, target)
    except WRONG as error:
        why = f": {error}" if isinstance(error, InputError) else "."
        sentence = f"{EXHIBIT} asks for what cannot be generated{why}"
        return None, [Finding(EXHIBIT, Change.DAMAGED, sentence)]
    if made["within"]:
        return made, []
    sentence = (
        f"Made again from seed {facts['sampling']['seed_shown']}, the pictures are {made['distance']:,.2f} and, after one step, "
        f"{made['distance_of_one_step']:,.2f} away from those recorded; the tolerances are {made['tolerance']:,g} and "
        f"{made['tolerance_of_one_step']:,g}."
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

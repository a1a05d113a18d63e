"""Exhibits written to disk: each whole or not at all, with its root in the register before it stands in its place.

::

    OUT/SHA256SUMS           the manifests and zips of all exhibits; its own sha256 is the root of the export
    OUT/CAPTION_ID/          one exhibit
        SHA256SUMS           hashes of all its files; its own sha256 is the exhibit's root
        SHA256SUMS.sig       signature of it, where one was asked for
        report.pdf, report.html, exhibit.json, pictures/
    OUT/CAPTION_ID.zip       the same, where it was asked for

A stopped export goes on where it was: what it wrote is kept, and what else is there if it is what would be written.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import io
import itertools
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from audit.errors import InputError
from audit.evidence import html, report
from audit.evidence.document import document
from audit.evidence.facts import EXHIBIT, gather, json_bytes
from audit.evidence.manifest import MANIFEST, SIGNATURE, compare, manifest_bytes
from audit.evidence.plan import PLAN, UNFINISHED, Plan, begun
from audit.evidence.register import EXHIBIT as ONE
from audit.evidence.register import EXPORT as ALL
from audit.evidence.register import Register
from audit.evidence.signature import sign, signed_by
from audit.evidence.sources import Source, Sources
from audit.evidence.untrusted import read_folder, write_zip
from audit.evidence.words import ENGLISH
from audit.files import replace_file, sync_to_disk
from audit.images import sha256

CAPTION_ID = re.compile(r"[0-9a-f]{16}")
TOGETHER = 16
"""Sources that are read at once."""


@dataclass(frozen=True)
class Asked:
    """How exhibits are to be made."""

    out: Path
    copy: bool = True
    licences: tuple[str, ...] = ()
    """Of training images that are copied; whatever the licence where none is named."""
    language: str = ENGLISH
    zipped: bool = False
    key: Path | None = None
    """Private ssh key to sign with."""


@dataclass(frozen=True)
class Written:
    """One exhibit on disk, not yet in its place if ``unfinished``."""

    name: str
    root: str
    signed_by: str
    unfinished: bool


def files_of(
    source: Source, *, copy: bool, licences: Collection[str] = (), language: str = ENGLISH
) -> dict[str, bytes]:
    """All files of one exhibit by name, its manifest among them: a function of the source alone."""
    facts, pictures = gather(source, copy=copy, licences=licences, language=language)
    files = {EXHIBIT: json_bytes(facts), **pictures, **reports(facts, pictures)}
    return files | {MANIFEST: manifest_bytes({name: sha256(data) for name, data in files.items()})}


def reports(facts: dict[str, Any], pictures: dict[str, bytes]) -> dict[str, bytes]:
    """The report in its two forms."""
    told = document(facts)
    return {report.REPORT: report.pdf(told, pictures), html.REPORT: html.html(told, pictures)}


def export(
    sources: Sources,
    caption_ids: Sequence[str],
    asked: Asked,
    register: Register,
    *,
    who: str,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the exhibits of some captions, or go on where an earlier call stopped.

    Parameters
    ----------
    who
        Exports, as the register says.
    workers
        Processes; as many as processors by default, one for few captions.

    Returns
    -------
    What was done with the roots, as it is printed.

    Raises
    ------
    InputError
        If a place is taken by something else than the same exhibit.
    """
    names = list(dict.fromkeys(caption_ids))
    if not names:
        raise InputError("No caption is chosen; give captions, a selection, or verdicts that the run has.")
    with held(asked.out):
        prepare(asked, names)
        how = {"copy": asked.copy, "licences": sorted(asked.licences), "language": asked.language}
        plan = begun(asked.out, Plan.of(sources, names, **how))
        # as the export began, but for what was removed from view since
        people = replace(plan.people, hidden=plan.people.hidden | sources.people.hidden)
        return _export(sources.with_people(people), names, asked, plan, register, who, workers, progress)


def _export(
    sources: Sources,
    names: Sequence[str],
    asked: Asked,
    plan: Plan,
    register: Register,
    who: str,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    of_this = {
        "run": sources.run.path.name,
        "model_sha256": sources.whole.run["model_sha256"],
        "who": who,
        "export": plan.sha256,
    }
    before = {name: each for name in names if (each := written_before(name, asked, plan, register))}
    left = [name for name in names if name not in before]
    batches = (sources.of(left[start : start + TOGETHER]) for start in range(0, len(left), TOGETHER))
    every = itertools.chain.from_iterable(batches)
    roots: dict[str, Written] = {}
    listed: dict[str, str] = {}
    for written in itertools.chain(before.values(), built(every, asked, workers, len(left))):
        register.append(
            kind=ONE, root=written.root, name=written.name, signed_by=written.signed_by, **of_this
        )
        listed |= place(written, asked)
        roots[written.name] = written
        if progress:
            progress(len(roots), len(names))
    manifest = manifest_bytes(listed)
    signature = b"" if asked.key is None else sign(manifest, asked.key)
    signer = signed_by(manifest, signature) if signature else ""
    entry = register.append(
        kind=ALL, root=sha256(manifest), name=f"{len(roots)} exhibits", signed_by=signer, **of_this
    )
    if signature:
        replace_file(asked.out / SIGNATURE, lambda partial: partial.write_bytes(signature))
    replace_file(asked.out / MANIFEST, lambda partial: partial.write_bytes(manifest))
    (asked.out / PLAN).unlink()
    return {
        "out": str(asked.out),
        "exhibits": {name: roots[name].root for name in names},
        "written": sum(each.unfinished for each in roots.values()),
        "there_before": sum(not each.unfinished for each in roots.values()),
        "root": entry.root,
        "register": str(register.path),
        "register_entry": entry.number,
        "signed_by": signer or None,
    }


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone; InputError where another one exports into it."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder for the exhibits.")
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"Another process exports into {out}; wait for it.") from error
    else:
        yield
    finally:
        os.close(handle)


def prepare(asked: Asked, names: Sequence[str]) -> None:
    """Remove what a killed export left unfinished; InputError where anything else is in the way."""
    for name in names:
        if not CAPTION_ID.fullmatch(name):
            raise InputError(f"{name[:40]!r} is no caption_id; it has 16 hexadecimal digits.")
    out, zips = asked.out, {f"{name}.zip" for name in names}
    known = {MANIFEST, SIGNATURE, PLAN, *names, *(zips if asked.zipped else ())}
    partials = {f"{name}.partial" for name in known | zips}
    there = sorted(out.iterdir())
    leftovers = [path for path in there if path.name in partials or is_unfinished(path.name)]
    for path in there:  # all of them first: nothing of anybody else's is removed
        if (path.name not in known and path not in leftovers) or path.is_symlink():
            raise InputError(
                f"{out} holds {path.name}, which is not of this export; give an empty or new folder, or the same captions."
            )
    for path in leftovers:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_unfinished(name: str) -> bool:
    """Whether an export that was killed left this folder, of any caption: the next one may ask for other captions."""
    return name.startswith(UNFINISHED) and CAPTION_ID.fullmatch(name.removeprefix(UNFINISHED)) is not None


def built(sources: Iterable[Source], asked: Asked, workers: int | None, count: int) -> Iterator[Written]:
    """Build exhibits, several at a time, in the order in which they become ready; the caller puts them in place."""
    processes = min(workers or os.cpu_count() or 1, -(-count // 4))
    if processes <= 1:
        yield from (build(source, asked) for source in sources)
        return
    # spawned: this process has threads, which a fork would stop at any place
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(processes, mp_context=context, initializer=serve)
    try:
        waiting: set[concurrent.futures.Future[Written]] = set()
        for source in sources:
            waiting.add(pool.submit(build, source, asked))
            if len(waiting) >= 2 * processes:
                ready, waiting = concurrent.futures.wait(
                    waiting, return_when=concurrent.futures.FIRST_COMPLETED
                )
                yield from (future.result() for future in ready)
        yield from (future.result() for future in concurrent.futures.as_completed(waiting))
    except BrokenProcessPool as error:
        raise InputError(
            "A process that builds exhibits was ended, perhaps for want of memory; give the same command again, with "
            "fewer --workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def serve() -> None:
    """Make this process one that builds exhibits for another: it holds nothing of that one's, and ends with it.

    What it would print goes nowhere, since the other's output may be a log that is locked as long as it is open.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def build(source: Source, asked: Asked) -> Written:
    """One exhibit beside its place, on the disk; or the one that is there, if it is the same."""
    name = str(source.row["caption_id"])
    files = files_of(source, copy=asked.copy, licences=asked.licences, language=asked.language)
    root = sha256(files[MANIFEST])
    folder = asked.out / name
    if folder.is_dir():
        return Written(name, root, there(folder, files, asked), unfinished=False)
    signer = ""
    if asked.key is not None:
        files[SIGNATURE] = sign(files[MANIFEST], asked.key)
        signer = signed_by(files[MANIFEST], files[SIGNATURE])
    partial = asked.out / f"{UNFINISHED}{name}"
    shutil.rmtree(partial, ignore_errors=True)
    for inside, data in files.items():
        path = partial / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        sync_to_disk(path)
    return Written(name, root, signer, unfinished=True)


def written_before(name: str, asked: Asked, plan: Plan, register: Register) -> Written | None:
    """The exhibit that this export wrote before it was stopped, if it is as it was entered in the register."""
    folder = asked.out / name
    if not folder.is_dir():
        return None
    files = read_folder(folder)
    if compare(files) or (SIGNATURE in files) != (asked.key is not None):
        return None
    root = sha256(files[MANIFEST])
    signer = signed_by(files[MANIFEST], files[SIGNATURE]) if SIGNATURE in files else ""
    entry = register.known.get((ONE, root, signer, plan.sha256))
    return Written(name, root, signer, unfinished=False) if entry and entry.name == name else None


def there(folder: Path, files: dict[str, bytes], asked: Asked) -> str:
    """Who signed the exhibit that is there; InputError where it is another one than would be written."""
    have = read_folder(folder)
    if have.get(MANIFEST) != files[MANIFEST] or compare(have):
        raise InputError(
            f"{folder} holds another exhibit or a changed one; nothing was overwritten. Give another folder."
        )
    if (SIGNATURE in have) != (asked.key is not None):
        raise InputError(
            f"{folder} is {'signed' if SIGNATURE in have else 'not signed'}; export as before, or elsewhere."
        )
    return signed_by(have[MANIFEST], have[SIGNATURE]) if SIGNATURE in have else ""


def place(written: Written, asked: Asked) -> dict[str, str]:
    """Put an exhibit in its place, and its zip beside it; their lines in the manifest over all exhibits."""
    folder = asked.out / written.name
    if written.unfinished:
        os.replace(asked.out / f"{UNFINISHED}{written.name}", folder)
        sync_to_disk(asked.out)
    lines = {f"{written.name}/{MANIFEST}": written.root}
    if asked.zipped:
        packed = io.BytesIO()
        write_zip(read_folder(folder), written.name, packed)
        data = packed.getvalue()
        name = f"{written.name}.zip"
        replace_file(asked.out / name, lambda partial: partial.write_bytes(data), sync=False)
        lines[name] = sha256(data)
    return lines

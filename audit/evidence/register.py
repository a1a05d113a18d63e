"""The register: what was exported, outside of the exhibits, one JSON object a line, each chained to the one before.

Whoever can rewrite an exhibit can make its manifest anew; the root that stands here says what it was. Whoever can
rewrite the register too can make its chain anew: keep a copy of its last line elsewhere, or have exhibits signed.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from audit.errors import InputError
from audit.files import sync_to_disk
from audit.settings import settings

FIRST = "0" * 64
"""What the first entry follows."""
MAX_LINE = 10_000
EXHIBIT, EXPORT = "exhibit", "export"
"""Kinds of entries: one exhibit, or all of an export together."""


@dataclass(frozen=True)
class Entry:
    """One line of the register."""

    number: int
    """From 1."""
    when: str
    """UTC, ISO 8601."""
    who: str
    kind: str
    root: str
    """sha256 of the manifest."""
    name: str
    """The exhibit's folder; of an export, how many exhibits it has."""
    run: str
    model_sha256: str
    signed_by: str
    """Fingerprint of the key that signed it; empty where it is not signed."""
    previous: str
    """``sha256`` of the entry before."""
    sha256: str
    """Of canonical JSON of all the others."""
    export: str = ""
    """The export that it was written for (`audit.evidence.plan`); an earlier version said nothing of it."""

    @property
    def content(self) -> dict[str, Any]:
        """What its line says."""
        return {name: value for name, value in asdict(self).items() if name != "export" or value}

    def digest(self) -> str:
        content = {name: value for name, value in self.content.items() if name != "sha256"}
        return hashlib.sha256(canonical(content)).hexdigest()


def canonical(content: object) -> bytes:
    """JSON with sorted keys and no blanks, UTF-8: equal content gives equal bytes."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def register_path() -> Path:
    """Where it is kept, by the settings."""
    return settings().register_file or settings().data_dir / "register.jsonl"


class Register:
    """Appends to one register; InputError where its end is damaged: nothing is chained to what cannot be read."""

    def __init__(self, path: Path):
        self.path = path
        self.known = {(entry.kind, entry.root, entry.signed_by, entry.export): entry for entry in read(path)}

    def append(
        self,
        *,
        kind: str,
        root: str,
        name: str,
        run: str,
        model_sha256: str,
        who: str,
        signed_by: str = "",
        export: str = "",
    ) -> Entry:
        """Write an entry, on the disk when this returns; the one there is, if there is one of this root and export."""
        there = self.known.get((kind, root, signed_by, export))
        if there is not None:
            return there
        with _locked(self.path) as stream:
            last = _last(stream, self.path)
            when = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
            number, previous = (last.number + 1, last.sha256) if last else (1, FIRST)
            unsealed = Entry(
                number, when, who, kind, root, name, run, model_sha256, signed_by, previous, "", export
            )
            entry = replace(unsealed, sha256=unsealed.digest())
            stream.write(canonical(entry.content) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.known[kind, root, signed_by, export] = entry
        return entry


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """The register, held for this process, at its end; what a crash left of an unfinished line is gone."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if new:
            sync_to_disk(path.parent)
        size = stream.seek(0, os.SEEK_END)
        tail = _tail(stream, size)
        if tail and not tail.endswith(b"\n"):  # it was never confirmed to anybody
            stream.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
            stream.seek(0, os.SEEK_END)
        yield stream


def _tail(stream: IO[bytes], size: int) -> bytes:
    stream.seek(max(0, size - 2 * MAX_LINE))
    return stream.read()


def _last(stream: IO[bytes], path: Path) -> Entry | None:
    lines = _tail(stream, stream.seek(0, os.SEEK_END)).splitlines()
    if not lines:
        return None
    entry = _entry(lines[-1])
    if entry is None or entry.digest() != entry.sha256:
        raise InputError(f"The last entry of the register {path} is damaged; restore it from a copy first.")
    return entry


def _entry(line: bytes) -> Entry | None:
    """A line as an entry; None where it is none."""
    try:
        entry = Entry(**json.loads(line.decode("utf-8", "surrogatepass")))
    except (ValueError, TypeError, RecursionError):
        return None
    texts = [value for name, value in asdict(entry).items() if name != "number"]
    whole = type(entry.number) is int and all(isinstance(text, str) for text in texts)
    return entry if whole else None


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a register, from 1; none where it does not exist. An unfinished last one is left out."""
    try:
        with open(path, "rb") as stream:
            number = 0
            while line := stream.readline(MAX_LINE + 1):
                number += 1
                if line.endswith(b"\n"):
                    yield number, line[:-1]
                elif len(line) > MAX_LINE:
                    raise InputError(f"Line {number} of the register {path} is longer than any of ours.")
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"The register {path} cannot be read: {error.strerror}.") from error


def read(path: Path) -> list[Entry]:
    """The entries that can be read, in order; see `faults` for whether to believe them."""
    return [entry for _, line in lines_of(path) if (entry := _entry(line)) is not None]


def faults(path: Path) -> list[str]:
    """A sentence for each place where the register's chain does not hold; none where it does."""
    found, previous, expected = [], FIRST, 1
    for number, line in lines_of(path):
        entry = _entry(line)
        if entry is None or canonical(entry.content) != line:
            found.append(f"Line {number} of the register {path} is no entry as it was written.")
            previous, expected = "", number + 1
            continue
        if entry.digest() != entry.sha256:
            found.append(f"Entry {entry.number} of the register {path} was changed after it was written.")
        if entry.number != expected or (previous and entry.previous != previous):
            found.append(
                f"Entry {entry.number} of the register {path} does not follow the one before it: something was "
                "removed, added or moved."
            )
        previous, expected = entry.sha256, entry.number + 1
    return found

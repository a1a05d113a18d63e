"""Pictures from the network, kept by what they are, and what came of asking for each.

::

    pictures/ab/abcd...   bytes of a picture, named by their sha256
    incoming/             files that are being written
    outcomes.sqlite       one row each time an address was asked; rows are only ever added

A picture is on the disk before its outcome is told, and bytes that no longer match their name are not given out, so
the cache can be stopped at any instant.
"""

from __future__ import annotations

import builtins
import hashlib
import os
import sqlite3
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from audit.corpus.download import FetchStatus
from audit.errors import InputError
from audit.files import put
from audit.images import sha256

TABLE = "outcomes.sqlite"
VERSION = 1
LEFT_OVER_SECONDS = 3600
"""An unfinished file older than this belongs to nobody any more."""


@dataclass(frozen=True)
class Fetched:
    """What came of asking for one picture, and when."""

    url: str
    status: FetchStatus
    reason: str
    """One sentence of ours; nothing that a server wrote."""
    time: datetime
    """When it was asked, UTC."""
    sha256: str = ""
    """Of the bytes as they were sent; empty where there is no picture."""
    size: int = 0
    """Bytes."""
    media_type: str = ""
    """``image/jpeg``, ``image/png``, ``image/webp`` or ``image/gif``, by the bytes."""
    lasting: bool = True
    """False where the next attempt may well have more luck."""
    path: Path | None = None
    """The picture's file, checked against its hash when this was given; None where its bytes are not here."""


class FetchedPictures:
    """A folder of pictures and outcomes, for any number of threads and processes.

    Raises
    ------
    InputError
        If the folder cannot be used.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = threading.Lock()
        try:
            for name in ("pictures", "incoming"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            self._table = _open_table(folder / TABLE)
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"{folder} cannot be used as a cache of pictures ({error}); give another folder or mend it."
            ) from error

    def close(self) -> None:
        """Let go of the table; the cache cannot be used after it."""
        with self._lock:
            self._table.close()

    def put(self, data: builtins.bytes) -> str:
        """Keep a picture; its sha256. It is there whole or not at all, even if the power fails."""
        name = sha256(data)
        path = self._path(name)
        try:
            handle, partial = tempfile.mkstemp(dir=self.folder / "incoming")
            try:
                with open(handle, "wb") as stream:
                    stream.write(data)
                path.parent.mkdir(exist_ok=True)
                put(Path(partial), path)
            except OSError:
                Path(partial).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise InputError(
                f"The cache of pictures {self.folder} cannot be written to ({error.strerror}); make room in it."
            ) from error
        return name

    def read(self, name: str) -> tuple[Path, builtins.bytes] | None:
        """File and bytes of the picture with this sha256, or None; one whose bytes are others by now is removed."""
        path = self._path(name)
        try:
            data = path.read_bytes()
            if sha256(data) != name:
                path.unlink()
                return None
            os.utime(path)
        except FileNotFoundError:
            return None
        return path, data

    def bytes(self) -> int:
        """Disk that pictures take, unfinished ones included."""
        return sum(size for _, size, _ in self._files("pictures/*/*", "incoming/*"))

    def clean(self, quota: int) -> int:
        """Remove the pictures that were not asked for longest until the rest takes `quota` bytes; bytes set free.

        What came of asking is kept, and a picture that is asked for again is fetched again.
        """
        before = self.bytes()
        for used, _, path in self._files("incoming/*"):
            if used < time.time() - LEFT_OVER_SECONDS:
                path.unlink(missing_ok=True)
        left = self.bytes()
        for _, size, path in sorted(self._files("pictures/*/*")):
            if left <= quota:
                break
            path.unlink(missing_ok=True)
            left -= size
        return before - left

    def record(self, outcome: Fetched) -> None:
        """Add an outcome to what is known of its address."""
        row = (
            _key(outcome.url),
            outcome.url.encode("utf-8", "replace").decode(),
            outcome.time.isoformat(),
            outcome.status.value,
            outcome.reason,
            outcome.sha256,
            outcome.size,
            outcome.media_type,
            outcome.lasting,
        )
        with self._lock:
            self._table.execute(
                "INSERT INTO outcomes (url_sha256, url, time, status, reason, sha256, size, media_type, lasting) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )

    def latest(self, url: str) -> Fetched | None:
        """The last outcome for an address, without looking for its file."""
        return next(iter(self._outcomes(url, "DESC LIMIT 1")), None)

    def history(self, url: str) -> list[Fetched]:
        """Every outcome for an address, oldest first: when it was alive, when dead, and with which bytes."""
        return self._outcomes(url, "ASC")

    def _outcomes(self, url: str, order: str) -> list[Fetched]:
        with self._lock:
            rows = self._table.execute(
                "SELECT status, reason, time, sha256, size, media_type, lasting FROM outcomes "
                f"WHERE url_sha256 = ? ORDER BY id {order}",
                (_key(url),),
            ).fetchall()
        return [
            Fetched(
                url,
                FetchStatus(status),
                reason,
                datetime.fromisoformat(asked),
                sha256=name,
                size=size,
                media_type=media_type,
                lasting=bool(lasting),
            )
            for status, reason, asked, name, size, media_type, lasting in rows
        ]

    def _path(self, name: str) -> Path:
        return self.folder / "pictures" / name[:2] / name

    def _files(self, *patterns: str) -> list[tuple[float, int, Path]]:
        """When each file was last used, its bytes, and the file."""
        found = []
        for path in (path for pattern in patterns for path in self.folder.glob(pattern)):
            try:
                about = path.stat()
            except FileNotFoundError:
                continue  # another process cleans up, too
            found.append((about.st_mtime, about.st_size, path))
        return found


def _open_table(path: Path) -> sqlite3.Connection:
    table = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    try:
        version = table.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise InputError(
                f"{path} was written by another version of Verbatim (table {version}, not {VERSION}); "
                "give another folder."
            )
        table.execute("PRAGMA journal_mode = WAL")
        table.execute("PRAGMA synchronous = NORMAL")
        table.execute(
            "CREATE TABLE IF NOT EXISTS outcomes (id INTEGER PRIMARY KEY, url_sha256 TEXT NOT NULL, "
            "url TEXT NOT NULL, time TEXT NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL, "
            "sha256 TEXT NOT NULL, size INTEGER NOT NULL, media_type TEXT NOT NULL, lasting INTEGER NOT NULL)"
        )
        table.execute("CREATE INDEX IF NOT EXISTS outcomes_by_url ON outcomes (url_sha256, id)")
        table.execute(f"PRAGMA user_version = {VERSION}")
    except BaseException:
        table.close()
        raise
    return table


def _key(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()

"""The exports of this computer: folders of exhibits, each made by a process of its own, as ``python -m audit exhibit``.

::

    exhibits/NAME/            the exhibits, as `audit.evidence.export` writes them
    exhibits/NAME.parquet     the captions that were asked for
    exhibits/NAME.job         the process's arguments and number, as JSON
    exhibits/NAME.log         what it printed; locked as long as it lives
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from audit.errors import InputError
from audit.evidence.manifest import MANIFEST
from audit.evidence.reading import gallery
from audit.files import write_json, write_parquet
from audit.runs.folder import is_held
from audit.runs.jobs import check_name, last_words, launch, working_pid
from audit.settings import settings


@dataclass(frozen=True)
class Export:
    """One export and how far it is."""

    name: str
    folder: Path
    done: int
    total: int
    works: bool
    message: str = ""
    """Why it ended before it was done, in a sentence."""

    @property
    def whole(self) -> bool:
        return (self.folder / MANIFEST).is_file() and not self.works


def exports_folder() -> Path:
    return settings().data_dir / "exhibits"


def exports() -> list[Export]:
    """All exports, the newest first."""
    folders = exports_folder()
    names = {path.name for path in folders.glob("*") if path.is_dir() and not path.is_symlink()}
    names |= {path.stem for path in folders.glob("*.job")}
    found = []
    for name in names:
        with contextlib.suppress(InputError):  # a folder of another name than ours, or removed a moment ago
            found.append(export(name))
    return sorted(found, key=lambda each: (-_time(each.name), each.name))


def export(name: str) -> Export:
    """One export; InputError where there is none of that name."""
    folder = exports_folder() / check_name(name)
    chosen, job, log = _files(name)
    if not folder.is_dir() and not job.is_file():
        raise InputError(
            f"There are no exhibits named {name[:80]!r}; they were removed, or the link is of another computer."
        )
    done = len(gallery(folder)) if folder.is_dir() else 0
    works = is_held(log)
    ended = not works and job.is_file() and not (folder / MANIFEST).is_file()
    return Export(name, folder, done, _total(chosen, done), works, last_words(log) if ended else "")


def start(
    name: str, run: Path, caption_ids: Sequence[str], options: Sequence[str] = (), who: str = ""
) -> None:
    """Begin an export of some captions of a run; `who` asked for it, for the register and the audit trail."""
    name = check_name(name)
    if not caption_ids:
        raise InputError("No caption is chosen; choose verdicts that the run has.")
    chosen, job, _ = _files(name)
    if (exports_folder() / name).exists() or job.exists():
        raise InputError(f"There are exhibits named {name!r} already; give another name.")
    exports_folder().mkdir(parents=True, exist_ok=True)
    write_parquet(pa.table({"caption_id": list(caption_ids)}), chosen)
    write_json(job, {"arguments": [str(run), "--selection", str(chosen), "--zip", *options]})
    resume(name, who)


def resume(name: str, who: str = "") -> None:
    """Start the process of an export, again where it was stopped: what is there is kept."""
    _, job, log = _files(check_name(name))
    try:
        arguments = json.loads(job.read_text(encoding="utf-8"))["arguments"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"How the export {name!r} was started is not known; start it on the command line."
        ) from error
    worker = launch(["exhibit", *arguments, "--out", str(exports_folder() / name)], log, who)
    if worker is None:
        raise InputError(f"The export {name!r} is being made already.")
    write_json(job, {"arguments": arguments, "pid": worker.pid})


def stop(name: str) -> None:
    """End the process of an export; the exhibits that are there stay, and are whole."""
    _, job, log = _files(check_name(name))
    if (pid := working_pid(job, log)) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _files(name: str) -> tuple[Path, Path, Path]:
    chosen, job, log = (exports_folder() / f"{name}.{suffix}" for suffix in ("parquet", "job", "log"))
    return chosen, job, log


def _total(chosen: Path, done: int) -> int:
    try:
        return pq.read_metadata(chosen).num_rows
    except (OSError, pa.ArrowException):  # brought here by hand
        return done


def _time(name: str) -> float:
    paths = [path for path in (exports_folder() / name, _files(name)[1]) if path.exists()]
    return max((path.stat().st_mtime for path in paths), default=0.0)

"""The runs of this computer: each a folder below ``runs`` in the data folder, made by a worker process of its own.

A page starts a worker and forgets it: it is the same ``python -m audit run`` that anybody can type, it goes on when
the page, the browser or the dashboard is closed, and what it says of itself stands in the run's folder::

    runs/NAME/        the run
    runs/NAME.job     the worker's arguments and process, as JSON: what resuming means
    runs/NAME.log     what it printed; locked as long as it lives
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from audit.errors import InputError
from audit.files import write_json
from audit.runs.folder import WORKING, RunFolder, State, hold, is_held
from audit.settings import ROOT, settings

NAME = re.compile(r"[^\W_][\w .()\-]{0,79}")
POLITE = 5
"""Added to the niceness of a worker: the dashboard answers first."""
LAST = 4000
"""Characters of a log in which a worker's last words are looked for."""


@dataclass(frozen=True)
class Job:
    """One run and its worker."""

    name: str
    folder: Path
    state: State
    created: float
    """Unix time."""

    @property
    def works(self) -> bool:
        return self.state.stage in WORKING or self.state.stage == "starting"

    @property
    def resumable(self) -> bool:
        return not self.works and self.state.stage != "done" and _files(self.name)[0].is_file()


def runs_folder() -> Path:
    return settings().data_dir / "runs"


def found_run(name: str, before: Path) -> Path:
    """A run's folder: where it was before, or of that name in the data folder.

    Raises
    ------
    InputError
        If it is in neither place.
    """
    for folder in (before, runs_folder() / name):
        if RunFolder.exists(folder):
            return folder
    raise InputError(
        f"The run {name} is not where it was, nor among the runs of this data folder; put it back as {before}, or into {runs_folder()}."
    )


def check_name(name: str) -> str:
    """A name that is also a folder's."""
    name = name.strip()
    if not NAME.fullmatch(name) or name.endswith("."):
        raise InputError(
            f"{name[:80]!r} is no name here; use up to 80 letters, digits, blanks, dots and hyphens."
        )
    return name


def jobs() -> list[Job]:
    """All runs, the newest first."""
    names = {path.name for path in runs_folder().glob("*") if RunFolder.exists(path)}
    names |= {path.stem for path in runs_folder().glob("*.job")}
    found = []
    for name in names:
        with contextlib.suppress(InputError):  # another tab may have removed it a moment ago
            found.append(job(name))
    return sorted(found, key=lambda each: (-each.created, each.name))


def job(name: str) -> Job:
    """One run; InputError where there is none of that name."""
    folder = runs_folder() / check_name(name)
    arguments, log = _files(name)
    run = RunFolder(folder)
    if RunFolder.exists(folder):
        state = run.state()
        created = (folder / "run.json").stat().st_ctime
        if state.stage not in WORKING and _alive(log):
            state = State("starting", state.done, state.total)
        elif state.stage in ("interrupted", "new") and log.is_file() and log.stat().st_mtime > state.at + 5:
            state = replace(state, message=last_words(log))  # it ended before it could say so itself
    elif arguments.is_file():
        created = arguments.stat().st_mtime
        state = State("starting") if _alive(log) else State("failed", message=last_words(log))
    else:
        raise InputError(f"There is no run {name[:80]!r}; it was deleted or renamed.")
    created = arguments.stat().st_mtime if arguments.is_file() else created
    return Job(name, folder, state, created)


def start(name: str, arguments: Sequence[str], who: str = "") -> Job:
    """Start a worker: ``python -m audit run ARGUMENTS --out`` the run's folder; `who` asked for it, for the audit trail."""
    name = check_name(name)
    if (runs_folder() / name).exists() or _files(name)[0].exists():
        raise InputError(f"There is a run {name!r} already; give another name, or resume that one.")
    runs_folder().mkdir(parents=True, exist_ok=True)
    write_json(_files(name)[0], {"arguments": list(arguments)})
    return _spawn(name, who)


def resume(name: str, who: str = "") -> Job:
    """Start the worker of a run again: it goes on where it was."""
    now = job(name)
    if now.works:
        raise InputError(f"The run {name!r} is worked on already.")
    return _spawn(name, who)


def cancel(name: str) -> None:
    """Ask the worker to stop after its present batch. One that has not begun yet is ended."""
    now = job(name)
    if RunFolder.exists(now.folder):
        RunFolder(now.folder).cancel()
    if now.state.stage == "starting" and (pid := working_pid(*_files(name))):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)


def rename(name: str, new: str) -> Job:
    """Give a run that nobody works on another name."""
    now, new = job(name), check_name(new)
    if now.works:
        raise InputError(f"The run {name!r} is worked on; stop it before it gets another name.")
    if (runs_folder() / new).exists() or any(path.exists() for path in _files(new)):
        raise InputError(f"There is a run {new!r} already; give another name.")
    for path, to in zip((now.folder, *_files(name)), (runs_folder() / new, *_files(new)), strict=True):
        if path.exists():
            path.rename(to)
    return job(new)


def delete(name: str) -> None:
    """Remove a run that nobody works on, for good."""
    now = job(name)
    if now.works:
        raise InputError(f"The run {name!r} is worked on; stop it before it is deleted.")
    for path in _files(name):
        path.unlink(missing_ok=True)
    shutil.rmtree(now.folder, ignore_errors=True)


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def last_words(log: Path) -> str:
    """The sentence with which a worker ended."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace")[-LAST:].splitlines()
    except OSError:
        return ""
    told = [line.strip() for line in lines if line.strip()]
    return told[-1].removeprefix("audit: ")[:400] if told else ""


def _files(name: str) -> tuple[Path, Path]:
    return runs_folder() / f"{name}.job", runs_folder() / f"{name}.log"


def _spawn(name: str, who: str) -> Job:
    path, log = _files(name)
    try:
        arguments = json.loads(path.read_text(encoding="utf-8"))["arguments"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"How the run {name!r} was started is not known; resume it on the command line."
        ) from error
    worker = launch(["run", *arguments, "--out", str(runs_folder() / name)], log, who)
    if worker is None:
        raise InputError(f"The run {name!r} is worked on already.")
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, worker.pid, POLITE)
    write_json(path, {"arguments": arguments, "pid": worker.pid})
    return job(name)


def launch(arguments: Sequence[str], log: Path, who: str) -> subprocess.Popen | None:
    """Start ``python -m audit ARGUMENTS`` beside this process; None where one that writes to the same log still lives."""
    with open(log, "a") as stream:
        # The lock belongs to the open file, which the worker inherits: it is free when the worker is gone, however.
        if not hold(stream):
            return None
        worker = subprocess.Popen(
            [sys.executable, "-m", "audit", *arguments],
            cwd=ROOT,
            env=os.environ | ({"VERBATIM_WHO": who} if who else {}),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    _children.append(worker)
    return worker


_children: list[subprocess.Popen] = []
"""Kept so that those that ended are waited for and leave no zombie."""


def _alive(log: Path) -> bool:
    for child in _children[:]:
        if child.poll() is not None:
            with contextlib.suppress(ValueError):  # another session's poll was quicker
                _children.remove(child)
    return is_held(log)


def working_pid(job: Path, log: Path) -> int | None:
    """The process that lives now of a job's file and its log."""
    try:
        return json.loads(job.read_text(encoding="utf-8"))["pid"] if _alive(log) else None
    except (OSError, ValueError, KeyError):
        return None

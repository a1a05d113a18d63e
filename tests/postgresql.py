"""A real PostgreSQL server in a temporary folder, for as long as it is needed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDERS = (*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/local/pgsql/bin"))


def programs() -> Path | None:
    """The folder of ``initdb`` and ``pg_ctl``; None where there is no PostgreSQL."""
    found = shutil.which("initdb")
    return next(
        (each for each in FOLDERS if (each / "initdb").is_file()), Path(found).parent if found else None
    )


class Server:
    """A server on a unix socket in `folder`; it refuses root, so then it is the user ``postgres``'s."""

    def __init__(self, folder: Path):
        where = programs()
        assert where is not None
        self.where, self.folder, self.data = where, folder, folder / "data"
        self.user, self.as_user = pwd.getpwuid(os.getuid()).pw_name, []
        if os.getuid() == 0:
            self.user = "postgres"
            self.as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(folder, "postgres", "postgres")
        self.run("initdb", "-D", self.data, "-A", "trust", "-U", self.user, "-E", "UTF8", "--locale=C")

    @property
    def url(self) -> str:
        """Of an empty database."""
        return f"postgresql://{self.user}@/postgres?host={self.folder}"

    def run(self, program: str, *arguments: str | Path) -> None:
        command = [*self.as_user, str(self.where / program), *map(str, arguments)]
        subprocess.run(command, cwd="/tmp", check=True, stdout=subprocess.DEVNULL, timeout=120)

    def start(self) -> None:
        """Also after a `kill`: it then reads what it had written ahead."""
        options = f"-c listen_addresses='' -k {self.folder} -c max_connections=60"
        self.run("pg_ctl", "-D", self.data, "-l", self.folder / "log", "-o", options, "-w", "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop")

    def kill(self) -> None:
        """End it and its processes with SIGKILL, as a machine without power would."""
        own = int((self.data / "postmaster.pid").read_text().split()[0])
        processes = [own, *(pid for pid, parent in parents().items() if parent == own)]
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while set(processes) & parents().keys():
            time.sleep(0.01)
        # one that nobody has asked the exit status of still has its number, and would be taken for a server that runs
        for lock in (self.data / "postmaster.pid", *self.folder.glob(".s.PGSQL.*")):
            lock.unlink(missing_ok=True)


def parents() -> dict[int, int]:
    """The parent of each process that runs, by its id."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(stat.parent.name)] = int(parent)
    return found


@contextmanager
def server() -> Iterator[Server]:
    """A server that runs."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path has 107 characters at most
    try:
        running = Server(folder)
        running.start()
        try:
            yield running
        finally:
            if (running.data / "postmaster.pid").exists():
                running.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)

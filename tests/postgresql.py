"""A real PostgreSQL server in a temporary folder, for as long as it is needed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDERS = (*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/local/pgsql/bin"))


def programs() -> Path | None:
    """The folder of ``initdb`` and ``pg_ctl``; None where there is no PostgreSQL."""
    found = shutil.which("initdb")
    return next(
        (each for each in FOLDERS if (each / "initdb").is_file()), Path(found).parent if found else None
    )


@contextmanager
def server() -> Iterator[str]:
    """URL of an empty database on a unix socket; the server refuses root, so then it is the user ``postgres``'s."""
    where = programs()
    assert where is not None
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path has 107 characters at most
    user, as_user = pwd.getpwuid(os.getuid()).pw_name, []
    if os.getuid() == 0:
        user, as_user = "postgres", ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(folder, "postgres", "postgres")

    def run(*command: str | Path) -> None:
        subprocess.run(
            [*as_user, *map(str, command)], cwd="/tmp", check=True, stdout=subprocess.DEVNULL, timeout=120
        )

    data = folder / "data"
    try:
        run(where / "initdb", "-D", data, "-A", "trust", "-U", user, "-E", "UTF8", "--locale=C")
        options = f"-c listen_addresses='' -k {folder} -c max_connections=60"
        run(where / "pg_ctl", "-D", data, "-l", folder / "log", "-o", options, "-w", "start")
        try:
            yield f"postgresql://{user}@/postgres?host={folder}"
        finally:
            run(where / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)

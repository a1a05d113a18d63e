"""The engine for many GPUs and machines: the same workers, as actors of Ray Data.

Each actor loads the model once and works on one block after another. A block whose worker or node dies is given to
another one; nothing of it has been written until it is whole, and this process alone writes. All nodes have to see
the run's folder, and the model, at the same path.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from audit.errors import InputError
from audit.runs.engine import BLOCK, Ranges, Tables, Worker, blocks
from audit.settings import ROOT

if TYPE_CHECKING:
    from audit.targets.base import Target

PIECES = 8
"""Blocks for each worker at least, where there are rows enough: the last ones to end wait less for each other."""
TASKS = 10_000
"""Of Ray at most; each has several blocks where there are more."""


@dataclass(frozen=True)
class RayEngine:
    """Works on blocks with Ray Data.

    Parameters
    ----------
    load
        Loads the model where a worker is.
    address
        Of a running cluster, ``auto`` for the one on this machine; None starts one here, for this run alone.
    workers
        Each with a GPU of its own, where the cluster has any; as many as there are GPUs by default, else 1.
    """

    load: Callable[[], Target]
    address: str | None = None
    workers: int | None = None

    def run(
        self, make: Callable[[Target], Worker], target: Target, file: Path, ranges: Ranges, size: int = BLOCK
    ) -> Iterator[tuple[int, Tables]]:
        rows = sum(stop - start for start, stop in ranges)
        if not rows:
            return
        ray = connect(self.address, self.workers)
        gpus = int(ray.cluster_resources().get("GPU", 0))
        workers = self.workers or max(1, gpus)
        size = max(1, min(size, -(-rows // (PIECES * workers))))
        pieces = [
            {"first": first, "stop": min(first + size, stop)}
            for start, stop in ranges
            for first in range(start, stop, size)
        ]
        done = ray.data.from_items(pieces, override_num_blocks=min(len(pieces), TASKS)).map_batches(
            Actor,
            fn_constructor_args=(make, self.load, target.sha256, file.resolve()),
            batch_size=1,
            batch_format="pyarrow",
            concurrency=(1, workers),
            num_gpus=1 if gpus else 0,
        )
        batches = iter(done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        while True:
            try:
                batch = next(batches, None)
            except ray.exceptions.RayError as error:
                raise InputError(f"A worker of Ray failed: {told(error)}") from error
            if batch is None:
                return
            for row in batch.to_pylist():
                yield row["first"], {name: read(row[name]) for name in row if name != "first"}


class Actor:
    """A worker as Ray calls it: row ranges in, its tables as Arrow files out."""

    def __init__(
        self, make: Callable[[Target], Worker], load: Callable[[], Target], sha256: str, file: Path
    ) -> None:
        target = load()
        if target.sha256 != sha256:
            raise InputError(
                f"This node has another model ({target.sha256[:12]}) than the one that began the run ({sha256[:12]})."
            )
        self.worker, self.file = make(target), file

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = [self.work(row["first"], row["stop"]) for row in batch.to_pylist()]
        return pa.Table.from_pylist(rows)

    def work(self, first: int, stop: int) -> dict[str, Any]:
        """All tables of a block, whole: what a dying worker leaves is nothing, not a part."""
        found: list[Tables] = []
        for _, block in blocks(self.file, first, stop, stop - first):
            found += self.worker(block)
        names = found[0]
        return {"first": first} | {
            name: write(pa.concat_tables([tables[name] for tables in found])) for name in names
        }


def told(error: BaseException) -> str:
    """What a worker said, without Ray's account of where it was."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None and cause is not error:
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[-1][:300] if lines else type(error).__name__}"


def write(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def read(content: bytes) -> pa.Table:
    return pa.ipc.open_stream(content).read_all()


def check_address(address: str | None) -> None:
    """InputError where nobody listens at HOST:PORT: Ray itself would wait for minutes without a word."""
    place = (address or "").removeprefix("ray://")
    host, colon, port = place.rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"There is no Ray cluster at {address!r}; start one with `ray start --head`."
        ) from error


def connect(address: str | None, workers: int | None) -> Any:
    """Ray, connected once; InputError where it is not installed or not to be reached."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its own words are not for people
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            "The engine ray needs the package Ray; install it with `pip install -e '.[ray]'`."
        ) from error
    if not ray.is_initialized():
        check_address(address)
        try:
            ray.init(
                address=address,
                num_cpus=max(workers or 1, os.cpu_count() or 1) if address is None else None,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
            )
        except (ConnectionError, ValueError) as error:
            raise InputError(
                f"There is no Ray cluster at {address!r}; start one with `ray start --head`."
            ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray

"""The engine for many machines on this one: two workers, the same rows as the local engine, also when one dies."""

import os
import signal
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from audit.cli import main
from audit.errors import InputError
from audit.runs import ray_engine
from audit.runs.folder import RunFolder
from audit.runs.run import score
from audit.settings import settings
from audit.targets.pipelines import load

ray = pytest.importorskip("ray")
read = ray_engine.read
COUNT = 320


@pytest.fixture(scope="module", autouse=True)
def cluster():
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(settings(), "data_dir", tmp_path / "data")


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("\n".join(f"a red house number {number}" for number in range(COUNT)))
    return path


def check_equal(first: Path, second: Path) -> None:
    for name in ("captions", "scores"):
        tables = [
            RunFolder.open(run).table(name).sort_values("caption_id", ignore_index=True)
            for run in (first, second)
        ]
        assert len(tables[0]) == COUNT
        pd.testing.assert_frame_equal(*tables, rtol=1e-5)


def workers() -> list[int]:
    """Processes of the actors that score, started by this process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if "MapWorker" in (folder / "cmdline").read_text() and os.getpid() in ancestors(folder.name):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def ancestors(pid: str) -> set[int]:
    found: set[int] = set()
    while pid != "0":
        pid = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        found.add(int(pid))
    return found


def test_the_same_rows_also_when_a_worker_dies(captions, tiny_pipeline_dir, tmp_path):
    target = load(str(tiny_pipeline_dir), device="cpu")
    score(target, captions, tmp_path / "local")
    engine = ray_engine.RayEngine(partial(load, str(tiny_pipeline_dir), device="cpu"), workers=2)
    killed = []

    def kill(done: int, total: int) -> None:
        if done and not killed and (there := workers()):
            os.kill(there[0], signal.SIGKILL)
            killed.append((there[0], done, total))

    score(target, captions, tmp_path / "ray", engine=engine, progress=kill)
    assert killed and killed[0][1] < COUNT
    check_equal(tmp_path / "local", tmp_path / "ray")


def test_on_the_command_line_it_goes_on_with_what_the_local_engine_began(
    captions, tiny_pipeline_dir, tmp_path, monkeypatch
):
    blocks = []
    monkeypatch.setattr(ray_engine, "read", lambda content: blocks.append(1) or read(content))
    command = ["score", str(captions), "--model", str(tiny_pipeline_dir), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "local")]) == 0
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    first = RunFolder.open(tmp_path / "run").parts("captions")[0]
    first.unlink()
    assert main([*command, "--out", str(tmp_path / "run"), "--engine", "ray", "--workers", "2"]) == 0
    assert blocks
    check_equal(tmp_path / "local", tmp_path / "run")
    assert main([*command, "--out", str(tmp_path / "other"), "--workers", "2"]) == 2


def test_nobody_at_the_address_is_told_at_once():
    with pytest.raises(InputError, match=r"There is no Ray cluster at '127\.0\.0\.1:9'"):
        ray_engine.check_address("127.0.0.1:9")


def test_without_ray_there_is_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InputError, match="needs the package Ray; install it with"):
        ray_engine.connect(None, None)

"""Workers of their own: started, stopped, killed, resumed; their state is true after each."""

import json
import os
import signal
import time

import pandas as pd
import pytest

from audit.errors import InputError
from audit.files import write_json
from audit.runs import jobs
from audit.runs.folder import RunFolder, State
from audit.settings import settings


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(settings(), "data_dir", tmp_path / "data")


def until(name, wanted, seconds=240):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = jobs.job(name).state
        if wanted(state):
            return state
        time.sleep(0.02)
    raise AssertionError(f"{state}\n{jobs._files(name)[1].read_text()}")


@pytest.fixture
def arguments(tmp_path, tiny_pipeline_dir):
    path = tmp_path / "captions.txt"
    path.write_text("".join(f"a red house {number}\n" for number in range(400)))
    return [str(path), "--model", str(tiny_pipeline_dir), "--device", "cpu", "--top", "0", "--batch", "4"]


def check_whole(name):
    table = RunFolder.open(jobs.runs_folder() / name).table("captions")
    assert len(table) == 400 and table["caption_id"].is_unique
    return table.set_index("caption_id")["dcs"]


def test_stopped_killed_and_resumed_it_has_every_row_once(arguments):
    job = jobs.start("first run", arguments)
    assert job.works and job.state.stage == "starting"
    with pytest.raises(InputError, match="already"):
        jobs.start("first run", arguments)
    until("first run", lambda state: state.stage == "scoring")
    with pytest.raises(InputError, match="is worked on"):
        jobs.delete("first run")
    jobs.cancel("first run")
    stopped = until("first run", lambda state: state.stage == "cancelled")
    assert stopped.done < 400 and stopped.total == 400

    jobs.resume("first run")
    until("first run", lambda state: state.stage == "scoring")
    os.kill(jobs.working_pid(*jobs._files("first run")), signal.SIGKILL)
    killed = until("first run", lambda state: state.stage == "interrupted")
    assert killed.total == 400
    assert jobs.job("first run").resumable

    jobs.resume("first run")
    until("first run", lambda state: state.stage == "done")
    check_whole("first run")

    renamed = jobs.rename("first run", "second")
    assert [each.name for each in jobs.jobs()] == ["second"] and renamed.state.stage == "done"
    jobs.delete("second")
    assert jobs.jobs() == [] and not any(jobs.runs_folder().iterdir())


def test_a_worker_that_fails_says_why(arguments):
    jobs.start("no model", [arguments[0], "--model", "/nowhere", "--top", "0"])
    state = until("no model", lambda state: state.stage == "failed")
    assert state.message.startswith("There is no model folder '/nowhere'")
    jobs.delete("no model")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 90, "a\x00b", "end."])
def test_names_are_names_of_folders(name):
    with pytest.raises(InputError, match="is no name here"):
        jobs.start(name, [])


def test_runs_from_the_command_line_are_listed_and_strange_folders_do_no_harm(tmp_path):
    folder = jobs.runs_folder()
    (folder / "strange").mkdir(parents=True)
    (folder / "_other").mkdir()
    run = RunFolder.create(
        folder / "typed", {"model": "m", "model_sha256": "f", "seeds": [0], "guidance": 7.5, "noise": "cpu"}
    )
    write_json(run.path / "state.json", State("scoring", 3, 10).__dict__)
    pd.DataFrame({"caption": ["a"]}).to_parquet(run.path / "input.parquet")
    found = {each.name: each.state.stage for each in jobs.jobs()}
    assert found == {"typed": "interrupted"}
    assert not jobs.job("typed").resumable
    with pytest.raises(InputError, match="resume it on the command line"):
        jobs.resume("typed")
    (run.path / "state.json").write_text("{")
    assert jobs.job("typed").state.stage == "new"
    assert json.loads((run.path / "run.json").read_text())["model"] == "m"

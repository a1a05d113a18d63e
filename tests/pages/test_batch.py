"""Batch audits and their results: a run started on the page, looked at on another, by people who make mistakes."""

import re
import time

import pandas as pd
import pytest

from audit.ui.text import escape


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "list of captions.jsonl"
    rows = [f'{{"caption": "red house {number % 30}"}}' for number in range(40)]
    path.write_text("\n".join([*rows, "{broken", '{"caption": "<script>alert(1)</script> **x**"}']))
    return path


def button(page, label):
    return next(each for each in page.button if each.label == label)


def started(page, captions, top="0"):
    page = page.segmented_control(key="batch-way").set_value("A path or address").run()
    page = page.text_input(key="batch-place").set_value(str(captions)).run()
    page = page.selectbox(key="batch-top").set_value(top).run()
    return button(page, "Start the audit").click().run()


def ended(name):
    from audit.runs import jobs

    end = time.monotonic() + 90
    while time.monotonic() < end:
        job = jobs.job(name)
        if not job.works:
            return job
        time.sleep(0.2)
    raise AssertionError(jobs.last_words(jobs._files(name)[1]))


def test_without_runs_both_pages_say_what_to_do(app, words):
    assert "No run yet" in words(app("batch"))
    page = app("results")
    assert not page.exception
    assert "There is no run yet. Start one" in words(page)


def test_a_source_that_is_none_is_told(app, words):
    page = app("batch")
    page = page.segmented_control(key="batch-way").set_value("A path or address").run()
    page = page.text_input(key="batch-place").set_value("/nowhere/captions.txt").run()
    assert not page.exception
    assert "There is no file" in words(page)
    assert not [each for each in page.button if each.label == "Start the audit"]


def test_rows_of_a_table_are_not_taken_for_captions_alone(app, words, tmp_path):
    path = tmp_path / "table.csv"
    row = ",".join(["a red house", *(f"another column {number}" for number in range(9))])
    path.write_text("\n".join(["caption,1,2,3,4,5,6,7,8,9", *[row] * 20_000]))
    page = app("batch")
    page = page.segmented_control(key="batch-way").set_value("A path or address").run()
    page = page.text_input(key="batch-place").set_value(str(path)).run()
    assert not page.exception
    told = re.search(r"about ([\d,]+) rows", words(page))
    assert told and 19_000 < int(told[1].replace(",", "")) < 21_000


def test_a_run_from_the_page_to_its_results(app, words, captions):
    page = app("batch")
    page = page.segmented_control(key="batch-way").set_value("A path or address").run()
    page = page.text_input(key="batch-place").set_value(str(captions)).run()
    text = words(page)
    assert "42 rows" in text and "1 of the first 42 rows hold no usable caption" in text
    assert "43 evaluations" in text or "evaluations of the network" in text
    name = page.text_input(key=f"batch-name-{captions}").value
    page = started(page, captions)
    assert not page.exception
    assert escape(name) in words(page)
    job = ended(name)
    assert job.state.stage == "done" and job.state.total == 31

    page = app("results", run=name)
    assert not page.exception
    text = words(page)
    assert "31 of 31 captions" in text
    assert "of 42 rows; 1 held no usable caption" in text
    assert "No ordinary" in text or "no ordinary captions" in text
    table = page.dataframe[0].value
    assert len(table) == 31
    assert table["dcs"].is_monotonic_decreasing
    page = page.text_input(key="found-search").set_value("SCRIPT").run()
    assert page.query_params["search"] == "SCRIPT"
    assert page.dataframe[0].value["caption"].tolist() == ["<script>alert(1)</script> **x**"]
    page = page.text_input(key="found-search").set_value("nothing like it").run()
    assert "No caption of this run is so" in words(page)
    page = page.text_input(key="found-search").set_value("").run()
    page = page.selectbox(key="found-sort").set_value("caption").run()
    assert not page.exception and page.query_params["sort"] == "caption"
    page = page.checkbox(key="found-above").set_value(True).run()
    assert not page.exception


def test_links_to_results_are_hostile_too(app, words):
    page = app("results", run="../../etc", sort="x; DROP TABLE", verdict="?", page="-3", threshold="nan")
    assert not page.exception
    text = words(page)
    assert text.count("is not allowed here and was left out") == 5


def test_names_that_are_taken_or_wrong_are_told(app, words, captions):
    page = started(app("batch"), captions)
    from audit.runs import jobs

    name = jobs.jobs()[0].name
    ended(name)
    page = app("batch")
    page = page.text_input(key=f"rename-to-{name}").set_value("../x").run()
    page = button(page, "Rename").click().run()
    assert not page.exception
    assert [each.name for each in jobs.jobs()] == [name]
    page = page.text_input(key=f"rename-to-{name}").set_value("another name").run()
    button(page, "Rename").click().run()
    assert [each.name for each in jobs.jobs()] == ["another name"]
    page = app("batch")
    page = page.checkbox(key="sure-another name").set_value(True).run()
    page = button(page, "Delete").click().run()
    assert jobs.jobs() == [] and "No run yet" in words(page)


def test_a_damaged_run_does_not_break_the_page(app, words):
    from audit.runs import jobs

    folder = jobs.runs_folder() / "damaged"
    (folder / "captions").mkdir(parents=True)
    (folder / "scores").mkdir()
    (folder / "run.json").write_text("{")
    for table in ("captions", "scores"):
        (folder / table / "part-000000000000.parquet").write_bytes(b"PAR1")
    page = app("batch")
    assert not page.exception
    page = app("results", run="damaged")
    assert not page.exception
    pd.DataFrame({"a": [1]}).to_parquet(folder / "captions" / "part-000000000000.parquet")
    assert not app("results", run="damaged").exception


def test_a_run_at_work_shows_what_it_has_found(app, words, captions):
    from audit.files import write_json
    from audit.runs import jobs
    from audit.runs.folder import RunFolder, State

    started(app("batch"), captions)
    name = jobs.jobs()[0].name
    ended(name)
    assert "captions scored so far" not in words(app("batch"))
    run = RunFolder(jobs.job(name).folder)
    with run.owned():  # as a worker holds it
        write_json(run.path / "state.json", State("scoring", 31, 50).__dict__)
        page = app("batch")
        assert not page.exception
        text = words(page)
        assert "31 captions scored so far" in text and "31 of 50 captions" in text
        deadline = time.monotonic() + 30
        while "DCS" not in words(page) and time.monotonic() < deadline:
            time.sleep(0.3)
            page = page.run()
        assert "DCS" in words(page)


def test_captions_are_set_aside_for_review(app, words, captions):
    from audit.runs import jobs, selections

    started(app("batch"), captions)
    name = jobs.jobs()[0].name
    ended(name)
    page = app("results", run=name)
    page = page.text_input(key="found-search").set_value("script").run()
    page = page.text_input(key="aside-name-1").set_value("one strange").run()
    page = button(page, "Set aside").click().run()
    assert not page.exception
    assert [(each.name, each.captions) for each in selections.selections()] == [("one strange", 1)]
    page = page.run()
    assert "one strange" in words(page)
    page = page.button(key="aside-delete-one strange").click().run()
    assert selections.selections() == []


def test_an_uploaded_file_is_previewed_and_kept(app, words):
    from audit.settings import settings

    page = app("batch")
    content = b"caption\na red house\na blue star\n"
    page = page.file_uploader(key="batch-file").set_value(("my list.csv", content, "text/csv")).run()
    assert not page.exception
    assert "did not foresee" not in words(page) and "2 rows" in words(page)
    (kept,) = (settings().data_dir / "uploads").iterdir()
    assert kept.read_bytes() == content and kept.suffix == ".csv"

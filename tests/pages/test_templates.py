"""Templates: all of them, one of them, and what a run brought back."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.runs.verdicts import HITS


@pytest.fixture
def run_with_hits(environment):
    """A run of three decided captions, two of which brought the template back; one is hostile."""
    from audit.runs import jobs
    from audit.runs.folder import RunFolder

    captions = ["<b>red</b> [x](http://x.invalid)", "blue", "green"]
    ids = [f"{place:016x}" for place in range(3)]
    folder = jobs.runs_folder() / "first"
    description = {"model": "m", "model_sha256": "0" * 64, "seeds": [0], "scores": ["dcs"], "noise": "cpu"}
    run = RunFolder.create(folder, description | {"guidance": 7.5, "captions": "c", "dtype": "float32"})
    scored = {"caption_id": ids, "caption": captions, "dcs": [3.0, 2.0, 1.0], "occurrences": [1, 1, 1]}
    seeds = {"caption_id": ids, "caption": captions, "seed": [0, 0, 0], "dcs": [3.0, 2.0, 1.0]}
    run.append({"scores": pa.table(seeds), "captions": pa.table(scored | {"tokens": [3, 3, 3]})}, 0)
    hits = [
        [{"template_id": "template-p0", "seed": seed, "masked_sse": 100.0 + seed} for seed in (0, 2)],
        [{"template_id": "template-p0", "seed": 1, "masked_sse": 50.0}],
        [],
    ]
    decided = pd.DataFrame({"caption_id": ids, "caption": captions, "verdict": ["TV", "MV", "N"]})
    table = pa.Table.from_pandas(decided, preserve_index=False).append_column(
        "template_hits", pa.array(hits, HITS)
    )
    (folder / "verdicts").mkdir(exist_ok=True)
    run.append({"verdicts": table}, 0)
    assert pq.read_table(folder / "verdicts").num_rows == 3
    return run


def test_every_template_with_its_members_and_share(app, words):
    page = app("templates")
    assert not page.exception
    assert "template-p0" in words(page) and "4 members share 94% of the picture" in words(page)
    assert len(page.get("image")) == 1
    assert "“Title 0” · by A. Nonymous · Public domain · made for a test" in words(page)


def test_one_template_by_link(app, words):
    page = app("templates", template="template-p0")
    assert not page.exception
    assert "4 members" in words(page) and len(page.get("image")) == 3 + 4
    page = app("templates", template="none-of-these")
    assert not page.exception and "no template of that name" in words(page)


def test_what_a_run_brought_back_stands_beside_its_denominator(app, words, run_with_hits):
    page = app("templates", run="first")
    assert not page.exception
    assert "came back from 2 of 3 captions" in words(page)
    page = app("templates", run="first", template="template-p0")
    assert not page.exception
    assert "**2 of 3** captions, in 3 samples" in words(page)
    table = page.dataframe[0].value
    assert table["caption"].tolist() == ["blue", "<b>red</b> [x](http://x.invalid)"]
    assert table["seed 2"].tolist()[1] == 102.0


def test_a_template_that_the_library_has_not_is_in_no_count(app, words, run_with_hits):
    (path,) = run_with_hits.parts("verdicts")
    table = pq.read_table(path)
    gone = [{"template_id": "template-gone", "seed": 0, "masked_sse": 1.0}]
    hits = pa.array([*table["template_hits"].to_pylist()[:2], gone], HITS)
    pq.write_table(table.set_column(table.schema.names.index("template_hits"), "template_hits", hits), path)
    assert "from **2 of 3** captions" in words(app("templates", run="first"))


@pytest.mark.parametrize("other", ["training set", "templates"])
def test_verdicts_of_others_are_told_and_not_counted(app, words, run_with_hits, tiny_training_set, other):
    from audit.files import write_json
    from audit.retrieval.index import Index
    from audit.verbatim.templates import TemplateLibrary

    made = {
        "training_set": {"sha256": Index.open(tiny_training_set / "index").sha256},
        "templates_sha256": TemplateLibrary.load(tiny_training_set / "templates").sha256,
    }
    path = run_with_hits.path / "verdicts.json"
    write_json(path, made)
    assert "came back from 2 of 3 captions" in words(app("templates", run="first"))
    zeros = {
        "training set": {"training_set": {"sha256": "0" * 64}},
        "templates": {"templates_sha256": "0" * 64},
    }
    write_json(path, made | zeros[other])
    page = app("templates", run="first")
    assert not page.exception
    assert f"made with another {other}" in words(page) or f"made with other {other}" in words(page)
    assert "came back" not in words(page).replace("counted what came back", "")
    page = app("templates", run="first", template="template-p0")
    assert not page.exception and "What brought it back" not in words(page)


def test_verdicts_stay_those_of_templates_whose_masks_were_edited_since(
    app, words, run_with_hits, tiny_training_set, tmp_path, environment
):
    import shutil

    from audit.files import write_json
    from audit.runs.templates import versions_of
    from audit.verbatim.editing import Edit, Tool
    from audit.verbatim.templates import TemplateLibrary

    shutil.copytree(tiny_training_set / "templates", tmp_path / "library")
    environment.setenv("VERBATIM_TEMPLATES", str(tmp_path / "library"))
    library = TemplateLibrary.load(tmp_path / "library")
    write_json(run_with_hits.path / "verdicts.json", {"templates_sha256": library.sha256})
    corner = Edit(Tool.RECTANGLE, False, ((0, 0), (64, 64)))
    versions = versions_of(tmp_path / "library")
    library.save_mask("template-p0", [corner], who="Ada", versions=versions)
    assert TemplateLibrary.load(tmp_path / "library", versions).sha256 != library.sha256
    assert "came back from 2 of 3 captions" in words(app("templates", run="first"))


def test_a_run_that_is_gone_and_hostile_links_are_told(app, words):
    page = app("templates", run="gone", template="\n../../etc", page="0")
    assert not page.exception
    assert "was deleted or renamed" in words(page) and words(page).count("was left out") == 2


def test_a_run_that_has_not_begun_is_told(app, words, environment):
    from audit.files import write_json
    from audit.runs import jobs

    jobs.runs_folder().mkdir()
    write_json(jobs.runs_folder() / "young.job", {"arguments": []})
    page = app("templates", run="young")
    assert not page.exception and not page.error
    assert "or has not begun yet" in words(page) and len(page.get("image")) == 1
    page = app("results", run="young")
    assert not page.exception and not page.error
    assert "There is nothing of the run young yet" in words(page)


def test_without_a_library_the_page_says_what_to_do(app, words, environment, tmp_path, tiny_training_set):
    import shutil

    for name in ("index", "clip", "corpus"):
        shutil.copytree(tiny_training_set / name, tmp_path / name)
    environment.setenv("VERBATIM_INDEX", str(tmp_path / "index"))
    environment.delenv("VERBATIM_TEMPLATES")
    page = app("templates")
    assert not page.exception and "audit templates INDEX" in words(page).replace("\\", "")

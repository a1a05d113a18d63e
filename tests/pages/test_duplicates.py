"""Duplicates: looked for once, shown with denominators, joined with a run; hostile captions are text."""

import numpy as np
import pyarrow as pa
import pytest

from audit.records import caption_id

HOSTILE = "<script>alert(1)</script> **bold** :red[x] $a$ [link](http://x.invalid)"


def button(page, label):
    return next(each for each in page.button if each.label == label)


@pytest.fixture
def found(environment, tiny_training_set, tmp_path):
    """Duplicates of the tiny training set, as the command keeps them: p5 was trained 40 times, p6 with 30 captions."""
    import pandas as pd

    from audit.retrieval.index import Index
    from audit.runs.duplicates import Pictures, find_duplicates, kept_duplicates
    from audit.verbatim.templates import TemplateLibrary

    times = [("p5", "שלום עולם 🏠", 40), ("p4", HOSTILE, 2), *[("p6", f"words {n}", 1) for n in range(30)]]
    pd.DataFrame(times, columns=["image_id", "caption", "times"]).to_parquet(tmp_path / "times.parquet")
    have = Pictures.of_index(Index.open(tiny_training_set / "index"))
    templates = TemplateLibrary.load(tiny_training_set / "templates").templates
    found = find_duplicates(have, templates, captions=tmp_path / "times.parquet")
    found.save(kept_duplicates(have.sha256))
    return found


def young_run():
    """What stands of a run whose worker has not written a word yet."""
    from audit.files import write_json
    from audit.runs import jobs

    jobs.runs_folder().mkdir(exist_ok=True)
    write_json(jobs.runs_folder() / "young.job", {"arguments": []})


@pytest.fixture
def run(environment, tmp_path, monkeypatch):
    """Scored: the caption of p5 and ten of p6's high, the others low; p5's was decided a copy."""
    from audit.runs import jobs, regurgitation
    from audit.runs.folder import RunFolder

    captions = ["שלום עולם 🏠", HOSTILE, "red house", *[f"words {number}" for number in range(30)]]
    high = [True, False, False, *[number < 10 for number in range(30)]]
    run = RunFolder.create(
        jobs.runs_folder() / "first",
        {"model": "m", "model_sha256": "f" * 64, "seeds": [0], "guidance": 7.5, "noise": "cpu"},
    )
    rows = pa.table(
        {
            "caption_id": [caption_id(text) for text in captions],
            "caption": captions,
            "dcs": np.where(high, 9.0, 1.0).astype(np.float32),
        }
    )
    run.append({"scores": rows, "captions": rows}, 0)
    verdict = {
        "caption_id": caption_id(captions[0]),
        "caption": captions[0],
        "verdict": "MV",
        "neighbour_id": "p5",
    }
    run.append({"verdicts": pa.Table.from_pylist([verdict])})
    monkeypatch.setattr(regurgitation, "scoring", lambda run: ("dcs", 5.0))
    return run


def test_nobody_looked_yet_and_then_they_are_found_and_kept(app, words, tiny_training_set):
    from audit.retrieval.index import Index
    from audit.runs.duplicates import known_duplicates

    page = app("duplicates")
    assert not page.exception
    assert "Nobody looked for duplicates among these 30 training images yet" in words(page)
    page = button(page, "Look for duplicates").click().run()
    assert not page.exception
    assert "Template families" in [metric.label for metric in page.metric]
    index = Index.open(tiny_training_set / "index")
    assert known_duplicates(index.folder, index.sha256) is not None
    page = app("duplicates")
    assert "Nobody looked" not in words(page)


def test_clusters_say_what_they_are_with_denominators(app, words, found):
    page = app("duplicates")
    assert not page.exception
    text = words(page)
    assert "of 30 training images" in text
    assert "clusters, of 0 images; 0 of them verified on pixels" in text
    assert "1 image, 1 caption · trained 40 times: 40 with one caption, 0 with others" in text
    assert "1 image, 30 captions · trained 30 times: 1 with one caption, 29 with others" in text
    assert "given back" not in text
    assert len(page.get("image")) == 4
    page = page.segmented_control(key="dup-kind").set_value("template").run()
    assert page.query_params["kind"] == "template"
    assert "4 images, 4 captions" in words(page)
    assert len(page.get("image")) == 1
    assert "by A. Nonymous · Public domain · made for a test" in words(page)
    page = page.segmented_control(key="dup-kind").set_value("near").run()
    assert "Nothing of this kind repeats" in words(page)


def test_one_cluster_shows_its_members_and_captions(app, words, found):
    page = app("duplicates", kind="template")
    page = button(page, "Show all 4").click().run()
    assert not page.exception
    assert page.query_params["cluster"] == "template-p0"
    text = words(page)
    assert "4 of 4 images verified" in text
    assert "by A. Nonymous" in text
    assert "under the mask" in text
    assert len(page.get("image")) == 4
    assert page.dataframe[0].value["caption"].tolist() == [
        "red house",
        "blue tree",
        "green star",
        "small cat",
    ]
    page = button(page, "All clusters").click().run()
    assert "cluster" not in page.query_params


def test_captions_are_text(app, words, found):
    page = app("duplicates", cluster="exact-p4")
    assert not page.exception
    text = words(page)
    assert "&lt;script&gt;alert(1)" in text
    assert HOSTILE not in text


def test_a_run_says_what_came_back_and_the_chart_says_how_often(app, words, found, run):
    page = app("duplicates", run="first")
    assert not page.exception
    text = words(page)
    assert "given back by 1 of 1 captions generated in full · 1 of 1 scored look memorised" in text
    assert "no caption of it was generated in full · 10 of 30 scored look memorised" in text
    assert "the run scored **33**" in text
    assert len(page.get("plotly_chart")) == 1
    page = page.segmented_control(key="dup-by").set_value("verdict").run()
    assert page.query_params["by"] == "verdict"
    assert "a picture generated from it is a copy under a threshold" in words(page)
    assert "the run generated **1** in full" in words(page)
    page = page.selectbox(key="dup-sort").set_value("regurgitated").run()
    assert page.query_params["sort"] == "regurgitated"
    assert not page.exception


def test_one_cluster_says_what_the_run_gave_back(app, words, found, run):
    page = app("duplicates", run="first", cluster="exact-p5")
    assert not page.exception
    text = words(page)
    assert "In the run first: given back by 1 of 1 captions generated in full" in text
    assert "1 copy of any caption named one of these images" in text


def test_verdicts_of_another_training_set_are_told_and_not_counted(app, words, found, run):
    from audit.files import write_json

    write_json(run.path / "verdicts.json", {"training_set": {"sha256": "0" * 64}})
    page = app("duplicates", run="first", sort="regurgitated")
    assert not page.exception
    assert "made with another training set than this one (000000000000" in words(page).replace("\\", "")
    assert "given back" not in words(page) and "10 of 30 scored look memorised" in words(page)
    page = page.segmented_control(key="dup-by").set_value("verdict").run()
    assert "are those of another training set" in words(page)
    page = app("duplicates", run="first", cluster="exact-p5")
    assert not page.exception
    assert "In the run first: 1 of 1 scored look memorised." in words(page)
    assert "named one of these images" not in words(page)


def test_the_chart_draws_each_kind_of_duplication_from_what_was_trained_once():
    from audit.ui.duplicates import described, figure

    def row(series, first, last, hits, of):
        return {
            "series": series, "from": first, "to": last, "captions": of, "pictures": of, "memorised": hits,
            "rate": hits / of, "low": 0.0, "high": 1.0,
        }  # fmt: skip

    rows = [row("once", 1, 1, 0, 10), row("image_only", 10, 24, 1, 4), row("multimodal", 100, None, 3, 4)]
    drawn = figure(rows, dark=False)
    assert [np.round(trace.x).tolist() for trace in drawn.data] == [[0, 2], [0, 1]]
    assert [list(trace.y) for trace in drawn.data] == [[0, 75], [0, 25]]
    assert list(drawn.layout.xaxis.ticktext) == ["1", "10–24", "100+"]
    assert described(rows).endswith("image-only 10–24 times: 1 of 4; multimodal 100+ times: 3 of 4")


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"run": "gone"}, "There is no run 'gone'"),
        ({"run": "young"}, "There is no run 'young'; it was deleted or renamed, or has not begun yet"),
        ({"cluster": "template-nobody"}, "no cluster of that name"),
        ({"cluster": "../../etc"}, "cluster='../../etc' is not allowed"),
        ({"kind": "<b>"}, "kind='<b>' is not allowed"),
        ({"page": "-1"}, "page='-1' is not allowed"),
        ({"page": "999"}, ""),
        ({"sort": "regurgitated"}, ""),
    ],
)
def test_links_that_do_not_fit_are_told(app, words, found, params, told):
    young_run()
    page = app("duplicates", **params)
    assert not page.exception
    assert not page.error
    assert told in words(page).replace("\\", "")
    assert told or len(page.get("image")) == 4


def test_a_damaged_file_of_duplicates_is_told_and_can_be_made_anew(app, words, found, tiny_training_set):
    from audit.retrieval.index import Index
    from audit.runs.duplicates import kept_duplicates

    folder = kept_duplicates(Index.open(tiny_training_set / "index").sha256)
    (folder / "clusters.parquet").write_bytes(b"PAR1")
    page = app("duplicates")
    assert not page.exception
    assert any("no duplicates that can be read" in error.value for error in page.error)
    page = button(page, "Look for duplicates").click().run()
    assert not page.exception
    page = app("duplicates")
    assert not page.error


def test_a_run_is_joined_anew_when_duplicates_are_found_again_or_ordinary_captions_scored(
    app, words, found, run, tiny_training_set, tmp_path, environment
):
    """What was joined before has other clusters, and says that nobody scored ordinary captions."""
    import pandas as pd

    from audit.retrieval.index import Index
    from audit.runs import regurgitation
    from audit.runs.duplicates import Pictures, find_duplicates, kept_duplicates

    environment.setattr(regurgitation, "scoring", lambda run: ("dcs", None))
    page = app("duplicates", run="first")
    assert "No ordinary captions were scored" in words(page)
    environment.setattr(regurgitation, "scoring", lambda run: ("dcs", 5.0))
    assert "No ordinary captions were scored" not in words(page.run())
    have = Pictures.of_index(Index.open(tiny_training_set / "index"))
    times = pd.DataFrame([("p9", "nine", 70)], columns=["image_id", "caption", "times"])
    times.to_parquet(tmp_path / "times.parquet")
    find_duplicates(have, (), captions=tmp_path / "times.parquet").save(kept_duplicates(have.sha256))
    assert "trained 70 times" in words(page.run())
    page = button(page, "Show it").click().run()
    assert not page.exception and not page.error
    assert "In the run first: no caption of it was generated in full" in words(page)


def test_a_training_set_that_lies_elsewhere_says_where_its_duplicates_are_found(
    environment, app, words, tiny_training_set, tmp_path
):
    from audit.retrieval.engines import publish
    from audit.retrieval.index import Index
    from audit.settings import settings

    where = f"milvus:{tmp_path / 'milvus.db'}#tiny"
    publish(Index.open(tiny_training_set / "index"), where)
    environment.setenv("VERBATIM_INDEX", where)
    settings.cache_clear()
    page = app("duplicates")
    assert not page.exception and not page.error
    assert "`python -m audit duplicates`" in words(page)

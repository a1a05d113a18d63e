"""A training set that knows only addresses, on the pages: pictures fill in as they come from a real server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest


@pytest.fixture
def site(environment, addresses_only):
    """The training set in use has addresses only, which are asked here."""
    from audit.corpus.remote import remote_images
    from audit.settings import settings

    for name, value in addresses_only.settings().items():
        environment.setenv(name, value)
    settings.cache_clear()
    remote_images.cache_clear()
    yield addresses_only
    addresses_only.close()
    remote_images.cache_clear()


def done():
    """Wait until nothing is computed."""
    from audit.ui import bench

    for job in list(bench.owner()._jobs.values()):
        job.future.exception(timeout=60)


def arrived():
    """Wait until nothing is being fetched."""
    from audit.ui import remote

    for future in list(remote._asked().values()):
        future.exception(timeout=60)


def test_pictures_fill_in_and_a_dead_one_is_told(app, words, site):
    site.gate.clear()
    page = app("training_set", page="2")
    assert not page.exception
    assert words(page).count("Fetching the picture from 127") == 6 and not page.get("image")
    assert "by A. Nonymous" in words(page)
    site.gate.set()
    arrived()
    page = page.run()
    assert "Fetching" not in words(page) and len(page.get("image")) == 5
    assert [warning.value for warning in page.warning if "404" in warning.value]
    assert "pictures waited for" not in page.session_state


@pytest.fixture
def found(site, tiny_training_set, monkeypatch):
    """One family of four, as it was found by somebody who had the pictures."""
    from dataclasses import replace

    import numpy as np

    from audit.retrieval.index import Index
    from audit.runs.duplicates import Pictures, find_duplicates, kept_duplicates
    from audit.verbatim.templates import TemplateLibrary

    with monkeypatch.context() as apart:
        apart.setattr("audit.runs.pictures.remote_images", lambda: None)
        have = Pictures.of_index(Index.open(site.folder / "index"))
    have = replace(have, picture=lambda place: None, vectors=np.eye(30, dtype=np.float32))
    templates = TemplateLibrary.load(tiny_training_set / "templates").templates
    find_duplicates(have, templates).save(kept_duplicates(have.sha256))


def test_a_line_of_pictures_holds_none_that_has_not_come(app, words, site, found):
    site.gate.clear()
    page = app("training_set", view="families")
    assert not page.exception
    assert "Fetching 4 of 4 pictures" in words(page) and not page.get("image")
    site.gate.set()
    arrived()
    page = page.run()
    assert "Fetching" not in words(page) and len(page.get("image")) == 1


def test_neighbours_are_there_before_their_pictures(app, words, site, tiny_training_set):
    picture = (tiny_training_set / "corpus" / "images" / "p7.png").read_bytes()
    site.gate.clear()
    page = app("training_set")
    page = page.file_uploader(key="set-upload").set_value(("mine.png", picture, "image/png")).run()
    assert not page.exception
    text = words(page)
    assert "Nearest of 30 training images" in text and "picture 7" in text
    assert "likeness 1" in text and "distance" not in text.replace("pixel distance", "")
    assert not page.get("image") and [each for each in page.button if each.label == "Stop"]
    site.gate.set()
    arrived()
    wait_for_pixels(page, words)
    assert len(page.get("image")) == 24


def wait_for_pixels(page, words):
    done()
    page.run()
    assert not page.exception
    assert words(page).count(":small[distance") == 24


def test_stop_ends_the_fetching_and_leaves_the_neighbours(app, words, site):
    site.gate.clear()
    page = app("training_set", like="p7")
    assert "Fetching the picture from 127" in words(page)
    site.gate.set()
    arrived()
    site.gate.clear()
    page = page.run()
    assert "likeness" in words(page) and len(page.get("image")) == 1
    page = next(each for each in page.button if each.label == "Stop").click().run()
    assert not page.exception
    assert "This was stopped" in words(page) and "likeness" in words(page)
    site.gate.set()
    page = next(each for each in page.button if each.label == "Compare pixels again").click().run()
    arrived()
    wait_for_pixels(page, words)


def test_looking_for_duplicates_tells_what_is_fetched_lets_others_between_and_can_be_stopped(
    app, words, site
):
    """It kept everybody's one thread until the last picture had come, and its button to stop did nothing."""
    from audit.ui import bench
    from audit.ui.owner import SHORT

    site.gate.clear()
    page = app("duplicates")
    page = next(each for each in page.button if each.label == "Look for duplicates").click().run()
    assert not page.exception
    job = next(each for each in bench.owner()._jobs.values() if each.label == "Looking for duplicates")
    look = bench.owner().submit("another user", "One step", lambda job: "seen", SHORT)
    assert look.future.result(timeout=20) == "seen" and not job.future.done()
    page = next(each for each in page.button if each.label == "Stop").click().run()
    assert "This was stopped" in words(page)
    assert job.future.exception(timeout=20) is not None
    site.gate.set()
    page = next(each for each in page.button if each.label == "Look again").click().run()
    done()
    assert not page.exception
    page = page.run()
    assert "Template families" in [metric.label for metric in page.metric]


def test_the_lab_shows_neighbours_while_the_verdict_waits_for_their_pictures(app, words, site):
    site.gate.clear()
    page = app("prompt_lab", caption="zebra", seeds="0", steps="2")
    for _ in range(20):
        if "Nearest training images" in [header.value for header in page.header]:
            break
        page = page.run()
    assert not page.exception
    text = words(page)
    assert "the verdict is on their pixels" in text and "likeness" in text and "No copy found" not in text
    site.gate.set()
    done()
    page = page.run()
    assert not page.exception and "the verdict is on their pixels" not in words(page)
    assert "The checks behind it" in [each.label for each in page.expander]


def test_an_address_that_failed_for_a_passing_reason_is_asked_again(app, words, site):
    from audit.corpus.cache import Fetched
    from audit.corpus.download import FetchStatus
    from audit.corpus.remote import remote_images

    def failed(name, ago):
        time = datetime.now(UTC) - ago
        outcome = Fetched(site.url(name), FetchStatus.DEAD, "No answer came.", time, lasting=False)
        remote_images()._cache.record(outcome)

    failed("p24", timedelta(hours=2))
    failed("p25", timedelta(minutes=2))
    page = app("training_set", page="2")
    arrived()
    page = page.run()
    assert [warning.value for warning in page.warning].count("No answer came\\.") == 1
    assert len(page.get("image")) == 4


def test_where_nothing_is_fetched_it_is_said(app, words, site, found, environment):
    from audit.corpus.remote import remote_images
    from audit.settings import settings

    environment.setenv("VERBATIM_FETCH", "false")
    settings.cache_clear()
    remote_images.cache_clear()
    page = app("training_set", page="2")
    assert not page.exception and not page.get("image")
    assert sum("are not fetched here" in warning.value for warning in page.warning) == 6
    page = app("training_set", view="families")
    assert "4 of 4 pictures could not be opened" in words(page)


def test_one_that_was_removed_is_not_shown_the_first_time_it_comes_either(app, site, tiny_training_set):
    """Its table may tell no hash: only what came does."""
    from dataclasses import replace

    from audit.corpus.remote import remote_images
    from audit.images import sha256
    from audit.review.store import Store
    from audit.ui import bench

    app("prompt_lab")
    have = bench.training_set()
    row = replace(have.index.row("p25"), sha256="")
    store = Store.open()
    digest = sha256(tiny_training_set / "corpus" / "images" / "p25.png")
    store.remove_from_view(store.enter("ann"), digest, "its author asked")
    assert remote_images().known(row.url) is None and have.pixels(row) is None
    assert have.pixels(replace(have.index.row("p26"), sha256="")) is not None

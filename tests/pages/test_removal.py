"""A training picture that was removed from view: no page shows it, and no exhibit and no download holds it."""

import shutil
from pathlib import Path

import pytest

from audit.ui.removal import REMOVED

from . import test_exhibits
from .test_review import button, named

NAME, FIRST = test_exhibits.NAME, test_exhibits.FIRST
made = test_exhibits.made
SHORT = {"seeds": "0-1", "steps": "2"}


@pytest.fixture
def remove(environment):
    """Removes the picture p0 from view, the first of a family and of a template."""
    from audit.images import sha256
    from audit.review.store import Store
    from audit.settings import settings

    def remove(name="p0"):
        store = Store.open()
        corpus = Path(settings().index).parent / "corpus"
        digest = sha256(corpus / "images" / f"{name}.png")
        store.remove_from_view(store.enter("ann"), digest, "its author asked")
        return store, digest

    return remove


def pictures(page):
    return len(page.get("image"))


def test_pages_that_show_training_pictures(app, words, remove):
    before = [pictures(app("training_set")), pictures(app("training_set", view="families", family="fam"))]
    store, digest = remove()
    page = app("training_set")
    assert not page.exception and REMOVED in words(page) and pictures(page) == before[0] - 1
    page = app("training_set", view="families", family="fam")
    assert REMOVED in words(page) and pictures(page) == before[1] - 1
    page = app("templates")
    assert not page.exception and "template-p0" not in words(page) and pictures(page) == 0
    page = app("templates", template="template-p0")
    assert not page.exception and "no template of that name" in words(page) and pictures(page) == 0
    page = app("prompt_lab", caption="red house", neighbour="p0", **SHORT)
    assert not page.exception and REMOVED in words(page)
    page = app("prompt_lab", caption="red house", neighbour="p1", **SHORT)
    assert not page.exception
    store.restore_to_view(store.enter("ann"), digest, "a mistake")
    page = app("training_set")
    assert REMOVED not in words(page) and pictures(page) == before[0]


def test_strips_and_downloads_have_it_no_more(app, remove):
    import numpy as np

    from audit.ui import bench, evidence, lab

    app("prompt_lab", caption="red house", **SHORT)
    have = bench.training_set()
    proof = bench.kept_proof(bench.target(), "red house", (0, 1), 2, 7.5)
    near = lab.nearest(proof, 8)

    def files():
        return evidence.proof_files(proof, near, have, "p0", proof.samples[0])

    assert "comparison/training_image.png" in files() and "comparison/template.png" in files()
    row = have.index.row("p0")
    assert np.array_equal(have.pixels(row), have.retriever.pictures.get(row))
    remove()
    assert have.pixels(row) is None and have.picture("p0") is None
    assert have.templates == () and have.covering("p1") is None and have.template("template-p0") is None
    assert not [name for name in files() if name.startswith("comparison/")]


def test_an_exhibit_that_holds_it_is_not_shown(app, words, made, remove, tmp_path):
    shutil.copytree(made, tmp_path / "exhibits" / NAME)
    page = app("exhibits", export=NAME, exhibit=FIRST)
    assert pictures(page)
    from audit.evidence.reading import Exhibit

    facts = Exhibit.open(tmp_path / "exhibits" / NAME / FIRST).facts
    remove(facts["training_image"]["image_id"])
    page = app("exhibits", export=NAME, exhibit=FIRST)
    assert not page.exception and not pictures(page)
    assert "removed from view since" in words(page) and not page.get("download_button")


def test_an_auditor_removes_and_shows_again(app, words, environment):
    from audit.review.store import Store

    page = named(app("review"), "ann")
    page.text_input[0].set_value("p3")
    page.text_input[1].set_value("its author asked")
    page = button(page, "Remove from view").click().run()
    assert not page.exception
    (digest,) = Store.open().hidden()
    assert digest[:16] in words(page) and "its author asked" in words(page)
    page = button(page, "Show again").click().run()
    assert not page.exception and Store.open().hidden() == set()
    page.text_input[0].set_value("no such picture")
    page = button(page, "Remove from view").click().run()
    assert "is no sha256" in words(page)
    page = named(app("review"), "bob")
    assert "Remove from view" not in {each.label for each in page.button}

"""The agreement page: what it says without labels, to whom it says nothing, and numbers that can be checked by hand."""

import importlib.util
import shutil
import uuid
from pathlib import Path

import pytest

from audit.ui.text import escape

SPEC = importlib.util.spec_from_file_location("review_pages", Path(__file__).with_name("test_review.py"))
review_pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(review_pages)
run, queue, named = review_pages.run, review_pages.queue, review_pages.named


@pytest.fixture(autouse=True)
def no_mask_is_left(tiny_training_set):
    """The template library is shared with other tests; versions of masks lie beside it."""
    yield
    shutil.rmtree(tiny_training_set / "templates.versions", ignore_errors=True)


@pytest.fixture
def labelled(queue):
    """Two people, six items: they agree on all but one."""
    from audit.review.queue import Answer

    for who, last in (("ann", "TV"), ("bob", "N")):
        person = queue.store.enter(who)
        items = sorted(queue.take(person, 6), key=lambda item: item.place)
        for place, item in enumerate(items):
            label = last if place == 5 else ("MV", "N")[place % 2]
            queue.answer(person, item.item_id, Answer(uuid.uuid4().hex, label))
    return queue


def test_without_queues_it_says_what_to_do(app, words):
    page = named(app("agreement"), "ann")
    assert not page.exception and "There is no queue yet" in words(page)


def test_without_labels_it_says_so(app, words, queue):
    page = named(app("agreement"), "ann")
    assert not page.exception and "Nobody has labelled an item of it yet" in words(page)


def test_numbers_stand_beside_what_they_are_out_of(app, words, labelled):
    page = named(app("agreement", queue="first"), "ann")
    assert not page.exception
    metrics = {each.label: each.value for each in page.metric}
    assert metrics == {"Labels": "12", "Items with an answer": "6", "Agreed": "5", "Disagreed": "1"}
    text = words(page)
    assert "of 6; 6 have two or more that count, or a decision" in text and "by 2 people" in text
    # 12 labels: MV 6, N 5, TV 1; 5 of 6 pairs agree. Alpha = 1 - (1/6) / (1 - (6*5 + 5*4 + 0) / (12*11))
    expected = 1 - (1 / 6) / (1 - 50 / 132)
    table = page.table[0].value
    assert table.iloc[0]["Alpha"].startswith(f"{expected:.2f}") and table.iloc[0]["Items"] == "6"


def test_flags_are_listed_with_their_notes_also_of_who_skipped(app, words, queue):
    ann, bob = queue.store.enter("ann"), queue.store.enter("bob")
    first, second = queue.take(bob, 2)
    queue.flag(bob, first.item_id, "look at the corner")
    queue.skip(bob, first.item_id)
    queue.flag(bob, second.item_id, "and here")
    queue.unflag(bob, second.item_id)
    page = named(app("agreement", queue="first"), "ann")
    assert not page.exception and "1 flag that holds" in words(page)
    (row,) = page.dataframe[0].value.to_dict("records")
    assert (row["Note"], row["By"], row["Queue"]) == ("look at the corner", "bob", "first")
    assert queue.flags(ann)[0].item_id == first.item_id


def test_every_figure_of_the_page_is_in_its_table(app, words, labelled):
    from audit.review.queue import Answer
    from audit.ui import agreement

    ann = labelled.store.enter("ann")
    item = labelled.undo(ann)
    labelled.answer(ann, item, Answer(uuid.uuid4().hex, "N"))
    page = named(app("agreement", queue="first"), "ann")
    assert "1 given after others were shown count in no agreement" in words(page)
    found = agreement.figures("first", "item", labelled.store.root().sha256)
    rows = agreement.rows_of(found, agreement.Figure(0.5, items=1))
    by = {(row["figure"], row["first"], row["second"], row["kind"]): row["value"] for row in rows}
    assert sum(value for name, value in by.items() if name[0] == "machine against people") == 6
    assert by["overlap of masks", "", "", ""] == 0.5 and ("labels an hour", "ann", "", "") in by
    assert found.alpha["all"].items == 5, "what was said after the others were shown is left out"


@pytest.mark.parametrize("third", [False, True])
def test_masks_agree_only_where_both_drew_by_themselves(app, words, labelled, tiny_training_set, third):
    from audit.review.masks import save_mask
    from audit.runs.templates import library_of, versions_of
    from audit.settings import settings
    from audit.verbatim.editing import Edit, Tool

    item_id = labelled.store.labels(labelled.store.enter("ann"))["item_id"].iloc[0]
    found = Edit(Tool.FOUND)
    left, right = (Edit(Tool.RECTANGLE, False, ((x, 0), (x + 20, 256))) for x in (0, 20))
    drawings = [("ann", (found, left)), ("bob", (right,)), ("cat", (found, left))]
    for number, (who, edits) in enumerate(drawings[: 2 + third]):
        save_mask(
            labelled.store,
            labelled.store.enter(who),
            library_of(settings().index),
            versions_of(tiny_training_set / "templates"),
            "template-p0",
            edits,
            number=number,
            answer_id=uuid.uuid4().hex,
            item_id=item_id,
        )
    page = named(app("agreement", queue="first"), "ann")
    text = words(page)
    assert not page.exception and f"Left out: 1 of {2 + third} saved versions" in text
    none = "No template has masks that two people drew by themselves"
    if not third:
        assert none in text
        return
    (row,) = page.dataframe[-1].value.to_dict("records")
    assert (row["First"], row["Second"], row["IoU"]) == ("ann", "cat", 1.0) and none not in text


def test_an_annotator_sees_no_figures(app, words, labelled):
    page = named(app("agreement"), "bob")
    assert not page.exception
    assert escape("The role annotator may not see everybody's labels") in words(page)
    assert not page.metric


def test_clusters_and_hostile_links(app, words, labelled):
    page = app("agreement", queue="<b>", by="x")
    assert not page.exception and words(page).count("was left out") == 2
    page = named(page, "ann")
    page = page.segmented_control(key="agreed-by").set_value("cluster").run()
    assert not page.exception and "numbers are clusters" in words(page)

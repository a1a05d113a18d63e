"""Masks that people edit: a version and its event are both there or made up for, and neither is changed unseen."""

import json
import shutil
import uuid

import numpy as np
import pytest

from audit.cli import main
from audit.errors import InputError
from audit.records import Template
from audit.review.events import EventKind
from audit.review.masks import mask_findings, save_mask
from audit.review.roles import Person, Refused, Role
from audit.review.store import Change, Store
from audit.runs.templates import versions_of
from audit.settings import settings
from audit.verbatim.editing import Edit, Tool
from audit.verbatim.templates import TemplateLibrary

BOB = Person("Bob", Role.ANNOTATOR)
CORNER, EDGE = (Edit(Tool.RECTANGLE, False, ((0, 0), (64, side))) for side in (64, 256))


@pytest.fixture
def store(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 'review.db'}")
    store.enter("Ann")
    yield store
    assert store.verify(store.root()) == []
    store.close()


@pytest.fixture
def library(tmp_path):
    image = np.random.default_rng(0).random((256, 256, 3), dtype=np.float32)
    template = Template("t", image, np.ones((256, 256), bool), ("a", "b"), "a")
    TemplateLibrary((template,)).save(tmp_path / "templates")
    return tmp_path / "templates"


def save(store, library, edit=CORNER, number=0, answer_id="", loaded=None, who=BOB, start=()):
    return save_mask(
        store,
        who,
        loaded or TemplateLibrary.load(library),
        versions_of(library),
        "t",
        [*start, edit],
        number=number,
        answer_id=answer_id or uuid.uuid4().hex,
    )


def files(library):
    return sorted(path.name for path in versions_of(library).rglob("*.json"))


def events(store):
    return [
        (event.who, event.body["number"], event.body["sha256"])
        for event in store.events([EventKind.MASK_SAVED])
    ]


def test_sent_again_it_is_one_version_with_one_event(store, library):
    first = save(store, library, answer_id="answer-1")
    again = save(store, library, answer_id="answer-1")
    assert (again.number, again.sha256) == (1, first.sha256)
    assert files(library) == ["00001.json"] and events(store) == [("Bob", 1, first.sha256)]
    second = save(store, library, EDGE, number=1)
    assert second.parent_sha256 == first.sha256 and len(events(store)) == 2
    assert list(mask_findings(store, library)) == []


def test_a_version_whose_event_failed_gets_it_when_the_edits_are_sent_again(store, library, monkeypatch):
    def gone(*_):
        raise InputError("The label store does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(Change, "append_many", gone)
        with pytest.raises(InputError, match="does not answer"):
            save(store, library, answer_id="answer-1")
    assert files(library) == ["00001.json"] and events(store) == []
    assert "No event tells of version 1" in next(mask_findings(store, library)).sentence
    saved = save(store, library, answer_id="answer-1")
    assert files(library) == ["00001.json"] and events(store) == [("Bob", 1, saved.sha256)]
    assert list(mask_findings(store, library)) == []


def test_nothing_is_written_where_it_is_refused(store, library):
    stale = TemplateLibrary.load(library)
    save(store, library)
    for loaded, number in ((None, 0), (stale, 0), (stale, 1)):
        with pytest.raises(InputError, match="Somebody saved another version"):
            save(store, library, EDGE, number, loaded=loaded)
    store.give_role(store.enter("Ann"), "Bob", Role.READER)
    with pytest.raises(Refused):
        save(store, library, EDGE, number=1)
    assert files(library) == ["00001.json"] and len(events(store)) == 1


def test_of_two_who_draw_from_the_mask_as_found_at_a_time_neither_loses_theirs(store, library):
    found = (Edit(Tool.FOUND),)
    first = save(store, library, start=found)
    second = save(store, library, EDGE, 0, who=Person("Cat", Role.ANNOTATOR), start=found)
    assert (second.number, second.parent_sha256) == (2, first.sha256)
    assert second.mask[:, 64:].all() and not second.mask[:, :64].any()
    assert [each[0] for each in events(store)] == ["Bob", "Cat"]
    assert list(mask_findings(store, library)) == []


def test_a_version_in_the_place_of_another_is_found(store, library, tmp_path, monkeypatch, capsys):
    save(store, library)
    (path,) = versions_of(library).rglob("00001.json")
    written = path.read_bytes()
    shutil.copytree(library, tmp_path / "other")
    other = Store.open(f"sqlite:///{tmp_path / 'other.db'}")
    save(other, tmp_path / "other", EDGE)
    other.close()
    (another,) = versions_of(tmp_path / "other").rglob("00001.json")
    path.write_bytes(another.read_bytes())
    assert TemplateLibrary.load(library).versions["t"].number == 1, "by itself it is sound"
    (found,) = mask_findings(store, library)
    assert "is not the one that event 2 tells of" in found.sentence
    monkeypatch.setattr(settings(), "database", str(store.engine.url))
    monkeypatch.setattr(settings(), "templates", library)
    assert main(["labels", "verify"]) == 1
    assert "Version 1 of the mask" in json.loads(capsys.readouterr().out)["findings"][0]["sentence"]
    path.unlink()
    assert [each.number for each in mask_findings(store, library)] == [2]
    path.write_bytes(written)
    path.with_name("00002.json").write_bytes(another.read_bytes())
    assert "No event tells of version 2" in next(mask_findings(store, library)).sentence

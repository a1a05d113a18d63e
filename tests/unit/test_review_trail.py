"""The trail as a file: complete, and every change found."""

import json

import pytest

from audit.cli import main
from audit.errors import InputError
from audit.review.events import LARGEST_BODY, EventKind, Root, body_text, canonical, chained
from audit.review.roles import Person, Role
from audit.review.store import Store
from audit.review.trail import (
    NOBODY,
    Asked,
    command_line_user,
    everybody,
    export_trail,
    found,
    note,
    note_command,
    verify_trail,
)
from audit.settings import settings

AUDITOR = Person("rea@example.org", Role.AUDITOR, signed_in=True)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(settings(), "roles", {AUDITOR.name: AUDITOR.role.value})
    store = Store.open(f"sqlite:///{tmp_path / 'review.db'}")
    for number in range(6):
        note(
            store,
            EventKind.VIEWED,
            f"person {number % 2}",
            f"exhibit {number}",
            {"page": number, "caption": "ü \ud800"},
        )
    yield store
    store.close()


@pytest.fixture
def trail(store, tmp_path):
    path = tmp_path / "trail.jsonl"
    return path, export_trail(store, AUDITOR, path)


def test_what_was_written_verifies(store, trail):
    path, root = trail
    assert root == store.root() and root.count == 6
    assert verify_trail(path) == ([], root) == verify_trail(path, root)
    note(store, EventKind.EXPORTED, "", "run", {})
    later = export_trail(store, AUDITOR, path)
    assert verify_trail(path, root) == ([], later)  # grown since the root was taken
    assert [event.who for event in store.events([EventKind.EXPORTED])] == [NOBODY]


def test_the_largest_event_verifies(store, tmp_path):
    note(store, EventKind.VIEWED, "x" * 80, "\U0001f984" * 200, {"a": "b" * (LARGEST_BODY - 8)})
    assert store.root().count == 7
    export_trail(store, AUDITOR, tmp_path / "large.jsonl")
    assert verify_trail(tmp_path / "large.jsonl")[0] == []


@pytest.mark.parametrize("name", ["kind", "who", "when", "subject"])
def test_a_number_is_no_text(tmp_path, name):
    """A line that says the same number without its quotation marks."""
    fields = {"kind": "viewed", "who": "7", "when": "2026", "subject": "2024", name: "2024"}
    event = {"number": 1, **fields, "body": {}, "previous": "0" * 64}
    event["sha256"] = chained(1, *(fields[each] for each in fields), "{}", event["previous"])
    root = canonical({"root": {"count": 1, "sha256": event["sha256"]}})
    for value, findings in (("2024", 0), (2024, 1)):
        (tmp_path / "trail.jsonl").write_text(canonical(event | {name: value}) + "\n" + root + "\n")
        assert len(verify_trail(tmp_path / "trail.jsonl")[0]) == findings


def edited(path, change):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


def recomputed(lines):
    """The second event changed, and the whole chain with its root computed anew."""
    events = [json.loads(line) for line in lines[:-1]]
    events[1]["subject"] = "another exhibit"
    previous = "0" * 64
    for event in events:
        event["previous"] = previous
        texts = [event[name] for name in ("kind", "who", "when", "subject")]
        event["sha256"] = previous = chained(event["number"], *texts, body_text(event["body"]), previous)
    root = {"root": {"count": len(events), "sha256": previous}}
    return [canonical(each) for each in (*events, root)]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda lines: [lines[0], lines[1].replace("exhibit 1", "exhibit 9"), *lines[2:]],
            "Event 2 was changed",
        ),
        (lambda lines: [lines[0], *lines[2:]], "Event 2 is missing"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "Event 1 is missing"),
        (lambda lines: lines[:-1], "cut off"),
        (lambda lines: [*lines[:3], lines[-1]], "cut off"),
        (lambda lines: [*lines, lines[0]], "behind the end"),
        (lambda lines: [lines[0], "[" * 100_000, *lines[2:]], "Line 2 is no event"),
        (lambda lines: [lines[0], "{}", *lines[2:]], "Line 2 is no event"),
        # read as JSON, these are the same or nearly so
        (
            lambda lines: [lines[0].replace('"who":', '"who":"Eve","who":'), *lines[1:]],
            "Line 1 is no event",
        ),
        (lambda lines: [lines[0].replace('"body":', '"body":{},"body":'), *lines[1:]], "Line 1 is no event"),
        (lambda lines: [lines[0].replace("\\ud800", "\\uD800"), *lines[1:]], "Line 1 is no event"),
        (lambda lines: [lines[0] + " ", *lines[1:]], "Line 1 is no event"),
        (
            lambda lines: [*lines[:-1], lines[-1].replace('{"root":', '{"root":{},"root":')],
            "Line 7 is no event",
        ),
    ],
)
def test_every_change_is_found(trail, change, sentence):
    path, _ = trail
    edited(path, change)
    findings, _ = verify_trail(path)
    assert sentence in findings[0].sentence


def test_a_chain_computed_anew_is_found_by_the_root_kept_elsewhere(trail):
    path, root = trail
    edited(path, recomputed)
    assert verify_trail(path)[0] == []
    assert "written anew" in verify_trail(path, root)[0][0].sentence
    assert "there are 6" in verify_trail(path, Root(7, "0" * 64))[0][0].sentence


def test_trouble_with_the_trail_stops_no_work(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(settings(), "database", f"sqlite:///{tmp_path}")
    note_command(EventKind.RUN_STARTED, "run", {})
    assert "The audit trail lacks an event" in caplog.text


def test_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(settings(), "data_dir", tmp_path)
    monkeypatch.setattr(settings(), "who", "Ada")
    assert command_line_user() == "Ada"
    note_command(EventKind.RUN_STARTED, "my run", {"captions": "list.txt"})
    path = tmp_path / "trail.jsonl"
    assert main(["trail", "export", str(path)]) == 0
    root = tmp_path / "root.json"
    root.write_text(capsys.readouterr().out)
    assert main(["trail", "verify", str(path), "--root", str(root)]) == 0
    assert json.loads(capsys.readouterr().out)["verified"] is True
    assert json.loads(path.read_text().splitlines()[0])["who"] == "Ada"
    edited(path, lambda lines: [lines[0].replace("my run", "no run"), *lines[1:]])
    assert main(["trail", "verify", str(path)]) == 1
    captured = capsys.readouterr()
    assert "Event 1 was changed" in captured.err and json.loads(captured.out)["verified"] is False
    assert main(["trail", "verify", str(tmp_path / "nothing")]) == 2
    with pytest.raises(InputError, match="cannot be read"):
        verify_trail(tmp_path / "nothing")


def test_events_are_found_by_what_who_words_and_day(store):
    note(store, EventKind.EXPORTED, "Ada", "100%_sure", {"what": "Ünder a roof"})

    def numbers(first=0, rows=50, **asked):
        count, events = found(store, AUDITOR, Asked(**asked), first, rows)
        return count, [event.number for event in events]

    assert numbers() == (7, [7, 6, 5, 4, 3, 2, 1])
    assert numbers(first=2, rows=2) == (7, [5, 4])
    assert numbers(kind="exported") == (1, [7]) == numbers(who="Ada")
    assert numbers(kind="viewed", who="person 1") == (3, [6, 4, 2])
    assert numbers(words="0%_S") == (1, [7]) == numbers(words="Ünder A")
    assert numbers(words="%") == (1, [7])  # a sign, and no wildcard
    assert numbers(words="exhibit 3") == (1, [4])
    assert numbers(since="2999-01-01") == (0, []) and numbers(since="2000-01-01")[0] == 7
    assert everybody(store, AUDITOR) == ["Ada", "person 0", "person 1"]

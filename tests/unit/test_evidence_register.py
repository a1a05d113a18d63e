"""The register: chained, on disk, appended to by many at once; every change of it is told."""

import json
import subprocess
import sys

import pytest

from audit.errors import InputError
from audit.evidence.register import FIRST, Register, canonical, faults, read


def add(path, number):
    return Register(path).append(
        kind="exhibit", root=f"{number:064x}", name=f"{number:016x}", run="r", model_sha256="m", who="Ann"
    )


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "deep" / "register.jsonl"
    for number in range(5):
        add(path, number)
    return path


def lines(path):
    return path.read_bytes().splitlines(keepends=True)


def test_entries_are_numbered_and_chained(path):
    entries = read(path)
    assert [entry.number for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry.previous for entry in entries] == [FIRST, *(entry.sha256 for entry in entries[:-1])]
    assert all(entry.sha256 == entry.digest() for entry in entries) and not faults(path)


def test_one_root_is_written_once_and_signed_anew(path):
    before = path.read_bytes()
    assert add(path, 3).number == 4 and path.read_bytes() == before
    signed = Register(path).append(
        kind="exhibit", root=f"{3:064x}", name="x", run="r", model_sha256="m", who="Ann", signed_by="SHA256:k"
    )
    assert signed.number == 6


def test_each_export_has_its_own_entries_and_earlier_ones_have_none(path):
    before = path.read_bytes()
    assert b'"export"' not in before and not faults(path)
    entry = {"kind": "exhibit", "root": f"{3:064x}", "name": "x", "run": "r", "model_sha256": "m", "who": "A"}
    register = Register(path)
    assert [register.append(export=which, **entry).number for which in ("a", "b", "a")] == [6, 7, 6]
    assert [entry.export for entry in read(path)[4:]] == ["", "a", "b"] and not faults(path)
    path.write_bytes(path.read_bytes().replace(b'"export":"a"', b'"export":"b"'))
    assert "Entry 6" in faults(path)[0]


def test_every_bit_of_it_counts(path):
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        for bit in (0, 3, 7):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            assert faults(path) or len(read(path)) < 5, (place, bit)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:2] + rows[3:],
        lambda rows: rows[1:],
        lambda rows: [rows[0], rows[2], rows[1], *rows[3:]],
        lambda rows: [*rows, rows[1]],
        lambda rows: [*rows[:2], b"{}\n", *rows[2:]],
        lambda rows: [*rows[:2], b"[" * 5000 + b"\n", *rows[2:]],
        lambda rows: [rows[0].replace(b'"who":"Ann"', b'"who":"Eve"'), *rows[1:]],
    ],
    ids=["removed", "beheaded", "moved", "repeated", "added", "nested", "edited"],
)
def test_what_was_done_to_it_is_told(path, change):
    path.write_bytes(b"".join(change(lines(path))))
    assert faults(path)


def test_an_edit_with_its_own_hash_made_anew_breaks_the_next(path):
    rows = lines(path)
    edited = json.loads(rows[1]) | {"root": "f" * 64}
    entry = type(read(path)[0])(**edited)
    rows[1] = canonical(entry.content | {"sha256": entry.digest()}) + b"\n"
    path.write_bytes(b"".join(rows))
    assert any("Entry 3" in fault for fault in faults(path))


def test_an_unfinished_line_is_no_entry_and_goes(path):
    whole = path.read_bytes()
    path.write_bytes(whole + lines(path)[0][:40])
    assert len(read(path)) == 5 and not faults(path)
    assert add(path, 9).number == 6
    assert path.read_bytes().startswith(whole) and not faults(path)


def test_nothing_is_chained_to_a_damaged_end(path):
    path.write_bytes(path.read_bytes()[:-10] + b"\n")
    with pytest.raises(InputError, match="restore it from a copy"):
        add(path, 9)


def test_many_processes_write_one_chain(tmp_path):
    path = tmp_path / "register.jsonl"
    code = (
        "import sys; sys.path.insert(0, sys.argv[3])\n"
        "from pathlib import Path; from audit.evidence.register import Register\n"
        "register = Register(Path(sys.argv[1]))\n"
        "for number in range(10):\n"
        "    register.append(kind='exhibit', root=f'{sys.argv[2]}-{number}', name='n', run='r', model_sha256='m', who='w')\n"
    )
    root = str(__import__("pathlib").Path(__file__).resolve().parents[2])
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(each), root]) for each in range(3)
    ]
    assert [each.wait() for each in running] == [0, 0, 0]
    assert len(read(path)) == 30 and len({entry.root for entry in read(path)}) == 30 and not faults(path)

"""Manifests, and exhibits as they come from anybody: folders and zips that mean harm."""

import hashlib
import io
import os
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest

from audit.errors import InputError
from audit.evidence import untrusted
from audit.evidence.manifest import MANIFEST, Change, compare, manifest_bytes, read_manifest
from audit.evidence.untrusted import (
    MAX_BYTES,
    MAX_FILE_BYTES,
    read_folder,
    read_json,
    read_picture,
    read_zip,
    write_zip,
)
from audit.images import png_bytes, sha256

FILES = {"a.json": b"{}", "pictures/b.png": b"B", "pictures/c.png": b"C"}


def whole(files):
    return files | {MANIFEST: manifest_bytes({name: sha256(data) for name, data in files.items()})}


def test_the_manifest_is_what_sha256sum_writes():
    digest = hashlib.sha256(b"B").hexdigest()
    assert manifest_bytes({"b": digest, "a": digest}) == f"{digest}  a\n{digest}  b\n".encode()
    assert read_manifest(manifest_bytes({"x/y.png": digest})) == {"x/y.png": digest}


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"\xff\n",
        b"0" * 64 + b"  a",
        b"0" * 64 + b" a\n",
        b"0" * 63 + b"g  a\n",
        b"0" * 64 + b"  ../a\n",
        b"0" * 64 + b"  /etc/passwd\n",
        b"0" * 64 + b"  a/\n",
        (b"0" * 64 + b"  b\n") + (b"0" * 64 + b"  a\n"),
        (b"0" * 64 + b"  a\n") * 2,
        b"0" * 64 + b"  a\r\n",
    ],
)
def test_other_manifests_are_refused(data):
    with pytest.raises(InputError):
        read_manifest(data)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: f | {"a.json": b"{ }"}, [("a.json", Change.CHANGED)]),
        (lambda f: {k: v for k, v in f.items() if k != "a.json"}, [("a.json", Change.MISSING)]),
        (lambda f: f | {"extra.txt": b"?"}, [("extra.txt", Change.ADDED)]),
        (
            lambda f: f | {"pictures/b.png": b"C", "pictures/c.png": b"B"},
            [("pictures/b.png", Change.SWAPPED), ("pictures/c.png", Change.SWAPPED)],
        ),
        (lambda f: f | {MANIFEST: b"rubbish"}, [(MANIFEST, Change.DAMAGED)]),
        (lambda f: {k: v for k, v in f.items() if k != MANIFEST}, [(MANIFEST, Change.MISSING)]),
        (lambda f: f, []),
    ],
    ids=["changed", "missing", "added", "swapped", "manifest damaged", "manifest missing", "nothing"],
)
def test_each_change_has_its_name(change, expected):
    assert [(each.file, each.change) for each in compare(change(whole(FILES)))] == expected


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_a_folder_and_its_zip_are_read_alike(tmp_path):
    folder = write(tmp_path / "x", FILES)
    write_zip(FILES, "name", tmp_path / "x.zip")
    assert read_folder(folder) == read_zip(tmp_path / "x.zip") == FILES
    write_zip(dict(reversed(FILES.items())), "name", tmp_path / "y.zip")
    assert (tmp_path / "x.zip").read_bytes() == (tmp_path / "y.zip").read_bytes()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "link").symlink_to("/etc/passwd"), "link"),
        (lambda f: (f / "link").symlink_to("/"), "link"),
        (lambda f: (f / "loop").symlink_to(f), "link"),
        (lambda f: os.mkfifo(f / "pipe"), "ordinary"),
        (lambda f: (f / "a/b/c/d").mkdir(parents=True), "deeper"),
        (lambda f: [(f / str(each)).touch() for each in range(100)], "more than"),
        (lambda f: os.truncate(write(f, {"large": b""}) / "large", MAX_FILE_BYTES + 1), "larger"),
    ],
    ids=["link", "link to a folder", "loop", "pipe", "deep", "many", "large"],
)
def test_folders_that_mean_harm(tmp_path, spoil, said):
    folder = write(tmp_path / "x", FILES)
    spoil(folder)
    began = time.monotonic()
    with pytest.raises(InputError, match=said):
        read_folder(folder)
    assert time.monotonic() - began < 5


def zip_of(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, data in members:
            archive.writestr(member, data)
    return path


def link(name):
    member = zipfile.ZipInfo(name)
    member.external_attr = 0o120777 << 16
    return member


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("../../etc/passwd", b"x")], "outside"),
        ([("/etc/passwd", b"x")], "outside"),
        ([("x\\..\\y", b"x")], "outside"),
        ([("C:/x", b"x")], "outside"),
        ([(link("link"), b"/etc/passwd")], "ordinary"),
        ([("a/b/c/d/e.png", b"x")], "deeper"),
        ([(str(each), b"x") for each in range(100)], "more than"),
        ([("bomb", b"\0" * (MAX_FILE_BYTES + 1))], "more than an exhibit may have"),
        ([(f"bomb{each}", b"\0" * (MAX_BYTES // 4)) for each in range(5)], "more than an exhibit may have"),
    ],
    ids=["up", "root", "backslash", "drive", "link", "deep", "many", "bomb", "bombs"],
)
def test_zips_that_mean_harm(tmp_path, members, said):
    with pytest.raises(InputError, match=said):
        read_zip(zip_of(tmp_path / "x.zip", members))
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


@pytest.mark.parametrize(
    ("place", "value"),
    [("central directory", 0), ("end", 10_000)],
    ids=["a file without a name", "a place before the beginning"],
)
def test_zips_whose_directory_lies(tmp_path, place, value):
    path = zip_of(tmp_path / "x.zip", [("n", b"1")])
    data = bytearray(path.read_bytes())
    if place == "end":  # where the directory begins
        struct.pack_into("<I", data, data.rfind(b"PK\x05\x06") + 16, value)
    else:  # lengths of the name and of what follows it
        struct.pack_into("<HH", data, data.rfind(b"PK\x01\x02") + 28, value, 1)
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_zip(path)


def test_a_folder_without_files_is_seen(tmp_path):
    folder = write(tmp_path / "x", whole(FILES))
    (folder / "pictures/more").mkdir(parents=True)
    assert [(each.file, each.change) for each in compare(read_folder(folder))] == [
        ("pictures/more/", Change.ADDED)
    ]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zips_that_lie(tmp_path):
    with pytest.raises(InputError, match="twice"):
        read_zip(zip_of(tmp_path / "twice.zip", [("a", b"1"), ("a", b"2")]))
    path = zip_of(tmp_path / "small.zip", [("a", b"\0" * 1000)])
    # the size that it states is not believed
    data = path.read_bytes().replace(struct.pack("<I", 1000), struct.pack("<I", 10))
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        read_zip(path)
    for data in (
        b"",
        b"PK\x05\x06",
        b"no zip",
        zip_of(tmp_path / "cut.zip", [("a", b"1" * 999)]).read_bytes()[:-30],
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match="damaged"):
            read_zip(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"\xff",
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
        b'{"a": "' + b"x" * untrusted.MAX_JSON_BYTES + b'"}',
    ],
)
def test_json_that_is_none_of_ours(data):
    with pytest.raises(InputError):
        read_json(data, "exhibit.json")


def png_of(width, height):
    """A PNG of one colour, a few bytes for any size."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * ((width + 1) * min(height, 3000)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_pictures_that_mean_harm():
    assert read_picture(png_of(20, 10), "p").shape == (10, 20, 3)
    with pytest.raises(InputError, match="more than an exhibit"):
        read_picture(png_of(30_000, 30_000), "p")
    picture = png_bytes(np.zeros((8, 8, 3), np.float32))
    for data in (
        b"",
        b"GIF89a",
        picture[:40],
        picture[:30] + b"\xff" + picture[31:],
        io.BytesIO().getvalue(),
    ):
        with pytest.raises(InputError):
            read_picture(data, "p")


@pytest.mark.parametrize("packing", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_zips_packed_in_other_ways_are_refused(tmp_path, packing):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", packing) as archive:
        archive.writestr("x/exhibit.json", b"{}" * 1000)
    with pytest.raises(InputError, match="packed in a way"):
        read_zip(tmp_path / "a.zip")

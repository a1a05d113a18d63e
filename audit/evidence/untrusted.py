"""Exhibits as they come from outside: a folder or a zip read into memory, whoever made it.

Links are not followed, nothing is written, and neither sizes nor numbers that a zip states are believed.
"""

from __future__ import annotations

import json
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from audit.errors import InputError
from audit.images import decode
from audit.records import readable

MAX_FILES = 64
"""An exhibit has about a dozen."""
MAX_FILE_BYTES = 64_000_000
MAX_BYTES = 128_000_000
MAX_DEPTH = 3
MAX_PIXELS = 4_200_000
"""Of one of its pictures: 2,048 x 2,048."""
MAX_JSON_BYTES = 2_000_000
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Every member's date, so that equal files give an equal zip."""


def read_folder(folder: Path) -> dict[str, bytes]:
    """The files of a folder by name; InputError where it holds what no exhibit holds: links, devices, too much.

    A folder without files stands as its name with a slash at the end: it was not exported either.
    """
    files: dict[str, bytes] = {}
    left = MAX_BYTES
    for name, path in _files(folder, "", MAX_DEPTH):
        if len(files) == MAX_FILES:
            raise InputError(f"{folder} holds more than {MAX_FILES} files; an exhibit has fewer.")
        files[name] = b"" if name.endswith("/") else _read(path, name, left)
        left -= len(files[name])
    return files


def _files(folder: Path, inside: str, depth: int) -> Iterator[tuple[str, Path]]:
    shown = readable(str(folder))
    try:
        with os.scandir(folder) as found:
            entries = sorted(
                (entry for _, entry in zip(range(MAX_FILES + 1), found, strict=False)),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        raise InputError(f"The folder {shown} cannot be read; check the path.") from error
    if len(entries) > MAX_FILES:
        raise InputError(f"{shown} holds more than {MAX_FILES} files; an exhibit has fewer.")
    if inside and not entries:
        yield inside, folder
    for entry in entries:
        name = inside + entry.name
        if entry.is_symlink():
            raise InputError(f"{name!r} is a link; an exhibit holds none, so it is not followed.")
        if entry.is_dir(follow_symlinks=False):
            if depth == 1:
                raise InputError(f"{name!r} lies deeper than the files of an exhibit.")
            yield from _files(Path(entry.path), name + "/", depth - 1)
        else:
            yield name, Path(entry.path)


def _read(path: Path, name: str, left: int) -> bytes:
    """One regular file of at most so many bytes; a pipe would never end, and a link could lead anywhere."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise InputError(f"{name!r} cannot be read: {error.strerror}.") from error
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise InputError(f"{name!r} is no ordinary file; an exhibit holds nothing else.")
        most = min(left, MAX_FILE_BYTES)
        try:
            data = stream.read(most + 1)
        except OSError as error:
            raise InputError(f"{name!r} cannot be read: {error.strerror}.") from error
    if len(data) > most:
        raise InputError(f"{name!r} is larger than any file of an exhibit.")
    return data


def read_zip(path: Path) -> dict[str, bytes]:
    """The files of a zip by name, without the folder that they all lie in, if they do.

    Raises
    ------
    InputError
        If it is no zip, or one that leads outside, hides links or unpacks to more than an exhibit may have.
    """
    files: dict[str, bytes] = {}
    left = MAX_BYTES
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path.name} is larger than any exhibit.")
        with zipfile.ZipFile(path) as archive:
            if len(archive.infolist()) > MAX_FILES:
                raise InputError(f"{path.name} holds more than {MAX_FILES} files; an exhibit has fewer.")
            for member in archive.infolist():
                if not member.filename:
                    raise InputError(f"{path.name} holds a file without a name.")
                if member.is_dir():
                    continue
                _check_member(member)
                with archive.open(member) as stream:
                    data = stream.read(min(left, MAX_FILE_BYTES) + 1)
                if len(data) > min(left, MAX_FILE_BYTES):
                    raise InputError(f"{member.filename[:80]!r} unpacks to more than an exhibit may have.")
                if member.filename in files:
                    raise InputError(f"{path.name} holds {member.filename[:80]!r} twice.")
                files[member.filename] = data
                left -= len(data)
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}; check the path.") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OSError,  # a place that it states may lie before its beginning
    ) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name} is damaged and cannot be unpacked: {error}") from error
    return within_one_folder(files)


def within_one_folder(files: dict[str, bytes]) -> dict[str, bytes]:
    """Names without the folder that all of the files lie in."""
    tops = {name.split("/", 1)[0] for name in files}
    if len(tops) != 1 or not all("/" in name for name in files):
        return files
    return {name.split("/", 1)[1]: data for name, data in files.items()}


def _check_member(member: zipfile.ZipInfo) -> None:
    name = PurePosixPath(member.filename)
    if name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in member.filename:
        raise InputError(f"The zip names {member.filename[:80]!r}, which leads outside of it.")
    if len(name.parts) > MAX_DEPTH + 1:
        raise InputError(f"{member.filename[:80]!r} lies deeper than the files of an exhibit.")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
        raise InputError(
            f"{member.filename[:80]!r} is packed in a way that exhibits are not; unpack it by hand."
        )
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise InputError(f"{member.filename[:80]!r} is no ordinary file in the zip.")


def write_zip(files: Mapping[str, bytes], folder: str, path: Path | IO[bytes]) -> None:
    """A zip of files in a folder; equal files give equal bytes, whatever the version of a packing library.

    Nothing is packed tighter: pictures and PDF are packed already.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(f"{folder}/{name}", EPOCH), data, zipfile.ZIP_STORED)


def read_json(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object; InputError where it is none, too large, or holds what JSON has not (NaN)."""
    if len(data) > MAX_JSON_BYTES:
        raise InputError(f"{name} is larger than any of ours.")
    try:
        content = json.loads(data.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is damaged: it is not readable JSON.") from error
    if not isinstance(content, dict):
        raise InputError(f"{name} is damaged: it holds no JSON object.")
    return content


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def read_picture(data: bytes, name: str) -> np.ndarray:
    """A PNG of an exhibit as (H, W, 3) float32 in [0, 1]; InputError where it is none, or would unpack to too much."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise InputError(f"{name} is not a PNG.")
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} would unpack to {width:,} x {height:,} pixels, more than an exhibit may have."
        )
    return decode(data, name)

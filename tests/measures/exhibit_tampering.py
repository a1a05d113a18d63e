"""How surely a changed exhibit or export is found and named, as JSON; exit status 1 where one change is not.

``python tests/measures/exhibit_tampering.py RUN [--exhibits 3] [--flips 300]``: so many captions of a run are exported, signed and
with zips. One bit is flipped at each of so many random places over all files of one exhibit, manifest and signature among
them; then a file is removed, two are swapped, one is added, one is edited with the manifest made anew. Of the whole export
bits are flipped in zips and in the list, and exhibits, zips and the list are removed, exchanged and added.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from audit.evidence.manifest import MANIFEST, SIGNATURE, manifest_bytes, read_manifest  # noqa: E402
from audit.evidence.signature import sign  # noqa: E402
from audit.evidence.untrusted import read_folder, write_zip  # noqa: E402
from audit.evidence.verify import Anchor, verify  # noqa: E402
from audit.images import sha256  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--exhibits", type=int, default=3)
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--export-flips", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(asked, Path(folder))
    print(json.dumps(found, indent=2))
    return int(bool(found["not_found_or_not_named"]))


def measure(asked: argparse.Namespace, place: Path) -> dict[str, Any]:
    chance = random.Random(asked.seed)
    out, anchor = exported(asked, place)
    exhibit = sorted(path for path in out.iterdir() if path.is_dir())[0]
    names = sorted(read_folder(exhibit))
    sizes = [(exhibit / name).stat().st_size for name in names]
    missed: list[str] = []
    flips = dict.fromkeys(names, 0)
    for number in range(asked.flips):
        # every file in turn: by size alone the small ones, the manifest among them, would hardly ever be drawn
        name = names[number // 2 % len(names)] if number % 2 else chance.choices(names, sizes)[0]
        flips[name] += 1
        missed += flip(exhibit, name, name, anchor, chance)
        print(f"{number + 1} of {asked.flips}", end="\r", file=sys.stderr)
    lists = [MANIFEST, SIGNATURE]
    zips = sorted(path.name for path in out.glob("*.zip"))
    for number in range(asked.export_flips):
        name = chance.choice(zips if number % 2 else lists)
        missed += flip(out, name, name, anchor, chance)
    for what, (change, named) in CHANGES.items():
        missed += changed(exhibit, place, change, named, anchor, what)
    one, other = (path.name for path in sorted(path for path in out.iterdir() if path.is_dir())[:2])
    others = export_changes(one, other, place / "stranger")
    for what, (change, named) in others.items():
        missed += changed(out, place, change, named, anchor, what)
    return {
        "files": len(names),
        "bytes": sum(sizes),
        "exhibits": asked.exhibits,
        "flips_by_file": flips,
        "flips": asked.flips,
        "flips_in_zips_and_list": asked.export_flips,
        "other_changes_of_an_exhibit": list(CHANGES),
        "other_changes_of_an_export": list(others),
        "not_found_or_not_named": missed,
    }


def exported(asked: argparse.Namespace, place: Path) -> tuple[Path, Anchor]:
    """An export of some captions by the command line, signed, with what vouches for it."""
    for name in ("key", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True)
    decided = pq.read_table(asked.run / "verdicts", columns=["caption_id"]).column(0).to_pylist()
    out, register = place / "out", place / "register.jsonl"
    command = ["exhibit", str(asked.run), "--caption", *decided[: asked.exhibits], "--out", str(out), "--zip"]
    command += ["--sign", str(place / "key"), "--register", str(register)]
    environment = os.environ | {"VERBATIM_DATA_DIR": str(place / "data")}
    subprocess.run(
        [sys.executable, "-m", "audit", *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    anchor = Anchor.open(register)
    for path in (out, *out.iterdir()):
        if path.name not in (MANIFEST, SIGNATURE) and not verify(path, anchor)["verified"]:
            raise SystemExit(f"{path} does not verify as it is.")
    return out, anchor


def flip(folder: Path, name: str, named: str, anchor: Anchor, chance: random.Random) -> list[str]:
    """One bit of a file flipped, and back; what was missed."""
    path = folder / name
    whole = path.read_bytes()
    place = chance.randrange(len(whole))
    bit = 1 << chance.randrange(8)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
    missed = [] if named in names_in(verify(folder, anchor)) else [f"{name}, byte {place}, bit {bit}"]
    path.write_bytes(whole)
    return missed


def names_in(found: dict[str, Any]) -> set[str]:
    return {each["file"] for each in found["findings"]}


def changed(
    folder: Path, place: Path, change: Callable[[Path], object], named: set[str], anchor: Anchor, what: str
) -> list[str]:
    """A copy changed; what was missed."""
    copy = place / "changed" / folder.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    change(copy)
    return [] if names_in(verify(copy, anchor)) >= named else [what]


def remove(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def swap(folder: Path, one: str, other: str) -> None:
    os.rename(folder / one, folder / "between")
    os.rename(folder / other, folder / one)
    os.rename(folder / "between", folder / other)


def seal(folder: Path) -> None:
    """A manifest made anew."""
    files = {name: data for name, data in read_folder(folder).items() if name not in (MANIFEST, SIGNATURE)}
    (folder / MANIFEST).write_bytes(manifest_bytes({name: sha256(data) for name, data in files.items()}))


def edit(folder: Path, name: str, old: bytes, new: bytes) -> None:
    data = (folder / name).read_bytes()
    assert old in data
    (folder / name).write_bytes(data.replace(old, new, 1))
    seal(folder)


def swap_and_seal(folder: Path) -> None:
    swap(folder, GENERATED, ONE_STEP)
    seal(folder)


GENERATED, ONE_STEP = "pictures/generated.png", "pictures/one-step.png"
CHANGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "removed": (lambda folder: remove(folder, "report.pdf"), {"report.pdf"}),
    "manifest removed": (lambda folder: remove(folder, MANIFEST), {MANIFEST}),
    "signature removed": (lambda folder: remove(folder, SIGNATURE), {SIGNATURE}),
    "swapped": (lambda folder: swap(folder, GENERATED, ONE_STEP), {GENERATED, ONE_STEP}),
    "added": (lambda folder: (folder / "note.txt").write_text("x"), {"note.txt"}),
    "empty folder added": (lambda folder: (folder / "more").mkdir(), {"more/"}),
    "numbers edited, manifest made anew": (partial(edit, name="exhibit.json", old=b'"distance": ', new=b'"distance": 1'), {"exhibit.json", MANIFEST}),
    "page edited, manifest made anew": (partial(edit, name="report.html", old=b"<h1>", new=b"<h1>Not "), {"report.html", MANIFEST}),
    "pictures swapped, manifest made anew": (swap_and_seal, {GENERATED, ONE_STEP, MANIFEST}),
}  # fmt: skip
"""What is done to an exhibit, and the files that have to be named."""


def export_changes(
    one: str, other: str, stranger: Path
) -> dict[str, tuple[Callable[[Path], object], set[str]]]:
    """What is done to an export, and the files that have to be named."""
    both = {f"{one}/exhibit.json", f"{other}/exhibit.json"}

    def without_one(out: Path) -> None:
        remove(out, one, f"{one}.zip")
        listed = read_manifest((out / MANIFEST).read_bytes())
        kept = {name: digest for name, digest in listed.items() if not name.startswith(one)}
        (out / MANIFEST).write_bytes(manifest_bytes(kept))

    def exchanged_without_list(out: Path) -> None:
        remove(out, MANIFEST, SIGNATURE, *(path.name for path in out.glob("*.zip")))
        swap(out, one, other)

    def signed_by_a_stranger(out: Path) -> None:
        (out / SIGNATURE).write_bytes(sign((out / MANIFEST).read_bytes(), stranger))

    def not_an_ordinary_file(out: Path, name: str, make: Callable[[Path], object]) -> None:
        (out / name).unlink()
        make(out / name)

    def as_signature(make: Callable[[Path], object]) -> tuple[Callable[[Path], object], set[str]]:
        return partial(not_an_ordinary_file, name=SIGNATURE, make=make), {SIGNATURE}

    def packed_anew(out: Path) -> None:
        write_zip(read_folder(out / one) | {"note.txt": b""}, one, out / f"{one}.zip")

    return {
        "list removed": (lambda out: remove(out, MANIFEST, SIGNATURE), {MANIFEST}),
        "list's signature removed": (lambda out: remove(out, SIGNATURE), {SIGNATURE}),
        "list signed by a stranger": (signed_by_a_stranger, {SIGNATURE}),
        "list's signature a folder": as_signature(Path.mkdir),
        "list's signature a link": as_signature(lambda path: path.symlink_to(MANIFEST)),
        "list's signature a link to nowhere": as_signature(lambda path: path.symlink_to("nowhere")),
        "list's signature a pipe": as_signature(os.mkfifo),
        "exhibit removed": (lambda out: remove(out, one), {one}),
        "zip removed": (lambda out: remove(out, f"{one}.zip"), {f"{one}.zip"}),
        "list, exhibit and zip removed": (lambda out: remove(out, MANIFEST, SIGNATURE, one, f"{one}.zip"), {MANIFEST, one}),
        "exhibit and zip removed, list made anew": (without_one, {MANIFEST}),
        "exhibits exchanged": (lambda out: swap(out, one, other), both),
        "exhibits exchanged, list and zips removed": (exchanged_without_list, {MANIFEST, *both}),
        "zips exchanged": (lambda out: swap(out, f"{one}.zip", f"{other}.zip"), {f"{one}.zip", f"{other}.zip"}),
        "zip packed anew with more": (packed_anew, {f"{one}.zip"}),
        "exhibit added": (lambda out: shutil.copytree(out / one, out / ("0" * 16)), {"0" * 16}),
        "file added": (lambda out: (out / "note.txt").touch(), {"note.txt"}),
        "unfinished file added": (lambda out: (out / ".unfinished-x").touch(), {".unfinished-x"}),
        "unfinished exhibit added": (lambda out: (out / f".unfinished-{one}").mkdir(), {f".unfinished-{one}"}),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

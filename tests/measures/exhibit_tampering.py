"""How surely a changed exhibit is found, as JSON.

``python tests/measures/exhibit_tampering.py EXHIBIT --register FILE [--flips 300]``: one bit is flipped at each of so many random
places over all files of a copy of the exhibit, manifest and signature among them, then a file is removed, two are swapped,
one is added, one is edited with the manifest made anew, and the same is done to its zip.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from audit.evidence.manifest import MANIFEST, SIGNATURE, manifest_bytes  # noqa: E402
from audit.evidence.untrusted import read_folder, write_zip  # noqa: E402
from audit.evidence.verify import Anchor, verify  # noqa: E402
from audit.images import sha256  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("exhibit", type=Path)
    parser.add_argument("--register", type=Path, required=True)
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--zip-flips", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(asked, Path(folder)), indent=2))


def measure(asked: argparse.Namespace, place: Path) -> dict[str, object]:
    chance = random.Random(asked.seed)
    anchor = Anchor.open(asked.register)
    copy = place / asked.exhibit.name
    shutil.copytree(asked.exhibit, copy)
    if not verify(copy, anchor)["verified"]:
        raise SystemExit(f"{asked.exhibit} does not verify as it is.")
    names = sorted(read_folder(copy))
    sizes = [len((copy / name).read_bytes()) for name in names]
    flips = {name: {"flipped": 0, "found_and_named": 0} for name in names}
    for number in range(asked.flips):
        # every file in turn: by size alone the small ones, the manifest among them, would hardly ever be drawn
        name = names[number // 2 % len(names)] if number % 2 else chance.choices(names, sizes)[0]
        path = copy / name
        whole = path.read_bytes()
        path.write_bytes(flipped(whole, chance))
        flips[name]["flipped"] += 1
        flips[name]["found_and_named"] += name in names_in(verify(copy, anchor))
        path.write_bytes(whole)
        print(f"{number + 1} of {asked.flips}", end="\r", file=sys.stderr)
    others = {
        what: names_in(verify(changed(copy, place, change), anchor)) >= named
        for what, (change, named) in CHANGES.items()
    }
    return {
        "files": len(names),
        "bytes": sum(sizes),
        "flips": asked.flips,
        "flips_found_and_named": sum(each["found_and_named"] for each in flips.values()),
        "flips_by_file": flips,
        "other_changes_found_and_named": others,
        "zip_flips": asked.zip_flips,
        "zip_flips_found": zip_flips(copy, place, anchor, asked.zip_flips, chance),
    }


def flipped(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


def names_in(found: dict) -> set[str]:
    return {each["file"] for each in found["findings"]}


def changed(exhibit: Path, place: Path, change: Callable[[Path], object]) -> Path:
    copy = place / "changed" / exhibit.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(exhibit, copy)
    change(copy)
    return copy


def swap(folder: Path) -> None:
    one, other = folder / GENERATED, folder / ONE_STEP
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)


def seal(folder: Path) -> None:
    """A manifest made anew."""
    files = {name: data for name, data in read_folder(folder).items() if name not in (MANIFEST, SIGNATURE)}
    (folder / MANIFEST).write_bytes(manifest_bytes({name: sha256(data) for name, data in files.items()}))


def edit(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        assert old in data
        (folder / name).write_bytes(data.replace(old, new, 1))
        seal(folder)

    return change


def swap_and_seal(folder: Path) -> None:
    swap(folder)
    seal(folder)


GENERATED, ONE_STEP = "pictures/generated.png", "pictures/one-step.png"
CHANGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "removed": (lambda folder: (folder / "report.pdf").unlink(), {"report.pdf"}),
    "manifest removed": (lambda folder: (folder / MANIFEST).unlink(), {MANIFEST}),
    "swapped": (swap, {GENERATED, ONE_STEP}),
    "added": (lambda folder: (folder / "note.txt").write_text("x"), {"note.txt"}),
    "numbers edited, manifest made anew": (edit("exhibit.json", b'"distance": ', b'"distance": 1'), {"exhibit.json", MANIFEST}),
    "page edited, manifest made anew": (edit("report.html", b"<h1>", b"<h1>Not "), {"report.html", MANIFEST}),
    "pictures swapped, manifest made anew": (swap_and_seal, {GENERATED, ONE_STEP, MANIFEST}),
}  # fmt: skip
"""What is done, and the files that have to be named."""


def zip_flips(exhibit: Path, place: Path, anchor: Anchor, count: int, chance: random.Random) -> int:
    archive = place / "exhibit.zip"
    write_zip(read_folder(exhibit), exhibit.name, archive)
    whole, found = archive.read_bytes(), 0
    if not verify(archive, anchor)["verified"]:
        raise SystemExit("The zip does not verify as it is.")
    for _ in range(count):
        archive.write_bytes(flipped(whole, chance))
        found += not verify(archive, anchor)["verified"]
    return found


if __name__ == "__main__":
    main()

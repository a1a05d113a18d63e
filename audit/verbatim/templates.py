"""Template families of a training set: found, masked, kept as a library.

A family is found by what its members share, not by their distance: a flat fill of a twentieth of a picture is
already an SSE of 1,800. Candidates are pictures near in embedding, and pictures that agree on a coarse grid
of patches; each is verified on pixels against one representative, never against a chain of others.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from audit.corpus.reader import inside
from audit.errors import InputError
from audit.images import COMPARE_SIZE, decode, png_bytes, resize
from audit.records import Template
from audit.verbatim.editing import Edit
from audit.verbatim.masks import MIN_TEXTURE, agreement, check_mask, consensus_mask, edges, pair_mask
from audit.verbatim.versions import MaskVersion, beside, chosen, save_version, template_sha256

GRID = 16
"""Patches along each side of the coarse signature, 16x16 pixels each."""
BLOCK = 4
"""Patches along each side of a block; blocks are what candidates are looked up by."""
TOLERANCE = 3
"""Two patches agree if no channel's mean differs by more 8-bit levels than this."""
NEIGHBOURS = 16
"""Candidates for each picture in the space of embeddings, and for each of its blocks."""
PAIRS_AT_ONCE = 4096
MIN_AGREEING = 0.4
"""Share of patches that has to agree before pixels are looked at."""
MIN_TEXTURED = 3
"""Agreeing patches with edges, before pixels are looked at."""
MIN_SHARED = 0.5
"""Share of a picture that members of a family have in common."""
MIN_CHANGED = 0.005
"""A family that changes less than this is a set of duplicates."""
MAX_OWN_CHANGE = 0.05
"""A member that changes more than this outside of what the family changes does not belong to it."""

TABLE = "templates.parquet"
ORIGIN = "index.json"
REFERENCE_TABLE = "metadata.parquet"

Picture = Callable[[int], np.ndarray | None]


def discover(
    ids: Sequence[str],
    picture: Picture,
    embeddings: np.ndarray,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Template]:
    """The template families of a training set, largest first.

    Parameters
    ----------
    ids
        Names of the n pictures.
    picture
        Gives the i-th picture as (256, 256, 3) float32 in [0, 1], or None if it cannot be opened. It is asked
        for every picture once and for candidates again: let it keep some.
    embeddings
        (n, d) float32 of unit norm.
    progress
        Called with how many of the n pictures were read.
    """
    if len(ids) != len(embeddings):
        raise InputError(f"{len(ids)} names and {len(embeddings)} embeddings were given; give one each.")
    if len(ids) < 2:
        return []
    signatures = _signatures(len(ids), picture, progress)
    candidates = _candidates(embeddings, signatures)
    templates, assigned = [], np.zeros(len(ids), bool)
    for i in sorted(candidates, key=lambda i: (-len(candidates[i]), i)):
        if assigned[i]:
            continue
        others = signatures.agreeing_with(i, np.flatnonzero(~assigned))
        family = _verified(i, others[others != i], picture)
        if family is None:
            continue
        members, mask, image = family
        assigned[members] = True
        names = tuple(ids[member] for member in members)
        templates.append(Template(f"template-{names[0]}", image, mask, names, names[0]))
    return sorted(templates, key=lambda template: -len(template.members))


@dataclass
class _Signatures:
    """A coarse look at n pictures: mean colour of each patch (n, 16, 16, 3), and whether it has edges."""

    means: np.ndarray
    textured: np.ndarray

    def agreeing_with(self, i: int, others: np.ndarray) -> np.ndarray:
        """Those of `others` that share enough patches with picture `i`, some of them with edges."""
        return others[self.agree(np.full_like(others, i), others)]

    def agree(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """For each pair of pictures (m,), (m,) whether they share enough patches, some of them with edges."""
        result = np.zeros(len(first), bool)
        for start in range(0, len(first), PAIRS_AT_ONCE):
            part = np.s_[start : start + PAIRS_AT_ONCE]
            a, b = first[part], second[part]
            near = np.abs(self.means[a] - self.means[b]) <= TOLERANCE
            agreeing = near[..., 0] & near[..., 1] & near[..., 2]
            textured = (agreeing & self.textured[a] & self.textured[b]).sum((1, 2))
            result[part] = (agreeing.mean((1, 2)) >= MIN_AGREEING) & (textured >= MIN_TEXTURED)
        return result


def _signatures(count: int, picture: Picture, progress: Callable[[int, int], None] | None) -> _Signatures:
    # int16 holds differences of 8-bit means; -99 for what cannot be opened agrees with nothing else.
    means = np.full((count, GRID, GRID, 3), -99, np.int16)
    textured = np.zeros((count, GRID, GRID), bool)
    for i in range(count):
        image = picture(i)
        if image is not None:
            means[i] = np.rint(255 * _patches(image).mean((1, 3)))
            textured[i] = _patches(edges(image)).mean((1, 3)) > MIN_TEXTURE
        if progress:
            progress(i + 1, count)
    return _Signatures(means, textured)


def _patches(image: np.ndarray) -> np.ndarray:
    side = COMPARE_SIZE // GRID
    return image.reshape(GRID, side, GRID, side, *image.shape[2:])


def _candidates(embeddings: np.ndarray, signatures: _Signatures) -> dict[int, set[int]]:
    """For each picture the others that may share a template with it; one right pair finds a whole family."""
    pairs = [_nearest_pairs(embeddings.astype(np.float32), np.arange(len(embeddings)))]
    for row in range(0, GRID, BLOCK):
        for column in range(0, GRID, BLOCK):
            block = np.s_[:, row : row + BLOCK, column : column + BLOCK]
            # Flat blocks agree by the thousand and would crowd out the others.
            rows = np.flatnonzero(signatures.textured[block].any((1, 2)))
            if len(rows) > 1:
                means = signatures.means[rows][block].reshape(len(rows), -1).astype(np.float32)
                pairs.append(_nearest_pairs(means, rows, limit=means.shape[1] * TOLERANCE**2))
    candidates: dict[int, set[int]] = {}
    unique = np.unique(np.concatenate(pairs), axis=0)
    for first, second in unique[signatures.agree(unique[:, 0], unique[:, 1])].tolist():
        candidates.setdefault(first, set()).add(second)
        candidates.setdefault(second, set()).add(first)
    return candidates


def _nearest_pairs(vectors: np.ndarray, rows: np.ndarray, limit: float = np.inf) -> np.ndarray:
    """(m, 2) pairs of `rows`, smaller first, whose vectors are near in squared L2."""
    vectors = np.ascontiguousarray(vectors)
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)  # pyright: ignore[reportCallIssue]
    neighbours = min(NEIGHBOURS, len(rows))
    distances, places = index.search(vectors, neighbours)  # pyright: ignore[reportCallIssue]
    first = np.repeat(np.arange(len(rows)), neighbours)
    second, near = places.ravel(), distances.ravel() <= limit
    keep = near & (second >= 0) & (second != first)
    return np.sort(np.stack([rows[first[keep]], rows[second[keep]]], 1), 1)


def _verified(
    representative: int, others: np.ndarray, picture: Picture
) -> tuple[list[int], np.ndarray, np.ndarray] | None:
    """Members of the family around one picture, their mask, and the picture; None if it has none."""
    image = picture(representative)
    if image is None:
        return None
    members, images = [representative], [image]
    for other in others.tolist():
        candidate = picture(other)
        if candidate is not None and _shares_a_template(image, candidate):
            members.append(other)
            images.append(candidate)
    if len(members) < 2:
        return None
    stack = np.stack(images)
    kept = _consistent(stack)
    if kept.sum() < 2:
        return None
    mask = consensus_mask(stack[kept])
    if mask.mean() < MIN_SHARED or (~mask).mean() < MIN_CHANGED:
        return None
    try:
        check_mask(image, mask)
    except InputError:
        return None
    return [member for member, keep in zip(members, kept, strict=True) if keep], mask, image


def _shares_a_template(a: np.ndarray, b: np.ndarray) -> bool:
    mask = pair_mask(a, b)
    return bool(mask.mean() >= MIN_SHARED and (edges(a) & mask).mean() >= MIN_TEXTURE)


def _consistent(stack: np.ndarray) -> np.ndarray:
    """Which members (n, 256, 256, 3) change, against the first, only what the family as a whole changes."""
    changed_by_family = agreement(stack) < 2 / 3
    own_change = [float((~pair_mask(stack[0], member) & ~changed_by_family).mean()) for member in stack]
    return np.array(own_change) <= MAX_OWN_CHANGE


@dataclass(frozen=True)
class TemplateLibrary:
    """Template families on disk: ``templates.parquet`` beside lossless pictures and masks.

    ``index.json`` names the index that was searched for them. The table has the reference's columns ``url,
    mask_file, img_file`` besides ours; a folder that has only the reference's ``metadata.parquet`` loads too.
    Masks are PNG, white where members are unchanged.
    """

    templates: tuple[Template, ...]
    refused: dict[str, str] = field(default_factory=dict)
    """Why a template of the folder was left out, by its name."""
    index_sha256: str | None = None
    """Of the index whose families these are; None where that was not written down."""
    versions: dict[str, MaskVersion] = field(default_factory=dict)
    """Of each template whose mask is one that a person edited, by its name: which one."""

    def gap(self, index_sha256: str, image_ids: Container[str]) -> str:
        """Why a template of an index may be missing here, in a sentence; empty if all of its families are here.

        Where a library does not say which index it is of, it is the one that has all of its members.
        """
        if self.refused:
            name, reason = next(iter(self.refused.items()))
            return f"{len(self.refused)} templates of the library were left out ({name}: {reason})."
        members = [member for template in self.templates for member in template.members]
        if self.index_sha256 is None:
            known = bool(members) and all(member in image_ids for member in members)
        else:
            known = self.index_sha256 == index_sha256
        if known:
            return ""
        return (
            "The template library was not made from this index, so templates of it may be missing; make one with "
            "`python -m audit templates INDEX`."
        )

    @property
    def sha256(self) -> str:
        """Hex sha256 over names, masks and pictures of its templates, in order."""
        return template_sha256(*self.templates)

    def of_image(self, image_id: str) -> Template | None:
        """The template of which a training image is a member."""
        return next((template for template in self.templates if image_id in template.members), None)

    def save_mask(
        self,
        template_id: str,
        edits: Sequence[Edit],
        *,
        who: str,
        versions: Path,
        difference: np.ndarray | None = None,
        answer_id: str = "",
    ) -> MaskVersion:
        """Save a template's mask, edited, as a new version in a folder of versions; it is used at the next `load`.

        Raises
        ------
        InputError
            If there is no such template, or as `audit.verbatim.versions.save_version` does.
        """
        template = next((each for each in self.templates if each.template_id == template_id), None)
        if template is None:
            raise InputError(f"There is no template {template_id[:80]!r} in the library; choose one of it.")
        before = self.versions.get(template_id)
        return save_version(
            versions, template, edits, who=who, before=before, difference=difference, answer_id=answer_id
        )

    def save(self, folder: Path) -> None:
        """Write the whole library, replacing what is at `folder` in one step."""

        def tables(temporary: Path, rows: list[dict]) -> None:
            pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), temporary / TABLE)
            (temporary / ORIGIN).write_text(json.dumps({"index_sha256": self.index_sha256}) + "\n")

        self._write(Path(folder), tables)

    def save_reference(self, folder: Path, urls: Mapping[str, str]) -> None:
        """Write the library in the reference's form, ``url, mask_file, img_file``, replacing what is at `folder`.

        Parameters
        ----------
        urls
            Address of each template's picture by its image id; without one, the id stands in its place.
        """

        def tables(temporary: Path, rows: list[dict]) -> None:
            named = [row | {"url": urls.get(row["image_id"], row["url"])} for row in rows]
            columns = {name: [row[name] for row in named] for name in ("url", "mask_file", "img_file")}
            pq.write_table(pa.table(columns), temporary / REFERENCE_TABLE)

        self._write(Path(folder), tables)

    def _write(self, folder: Path, tables: Callable[[Path, list[dict]], None]) -> None:
        temporary, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old"))
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        for name in ("masks", "images"):
            (temporary / name).mkdir(parents=True)
        rows = []
        for number, template in enumerate(self.templates):
            row = _row_of(template, number)
            (temporary / row["img_file"]).write_bytes(png_bytes(template.image))
            Image.fromarray(template.mask.astype(np.uint8) * 255).save(temporary / row["mask_file"])
            rows.append(row)
        tables(temporary, rows)
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def load(
        cls, folder: Path, versions: Path | None = None, numbers: Mapping[str, int] | None = None
    ) -> TemplateLibrary:
        """Read a library; a template with a missing file or an unusable mask is left out and listed.

        Parameters
        ----------
        versions
            Folder of edited masks (`audit.verbatim.versions`), by default the one beside the library's. Each template
            has the newest of its masks; one that is damaged is listed, and the one before it taken.
        numbers
            Which version a template shall have instead, by its name; 0 is the mask as it was found.

        Raises
        ------
        InputError
            If the folder or its table is missing or damaged, or there is no version of that number.
        """
        folder = Path(folder)
        table = next((folder / name for name in (TABLE, REFERENCE_TABLE) if (folder / name).is_file()), None)
        if table is None:
            raise InputError(f"{folder} has no {TABLE}; give a template library's folder.")
        try:
            rows = pq.read_table(table).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{table} is not readable parquet; save the library again.") from error
        versions, numbers = versions or beside(folder), numbers or {}
        templates, refused, used = [], {}, {}
        for number, row in enumerate(rows):
            name = str(row.get("template_id") or f"template-{number}")
            try:
                template = _template_of(row, name, folder)
            except InputError as error:
                refused[name] = str(error)
                continue
            version, faults = chosen(versions, template, numbers.get(name))
            refused |= {f"a mask of {name}": fault for fault in faults}
            if version is not None:
                template, used[name] = replace(template, mask=version.mask), version
            templates.append(template)
        return cls(tuple(templates), refused, _origin(folder / ORIGIN), used)


_SCHEMA = pa.schema(
    [
        ("template_id", pa.string()),
        ("image_id", pa.string()),
        ("members", pa.list_(pa.string())),
        ("coverage", pa.float64()),
        ("url", pa.string()),
        ("mask_file", pa.string()),
        ("img_file", pa.string()),
    ]
)


def _origin(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))["index_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged; make the library again.") from error


def _row_of(template: Template, number: int) -> dict:
    return {
        "template_id": template.template_id,
        "image_id": template.image_id,
        "members": list(template.members),
        "coverage": float(template.mask.mean()),
        "url": template.image_id,
        "mask_file": f"masks/{number:05d}.png",
        "img_file": f"images/{number:05d}.png",
    }


def _template_of(row: dict, name: str, folder: Path) -> Template:
    image, mask = (_picture_of(row, column, folder) for column in ("img_file", "mask_file"))
    image_id = str(row.get("image_id") or row.get("url") or "")
    members = tuple(map(str, row.get("members") or ([image_id] if image_id else [])))
    template = Template(name, image, mask.mean(-1) > 0.5, members, image_id)
    check_mask(template.image, template.mask)
    return template


def _picture_of(row: dict, column: str, folder: Path) -> np.ndarray:
    path = inside(folder, str(row.get(column) or ""))
    if path is None:
        raise InputError(f"There is no {column} {row.get(column)!r} inside {folder}.")
    picture = decode(path, path.name)
    return picture if picture.shape[:2] == (COMPARE_SIZE,) * 2 else resize(picture)

"""Template families of a training set: found, masked, kept as a library.

A family is found by what its members share, not by their distance: a flat fill of a twentieth of a picture is
already an SSE of 1,800. Candidates are pictures near in embedding, and pictures that agree on a coarse grid
of patches; each is verified on pixels against one representative, never against a chain of others.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from audit.corpus.duplicates import LISTS, in_blocks, parameters, searchable
from audit.corpus.reader import inside
from audit.errors import InputError
from audit.images import COMPARE_SIZE, decode, png_bytes, resize
from audit.records import Template
from audit.verbatim.editing import Edit
from audit.verbatim.masks import MIN_TEXTURE, agreement, check_mask, consensus_mask, edges, pair_mask, some
from audit.verbatim.versions import MaskVersion, beside, chosen, save_version, template_sha256

GRID = 16
"""Patches along each side of the coarse signature, 16x16 pixels each."""
BLOCK = 4
"""Patches along each side of a block; blocks are what candidates are looked up by."""
TOLERANCE = 3
"""Two patches agree if no channel's mean differs by more 8-bit levels than this."""
NEAR_BLOCK = BLOCK * BLOCK * 3 * float(TOLERANCE**2)
"""Squared L2 between the mean colours of two blocks that may be one."""
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
PICTURES = ("img_file", "mask_file")
"""Columns that name a template's files."""

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
        (n, d) of unit norm, in memory or memory-mapped; half precision will do.
    progress
        Called with how many of the n pictures were read, and then were looked at.
    """
    if len(ids) != len(embeddings):
        raise InputError(f"{len(ids)} names and {len(embeddings)} embeddings were given; give one each.")
    if len(ids) < 2:
        return []
    signatures = _signatures(len(ids), picture, progress)
    blocks = list(_blocks(signatures))
    pairs = _candidates(embeddings, signatures, blocks)
    starts = np.searchsorted(pairs[:, 0], np.arange(len(ids) + 1))
    degree = np.diff(starts)
    order = np.argsort(-degree, kind="stable")[: np.count_nonzero(degree)]
    templates, assigned, settled = [], np.zeros(len(ids), bool), np.zeros(len(ids), bool)
    for done, i in enumerate(order.tolist(), start=1):
        if progress:
            progress(len(ids) + done, 2 * len(ids))
        image = None if assigned[i] or settled[i] else picture(i)
        if image is None:
            continue
        near = np.union1d(_sharing_a_block(i, signatures, blocks), pairs[starts[i] : starts[i + 1], 1])
        others = signatures.agreeing_with(i, near[~assigned[near] & (near != i)])
        members, masks = _sharing_a_template(i, image, others, picture)
        family = _family(members, masks, picture)
        if family is None:
            # pictures that equal this one would find no other family than it did
            settled[members[_share(~masks) < MIN_CHANGED]] = True
            continue
        kept, mask = family
        assigned[kept] = True
        names = tuple(ids[int(member)] for member in kept)
        templates.append(Template(f"template-{names[0]}", image, mask, names, names[0]))
    if progress:
        progress(2 * len(ids), 2 * len(ids))
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
            means[i] = np.rint(255 * _patch_means(image))
            textured[i] = _patch_means(edges(image)) > MIN_TEXTURE
        if progress:
            progress(i + 1, 2 * count)
    return _Signatures(means, textured)


def _patch_means(image: np.ndarray) -> np.ndarray:
    """(16, 16, ...): means of the patches of a picture (256, 256, ...)."""
    side = COMPARE_SIZE // GRID
    # Rows first: ten times faster than a mean over two axes.
    rows = image.reshape(GRID, side, -1).mean(1, dtype=np.float32)
    return rows.reshape(GRID, GRID, side, *image.shape[2:]).mean(2)


@dataclass
class _Block:
    """4x4 patches at one place of every picture that has edges there, to be searched by their mean colours."""

    place: tuple[slice, slice]
    rows: np.ndarray
    """(m,) which pictures."""
    index: faiss.Index
    """Of their means, (m, 48), by squared L2."""

    def means(self, signatures: _Signatures, rows: np.ndarray) -> np.ndarray:
        """(m, 48) float32."""
        return signatures.means[rows, *self.place].reshape(len(rows), -1).astype(np.float32)


def _blocks(signatures: _Signatures) -> Iterator[_Block]:
    for row in range(0, GRID, BLOCK):
        for column in range(0, GRID, BLOCK):
            place = np.s_[row : row + BLOCK, column : column + BLOCK]
            # Flat blocks agree by the thousand and would crowd out the others.
            rows = np.flatnonzero(signatures.textured[:, *place].any((1, 2)))
            if len(rows) > 1:
                block = _Block(place, rows, faiss.IndexFlatL2(1))
                block.index = searchable(block.means(signatures, rows), faiss.METRIC_L2)
                yield block


def _candidates(embeddings: np.ndarray, signatures: _Signatures, blocks: Sequence[_Block]) -> np.ndarray:
    """(m, 2) pairs of pictures that may share a template, either way round and sorted; one right pair finds a family."""
    count = len(embeddings)
    index = searchable(embeddings, faiss.METRIC_L2)
    pairs = [_nearest_pairs(index, embeddings, np.arange(count), count)]
    for block in blocks:
        means = block.means(signatures, block.rows)
        pairs.append(_nearest_pairs(block.index, means, block.rows, count, limit=NEAR_BLOCK))
    first, second = np.divmod(np.unique(np.concatenate(pairs)), count)
    agreeing = signatures.agree(first, second)
    found = np.stack([first[agreeing], second[agreeing]], 1)
    both = np.concatenate([found, found[:, ::-1]])
    return both[np.lexsort((both[:, 1], both[:, 0]))]


def _nearest_pairs(
    index: faiss.Index, vectors: np.ndarray, rows: np.ndarray, count: int, limit: float = np.inf
) -> np.ndarray:
    """(m,) pairs of `rows` whose vectors are near in squared L2, ``first * count + second`` with the smaller first."""
    neighbours = min(NEIGHBOURS, len(rows))
    found = []
    for start, block in in_blocks(vectors):
        distances, places = index.search(block, neighbours, params=parameters(index, LISTS))  # pyright: ignore[reportCallIssue]
        own = np.arange(start, start + len(block))[:, None]
        own, near = np.nonzero((distances <= limit) & (places >= 0) & (places != own))
        first, second = rows[start + own], rows[places[own, near]]
        found.append(np.minimum(first, second) * count + np.maximum(first, second))
    return np.unique(np.concatenate(found))


def _sharing_a_block(i: int, signatures: _Signatures, blocks: Sequence[_Block]) -> np.ndarray:
    """Every picture that has a block with edges as picture `i` has it, however many there are."""
    found = [np.empty(0, np.int64)]
    for block in blocks:
        if signatures.textured[i, *block.place].any():
            query = block.means(signatures, np.array([i]))
            _, _, places = block.index.range_search(query, NEAR_BLOCK, params=parameters(block.index, LISTS))  # pyright: ignore[reportCallIssue]
            found.append(block.rows[places])
    return np.unique(np.concatenate(found))


def _sharing_a_template(
    i: int, image: np.ndarray, others: np.ndarray, picture: Picture
) -> tuple[np.ndarray, np.ndarray]:
    """Picture `i` and those of `others` that share enough of it, (m,), and masks of what, (m, 8192), 8 positions a byte:
    there may be thousands."""
    steep = edges(image)
    members, masks = [i], [np.packbits(np.ones(image.shape[:2], bool))]
    for other in others.tolist():
        candidate = picture(other)
        if candidate is None:
            continue
        mask = pair_mask(image, candidate)
        if mask.mean() >= MIN_SHARED and (steep & mask).mean() >= MIN_TEXTURE:
            members.append(other)
            masks.append(np.packbits(mask))
    return np.array(members), np.stack(masks)


def _family(members: np.ndarray, masks: np.ndarray, picture: Picture) -> tuple[np.ndarray, np.ndarray] | None:
    """Those of the members that make a family, and its mask; None where they make none."""
    if len(members) < 2:
        return None
    # one that changes, against the first, more than what the family as a whole changes is none of it
    changed_by_family = np.packbits(agreement(_opened(members, picture)) < 2 / 3)
    kept = members[_share(~masks & ~changed_by_family) <= MAX_OWN_CHANGE]
    if len(kept) < 2:
        return None
    images = _opened(kept, picture)
    mask = consensus_mask(images)
    if mask.mean() < MIN_SHARED or (~mask).mean() < MIN_CHANGED:
        return None
    try:
        check_mask(images[0], mask)
    except InputError:
        return None
    return kept, mask


def _share(packed: np.ndarray) -> np.ndarray:
    """(m,): share of the positions that are True."""
    return np.bitwise_count(packed).sum(1, dtype=np.int64) / COMPARE_SIZE**2


def _opened(members: np.ndarray, picture: Picture) -> np.ndarray:
    """As many of the members' pictures as a mask is made of, (n, 256, 256, 3)."""
    found = [picture(member) for member in some(members).tolist()]
    return np.stack([image for image in found if image is not None])


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
    found: dict[str, np.ndarray] = field(default_factory=dict)
    """Of the same templates: the mask as it was found, (256, 256) bool."""

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

    @cached_property
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
        return save_version(
            versions,
            template,
            edits,
            who=who,
            before=self.versions.get(template_id),
            found=self.found.get(template_id),
            difference=difference,
            answer_id=answer_id,
        )

    def save(self, folder: Path) -> None:
        """Write the whole library, replacing the one at `folder` in one step (`check_replaceable`)."""

        def tables(temporary: Path, rows: list[dict]) -> None:
            pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), temporary / TABLE)
            (temporary / ORIGIN).write_text(json.dumps({"index_sha256": self.index_sha256}) + "\n")

        self._write(Path(folder), tables)

    def save_reference(self, folder: Path, urls: Mapping[str, str]) -> None:
        """Write the library in the reference's form, ``url, mask_file, img_file``, replacing the library at `folder`.

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
        check_replaceable(folder)
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
        templates, refused, used, found = [], {}, {}, {}
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
                used[name], found[name] = version, template.mask
                template = replace(template, mask=version.mask)
            templates.append(template)
        return cls(tuple(templates), refused, _origin(folder / ORIGIN), used, found)


def check_replaceable(folder: Path) -> None:
    """Refuse a folder that holds anything but a template library, or nothing: saving one replaces it whole.

    Raises
    ------
    InputError
        If there is a file in it that is neither a library's table nor named by one.
    """
    if not folder.exists():
        return
    known = _files_of_library(folder)
    found = sorted(path for path in folder.rglob("*") if not path.is_dir()) if folder.is_dir() else [folder]
    other = next((path for path in found if path.resolve() not in known), None)
    if other is not None:
        raise InputError(
            f"{folder} holds something else than a template library, {other.name}, and would be replaced whole; name "
            "another folder."
        )


def _files_of_library(folder: Path) -> set[Path]:
    known: set[Path] = set()
    for name in (TABLE, REFERENCE_TABLE):
        try:
            rows = pq.read_table(folder / name, columns=list(PICTURES)).to_pylist()
        except (pa.ArrowException, OSError):
            continue
        named = [inside(folder, str(row.get(column) or "")) for row in rows for column in PICTURES]
        known |= {path.resolve() for path in (folder / name, folder / ORIGIN, *named) if path is not None}
    return known


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
    image, mask = (_picture_of(row, column, folder) for column in PICTURES)
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

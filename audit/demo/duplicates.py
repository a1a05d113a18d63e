"""How well duplicates are found, on copies made of the demo's own pictures and on its planted template families.

Truth is a set of pairs of pictures. *Copies*: two pictures made of one source. *Families*: two members of one planted
template family, or copies of two of them. Pairs within a natural family (art that comes in variants) are neither right
nor wrong, equal files apart. Precision is the share of pairs in one cluster that are true, recall the share of true
pairs that are in one cluster. Both pictures of a pair are of one half of the truth.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from audit.corpus.duplicates import ALONE, MAX_REGION, NEAR, changed_region, near_clusters
from audit.corpus.reader import Row
from audit.corpus.stored import open_stored
from audit.demo.training import Progress
from audit.images import COMPARE_SIZE, from_pil, resize, sha256, to_pil, to_uint8
from audit.records import limit
from audit.retrieval.index import Index
from audit.retrieval.search import Retriever
from audit.runs.duplicates import Duplicates, find_duplicates
from audit.runs.evaluate import rounded
from audit.runs.pictures import Pictures
from audit.verbatim.distances import blank_sse, sse
from audit.verbatim.templates import TemplateLibrary

SEED = 20261124
SOURCES = 300
"""Pictures of which copies are made, of both halves."""
COPIES = 4
"""Of each source, of kinds drawn at random."""


def resized(picture: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Half to nine tenths as large."""
    side = round(picture.width * chance.uniform(0.5, 0.9))
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def compressed(picture: Image.Image, chance: np.random.Generator) -> Image.Image:
    """JPEG of quality 30 to 90."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=int(chance.choice([30, 50, 75, 90])))
    return Image.open(stream).convert("RGB")


def cropped(picture: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Cut by 1% to 5% along each axis and back to its size."""
    large = picture.resize((4 * picture.width, 4 * picture.height), Image.Resampling.BICUBIC)
    left, top = chance.uniform(0, 1, 2)
    cut = chance.uniform(0.01, 0.05) * large.width
    box = (left * cut, top * cut, large.width - (1 - left) * cut, large.height - (1 - top) * cut)
    return large.resize(picture.size, Image.Resampling.BICUBIC, box=box)


def cropped_and_compressed(picture: Image.Image, chance: np.random.Generator) -> Image.Image:
    return compressed(cropped(picture, chance), chance)


def brightened(picture: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Contrast changed by up to 7%, brightness by up to 3%."""
    return to_pil(from_pil(picture) * chance.uniform(0.93, 1.07) + chance.uniform(-0.03, 0.03))


def marked(picture: Image.Image, chance: np.random.Generator) -> Image.Image:
    """A line of half-transparent white text over it."""
    large = picture.resize((COMPARE_SIZE, COMPARE_SIZE), Image.Resampling.BICUBIC).convert("RGBA")
    text = Image.new("RGBA", large.size, (255, 255, 255, 0))
    place = int(chance.integers(10, 90)), int(chance.integers(20, 210))
    colour = (255, 255, 255, int(255 * chance.uniform(0.3, 0.8)))
    ImageDraw.Draw(text).text(place, "SAMPLE 2021", fill=colour, font=ImageFont.load_default(size=28))
    return Image.alpha_composite(large, text).convert("RGB")


KINDS: Mapping[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "resized": resized,
    "compressed": compressed,
    "cropped": cropped,
    "cropped_and_compressed": cropped_and_compressed,
    "brightened": brightened,
    "marked": marked,
}


@dataclass(frozen=True)
class Copy:
    """A picture made of a training picture."""

    source: int
    """Place of that one."""
    kind: str
    image: np.ndarray
    """(256, 256, 3) uint8."""


def duplicates(
    demo: Path,
    truth: pd.DataFrame,
    *,
    sources: int = SOURCES,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Precision and recall of clusters on each half of the truth, and what the calibration half says of thresholds."""
    index = Index.open(demo / "index")
    originals = Pictures.of_index(index)
    labels = of_originals(originals, [row.family for row in index.rows], truth)
    copies, left_out = plant(index.rows, labels, sources, progress)
    have = with_copies(originals, copies, Retriever.open(demo / "index", dtype="float32"))
    labels = pd.concat([labels, of_copies(labels, copies)], ignore_index=True)
    library = TemplateLibrary.load(demo / "templates")

    def tell(done: int, total: int) -> None:
        if progress:
            progress(done, total, "clusters")

    found = find_duplicates(have, library.templates, progress=tell)
    by_embedding = [cluster.members for cluster in near_clusters(have.vectors)]
    halves = sorted(set(labels["split"]))
    return {
        "training_images": len(originals.image_ids),
        "sources": len({copy.source for copy in copies}),
        "copies": {kind: sum(copy.kind == kind for copy in copies) for kind in KINDS},
        "copies_left_out": left_out,
        "equal_files": equal_files(found, originals),
        **{half: evaluated(half, labels, clusters_of(found, have), by_embedding) for half in halves},
        "thresholds": thresholds(have, labels) | {"max_region": MAX_REGION, "cosine": ALONE},
    }


def of_originals(have: Pictures, families: Sequence[str], truth: pd.DataFrame) -> pd.DataFrame:
    """``source, kind, split, family, natural`` of each picture: planted family and natural family, or empty."""
    rows = truth.drop_duplicates("image").set_index("image").reindex(have.image_ids)
    natural = rows["natural_family"].to_numpy(bool)
    return pd.DataFrame(
        {
            "source": np.arange(len(rows)),
            "kind": "original",
            "split": rows["split"].to_numpy(str),
            "family": np.where(rows["kind"].to_numpy(str) == "template", rows["family"].to_numpy(str), ""),
            "natural": np.where(natural, np.asarray(families, str), ""),
        }
    )


def of_copies(originals: pd.DataFrame, copies: Sequence[Copy]) -> pd.DataFrame:
    """The same of copies: their source's."""
    return originals.iloc[[copy.source for copy in copies]].assign(kind=[copy.kind for copy in copies])


def plant(
    rows: Sequence[Row], labels: pd.DataFrame, sources: int, progress: Progress | None
) -> tuple[list[Copy], int]:
    """Copies of pictures that have no natural family, and how many were left out.

    Left out are copies that differ by more than the threshold under which a picture counts as the same, or no less than
    a picture of one colour would: what they are is a matter of definition.
    """
    chance = np.random.default_rng(SEED)
    pool = np.flatnonzero(labels["natural"].to_numpy(str) == "")
    copies, left_out = [], 0
    chosen = chance.choice(pool, min(sources, len(pool)), replace=False).tolist()
    for done, source in enumerate(chosen, start=1):
        picture = to_pil(open_stored(rows[source]))
        whole = resize(from_pil(picture))
        for kind in chance.choice(list(KINDS), COPIES, replace=False).tolist():
            copy = resize(from_pil(KINDS[kind](picture, chance)))
            if sse(whole, copy) < limit(NEAR, float(min(blank_sse(whole), blank_sse(copy)))):
                copies.append(Copy(source, kind, to_uint8(copy)))
            else:
                left_out += 1
        if progress:
            progress(done, len(chosen), "copies")
    return copies, left_out


def with_copies(have: Pictures, copies: Sequence[Copy], retriever: Retriever) -> Pictures:
    """A training set and the copies behind it, embedded."""
    count = len(have.image_ids)

    def picture(place: int) -> np.ndarray | None:
        if place < count:
            return have.picture(place)
        return copies[place - count].image.astype(np.float32) / 255.0

    names = [f"{have.image_ids[copy.source]}-{copy.kind}-{number}" for number, copy in enumerate(copies)]
    vectors = retriever.embedder.images(copy.image.astype(np.float32) / 255.0 for copy in copies)
    return Pictures(
        [*have.image_ids, *names],
        [*have.captions, *(have.captions[copy.source] for copy in copies)],
        [""] * (count + len(copies)),
        [*have.hashes, *(sha256(copy.image.tobytes()) for copy in copies)],
        np.concatenate([have.vectors, vectors]),
        picture,
        have.sha256,
    )


def clusters_of(found: Duplicates, have: Pictures) -> dict[str, list[np.ndarray]]:
    """Places of the members of each cluster of copies, and of each template family."""
    place = {name: number for number, name in enumerate(have.image_ids)}
    groups: dict[str, dict[str, list[int]]] = {"copies": {}, "families": {}}
    for cluster, name in found.members[["cluster_id", "image_id"]].itertuples(index=False):
        kind = "families" if str(cluster).startswith("template-") else "copies"
        groups[kind].setdefault(str(cluster), []).append(place[str(name)])
    return {kind: [np.array(group) for group in of.values()] for kind, of in groups.items()}


def evaluated(
    half: str,
    labels: pd.DataFrame,
    clusters: Mapping[str, Sequence[np.ndarray]],
    by_embedding: Sequence[np.ndarray],
) -> dict[str, Any]:
    """Figures of one half."""
    inside = labels["split"].to_numpy(str) == half
    truth = true_pairs(labels, inside)
    found = {kind: pairs_of(groups, inside) for kind, groups in clusters.items()}
    found["families"] = np.setdiff1d(found["families"], found["copies"])
    both = np.concatenate([truth["copies"], truth["families"]])
    any_ = np.concatenate([found["copies"], found["families"]])
    return {
        "copies": {
            **rates(found["copies"], truth["copies"], truth["neither"]),
            "recall_by_kind": by_kind(labels, inside, found["copies"]),
        },
        "families": rates(found["families"], truth["families"], truth["neither"]),
        "together": rates(any_, both, truth["neither"]),
        "by_embedding_alone": rates(pairs_of(by_embedding, inside), both, truth["neither"]),
    }


def true_pairs(labels: pd.DataFrame, inside: np.ndarray) -> dict[str, np.ndarray]:
    """Pairs of copies and of families, and those within a natural family, which are neither right nor wrong."""
    by = {
        name: pairs_of([np.array(group) for group in grouped(labels[name].to_numpy(str))], inside)
        for name in ("source", "family", "natural")
    }
    return {
        "copies": by["source"],
        "families": np.setdiff1d(by["family"], by["source"]),
        "neither": np.setdiff1d(by["natural"], by["source"]),
    }


def grouped(values: np.ndarray) -> list[list[int]]:
    """Places of equal values; empty ones are in no group.

    >>> grouped(np.array(["a", "", "b", "a", ""]))
    [[0, 3], [2]]
    """
    groups: dict[str, list[int]] = {}
    for place, value in enumerate(values.tolist()):
        if value:
            groups.setdefault(value, []).append(place)
    return list(groups.values())


def pairs_of(groups: Sequence[np.ndarray], inside: np.ndarray) -> np.ndarray:
    """Sorted codes of all pairs of places within a group, of those that are `inside`: smaller times n plus larger.

    >>> pairs_of([np.array([2, 0, 1])], np.array([True, True, True])).tolist()
    [1, 2, 5]
    """
    found = [
        np.array(
            [a * len(inside) + b for a, b in combinations(sorted(group[inside[group]].tolist()), 2)], np.int64
        )
        for group in groups
    ]
    return np.unique(np.concatenate([np.empty(0, np.int64), *found]))


def rates(found: np.ndarray, truth: np.ndarray, neither: np.ndarray) -> dict[str, Any]:
    """Precision and recall of pairs, `neither` left out.

    >>> rates(np.array([1, 2, 3]), np.array([1, 2, 4, 5]), np.array([3]))
    {'true_pairs': 4, 'found_pairs': 2, 'right': 2, 'neither': 1, 'precision': 1.0, 'recall': 0.5}
    """
    count = len(found)
    found = np.setdiff1d(found, neither)
    right = len(np.intersect1d(found, truth))
    return {
        "true_pairs": len(truth),
        "found_pairs": len(found),
        "right": right,
        "neither": count - len(found),
        "precision": round(right / len(found), 4) if len(found) else None,
        "recall": round(right / len(truth), 4) if len(truth) else None,
    }


def by_kind(labels: pd.DataFrame, inside: np.ndarray, found: np.ndarray) -> dict[str, float | None]:
    """For each kind of copy the share that is in one cluster with its source."""
    source, kinds = labels["source"].to_numpy(int), labels["kind"].to_numpy(str)
    there = np.isin(source * len(labels) + np.arange(len(labels)), found)
    return {kind: rounded(there[(kinds == kind) & inside].mean()) for kind in KINDS if (kinds == kind).any()}


def equal_files(found: Duplicates, have: Pictures) -> dict[str, int]:
    """Pairs of equal files in the training set, and how many of them are marked as exact in one cluster."""
    exact = found.members.loc[found.members["kind"] == "exact"]
    cluster = dict(zip(exact["image_id"], exact["cluster_id"], strict=True))
    pairs = [
        (have.image_ids[a], have.image_ids[b])
        for group in grouped(np.array(have.hashes))
        for a, b in combinations(group, 2)
    ]
    return {
        "pairs": len(pairs),
        "found": sum(a in cluster and cluster.get(a) == cluster.get(b) for a, b in pairs),
    }


def thresholds(have: Pictures, labels: pd.DataFrame) -> dict[str, Any]:
    """Where copies and families part on the calibration half, among pairs under the distance of near-duplicates.

    The share of a changed region at which the worse of both shares is best: copies below it, families at or above it.
    And the least cosine from which 98% of the pairs that the clusters of embeddings make are of either kind.
    """
    inside = labels["split"].to_numpy(str) == "calibration"
    truth, count = true_pairs(labels, inside), len(labels)
    regions = {kind: regions_of(have, truth[kind], count) for kind in ("copies", "families")}
    levels = np.unique(np.concatenate(list(regions.values())))
    worse = [
        min((regions["copies"] < level).mean(), (regions["families"] >= level).mean()) for level in levels
    ]
    best = float(levels[int(np.argmax(worse))])
    cosines = np.arange(0.99, 0.84, -0.01).round(2).tolist()
    both = np.concatenate([truth["copies"], truth["families"]])
    alone = {}
    for cosine in cosines:
        groups = [cluster.members for cluster in near_clusters(have.vectors, similarity=cosine)]
        alone[cosine] = rates(pairs_of(groups, inside), both, truth["neither"])
    precise = [cosine for cosine, each in alone.items() if (each["precision"] or 0.0) >= 0.98]
    return {
        "calibration": {
            "pairs": {kind: len(values) for kind, values in regions.items()},
            "max_region": rounded(best),
            "copies_below": rounded((regions["copies"] < best).mean()),
            "families_at_or_above": rounded((regions["families"] >= best).mean()),
            "at_the_shipped": {
                "copies_below": rounded((regions["copies"] < MAX_REGION).mean()),
                "families_at_or_above": rounded((regions["families"] >= MAX_REGION).mean()),
            },
            "cosine": min(precise, default=None),
        }
    }


def regions_of(have: Pictures, pairs: np.ndarray, count: int) -> np.ndarray:
    """`changed_region` of pairs that are under the distance of near-duplicates."""
    found = []
    for a, b in np.stack(np.divmod(pairs, count), axis=1).tolist():
        first, second = have.picture(a), have.picture(b)
        if first is not None and second is not None and sse(first, second) < NEAR:
            found.append(changed_region(first, second))
    return np.array(found)

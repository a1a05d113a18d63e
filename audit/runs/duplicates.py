"""Duplicates of a training set, and how often each was trained with which caption.

A picture can stand in two clusters: that of its copies (*exact*: equal files, or one file that was trained several
times; *near*: the same picture saved, scaled or cut anew) and that of its *template* family (the same but for a
region). `audit.runs.regurgitation` joins them with a run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from audit.corpus.duplicates import (
    ALONE,
    CANDIDATE,
    MAX_REGION,
    MAX_REGION_IN_FAMILY,
    NEAR,
    Cluster,
    Pixels,
    same_pictures,
)
from audit.corpus.occurrences import counted, of_rows, of_table
from audit.errors import InputError
from audit.files import write_json, write_parquet
from audit.records import Template
from audit.runs.pictures import CREDITS, Pictures
from audit.runs.templates import library_of
from audit.settings import DEMO, settings
from audit.verbatim.distances import masked_sse
from audit.verbatim.templates import discover
from audit.verbatim.verdict import Thresholds

TABLES = {"clusters": "clusters.parquet", "members": "duplicates.parquet", "captions": "captions.parquet"}
REPORT = "duplicates.json"
CLUSTERS = (
    "cluster_id",
    "kind",
    "representative",
    "images",
    "verified",
    "occurrences",
    "captions",
    "multimodal",
    "image_only",
    *CREDITS,
)
MEMBERS = (
    "cluster_id",
    "image_id",
    "representative",
    "kind",
    "verified",
    "sse",
    "similarity",
    "caption",
    *CREDITS,
)
CAPTIONS = ("caption", "picture", "times", "image_only", "cluster_id", "family_id")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Duplicates:
    """What repeats in a training set.

    Parameters
    ----------
    clusters
        One row a cluster, the most trained first: ``cluster_id``; ``kind`` exact, near or template; ``representative``;
        ``images``; ``verified``, how many of them on bytes or pixels; ``occurrences``, how often they were trained
        in all; ``captions``, how many distinct; ``multimodal``, how often with the commonest caption; ``image_only``,
        how often with any other; ``author``, ``licence`` and ``source`` of the representative.
    members
        One row a cluster and member, the nearest to its representative first. ``sse`` is the distance to the
        representative, under the family's mask for a template, and missing where no pixels were compared; ``author``,
        ``licence`` and ``source`` are the member's own.
    captions
        One row a picture and caption: ``picture`` (the representative's image id), ``times`` that it was trained
        with this caption, ``image_only`` with any other, and the clusters of copies and of the template, or empty.
    report
        Counts, thresholds and what could not be done, as they are printed.
    """

    clusters: pd.DataFrame
    members: pd.DataFrame
    captions: pd.DataFrame
    report: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write the three tables and ``duplicates.json`` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, file in TABLES.items():
            table = pa.Table.from_pandas(getattr(self, name), preserve_index=False)
            write_parquet(table.replace_schema_metadata(), folder / file)
        write_json(folder / REPORT, self.report)

    @classmethod
    def load(cls, folder: Path) -> Duplicates:
        """Read what `save` wrote; InputError where a part is missing or damaged."""
        try:
            tables = {name: pq.read_table(folder / file).to_pandas() for name, file in TABLES.items()}
            report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
            for name, columns in (("clusters", CLUSTERS), ("members", MEMBERS), ("captions", CAPTIONS)):
                # an earlier version wrote no credits
                unknown = {column: "" for column in CREDITS if column not in tables[name]}
                tables[name] = tables[name].assign(**unknown)[list(columns)]
            if not isinstance(report, dict):
                raise TypeError(f"{REPORT} holds no object")
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise InputError(
                f"{folder} holds no duplicates that can be read; find them again with `python -m audit duplicates`."
            ) from error
        return cls(**tables, report=report)


def find_duplicates(
    have: Pictures,
    templates: Sequence[Template] | None = None,
    *,
    captions: Path | None = None,
    progress: Progress | None = None,
) -> Duplicates:
    """All duplicates of a training set.

    Parameters
    ----------
    templates
        Its template families; found now where None, if pictures are at hand.
    captions
        Table that says how often each picture was trained with which caption (`audit.corpus.occurrences`); by
        default each row of the training set counts once.
    """
    occurrences, unknown = of_rows(have.captions), 0
    if captions is not None:
        occurrences, unknown = of_table(captions, have.image_ids, have.urls, have.captions)
    opened = any(have.picture(place) is not None for place in _some(len(have.image_ids)))
    if templates is None:
        templates = _families(have, progress) if opened else ()
    place_of = {name: place for place, name in enumerate(have.image_ids)}
    family = {
        place_of[name]: each.template_id for each in templates for name in each.members if name in place_of
    }
    pixels = Pixels(have.picture, family)
    copies = same_pictures(have.hashes, have.vectors, pixels if opened else None, progress=progress)
    picture = np.arange(len(have.image_ids))
    for cluster in copies:
        picture[cluster.members] = cluster.representative
    times = np.bincount(occurrences["place"], occurrences["times"], minlength=len(picture))
    members = _members_of_copies(have, [*copies, *_trained_again(times, copies)])
    families = []
    for done, template in enumerate(templates, start=1):
        families.append(_members_of_family(have, template, place_of, picture))
        if progress:
            progress(done, len(templates))
    rows = pd.concat([members, *(each for each in families if each is not None)], ignore_index=True)
    table, clusters = _tables(rows, counted(occurrences, picture), have)
    report = {
        "training_images": len(have.image_ids),
        "training_set_sha256": have.sha256,
        "left_out": have.left_out,
        "not_opened": len(pixels.unopened) if opened else len(have.image_ids),
        "distinct_pictures": len(np.unique(picture)),
        "occurrences": int(times.sum()),
        "occurrences_from": captions.name if captions else "the rows of the training set",
        "rows_of_unknown_pictures": unknown,
        "clusters": {kind: _summary(clusters, kind) for kind in ("exact", "near", "template")},
        "verified_on": "pixels" if opened else "nothing: near by embedding only",
        "thresholds": {
            "sse": NEAR,
            "changed_region": MAX_REGION,
            "changed_region_in_family": MAX_REGION_IN_FAMILY,
            "cosine_to_compare": CANDIDATE,
            "cosine_without_pixels": ALONE,
        },
    }
    return Duplicates(
        have.credited(clusters, clusters["representative"]),
        have.credited(rows, rows["image_id"]).loc[:, list(MEMBERS)],
        table,
        report,
    )


def default_duplicates(index: Path) -> Path:
    """Where the duplicates of an index are looked for."""
    return (DEMO if index.resolve() == (DEMO / "index").resolve() else index) / "duplicates"


def kept_duplicates(training_set_sha256: str) -> Path:
    """Where the dashboard keeps what it found itself."""
    return settings().data_dir / "duplicates" / training_set_sha256[:16]


def known_duplicates(index: Path, training_set_sha256: str) -> Duplicates | None:
    """Duplicates of an index that were found before; None where there are none of this very training set.

    Raises
    ------
    InputError
        If all that there are of it are damaged.
    """
    damaged = None
    for folder in (default_duplicates(index), kept_duplicates(training_set_sha256)):
        if (folder / REPORT).is_file():
            try:
                found = Duplicates.load(folder)
            except InputError as error:
                damaged = error
                continue
            if found.report.get("training_set_sha256") == training_set_sha256:
                return found
    if damaged is not None:
        raise damaged
    return None


def library_templates(
    have: Pictures, source: str | Path, folder: Path | None = None
) -> Sequence[Template] | None:
    """The families of the library in `folder`, or of the one that belongs to this very index; None without one."""
    library = library_of(source, folder)
    if library is None or (folder is None and library.gap(have.sha256, set(have.image_ids))):
        return None
    return library.templates


def _some(count: int) -> list[int]:
    """Places at which is tried whether pictures are at hand."""
    return sorted(set(np.linspace(0, max(0, count - 1), min(count, 16)).round().astype(int).tolist()))


def _families(have: Pictures, progress: Progress | None) -> Sequence[Template]:
    return discover(have.image_ids, have.picture, have.vectors, progress=progress)


def _trained_again(times: np.ndarray, copies: Sequence[Cluster]) -> list[Cluster]:
    """Pictures that are listed once and were trained more often: one file, equal to itself."""
    repeated = times > 1
    for cluster in copies:
        repeated[cluster.members] = False
    one = np.ones(1)
    return [
        Cluster(np.array([place]), one.astype(np.float32), np.zeros(1), one.astype(bool))
        for place in np.flatnonzero(repeated).tolist()
    ]


def _members_of_copies(have: Pictures, copies: Sequence[Cluster]) -> pd.DataFrame:
    def joined(of: Callable[[Cluster], np.ndarray], kind: type) -> np.ndarray:
        return np.concatenate([np.empty(0, kind), *map(of, copies)])

    sizes = [len(cluster.members) for cluster in copies]
    leaders = np.array([have.image_ids[cluster.representative] for cluster in copies], object)
    kinds = ["exact" if cluster.equal.all() else "near" for cluster in copies]
    clusters = np.array([f"{kind}-{name}" for kind, name in zip(kinds, leaders, strict=True)], object)
    places, equal = joined(lambda each: each.members, int), joined(lambda each: each.equal, bool)
    sse = joined(lambda each: each.sse, float)
    return pd.DataFrame(
        {
            "cluster_id": np.repeat(clusters, sizes),
            "image_id": [have.image_ids[place] for place in places],
            "representative": np.repeat(leaders, sizes),
            "kind": np.where(equal, "exact", "near"),
            "verified": equal | np.isfinite(sse),
            "sse": sse,
            "similarity": joined(lambda each: each.similarity, float),
            "caption": [have.captions[place] for place in places],
            "place": places,
        }
    )


def _members_of_family(
    have: Pictures, template: Template, place_of: Mapping[str, int], picture: np.ndarray
) -> pd.DataFrame | None:
    """A family with all copies of its members; None where they are all one picture, or not of this training set."""
    members = [place_of[name] for name in template.members if name in place_of]
    if len({int(picture[place]) for place in members}) < 2:
        return None
    leader = place_of.get(template.image_id, members[0])
    others = sorted(set(np.flatnonzero(np.isin(picture, picture[members])).tolist()) - {leader})
    places = np.array([leader, *others])
    sse = np.full(len(places), np.nan)
    for number, place in enumerate(places.tolist()):  # one picture at a time: a family may have thousands
        image = have.picture(place)
        if image is not None:
            sse[number] = masked_sse(template.image, template.mask, image)
    vectors = np.asarray(have.vectors[places], np.float32)
    name = have.image_ids[leader]
    rows = pd.DataFrame(
        {
            "cluster_id": f"template-{name}",
            "image_id": [have.image_ids[place] for place in places],
            "representative": name,
            "kind": "template",
            "verified": sse < Thresholds().template,
            "sse": sse,
            "similarity": (vectors @ vectors[0]).astype(float),
            "caption": [have.captions[place] for place in places],
            "place": places,
        }
    )
    return rows.iloc[np.lexsort((sse, places != leader))]


def _tables(rows: pd.DataFrame, pictures: pd.DataFrame, have: Pictures) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables ``captions`` and ``clusters``.

    Parameters
    ----------
    rows
        The table ``members`` with the place of each.
    pictures
        What `counted` says of each picture, a group being the place of its representative.
    """
    with duckdb.connect() as database:
        database.register("rows", rows)
        database.register("pictures", pictures)
        database.register(
            "names", pd.DataFrame({"place": range(len(have.image_ids)), "name": have.image_ids})
        )
        database.execute(
            """
            CREATE VIEW copies AS
                SELECT place, any_value(cluster_id) AS cluster_id FROM rows WHERE kind <> 'template' GROUP BY place;
            CREATE VIEW families AS
                SELECT place, min(cluster_id) AS family_id FROM rows WHERE kind = 'template' GROUP BY place;
            CREATE TABLE captions AS
                SELECT caption, name AS picture, times, image_only,
                    coalesce(cluster_id, '') AS cluster_id, coalesce(family_id, '') AS family_id
                FROM pictures JOIN names ON names.place = pictures."group"
                LEFT JOIN copies ON copies.place = pictures."group"
                LEFT JOIN families ON families.place = pictures."group"
                ORDER BY pictures."group", caption;
            CREATE VIEW duplication AS
                SELECT cluster_id, sum(times)::BIGINT AS occurrences, count(*) AS captions, max(times) AS multimodal
                FROM (
                    SELECT cluster_id, caption, sum(times)::BIGINT AS times FROM (
                        SELECT cluster_id, caption, times FROM captions WHERE cluster_id <> ''
                        UNION ALL
                        SELECT family_id, caption, times FROM captions WHERE family_id <> ''
                    ) GROUP BY ALL
                ) GROUP BY cluster_id;
            """
        )
        clusters = database.execute(
            """
            SELECT cluster_id, split_part(cluster_id, '-', 1) AS kind, representative, images, verified,
                occurrences, captions, multimodal, occurrences - multimodal AS image_only
            FROM (
                SELECT cluster_id, any_value(representative) AS representative,
                    count(*) AS images, count(*) FILTER (verified) AS verified
                FROM rows GROUP BY cluster_id
            ) JOIN duplication USING (cluster_id)
            ORDER BY occurrences DESC, images DESC, cluster_id
            """
        ).df()
        return database.table("captions").df(), clusters


def _summary(clusters: pd.DataFrame, kind: str) -> dict[str, int]:
    rows = clusters.loc[clusters["kind"] == kind]
    images = rows["images"].to_numpy(int)
    return {
        "clusters": len(rows),
        "of_one_image": int((images == 1).sum()),
        "images": int(images.sum()),
        "verified": int(rows["verified"].to_numpy(int).sum()),
        "occurrences": int(rows["occurrences"].to_numpy(int).sum()),
        "largest": int(images.max(initial=0)),
    }

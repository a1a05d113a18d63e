"""How well pieces of training pictures are found that were planted into never-seen pictures.

The never-seen picture and the training picture go through the demo's autoencoder each by itself (which knows no
pasted pictures and would smear the seams), a piece of one is laid into the other, then come noise and JPEG. The
threshold is a conformal quantile of what never-seen pictures of the calibration half reach without a plant; what is
reported is of the other half. How the signs of a piece are weighed is fitted on once-seen pictures of the calibration
half, so that no picture serves for both. Authors reuse their own pieces (frames, hands, the bars of prohibition signs),
and those are pieces of training pictures by right: pictures by a picture's own author are no candidates for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import binomtest

from audit.demo.corpus import SIZE
from audit.demo.measures import SEED, STRENGTHS, Strength, copies, jpeg
from audit.demo.training import Progress, load_pictures
from audit.images import COMPARE_SIZE, resize
from audit.runs.evaluate import BOOTSTRAPS, FPR, image_families, with_interval
from audit.runs.pieces import SEARCHED
from audit.scores.calibration import conformal_threshold
from audit.targets.pipelines import load_component
from audit.verbatim.masks import EDGE
from audit.verbatim.pieces import Piece, PieceIndex, PieceKind, Signs

KINDS = (PieceKind.MOVED, PieceKind.MIRRORED, PieceKind.SCALED, PieceKind.RECOLOURED)
AREA = (0.25, 0.5)
"""Share of the picture that a planted piece covers."""
SCALE = (0.7, 1.4)
WHOLE_SCALE = (1.2, 1.4)
"""Enlargement of a whole picture, of which the middle is then cropped."""
HUE, CONTRAST, BRIGHTNESS = (40.0, 320.0), (0.6, 1.1), (-0.1, 0.1)
"""Degrees about the grey axis, factor about mid-grey, and offset of a recoloured piece."""
APART = 40
"""Pixels of 256 that a moved piece stands from its own place at least."""
BUSY = 0.1
"""Share of a piece's steps, along rows and along columns each, that are edges: nobody can tell a flat piece."""
FOUND = 0.5
"""Intersection over union with the planted piece from which it was found in the right place."""
STRENGTH = STRENGTHS["light"]
"""What the demo's autoencoder, noise and JPEG do to every picture that is looked through."""
WHOLES, CONTROLS = 60, 60
TOGETHER = 2
"""Pictures looked through at once."""

Table = dict[str, np.ndarray]
"""Column -> (rows,)."""


@dataclass(frozen=True)
class Plant:
    """What is taken out of a training picture, and where it is put; pixels of 256."""

    kind: PieceKind
    source: str
    transform: np.ndarray
    """(2, 3): from the training picture into the other one."""
    box: tuple[int, int, int, int]
    """Left, top, right, bottom in the other one."""
    colours: np.ndarray
    """(3, 4)"""

    @property
    def mask(self) -> np.ndarray:
        """(256, 256) bool."""
        mask = np.zeros((COMPARE_SIZE, COMPARE_SIZE), bool)
        left, top, right, bottom = self.box
        mask[top:bottom, left:right] = True
        return mask

    def lay(self, host: np.ndarray, source: np.ndarray) -> np.ndarray:
        """The piece of `source` in `host`, both (256, 256, 3)."""
        centres = self.transform.copy()
        centres[:, 2] += self.transform[:, :2] @ (0.5, 0.5) - 0.5
        size = (COMPARE_SIZE, COMPARE_SIZE)
        piece = cv2.warpAffine(source, centres, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        coloured = piece @ self.colours[:, :3].T + self.colours[:, 3]
        return np.where(self.mask[..., None], np.clip(coloured, 0, 1), host).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """One picture that is looked through: a never-seen one, with a plant or without, or a changed training picture."""

    host: str
    plant: Plant | None = None

    @property
    def pictures(self) -> tuple[str, ...]:
        return (self.host, self.plant.source) if self.plant else (self.host,)


def plant(name: str, source: np.ndarray, kind: PieceKind, rng: np.random.Generator) -> Plant | None:
    """A random piece of a training picture (256, 256, 3); None if a hundred draws gave none with enough in it."""
    for _ in range(100):
        side = round(COMPARE_SIZE * float(np.sqrt(rng.uniform(*AREA))))
        scale = rng.uniform(*SCALE) if kind is PieceKind.SCALED else 1.0
        taken = side / scale
        if taken > COMPARE_SIZE:
            continue
        x, y = rng.uniform(0, COMPARE_SIZE - taken, 2)
        left, top = rng.integers(0, COMPARE_SIZE - side + 1, 2)
        if np.hypot(x + taken / 2 - left - side / 2, y + taken / 2 - top - side / 2) < APART:
            continue
        if busy(source[int(y) : int(y + taken), int(x) : int(x + taken)]) < BUSY:
            continue
        across = (
            (-scale, left + side + scale * x) if kind is PieceKind.MIRRORED else (scale, left - scale * x)
        )
        transform = np.array([[across[0], 0, across[1]], [0, scale, top - scale * y]])
        box = (int(left), int(top), int(left) + side, int(top) + side)
        return Plant(kind, name, transform, box, _recoloured(kind, rng))
    return None


def whole(name: str, kind: PieceKind, rng: np.random.Generator) -> Plant:
    """A whole training picture mirrored, enlarged and cropped, or recoloured."""
    scale = rng.uniform(*WHOLE_SCALE) if kind is PieceKind.SCALED else 1.0
    x, y = -rng.uniform(0, COMPARE_SIZE * (scale - 1), 2) if kind is PieceKind.SCALED else (0.0, 0.0)
    across = (-1, COMPARE_SIZE) if kind is PieceKind.MIRRORED else (scale, x)
    transform = np.array([[across[0], 0, across[1]], [0, scale, y]])
    return Plant(kind, name, transform, (0, 0, COMPARE_SIZE, COMPARE_SIZE), _recoloured(kind, rng))


def busy(picture: np.ndarray) -> float:
    """Share of steps that are edges, along rows or along columns, whichever has fewer.

    >>> busy(np.zeros((4, 4, 3)))
    0.0
    """
    return min(float((np.abs(np.diff(picture, axis=axis)).sum(2) > EDGE).mean()) for axis in (0, 1))


def _recoloured(kind: PieceKind, rng: np.random.Generator) -> np.ndarray:
    """(3, 4): colours turned about the grey axis (Rodrigues), then contrast and brightness; the identity else."""
    if kind is not PieceKind.RECOLOURED:
        return np.eye(3, 4)
    angle, contrast = np.radians(rng.uniform(*HUE)), rng.uniform(*CONTRAST)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    offset = 0.5 - 0.5 * contrast + rng.uniform(*BRIGHTNESS)
    return np.column_stack([contrast * turn, np.full(3, offset)])


def pieces(
    demo: Path,
    truth: pd.DataFrame,
    split: str,
    *,
    bootstraps: int = BOOTSTRAPS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Recall of planted pieces at 1% false positives, with the threshold of the calibration half.

    The whole way is measured: candidates are found by windows in the whole training set.
    """
    bench = Bench(demo, truth, progress)
    hosts, sources = bench.held_out(split), bench.sources(split)
    ordinary = bench.look(bench.held_out_cases("calibration"), "calibration, no plant")
    threshold = conformal_threshold(np.sort(ordinary["score"]), FPR)
    absent = bench.look(bench.held_out_cases(split), "no plant")
    present = bench.look(bench.planted(hosts, sources), "planted")
    strange = bench.look(bench.planted(hosts[:CONTROLS], hosts[::-1]), "pieces of never-seen pictures")
    wholes = bench.look(bench.wholes(sources), "whole pictures")
    found = present["score"] > threshold
    return {
        "training_images": len(bench.index.image_ids),
        "false_positive_rate": FPR,
        "calibrated_on": len(ordinary["score"]),
        "threshold": round(threshold, 3),
        "false_positives": rate(absent["score"] > threshold),
        "recall": share(found, present["family"], bootstraps),
        "recall_right": share(found & present["right"], present["family"], bootstraps),
        "kinds": by(present, "kind", threshold),
        "areas": by(present, "area", threshold),
        "source_among_candidates": round(float(present["listed"].mean()), 4),
        "never_seen_pieces": rate(strange["score"] > threshold),
        "whole_pictures": by(wholes, "kind", threshold),
    }


def weights(demo: Path, truth: pd.DataFrame, *, progress: Progress | None = None) -> dict[str, Any]:
    """How the signs of a piece are to be weighed: what `audit.verbatim.pieces.WEIGHTS` and `BIAS` are.

    Of once-seen pictures of the calibration half, with a plant and without: a logistic regression that tells planted
    pieces from likenesses in other people's pictures.
    """
    bench = Bench(demo, truth, progress)
    hosts = [name for name in bench.sources("calibration") if name in bench.once]
    cases = [Case(host) for host in hosts] + bench.planted(hosts, bench.sources("calibration"))
    signs, planted = bench.signs(cases, "pieces to be told apart")
    fitted, bias = logistic(signs, planted)
    return {
        "planted_pieces": int(planted.sum()),
        "likenesses": int((~planted).sum()),
        "weights": {name: round(float(value), 2) for name, value in zip(Signs._fields, fitted, strict=True)},
        "bias": round(bias, 2),
    }


def logistic(values: np.ndarray, holds: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights (k,) and bias of a logistic regression on (n, k), both classes counting alike, with a unit ridge on
    standardised columns.

    >>> weights, bias = logistic(np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([False, False, True, True]))
    >>> round(float(-bias / weights[0]), 3)  # as likely as not
    1.5
    """
    middle, spread = values.mean(0), values.std(0)
    columns = np.column_stack([(values - middle) / spread, np.ones(len(values))])
    counts = np.where(holds, len(holds) / 2 / holds.sum(), len(holds) / 2 / (~holds).sum())

    def loss(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        odds = columns @ coefficients
        ridge = np.append(coefficients[:-1], 0)
        value = counts @ np.logaddexp(0, np.where(holds, -odds, odds)) + ridge @ ridge / 2
        return float(value), columns.T @ (counts * (expit(odds) - holds)) + ridge

    found = minimize(loss, np.zeros(columns.shape[1]), jac=True, method="L-BFGS-B").x
    fitted = found[:-1] / spread
    return fitted, float(found[-1] - fitted @ middle)


class Bench:
    """The demo's pictures, and what looks through them; without `worn`, the autoencoder is left out."""

    def __init__(self, demo: Path, truth: pd.DataFrame, progress: Progress | None, *, worn: bool = True):
        self.demo, self.truth, self.progress, self.worn = demo, truth, progress, worn
        corpus = pd.read_parquet(demo / "corpus" / "corpus.parquet")
        self.author: dict[str, str] = dict(zip(corpus["image_id"], corpus["author"], strict=True))
        self.indexed: set[str] = set(corpus["image_id"].to_numpy(str)[corpus["indexed"].to_numpy(bool)])
        self.once: set[str] = set(truth["image"].to_numpy(str)[(truth["kind"] == "once").to_numpy(bool)])
        self.family = image_families(truth)
        self.vae = load_component(demo / "model", "vae", allow_pickle=False).float().eval()
        self.index = PieceIndex.build((name, self.training(name)) for name in sorted(self.indexed))

    def held_out(self, split: str) -> list[str]:
        rows = (self.truth["kind"] == "held_out") & (self.truth["split"] == split)
        return self.truth["image"].to_numpy(str)[rows.to_numpy(bool)].tolist()

    def held_out_cases(self, split: str) -> list[Case]:
        return [Case(name) for name in self.held_out(split)]

    def sources(self, split: str) -> list[str]:
        """Training pictures of one half, in a random order."""
        of_half = self.truth["image"].to_numpy(str)[(self.truth["split"] == split).to_numpy(bool)]
        names = sorted(set(of_half.tolist()) & self.indexed)
        return [names[place] for place in np.random.default_rng(SEED).permutation(len(names))]

    def training(self, name: str) -> np.ndarray:
        """(256, 256, 3)"""
        return self._pictures([name])[0]

    def planted(self, hosts: Sequence[str], sources: Sequence[str]) -> list[Case]:
        """Each picture with a piece of one by another author, of each kind in turn."""
        rng, cases, left = np.random.default_rng(SEED), [], list(sources)
        for number, host in enumerate(hosts):
            kind, found = KINDS[number % len(KINDS)], None
            for source in [name for name in left if not self._related(name, host)]:
                left.remove(source)
                found = plant(source, self.training(source), kind, rng)
                if found:
                    cases.append(Case(host, found))
                    break
        return cases

    def wholes(self, sources: Sequence[str]) -> list[Case]:
        rng, kinds = np.random.default_rng(SEED), KINDS[1:]
        return [
            Case(name, whole(name, kinds[number % len(kinds)], rng))
            for number, name in enumerate(sources[:WHOLES])
        ]

    def look(self, cases: Sequence[Case], label: str) -> Table:
        """The surest piece in each case's picture."""
        rows = []
        for case, (names, found) in self._searched(cases, label):
            source = case.plant.source if case.plant else None
            rows.append(
                {
                    "host": case.host,
                    "kind": str(case.plant.kind) if case.plant else "",
                    "family": self.family.get(source or case.host, case.host),
                    "area": area_name(case.plant.mask.mean()) if case.plant else "",
                    "listed": source in names,
                    "score": found[0].score if found else 0.0,
                    "right": bool(found and case.plant and self._right(found[0], case.plant)),
                }
            )
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def signs(self, cases: Sequence[Case], label: str) -> tuple[np.ndarray, np.ndarray]:
        """`Signs` (n, 10) of the pieces that are the planted ones, and of those found where none was planted; and which
        of them (n,) are planted.
        """
        signs, planted = [], []
        for case, (_, found) in self._searched(cases, label):
            for piece in found:
                if case.plant is None or self._right(piece, case.plant):
                    signs.append(piece.signs)
                    planted.append(case.plant is not None)
        return np.array(signs), np.array(planted)

    def _searched(
        self, cases: Sequence[Case], label: str
    ) -> Iterator[tuple[Case, tuple[list[str], list[Piece]]]]:
        """Each case with the candidates that were looked at and the pieces found, the surest first."""
        with ThreadPoolExecutor(TOGETHER) as pool:
            found = pool.map(self._search, cases, self.pictures(cases))
            for done, (case, each) in enumerate(zip(cases, found, strict=True), start=1):
                yield case, each
                if self.progress:
                    self.progress(done, len(cases), label)

    def _search(self, case: Case, picture: np.ndarray) -> tuple[list[str], list[Piece]]:
        query = self.index.query(picture)
        names = self._others(query.nearest, case)[:SEARCHED]
        found = self.index.find(picture, names, self.training, query)
        return names, [piece for piece in found if piece.kinds]

    def pictures(self, cases: Sequence[Case]) -> list[np.ndarray]:
        """(64, 64, 3) each, as a model would give them."""
        rng = np.random.default_rng(SEED)
        names = list(dict.fromkeys(name for case in cases for name in case.pictures))
        worn = dict(zip(names, self._worn(names), strict=True))
        made = []
        for case in cases:
            picture = worn[case.host]
            picture = case.plant.lay(picture, worn[case.plant.source]) if case.plant else picture
            small = resize(picture, SIZE)
            noise = STRENGTH.pixel_noise * rng.standard_normal(small.shape, np.float32)
            made.append(jpeg(small + noise, STRENGTH.jpeg_quality))
        return made

    def _others(self, names: Sequence[str], case: Case) -> list[str]:
        """Without what is related to a picture that a plant is laid into, or to a plant of a never-seen picture."""
        source = case.plant.source if case.plant else None
        strangers = [case.host] if case.host != source else []
        strangers += [source] if source is not None and source not in self.indexed else []
        return [name for name in names if not any(self._related(name, each) for each in strangers)]

    def _related(self, one: str, other: str) -> bool:
        """Whether two pictures are by one author, alone or with others, or of one family."""
        authors = self.author[one], self.author[other]
        family = self.family.get(one, one) == self.family.get(other, other)
        return family or authors[0] in authors[1] or authors[1] in authors[0]

    def _right(self, piece: Piece, planted: Plant) -> bool:
        """Whether it is the planted one: of that picture or one of its family, in that place."""
        family = self.family.get(planted.source, planted.source)
        overlap = (piece.mask & planted.mask).sum() / (piece.mask | planted.mask).sum()
        return self.family.get(piece.image_id, piece.image_id) == family and overlap >= FOUND

    def _pictures(self, names: Sequence[str]) -> list[np.ndarray]:
        loaded = load_pictures(self.demo / "corpus", pd.Series(list(names)))
        return [resize(picture) for picture in (loaded / 2 + 0.5).permute(0, 2, 3, 1).numpy()]

    def _worn(self, names: Sequence[str]) -> list[np.ndarray]:
        """Pictures through the demo's autoencoder, (256, 256, 3) each."""
        if not self.worn:
            return self._pictures(names)
        loaded = load_pictures(self.demo / "corpus", pd.Series(list(names)))
        without = Strength(STRENGTH.latent_noise, pixel_noise=0.0, jpeg_quality=100)
        return [resize(picture) for picture in copies(self.vae, loaded, without)]


def area_name(area: float) -> str:
    """Third of `AREA` that an area lies in."""
    bounds = np.linspace(*AREA, 4)
    place = int(np.clip(np.searchsorted(bounds, area) - 1, 0, 2))
    return f"{bounds[place]:.2f} to {bounds[place + 1]:.2f}"


def share(holds: np.ndarray, families: np.ndarray, bootstraps: int) -> dict[str, Any]:
    """Share of rows with its denominator and bootstrap interval over families."""

    def mean(weights: np.ndarray) -> float:
        return float(np.average(holds, weights=weights))

    return {"of": len(holds), **with_interval(mean, families, np.ones(len(holds)), bootstraps)}


def rate(holds: np.ndarray) -> dict[str, Any]:
    """Share of rows with its exact binomial interval (Clopper and Pearson): a bootstrap of no event has no width.

    >>> rate(np.zeros(250, bool))["interval_95"]
    [0.0, 0.0146]
    """
    found = binomtest(int(holds.sum()), len(holds))
    interval = found.proportion_ci(0.95)
    return {
        "of": len(holds),
        "value": round(float(found.statistic), 4),
        "interval_95": [round(float(interval.low), 4), round(float(interval.high), 4)],
    }


def by(looked: Table, column: str, threshold: float) -> dict[str, dict[str, Any]]:
    """Recall, and recall of the right piece, for each value of a column."""
    found = looked["score"] > threshold
    right = found & looked["right"]
    return {
        str(name): {
            "of": int((rows := looked[column] == name).sum()),
            "recall": round(float(found[rows].mean()), 4),
            "recall_right": round(float(right[rows].mean()), 4),
        }
        for name in np.unique(looked[column])
    }

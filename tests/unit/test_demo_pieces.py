"""Planted pieces: what is laid where, who is a candidate, and the figures by hand."""

import numpy as np
import pandas as pd
import pytest

from audit.demo.pieces import (
    APART,
    AREA,
    KINDS,
    SCALE,
    Bench,
    Case,
    Plant,
    area_name,
    busy,
    by,
    plant,
    rate,
    share,
    whole,
)
from audit.images import png_bytes, resize
from audit.retrieval.build import build
from audit.retrieval.embedding import Embedder
from audit.verbatim.pieces import PieceKind

MOVED, MIRRORED, SCALED, RECOLOURED = KINDS


def art(seed, size=64):
    """Random bars in random colours."""
    rng = np.random.default_rng(seed)
    picture = np.full((size, size, 3), rng.random(3), np.float32)
    for _ in range(30):
        top, left = rng.integers(0, size - 8, 2)
        height, width = rng.integers(size // 12, size // 3, 2)
        picture[top : top + height, left : left + width] = rng.random(3)
    return picture


def test_what_is_laid_where():
    source, host = resize(art(1)), np.zeros((256, 256, 3), np.float32)
    shift = Plant(MOVED, "s", np.array([[1.0, 0, 30], [0, 1, -20]]), (40, 50, 140, 150), np.eye(3, 4))
    laid = shift.lay(host, source)
    assert laid[50:150, 40:140] == pytest.approx(source[70:170, 10:110], abs=1e-5)
    assert not laid[~shift.mask].any() and shift.mask.sum() == 100 * 100
    mirror = Plant(MIRRORED, "s", np.array([[-1.0, 0, 256], [0, 1, 0]]), (0, 0, 256, 256), np.eye(3, 4))
    assert mirror.lay(host, source) == pytest.approx(source[:, ::-1], abs=1e-5)
    red_only = np.diag([1.0, 0, 0]) @ np.eye(3, 4)
    assert (
        not Plant(RECOLOURED, "s", np.eye(2, 3), (0, 0, 256, 256), red_only).lay(host, source)[..., 1:].any()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_plants_are_as_large_and_as_far_away_as_is_said(kind):
    rng, source = np.random.default_rng(3), resize(art(2))
    scales = []
    for _ in range(20):
        found = plant("s", source, kind, rng)
        left, top, right, bottom = found.box
        assert 0 <= left < right <= 256 and 0 <= top < bottom <= 256
        assert AREA[0] - 0.005 <= found.mask.mean() <= AREA[1] + 0.005
        scales.append(abs(found.transform[0, 0]))
        centre = np.array([(left + right) / 2, (top + bottom) / 2])
        came_from = np.linalg.solve(found.transform[:, :2], centre - found.transform[:, 2])
        assert np.linalg.norm(centre - came_from) >= APART - 1e-6
        corners = np.linalg.solve(
            found.transform[:, :2], (np.array([[left, top], [right, bottom]]) - found.transform[:, 2]).T
        )
        assert corners.min() > -1e-6 and corners.max() < 256 + 1e-6, "all of it is in the training picture"
    assert (np.linalg.det(found.transform[:, :2]) < 0) == (kind is MIRRORED)
    assert np.array_equal(found.colours, np.eye(3, 4)) == (kind is not RECOLOURED)
    assert (min(scales) >= SCALE[0] and max(scales) > 1.1) if kind is SCALED else set(scales) == {1.0}


def test_nothing_is_planted_of_a_flat_picture():
    flat = np.full((256, 256, 3), 0.5, np.float32)
    assert plant("s", flat, MOVED, np.random.default_rng(0)) is None
    stripes = flat.copy()
    stripes[::4] = 0
    assert busy(stripes) == 0, "stripes change along one axis only"
    assert plant("s", stripes, MOVED, np.random.default_rng(0)) is None


def test_recolouring_turns_about_the_grey_axis():
    colours = whole("s", RECOLOURED, np.random.default_rng(1)).colours
    greys = np.linspace(0, 1, 5)[:, None] * np.ones(3)
    turned = greys @ colours[:, :3].T + colours[:, 3]
    assert np.ptp(turned, axis=1) == pytest.approx(0, abs=1e-12)
    gain = colours[:, :3] @ colours[:, :3].T
    assert gain == pytest.approx(gain[0, 0] * np.eye(3), abs=1e-12), "no shear of colours"


@pytest.mark.parametrize("kind", [MIRRORED, SCALED, RECOLOURED])
def test_wholes_fill_the_picture(kind):
    changed = whole("s", kind, np.random.default_rng(5))
    corners = np.linalg.solve(
        changed.transform[:, :2], (np.array([[0, 0], [256, 256]]) - changed.transform[:, 2]).T
    )
    assert changed.mask.all() and corners.min() >= -1e-9 and corners.max() <= 256 + 1e-9


def test_figures_by_hand():
    holds = np.array([True, True, True, False])
    families = np.array(["a", "a", "b", "b"])
    assert share(holds, families, 50)["value"] == 0.75 and share(holds, families, 50)["of"] == 4
    # 1 - (1 - p) ** n = .025 and .975 for no event
    assert rate(np.zeros(10, bool)) == {"of": 10, "value": 0.0, "interval_95": [0.0, 0.3085]}
    looked = {"kind": np.array(["moved", "moved", "mirrored"]), "score": np.array([3.0, 1.0, 5.0])}
    looked |= {"right": np.array([True, True, False])}
    assert by(looked, "kind", 2.0) == {
        "mirrored": {"of": 1, "recall": 1.0, "recall_right": 0.0},
        "moved": {"of": 2, "recall": 0.5, "recall_right": 0.5},
    }


def test_names_of_areas():
    assert area_name(AREA[0]) == area_name(0.3) == "0.25 to 0.33"
    assert area_name(0.4) == "0.33 to 0.42" and area_name(AREA[1] + 0.002) == "0.42 to 0.50"


@pytest.fixture(scope="module")
def bench(tiny_clip_dir, tiny_pipeline_dir, tmp_path_factory):
    """Two dozen training pictures and four never-seen ones; t0 is by the author of h0, among others."""
    demo = tmp_path_factory.mktemp("pieces")
    (demo / "corpus/images").mkdir(parents=True)
    names = [f"t{n}" for n in range(24)] + [f"h{n}" for n in range(4)]
    for seed, name in enumerate(names):
        (demo / f"corpus/images/{name}.webp").write_bytes(png_bytes(art(seed)))
    corpus = pd.DataFrame({"image_id": names, "file": [f"images/{name}.webp" for name in names]})
    corpus["caption"], corpus["indexed"] = names, corpus["image_id"].str.startswith("t")
    corpus["author"] = [f"by {name}" for name in names]
    corpus.loc[0, "author"] = "by h0 and somebody"
    corpus.to_parquet(demo / "corpus/corpus.parquet")
    build(demo / "corpus", demo / "index", Embedder(f"local-dir:{tiny_clip_dir}", device="cpu"))
    (demo / "model").symlink_to(tiny_pipeline_dir)
    truth = pd.DataFrame({"image": names, "family": names, "split": "test"})
    truth["kind"] = np.where(corpus["indexed"], "once", "held_out")
    return Bench(demo, truth, None, worn=False)


def test_authors_of_the_never_seen_picture_are_no_source(bench):
    assert bench.held_out("test") == ["h0", "h1", "h2", "h3"]
    assert set(bench.sources("test")) == {f"t{n}" for n in range(24)}
    (case,) = bench.planted(["h0"], ["t0", "t1", "t2"])
    assert case.plant.source == "t1" and case.plant.kind is MOVED
    assert bench._others(["t0", "t1"], case) == ["t1"]
    assert bench._others(["t0", "t1"], Case("h1")) == ["t0", "t1"]


def test_each_never_seen_picture_gets_a_source_of_its_own(bench):
    cases = bench.planted(bench.held_out("test"), bench.sources("test"))
    assert [case.host for case in cases] == ["h0", "h1", "h2", "h3"]
    assert [case.plant.kind for case in cases] == list(KINDS)
    assert len({case.plant.source for case in cases}) == 4


def test_planted_pieces_are_found_and_no_others(bench):
    cases = bench.planted(bench.held_out("test"), bench.sources("test"))
    present = bench.look(cases, "")
    absent = bench.look([Case(case.host) for case in cases], "")
    assert present["right"].all() and not absent["right"].any()
    assert present["score"].min() > 2 * absent["score"].max()
    assert present["listed"].all() and not absent["listed"].any()
    assert present["kind"].tolist() == list(KINDS)


def test_pictures_are_the_same_at_every_call_and_worn(bench):
    cases = bench.planted(bench.held_out("test")[:2], bench.sources("test"))
    one, again = bench.pictures(cases), bench.pictures(cases)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    clean = bench.pictures([Case("h0")])[0]
    assert 0 < np.abs(clean - art(24)).mean() < 0.05
    assert {picture.shape for picture in one} == {(64, 64, 3)}
    bench.worn = True
    through_the_autoencoder = bench.pictures([Case("h0")])[0]
    bench.worn = False
    assert np.abs(through_the_autoencoder - clean).mean() > 0.05


def test_wholes_are_candidates_of_their_own(bench):
    cases = bench.wholes(bench.sources("test")[:3])
    assert [case.plant.kind for case in cases] == [MIRRORED, SCALED, RECOLOURED]
    looked = bench.look(cases, "")
    assert looked["right"].all() and PieceKind.MIRRORED in looked["kind"]

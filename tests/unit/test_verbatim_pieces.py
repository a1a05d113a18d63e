"""Pieces planted where it is known, in pictures of random shapes."""

import numpy as np
import pytest

from audit.errors import InputError
from audit.verbatim.overlay import GAP, SIDE, description, overlay
from audit.verbatim.pieces import RARE, PieceIndex, PieceKind, Signs, _colours, _corners, crops

MOVED, MIRRORED, SCALED, RECOLOURED = PieceKind


def art(seed, size=256):
    """Forty random bars and discs in random colours: something in every corner, as in clip art."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    picture = np.full((size, size, 3), rng.random(3), np.float32)
    for _ in range(40):
        (cx, cy), (rx, ry) = rng.uniform(0, size, 2), rng.uniform(size / 20, size / 6, 2)
        inside = (
            ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
            if rng.random() < 0.5
            else (np.abs(x - cx) < rx) & (np.abs(y - cy) < ry)
        )
        picture[inside] = rng.random(3)
    return picture


def ramp():
    y, x = np.mgrid[:256, :256] / 255
    return np.stack([x, y, (x + y) / 2], -1).astype(np.float32)


PICTURES = {f"p{seed}": art(seed) for seed in range(24)}
HOST = art(100)
HALF = 128


@pytest.fixture(scope="module")
def index():
    return PieceIndex.build(PICTURES.items())


def find(index, picture, names=PICTURES):
    return index.find(picture, names, PICTURES.get)


def planted(piece, left, top):
    picture = HOST.copy()
    picture[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    return picture


def box_overlap(piece, left, top, width=HALF, height=HALF):
    truth = np.zeros((256, 256), bool)
    truth[top : top + height, left : left + width] = True
    return (piece.mask & truth).sum() / (piece.mask | truth).sum()


def corners(piece, *points):
    return np.array(points) @ piece.transform[:, :2].T + piece.transform[:, 2]


def test_moved(index):
    pieces = find(index, planted(PICTURES["p3"][10:138, 20:148], 110, 90))
    assert pieces[0].image_id == "p3" and pieces[0].kinds == (MOVED,)
    assert corners(pieces[0], (20, 10), (148, 138)) == pytest.approx(
        np.array([(110, 90), (238, 218)]), abs=1.5
    )
    assert box_overlap(pieces[0], 110, 90) > 0.8
    # the box it came from, from its upper left on, clockwise
    assert pieces[0].polygon == pytest.approx(np.array([(20, 10), (148, 10), (148, 138), (20, 138)]), abs=16)
    assert pieces[0].unexplained < 0.1 and pieces[0].inliers >= 10
    others = [piece.score for piece in pieces[1:]]
    assert pieces[0].score > 5 * max(others, default=0)


def test_mirrored(index):
    piece = find(index, planted(PICTURES["p5"][60:188, 40:168][:, ::-1], 8, 16))[0]
    assert piece.image_id == "p5" and piece.kinds == (MOVED, MIRRORED) and piece.mirrored
    # its left edge became its right one
    assert corners(piece, (40, 60), (168, 188)) == pytest.approx(np.array([(136, 16), (8, 144)]), abs=1.5)
    assert box_overlap(piece, 8, 16) > 0.8


@pytest.mark.parametrize("kept", [92, 160])
def test_cropped_and_scaled(index, kept):
    import cv2

    cut = PICTURES["p7"][30 : 30 + kept, 50 : 50 + kept]
    piece = find(index, planted(cv2.resize(cut, (HALF, HALF), interpolation=cv2.INTER_CUBIC), 100, 120))[0]
    assert piece.image_id == "p7" and SCALED in piece.kinds and RECOLOURED not in piece.kinds
    assert np.linalg.det(piece.transform[:, :2]) ** 0.5 == pytest.approx(HALF / kept, rel=0.03)
    assert corners(piece, (50, 30), (50 + kept, 30 + kept)) == pytest.approx(
        np.array([(100, 120), (228, 248)]), abs=2.5
    )


def test_recoloured(index):
    cut = PICTURES["p9"][100:228, 10:138]
    changed = 0.1 + 0.8 * cut[..., [2, 0, 1]]
    piece = find(index, planted(changed, 120, 20))[0]
    assert piece.image_id == "p9" and piece.kinds == (MOVED, RECOLOURED)
    assert corners(piece, (10, 100)) == pytest.approx(np.array([(120, 20)]), abs=1.5)
    # red comes from blue, green from red, blue from green
    assert piece.colours[:, :3] == pytest.approx(0.8 * np.eye(3)[[2, 0, 1]], abs=0.1)
    assert piece.colours[:, 3] == pytest.approx(0.1, abs=0.1)


def test_a_copy_stands_in_its_own_place(index):
    for name in ("p1", "p20"):
        piece = find(index, PICTURES[name])[0]
        assert piece.image_id == name and piece.kinds == ()
        assert piece.area > 0.98
        assert piece.transform == pytest.approx(np.eye(2, 3), abs=0.3)
        assert piece.unexplained < 0.01 and piece.box == (0, 0, 256, 256)


def test_a_mirrored_whole_has_not_moved(index):
    piece = find(index, np.ascontiguousarray(PICTURES["p2"][:, ::-1]))[0]
    assert piece.image_id == "p2" and piece.kinds == (MIRRORED,) and piece.area > 0.98


def test_a_smaller_picture_is_compared_at_the_common_size(index):
    assert find(index, PICTURES["p1"][::2, ::2])[0].image_id == "p1"


def test_unrelated_pictures_reach_less_than_any_piece(index):
    unrelated = max((piece.score for seed in range(200, 206) for piece in find(index, art(seed))), default=0)
    planted_score = find(index, planted(PICTURES["p3"][10:138, 20:148], 110, 90))[0].score
    assert planted_score > 3 * unrelated


@pytest.mark.parametrize("picture", [ramp(), np.full((256, 256, 3), 0.4, np.float32)], ids=["ramp", "flat"])
def test_smooth_pictures_have_no_pieces(index, picture):
    assert find(index, picture) == []


def test_a_smooth_training_picture_is_no_source(index):
    pictures = {**PICTURES, "ramp": ramp(), "flat": np.full((256, 256, 3), 0.4, np.float32)}
    found = index.find(planted(ramp()[:HALF, :HALF], 100, 100), pictures, pictures.get)
    assert not {"ramp", "flat"} & {piece.image_id for piece in found}


def test_the_index_names_the_source_first(index):
    query = index.query(planted(PICTURES["p3"][10:138, 20:148], 110, 90))
    assert query.nearest[0] == "p3"


def test_order_of_candidates_and_repetition_change_nothing(index):
    picture = planted(PICTURES["p3"][10:138, 20:148], 110, 90)
    one, other = find(index, picture), find(index, picture, [*reversed(PICTURES), "p3"])
    again = PieceIndex.build(PICTURES.items())
    for pieces in (other, find(again, picture)):
        assert [piece.image_id for piece in pieces] == [piece.image_id for piece in one]
        assert [piece.score for piece in pieces] == [piece.score for piece in one]
        assert np.array_equal(pieces[0].mask, one[0].mask)
        assert np.array_equal(pieces[0].transform, one[0].transform)


def test_candidates_outside_of_the_index(index):
    outside = art(50)
    picture = planted(outside[64:192, 64:192], 0, 120)
    pieces = index.find(picture, ["new", "gone"], {"new": outside}.get)
    assert [piece.image_id for piece in pieces] == ["new"] and pieces[0].kinds == (MOVED,)


def test_further_pieces_of_the_same_picture(index):
    picture = planted(PICTURES["p3"][10:122, 20:132], 140, 8)
    picture[140:252, 10:122] = PICTURES["p3"][130:242, 136:248]
    query = index.query(picture)
    first = index.find(picture, ["p3"], PICTURES.get, query)[0]
    (second,) = index.others(picture, first, PICTURES.get, query)
    assert second.image_id == "p3" and not (first.mask & second.mask).any()
    tops = sorted([(first.box[1], first.box[0]), (second.box[1], second.box[0])])
    assert np.abs(np.array(tops) - [(8, 140), (140, 10)]).max() < 24
    alone = planted(PICTURES["p3"][10:122, 20:132], 140, 8)
    query = index.query(alone)
    first = index.find(alone, ["p3"], PICTURES.get, query)[0]
    further = index.others(alone, first, PICTURES.get, query)
    assert all(piece.score < first.score / 5 for piece in further)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((1, 1, 3), np.float32),
        np.zeros((256, 256), np.float32),
        np.zeros((256, 256, 4), np.float32),
        np.zeros((256, 8, 3), np.float32),
    ],
    ids=["1x1", "grey", "alpha", "narrow"],
)
def test_hostile_sizes_are_refused(index, picture):
    for refuse in (index.query, lambda given: find(index, given), crops):
        with pytest.raises(InputError, match=r"of shape \(.*\) was given"):
            refuse(picture)


def test_too_few_pictures_to_tell_what_is_rare():
    few = {name: PICTURES[name] for name in list(PICTURES)[:RARE]}
    with pytest.raises(InputError, match=r"10 training pictures with texture.*more than 10"):
        PieceIndex.build({**few, "flat": np.zeros((256, 256, 3), np.float32)}.items())


def test_crops_by_hand():
    numbered = np.arange(64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
    parts = crops(numbered)
    assert len(parts) == 20 and {part.shape for part in parts[2:]} == {(40, 40, 3)}
    assert np.array_equal(parts[0], numbered) and np.array_equal(parts[1], numbered[:, ::-1])
    assert np.array_equal(parts[2], numbered[:40, :40]) and np.array_equal(parts[18], numbered[24:, 24:])


def test_overlay_outlines_both_sides_and_says_what_it_shows(index):
    picture = planted(PICTURES["p3"][10:138, 20:148], 110, 120)
    piece = find(index, picture)[0]
    drawn = overlay(picture, PICTURES["p3"], [piece])
    plain = overlay(picture, PICTURES["p3"], [])
    assert drawn.shape == (SIDE, 2 * SIDE + GAP, 3) and drawn.dtype == np.float32
    changed = np.abs(drawn - plain).max(2) > 0.05
    rows, columns = np.nonzero(changed[:, :SIDE])
    assert (rows.min(), columns.min()) == pytest.approx((240, 220), abs=24)
    rows, columns = np.nonzero(changed[:, SIDE + GAP :])
    assert (rows.min(), columns.max()) == pytest.approx((20, 296), abs=24)
    assert changed[:, SIDE : SIDE + GAP].any(), "a line connects them"
    assert description([piece]).startswith("Piece 1: ")
    assert "lower right" in description([piece]) and "upper left of training image p3; moved." in description(
        [piece]
    )
    with pytest.raises(InputError, match="several training pictures"):
        overlay(picture, PICTURES["p3"], [piece, find(index, PICTURES["p1"])[0]])


def test_kept_on_disk(index, tmp_path):
    picture = planted(PICTURES["p3"][10:138, 20:148], 110, 90)
    index.save(tmp_path / "windows.npz")
    again = PieceIndex.load(tmp_path / "windows.npz")
    assert [(each.image_id, each.score, each.kinds) for each in find(again, picture)] == [
        (each.image_id, each.score, each.kinds) for each in find(index, picture)
    ]
    whole = (tmp_path / "windows.npz").read_bytes()
    (tmp_path / "windows.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is damaged; delete it"):
        PieceIndex.load(tmp_path / "windows.npz")


def test_signs_are_weighed_and_never_below_nothing():
    sure = Signs(2.0, 3.0, 0.0, 0.0, 1.0, -3.0, -2.0, -6.0, 2.0, 0.0)
    assert sure.score > 10 and sure._replace(resized=0.3).score < sure.score
    assert Signs(-5.0, -5.0, -1.0, 0.3, 0.0, 0.0, -6.0, -3.0, 1.0, 1.0).score == 0


def test_stripes_have_no_corners_and_checks_have():
    y, x = np.mgrid[:128, :128] // 16
    stripes, checks = (
        np.repeat((each % 2)[..., None], 3, 2).astype(np.float32) for each in (y + 0 * x, x + y)
    )
    whole = np.ones((128, 128), bool)
    assert _corners(stripes, stripes, whole) < 1e-6
    assert _corners(checks, checks, whole) > 0.1
    assert _corners(stripes, checks, whole) < 1e-6, "in both pictures"


def test_colours_spread_and_turns_bend_nothing():
    two = np.array([[0.1, 0.2, 0.9], [0.8, 0.1, 0.3]] * 8, np.float32)
    cube = np.array([[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)], np.float32)
    turn = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], np.float32)  # red to green to blue to red
    assert _colours(two, np.eye(3))["colours"] == pytest.approx(1) and _colours(cube, np.eye(3))[
        "colours"
    ] == pytest.approx(3)
    assert _colours(cube, 0.5 * turn)["bent"] == pytest.approx(0, abs=1e-6)
    assert _colours(cube, np.diag([1.0, 1.0, 0.0]))["bent"] > 0.3

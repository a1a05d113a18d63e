"""Clusters of one picture each: near by embedding, verified on pixels, never chained."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from audit.corpus import duplicates
from audit.corpus.duplicates import Pixels, changed_region, file_hash, near_clusters, same_pictures
from audit.corpus.reader import Row
from audit.errors import InputError
from audit.images import decode, resize, sha256, to_pil


def texture(seed=0):
    """(256, 256, 3): random blocks, far from one colour."""
    blocks = np.random.default_rng(seed).uniform(0.2, 0.8, (16, 16, 3)).astype(np.float32)
    return blocks.repeat(16, 0).repeat(16, 1)


def directions(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def members(clusters):
    return [cluster.members.tolist() for cluster in clusters]


def compressed(picture, quality=50):
    stream = io.BytesIO()
    to_pil(picture).save(stream, "JPEG", quality=quality)
    return decode(stream.getvalue())


def test_the_middle_of_a_changed_square_by_hand():
    """64 pixels are 16 positions; a 5x5 square fits into 12x12 places of them, out of 64x64."""
    other = texture()
    other[64:128, 32:96] += 0.1
    assert changed_region(texture(), other) == pytest.approx(144 / 4096)


@pytest.mark.parametrize("change", ["nothing", "brightness", "jpeg", "scaling", "lines"])
def test_copies_change_no_region(change):
    first = second = texture()
    if change == "brightness":
        second = first + 0.1
    elif change == "jpeg":
        second = compressed(first)
    elif change == "scaling":
        second = resize(resize(first, 120))
    elif change == "lines":
        second = first.copy()
        second[:, 40:52] = 0.9
    assert changed_region(first, second) < 0.01


def test_pixels_tell_one_picture_from_another():
    """+.1 everywhere is an SSE of 1,966; +.2 of 7,864; a faint picture is no nearer than one colour."""
    faint = 0.5 + (texture() - 0.5) * 0.1
    region = texture()
    region[:128, :64] = np.clip(region[:128, :64] + 0.15, 0, 1)
    pictures = [
        texture(),
        texture() + 0.1,
        texture() + 0.2,
        None,
        faint,
        np.flip(faint, 0),
        texture(1),
        region,
    ]
    pixels = Pixels(pictures.__getitem__)
    found = pixels(0, np.arange(1, 8))
    assert found[0] == pytest.approx(196608 * 0.01, rel=1e-4)
    assert np.isposinf(found[[1, 3, 4, 5, 6]]).all()
    assert np.isnan(found[2])
    assert float(np.square(texture() - region).sum()) < 2500  # near as a whole, and changed in a region
    assert float(np.square(faint - pictures[5]).sum()) < 2500
    assert np.isposinf(pixels(4, np.array([5]))).all()
    assert pixels.unopened == {3}


def test_what_is_looked_at_first_never_hides_a_near_picture():
    """The means of blocks differ by less than the pictures do, in SSE."""
    looks = Pixels([texture(seed) + 0.01 * seed for seed in range(6)].__getitem__)
    for a, b in itertools.combinations(range(6), 2):
        means = [looks._look(place)[0] for place in (a, b)]
        bound = 1024 * np.square(means[0] - means[1]).sum()
        assert bound <= np.square(looks.picture(a) - looks.picture(b)).sum() + 1e-3


def test_a_chain_of_near_pictures_is_cut():
    """15 degrees are a cosine of .966, 30 of .866: neighbours are near, others are not."""
    assert members(near_clusters(directions(0, 15, 30, 45))) == [[1, 0, 2]]
    found = near_clusters(directions(0, 15, 30, 45, 60))
    assert members(found) == [[1, 0, 2], [3, 4]]
    for cluster in found:
        assert (cluster.similarity >= 0.95).all()
        assert np.isnan(cluster.sse[1:]).all() and cluster.sse[0] == 0


def test_pixels_decide_where_they_are_at_hand():
    """All embeddings are equal; pictures rise by .1 each, so that only neighbours are near."""
    pictures = [texture() + step for step in (-0.1, 0.0, 0.1)] + [texture(1)]
    found = same_pictures([""] * 4, np.ones((4, 4), np.float32) / 2, Pixels(pictures.__getitem__))
    assert members(found) == [[0, 1]]
    assert found[0].sse == pytest.approx([0, 1966.08], rel=1e-4)


def test_a_picture_that_cannot_be_opened_is_near_by_embedding_alone():
    pictures = [texture(), None, None]
    found = same_pictures([""] * 3, directions(0, 10, 35), Pixels(pictures.__getitem__))
    assert members(found) == [[1, 0]]  # 25 degrees are .906: enough to compare, not enough alone
    assert np.isnan(found[0].sse[1])


def test_equal_files_are_one_cluster_whatever_their_embeddings_are():
    found = same_pictures(["a", "b", "a", "", "", "c"], directions(0, 90, 180, 45, 45, 92))
    assert members(found) == [[0, 2], [1, 5], [3, 4]]
    assert [cluster.equal.tolist() for cluster in found] == [[True, True], [True, False], [True, False]]


def test_copies_of_copies_come_along():
    """Places 0, 2, 4 are equal files; 1 is near to them."""
    found = same_pictures(["a", "b", "a", "c", "a"], directions(0, 5, 0, 90, 0))
    assert members(found) == [[0, 2, 4, 1]]
    assert found[0].equal.tolist() == [True, True, True, False]
    assert found[0].similarity == pytest.approx([1, 1, 1, np.cos(np.radians(5))], abs=1e-6)


@pytest.mark.parametrize("flat", [True, False])
def test_more_copies_than_neighbours_are_asked_for(monkeypatch, flat):
    monkeypatch.setattr(duplicates, "NEIGHBOURS", 4)
    monkeypatch.setattr(duplicates, "FLAT", 1000 if flat else 10)
    vectors = directions(*[0.1 * number for number in range(60)], *range(90, 150, 20))
    found = near_clusters(vectors)
    assert sorted(found[0].members.tolist()) == list(range(60))
    assert len(found) == 1


def test_inverted_lists_find_what_exact_search_finds(monkeypatch):
    chance = np.random.default_rng(0)
    first = chance.standard_normal((400, 32))
    vectors = np.concatenate([first, first + 0.1 * chance.standard_normal(first.shape), first[:50] * 2])
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    exact = near_clusters(vectors)
    assert len(exact) == 400
    monkeypatch.setattr(duplicates, "FLAT", 100)
    assert members(near_clusters(vectors)) == members(exact)


def test_half_precision_on_disk_is_read_as_it_is(tmp_path):
    vectors = directions(*range(0, 180, 30), *[start + 2 + start / 90 for start in range(0, 180, 30)])
    np.save(tmp_path / "vectors.npy", vectors.astype(np.float16))
    stored = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    assert [sorted(cluster) for cluster in members(near_clusters(stored))] == [[n, n + 6] for n in range(6)]


def test_progress_ends_and_an_error_of_it_stops_the_search():
    seen = []
    near_clusters(directions(0, 1, 90), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)

    def stop(done, total):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        near_clusters(directions(0, 1), progress=stop)


def test_progress_is_told_while_few_pictures_are_compared_for_long(monkeypatch):
    """It was told once in 4,096 representatives: hours may pass before that."""
    monkeypatch.setattr(duplicates, "TOLD", 0.0)
    seen = []
    compare = Pixels(lambda place: texture(place // 2))
    near_clusters(directions(0, 1, 60, 61, 120, 121), compare, progress=lambda *told: seen.append(told))
    assert len(set(seen)) > 3


def test_nothing_and_a_mismatch():
    assert same_pictures([], np.empty((0, 4), np.float32)) == []
    assert same_pictures(["a"], np.ones((1, 4), np.float32)) == []
    with pytest.raises(InputError, match="2 pictures and 1 embeddings"):
        same_pictures(["a", "b"], np.ones((1, 4), np.float32))


def test_the_hash_of_a_file_is_the_tables_or_its_bytes(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    assert file_hash(Row("a", tmp_path / "a.png", "")) == sha256(tmp_path / "a.png")
    assert file_hash(Row("a", tmp_path / "a.png", "", sha256=" " + "AB" * 32)) == "ab" * 32
    assert file_hash(Row("a", tmp_path / "a.png", "", sha256="unknown", md5="CD" * 16)) == "cd" * 16
    assert file_hash(Row("a", tmp_path / "a.png", "", sha256="unknown")) == sha256(tmp_path / "a.png")
    assert file_hash(Row("gone", tmp_path / "gone.png", "", sha256="unknown")) == ""
    assert file_hash(Row("gone", tmp_path / "gone.png", "")) == ""

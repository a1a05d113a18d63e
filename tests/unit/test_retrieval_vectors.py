"""faiss by size: memory-mapped, exact order among candidates, shards merged on disk, resumed after a kill."""

from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.errors import InputError
from audit.retrieval import vectors as vectors_module
from audit.retrieval.build import build
from audit.retrieval.index import Index
from audit.retrieval.vectors import Vectors, exact_neighbours, factory, write_vectors

INVERTED = "OPQ4,IVF16,PQ4x4"


@pytest.fixture(scope="module")
def unit():
    """3,000 unit vectors in 60 clusters, 16 dimensions."""
    rng = np.random.default_rng(0)
    found = rng.normal(size=(60, 16)).repeat(50, 0) + 0.3 * rng.normal(size=(3000, 16))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def saved(folder, vectors, dtype=np.float16):
    folder.mkdir(exist_ok=True)
    paths = []
    for number, part in enumerate(np.array_split(vectors, 3)):
        np.save(folder / f"part_{number}.npy", part.astype(dtype))
        paths.append(folder / f"part_{number}.npy")
    return paths


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(vectors_module, "SHARD", 1000)
    monkeypatch.setattr(vectors_module, "BLOCK", 256)


@pytest.mark.parametrize("description", ["Flat", "HNSW8,SQfp16", INVERTED])
def test_search_equals_exact_search(description, unit, tmp_path, small_shards):
    tuned = write_vectors(tmp_path, saved(tmp_path / "p", unit), 3000, 16, description=description)
    opened = Vectors.open(tmp_path, tuned.clusters)
    assert len(opened) == 3000 and opened.dimensions == 16 and opened.exact == (description == "Flat")
    similarities, places = opened.search(unit[::100], 10)
    assert (places[:, 0] == np.arange(0, 3000, 100)).mean() > 0.95
    assert (np.diff(similarities, axis=1) <= 1e-6).all()
    exact = exact_neighbours(opened.all(), unit[::100], 10)
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(places.tolist(), exact.tolist(), strict=True)])
    assert found > 0.9 and tuned.recall_at_10 > 0.9
    np.testing.assert_allclose(similarities[:, 0], 1, atol=2e-3)


def test_exact_neighbours_are_those_of_numpy(unit, monkeypatch):
    monkeypatch.setattr(vectors_module, "BLOCK", 700)
    wanted = np.argsort(-(unit[:20] @ unit.T), axis=1)[:, :5]
    assert (exact_neighbours(unit, unit[:20], 5) == wanted).mean() > 0.98


def test_shards_that_are_there_are_not_made_again(unit, tmp_path, small_shards, monkeypatch):
    parts = saved(tmp_path / "p", unit)

    def stop(done, total):
        if done > 2100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_vectors(tmp_path, parts, 3000, 16, description=INVERTED, progress=stop)
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    assert {"trained.index", "shard_0_1000.index", "shard_1000_2000.index"} <= set(made)
    seen = []
    tuned = write_vectors(
        tmp_path, parts, 3000, 16, description=INVERTED, progress=lambda done, total: seen.append(done)
    )
    assert seen[0] > 2000 and not (tmp_path / "shards").exists()
    _, places = Vectors.open(tmp_path, tuned.clusters).search(unit, 1)
    assert (places[:, 0] == np.arange(3000)).mean() > 0.95


@pytest.mark.parametrize("description", ["HNSW8,SQfp16", INVERTED])
@pytest.mark.parametrize("at", ["tidying", "measuring"])
def test_a_kill_after_the_index_was_written_leaves_only_measuring(
    description, at, unit, tmp_path, small_shards, monkeypatch
):
    parts = saved(tmp_path / "p", unit)

    def killed(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if at == "measuring":
            patched.setattr(vectors_module, "_tuned", killed)
        else:
            patched.setattr(vectors_module.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            write_vectors(tmp_path, parts, 3000, 16, description=description)
    seen = []
    tuned = write_vectors(
        tmp_path,
        parts,
        3000,
        16,
        description=description,
        tell=seen.append,
        progress=lambda *at: seen.append(at),
    )
    assert len(seen) == 1 and "Measuring" in seen[0] and not (tmp_path / "shards").exists()
    assert tuned.recall_at_10 > 0.9 and len(Vectors.open(tmp_path)) == 3000


def test_a_part_goes_once_the_vectors_are_stored_and_a_kill_between_loses_none(
    unit, tmp_path, small_shards, monkeypatch
):
    parts = saved(tmp_path / "p", unit)
    wanted = np.concatenate([np.load(part) for part in parts])
    unlink = Path.unlink

    def killed(path, **options):
        if path == parts[1]:
            raise KeyboardInterrupt
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        write_vectors(tmp_path, parts, 3000, 16, description=INVERTED)
    assert [part.is_file() for part in parts] == [False, True, True]
    assert not (tmp_path / "vectors.npy").exists()
    monkeypatch.setattr(Path, "unlink", unlink)
    write_vectors(tmp_path, parts, 3000, 16, description=INVERTED)
    assert not any(part.is_file() for part in parts)
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), wanted)


def test_a_merged_index_may_be_moved(unit, tmp_path, small_shards):
    (tmp_path / "a").mkdir()
    write_vectors(tmp_path / "a", saved(tmp_path / "p", unit), 3000, 16, description=INVERTED)
    (tmp_path / "a").rename(tmp_path / "b")
    _, places = Vectors.open(tmp_path / "b", 16).search(unit[:5], 3)
    assert places[:, 0].tolist() == [0, 1, 2, 3, 4]
    (tmp_path / "b" / "image.index" / "merged_index.ivfdata").unlink()
    with pytest.raises(InputError, match="copy that too"):
        Vectors.open(tmp_path / "b")


def test_an_inverted_file_in_one_piece_opens(unit, tmp_path):
    index = faiss.index_factory(16, "IVF16,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(unit)
    index.add(unit)
    faiss.write_index(index, str(tmp_path / "image.index"))
    _, places = Vectors.open(tmp_path, 16).search(unit[:5], 3)
    assert places[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("description", "kept"),
    [("Flat", True), ("HNSW8,SQfp16", True), ("IVF4,Flat", True), ("OPQ4,IVF4,PQ4", False), ("SQ8", False)],
)
def test_vectors_come_back_as_they_were_or_not_at_all(description, kept, unit, tmp_path):
    index = faiss.index_factory(16, description, faiss.METRIC_INNER_PRODUCT)
    index.train(unit)
    index.add(unit)
    faiss.write_index(index, str(tmp_path / "image.index"))
    opened = Vectors.open(tmp_path)
    if kept:
        np.testing.assert_allclose(opened.all(), unit, atol=1e-3)
        return
    with pytest.raises(InputError, match="holds its vectors compressed"):
        opened.all()


def test_an_index_is_memory_mapped(unit, tmp_path):
    many = np.tile(unit, (40, 4))
    write_vectors(tmp_path, saved(tmp_path / "p", many), len(many), 64, description="Flat")
    before = _anonymous()
    opened = Vectors.open(tmp_path)
    opened.search(many[:1], 3)
    assert _anonymous() - before < many.nbytes / 4


def _anonymous():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("Anonymous")))


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (10, "Flat"),
        (100_000, "Flat"),
        (300_000, "HNSW32,SQfp16"),
        (1_000_000, "OPQ64,IVF4096,PQ64"),
        (5_000_000_000, "OPQ64,IVF262144_HNSW32,PQ64"),
    ],
)
def test_the_kind_follows_the_size(count, name):
    assert factory(count, 512) == name


def test_another_metric_and_a_wrong_count_of_stored_vectors_are_refused(unit, tmp_path):
    write_vectors(tmp_path, saved(tmp_path / "p", unit), 3000, 16, description="HNSW8,SQfp16")
    np.save(tmp_path / "vectors.npy", unit[:-1].astype(np.float16))
    with pytest.raises(InputError, match="2999"):
        Vectors.open(tmp_path)
    (tmp_path / "vectors.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match="is damaged"):
        Vectors.open(tmp_path)
    index = faiss.IndexFlatL2(16)
    index.add(unit)
    faiss.write_index(index, str(tmp_path / "image.index"))
    with pytest.raises(InputError, match="inner product"):
        Vectors.open(tmp_path)


def embeddings(folder, vectors, sizes=(1700, 1300)):
    """As clip-retrieval's inference leaves them."""
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    start = 0
    for number, size in enumerate(sizes):
        np.save(
            folder / "img_emb" / f"img_emb_{number}.npy", vectors[start : start + size].astype(np.float16)
        )
        places = range(start, start + size)
        columns = {
            "image_path": [f"/data/{at:05d}.jpg" for at in places],
            "caption": [f"c {at}" for at in places],
        }
        pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{number}.parquet")
        start += size
    return folder


def test_an_index_of_embeddings_that_are_there_already(unit, tmp_path):
    vectors = 3 * unit
    vectors[5], vectors[6] = 0, np.nan
    built = build(embeddings(tmp_path / "e", vectors), tmp_path / "i", None)
    assert (built.count, built.left_out) == (2998, 2)
    assert {error.image_id for error in built.errors} == {"00005", "00006"}
    index = Index.open(tmp_path / "i")
    assert index.embedder_name is None and index.left_out == 2
    assert index.search(unit[7:8], 1)[0][0].caption == "c 7" and len(index.by_caption("c 2999")) == 1


def test_embeddings_and_metadata_of_different_length_are_refused(unit, tmp_path):
    folder = embeddings(tmp_path / "e", unit)
    np.save(folder / "img_emb" / "img_emb_1.npy", unit[:5])
    with pytest.raises(InputError, match="another picture"):
        build(folder, tmp_path / "i", None)
    (folder / "img_emb" / "img_emb_1.npy").unlink()
    with pytest.raises(InputError, match="do not belong together"):
        build(folder, tmp_path / "j", None)


@pytest.mark.parametrize(("first", "told"), [(0, ""), (1, "do not belong together")])
def test_shards_are_paired_by_their_last_number(unit, tmp_path, first, told):
    """The first may be a model's: ViT-B-32."""
    folder = embeddings(tmp_path / "e", unit, sizes=(250,) * 12)
    for number in reversed(range(12)):
        vectors, rows = (
            folder / f"img_emb/img_emb_{number}.npy",
            folder / f"metadata/metadata_{number}.parquet",
        )
        vectors.rename(vectors.with_name(f"ViT-B-32_{vectors.name}"))
        rows.rename(rows.with_name(f"ViT-B-32_metadata_{number + first}.parquet"))
    if told:
        with pytest.raises(InputError, match=told):
            build(folder, tmp_path / "i", None)
        return
    build(folder, tmp_path / "i", None)
    index = Index.open(tmp_path / "i")
    assert [index.rows[at].caption for at in (0, 600, 2999)] == ["c 0", "c 600", "c 2999"]
    assert index.search(unit[2999:], 1)[0][0].caption == "c 2999"


def test_embeddings_of_two_widths_are_refused(unit, tmp_path):
    folder = embeddings(tmp_path / "e", unit)
    np.save(folder / "img_emb" / "img_emb_1.npy", unit[:1300, :8])
    with pytest.raises(
        InputError, match=r"img_emb_1\.npy holds vectors of 8 numbers, those before it have 16"
    ):
        build(folder, tmp_path / "i", None)


def test_ids_that_start_anew_in_each_file_make_an_index_that_opens(unit, tmp_path):
    folder = embeddings(tmp_path / "e", unit)
    for path in (folder / "metadata").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.add_column(0, "id", pa.array(range(len(table)))), path)
    build(folder, tmp_path / "i", None)
    index = Index.open(tmp_path / "i")
    (hit,) = index.search(unit[1700:1701], 1)[0]
    assert (hit.image_id, hit.caption) == ("0#1700", "c 1700") and index.row("0#0").caption == "c 0"
    assert index.row("1699").caption == "c 1699"


def test_a_folder_that_holds_something_else_is_never_written_to(unit, tmp_path):
    """Least of all the source itself: its vectors lie where a build keeps its own, and are deleted in the end."""
    folder = embeddings(tmp_path / "e", unit)
    with pytest.raises(InputError, match="something else"):
        build(folder, folder, None)
    assert len(list((folder / "img_emb").iterdir())) == 2


def test_recall_counts_ten_and_never_oneself():
    exact = list(range(11))
    assert vectors_module._share(exact, exact, 3) == 1
    assert vectors_module._share(exact, exact, 99) == 1
    assert vectors_module._share([3, 0, 1], exact, 3) == 0.2


def test_lists_that_are_cut_short_are_refused(unit, tmp_path, small_shards):
    write_vectors(tmp_path, saved(tmp_path / "p", unit), 3000, 16, description=INVERTED)
    lists = tmp_path / "image.index" / "merged_index.ivfdata"
    lists.write_bytes(lists.read_bytes()[:100])
    with pytest.raises(InputError, match="shorter than its index says"):
        Vectors.open(tmp_path)


def test_vectors_that_are_no_numbers_are_refused(unit, tmp_path):
    write_vectors(tmp_path, saved(tmp_path / "p", unit), 3000, 16, description="HNSW8,SQfp16")
    np.save(tmp_path / "vectors.npy", np.full((3000, 16), "a"))
    with pytest.raises(InputError, match="no vectors"):
        Vectors.open(tmp_path)
    folder = embeddings(tmp_path / "e", unit)
    np.save(folder / "img_emb" / "img_emb_1.npy", np.full((1300, 16), 1j))
    with pytest.raises(InputError, match="no vectors"):
        build(folder, tmp_path / "i", None)


def test_a_second_build_into_one_folder_is_refused(unit, tmp_path):
    folder = embeddings(tmp_path / "e", unit)

    def meanwhile(done, total):
        with pytest.raises(InputError, match="Another process is building"):
            build(folder, tmp_path / "i", None)

    assert build(folder, tmp_path / "i", None, meanwhile).count == 3000
    assert not (tmp_path / "i" / "build.lock").exists()


def test_many_centroids_are_written_into_few_shards(unit, tmp_path, small_shards, monkeypatch):
    monkeypatch.setattr(vectors_module, "TRAINING", 100)
    made = []
    monkeypatch.setattr(
        vectors_module, "replace_file", lambda path, write: made.append(path.name) or write(path)
    )
    write_vectors(tmp_path, saved(tmp_path / "p", unit), 3000, 16, description=INVERTED)
    assert made[1:-1] == ["shard_0_1600.index", "shard_1600_3000.index"]

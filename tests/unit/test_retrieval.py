"""Embedding, index and search: a tiny random open_clip model and real faiss in one process with torch."""

import itertools
import json
import shutil
import weakref
from pathlib import Path

import faiss
import huggingface_hub.constants
import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from audit.corpus.reader import Row
from audit.errors import InputError
from audit.images import decode, resize
from audit.retrieval import build as build_module
from audit.retrieval.build import build
from audit.retrieval.embedding import Embedder
from audit.retrieval.index import Index
from audit.retrieval.search import PictureCache, Retriever, key
from audit.retrieval.vectors import Vectors

WORDS = ["red house", "blue tree", "green star", "small cat"]


def make_clip(folder, seed=0):
    """An open_clip folder with random weights: 32 px pictures, 16 dimensions, a tokenizer of a few words."""
    folder.mkdir()
    backend = CLIPTokenizer().backend_tokenizer
    backend.model = BPE(continuing_subword_prefix="", end_of_word_suffix="</w>")
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(WORDS, trainer)
    model = json.loads(backend.to_str())["model"]
    tokenizer = CLIPTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    tokenizer.save_pretrained(folder)
    text = {"context_length": 12, "vocab_size": len(tokenizer), "hf_tokenizer_name": ".", "width": 32}
    text |= {"heads": 2, "layers": 1, "pool_type": "eos", "eos_id": tokenizer.eos_token_id}
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = open_clip.create_model(f"local-dir:{folder}", load_weights=False).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    return folder


def make_corpus(folder, count=12):
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(7)
    rows = []
    for i in range(count):
        blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(folder / "images" / f"p{i}.png")
        row = {"image_id": f"p{i}", "file": f"images/p{i}.png", "caption": f"{WORDS[i % 4]} {i}"}
        rows.append(row | {"title": f"Title {i}", "author": "A. Nonymous", "indexed": i != count - 1})
    shutil.copy(folder / "images" / "p0.png", folder / "images" / "p1.png")
    pq.write_table(pa.Table.from_pylist(rows), folder / "corpus.parquet")
    return folder


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return Embedder(f"local-dir:{make_clip(tmp_path_factory.mktemp('clip') / 'clip')}", device="cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def index(corpus, embedder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "index"
    build(corpus, folder, embedder)
    return Index.open(folder)


def test_embeddings_have_unit_norm_and_do_not_depend_on_the_batch(embedder):
    images = [np.full((20 + i, 30, 3), i / 80, np.float32) for i in range(70)]
    together = embedder.images(images)
    assert together.shape == (70, 16) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(together[66:68], embedder.images(images[66:68]), atol=1e-5)
    texts = embedder.texts(["red house", "<b>\N{PILE OF POO}</b>", "cat " * 1000, ""])
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, rtol=1e-5)
    assert embedder.images([]).shape == (0, 16)


def test_embedder_hash_follows_the_weights(embedder, tmp_path):
    same = Embedder(f"local-dir:{make_clip(tmp_path / 'same')}", device="cpu")
    other = Embedder(f"local-dir:{make_clip(tmp_path / 'other', seed=1)}", device="cpu")
    assert same.sha256 == embedder.sha256 != other.sha256


@pytest.mark.parametrize("fault", ["missing", "pickle", "unknown", "damaged"])
def test_embedder_that_cannot_be_loaded_is_one_sentence(fault, tmp_path):
    name = f"local-dir:{tmp_path / 'clip'}"
    if fault in ("pickle", "damaged"):
        make_clip(tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    if fault == "pickle":
        weights.rename(weights.with_name("open_clip_pytorch_model.bin"))
    if fault == "damaged":
        weights.write_bytes(b"no tensors")
    if fault == "unknown":
        name = "No-Such-Model/none"
    with pytest.raises(InputError) as caught:
        Embedder(name, device="cpu")
    assert "\n" not in str(caught.value)


def test_each_indexed_picture_finds_itself_with_its_attribution(index, embedder, corpus):
    assert len(index) == 11
    for i in (0, 5, 10):
        hit = index.search(embedder.images([decode(corpus / "images" / f"p{i}.png")]), 1)[0][0]
        assert hit.similarity == pytest.approx(1, abs=1e-5)
        assert hit.image_id == f"p{i}" or (i == 0 and hit.image_id == "p1")
        assert hit.author == "A. Nonymous" and decode(corpus / "images" / f"p{i}.png").shape == (32, 32, 3)


def test_rows_that_were_never_trained_are_not_indexed(index):
    with pytest.raises(InputError, match="p11"):
        index.row("p11")


def test_k_larger_than_the_index_gives_every_row_once(index, embedder):
    hits = index.search(embedder.texts(["red house"]), 1000)[0]
    assert sorted(hit.image_id for hit in hits) == sorted(row.image_id for row in index.rows)
    assert [hit.rank for hit in hits] == list(range(11))
    assert all(first.similarity >= second.similarity for first, second in itertools.pairwise(hits))


def test_ids_of_minus_one_are_no_rows(index, embedder):
    vectors = index.vectors()
    quantiser = faiss.IndexFlatIP(16)
    inverted = faiss.IndexIVFFlat(quantiser, 16, 4, faiss.METRIC_INNER_PRODUCT)
    inverted.train(vectors)
    inverted.add(vectors)
    hits = Index(index.folder, Vectors(inverted), index.rows, {}).search(embedder.texts(["red house"]), 11)[0]
    assert 0 < len(hits) < 11


def test_captions_and_exact_copies_are_found(index):
    assert [row.image_id for row in index.by_caption("blue tree 5")] == ["p5"]
    assert index.by_caption("blue tree") == []
    assert index.duplicates("p0") == {"p1"} and index.duplicates("p5") == set()


def test_wrong_dimensions_and_empty_requests_are_refused(index, embedder):
    with pytest.raises(InputError, match="dimensions"):
        index.search(np.ones((1, 8), np.float32), 3)
    with pytest.raises(InputError, match="at least 1"):
        index.search(np.ones((1, 16), np.float32), 0)


def _copy(index, tmp_path):
    """A moved index: its pictures are found beside it no longer, its rows are."""
    return shutil.copytree(index.folder, tmp_path / "index")


def test_row_mismatch_is_refused(index, tmp_path):
    folder = _copy(index, tmp_path)
    path = folder / "metadata" / "metadata_0.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(InputError, match=r"11 \(vectors\), 10 \(metadata rows\), 11 \(index.json\)"):
        Index.open(folder)


def test_what_is_no_hash_makes_no_files_equal(index, tmp_path):
    folder = _copy(index, tmp_path)
    path = folder / "metadata" / "metadata_0.parquet"
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([row | {"sha256": "unknown"} for row in rows]), path)
    assert Index.open(folder).duplicates("p0") == set()


def test_two_rows_of_one_name_are_refused(index, tmp_path):
    folder = _copy(index, tmp_path)
    path = folder / "metadata" / "metadata_0.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table.slice(0, 1), table.slice(0, len(table) - 1)]), path)
    with pytest.raises(InputError, match="two rows named"):
        Index.open(folder)


@pytest.mark.parametrize("name", ["image.index", "index.json", "metadata/metadata_0.parquet"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_index_is_refused_with_a_sentence(index, tmp_path, name, damage):
    folder = _copy(index, tmp_path)
    if damage == "cut":
        (folder / name).write_bytes((folder / name).read_bytes()[:20])
    elif name != "index.json":
        (folder / name).unlink()
    else:
        shutil.rmtree(folder)
    with pytest.raises(InputError) as caught:
        Index.open(folder)
    assert str(folder) in str(caught.value)


def test_parts_are_read_in_numeric_order(index, tmp_path):
    folder = _copy(index, tmp_path)
    path = folder / "metadata" / "metadata_0.parquet"
    table = pq.read_table(path)
    path.unlink()
    for i in range(11):
        pq.write_table(table.slice(i, 1), folder / "metadata" / f"metadata_{i}.parquet")
    assert [row.image_id for row in Index.open(folder).rows] == [row.image_id for row in index.rows]


@pytest.mark.parametrize("path", ["/etc/p0.png", "../../p0.png", "images/../../../p0.png"])
def test_pictures_outside_of_the_training_set_are_never_read(index, tmp_path, path):
    folder = _copy(index, tmp_path)
    table = pq.read_table(folder / "metadata" / "metadata_0.parquet").to_pylist()
    table[0]["image_path"] = path
    pq.write_table(pa.Table.from_pylist(table), folder / "metadata" / "metadata_0.parquet")
    opened = Index.open(folder)
    assert opened.rows[0].path == Path() and opened.rows[2] == index.rows[2]


@pytest.mark.parametrize(
    "change",
    [
        {"count": "many"},
        {"source": None},
        {"left_out": []},
        {"embedder": 3},
        {"clusters": 0},
        {"clusters": -1},
    ],
)
def test_description_of_an_index_is_checked(index, tmp_path, change):
    folder = _copy(index, tmp_path)
    info = json.loads((folder / "index.json").read_text()) | change
    (folder / "index.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="is damaged"):
        Index.open(folder)


def test_a_build_holds_one_picture_at_a_time(corpus, embedder, tmp_path, monkeypatch):
    alive, most = set(), []

    def watched(data, name):
        picture = decode(data, name)
        alive.add(name)
        weakref.finalize(picture, alive.discard, name)
        most.append(len(alive))
        return picture

    monkeypatch.setattr(build_module, "decode", watched)
    assert build(corpus, tmp_path / "index", embedder).count == len(most) == 11
    assert max(most) <= 2


def test_offline_asks_no_hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match="cannot be loaded"):
        Embedder("hf-hub:nobody/nothing-here", device="cpu", offline=True)
    assert huggingface_hub.constants.is_offline_mode()


def test_the_hundred_nearest_are_ranked_on_pixels(index, embedder, corpus):
    """The nearest by similarity is not the nearest by pixels; one neighbour is asked for."""
    retriever = Retriever(index, embedder)
    image = decode(corpus / "images" / "p7.png")
    by_pixels = retriever.rerank(image, retriever.by_image(image, len(index)))
    wrong = next(hit for hit in by_pixels if hit.image_id != "p7")
    reverse = sorted(retriever.by_image(image, len(index)), key=lambda hit: hit.image_id != wrong.image_id)
    retriever.by_image = lambda image, k: reverse[:k]
    assert [hit.image_id for hit in retriever.nearest(image, 1)] == ["p7"]


def test_clip_retrieval_folder_without_our_description_opens(index, tmp_path):
    folder = _copy(index, tmp_path)
    (folder / "index.json").unlink()
    big = folder / "image.index"
    big.rename(folder / "populated.index")
    big.mkdir()
    (folder / "populated.index").rename(big / "populated.index")
    table = pa.table(
        {"image_path": [f"/data/{i}.jpg" for i in range(11)], "TEXT": ["a"] * 11, "URL": ["u"] * 11}
    )
    pq.write_table(table, folder / "metadata" / "metadata_0.parquet")
    opened = Index.open(folder)
    assert opened.embedder_sha256 is None
    assert opened.rows[3].image_id == "3" and opened.rows[3].url == "u" and len(opened.by_caption("a")) == 11


def test_other_embedder_is_refused(index, tmp_path):
    other = Embedder(f"local-dir:{make_clip(tmp_path / 'other', seed=1)}", device="cpu")
    with pytest.raises(InputError, match="was built with the embedder"):
        Retriever(index, other)


def test_index_names_its_embedder_wherever_both_are_moved(corpus, tmp_path):
    make_clip(tmp_path / "clip")
    build(corpus, tmp_path / "index", Embedder(f"local-dir:{tmp_path / 'clip'}", device="cpu"))
    shutil.copytree(tmp_path, tmp_path.with_name(tmp_path.name + "-moved"))
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    shutil.rmtree(tmp_path / "clip")
    assert Retriever.open(moved / "index", device="cpu").embedder.name == f"local-dir:{moved / 'clip'}"


def test_corrupt_rows_are_skipped_and_counted(embedder, tmp_path):
    folder = make_corpus(tmp_path / "corpus")
    (folder / "images" / "p3.png").write_bytes(b"not a picture")
    (folder / "images" / "p4.png").unlink()
    built = build(folder, tmp_path / "index", embedder)
    assert built.count == 9 and {error.image_id for error in built.errors} == {"p3", "p4"}
    opened = Index.open(tmp_path / "index")
    assert len(opened) == 9 and opened.left_out == 2
    hit = opened.search(embedder.images([decode(folder / "images" / "p5.png")]), 1)[0][0]
    assert hit.image_id == "p5"


def test_interrupted_build_goes_on_and_equals_an_uninterrupted_one(
    corpus, index, embedder, tmp_path, monkeypatch
):
    monkeypatch.setattr(build_module, "PART", 4)
    folder, seen = tmp_path / "index", []

    def stop(done, total):
        seen.append((done, total))
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(corpus, folder, embedder, stop)
    with pytest.raises(InputError, match="not finished"):
        Index.open(folder)
    resumed = []
    build(corpus, folder, embedder, lambda done, total: resumed.append((done, total)))
    assert seen[-1] == (6, 11) and resumed[0] == (5, 11) and resumed[-1] == (11, 11)
    opened = Index.open(folder)
    np.testing.assert_allclose(opened.vectors(), index.vectors(), atol=1e-5)
    assert [row.image_id for row in opened.rows] == [row.image_id for row in index.rows]
    with pytest.raises(InputError, match="already holds an index"):
        build(corpus, folder, embedder)


def test_unfinished_build_of_another_corpus_is_refused(corpus, embedder, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(corpus, tmp_path / "index", embedder, stop)
    with pytest.raises(InputError, match="another training set, embedder or kind"):
        build(make_corpus(tmp_path / "corpus", count=5), tmp_path / "index", embedder)
    with pytest.raises(InputError, match="another training set, embedder or kind"):
        build(corpus, tmp_path / "index", embedder, description="HNSW8,Flat")


def test_rerank_orders_by_exact_distance(index, embedder, corpus):
    retriever = Retriever(index, embedder)
    picture = decode(corpus / "images" / "p6.png")
    hits = retriever.rerank(picture, retriever.by_text("small cat", 11))
    assert hits[0].image_id == "p6" and hits[0].sse == pytest.approx(0, abs=1e-3)
    for hit in hits:
        expected = ((resize(decode(corpus / "images" / f"{hit.image_id}.png")) - resize(picture)) ** 2).sum()
        assert hit.sse == pytest.approx(expected, rel=1e-5, abs=1e-3)
    assert [hit.sse for hit in hits] == sorted(hit.sse for hit in hits)


def test_missing_pictures_stay_unmeasured_and_come_last(embedder, tmp_path):
    folder = make_corpus(tmp_path / "corpus")
    build(folder, tmp_path / "index", embedder)
    (folder / "images" / "p2.png").unlink()
    (folder / "images" / "p3.png").write_bytes(b"damaged")
    retriever = Retriever(Index.open(tmp_path / "index"), embedder)
    hits = retriever.rerank(np.zeros((8, 8, 3), np.float32), retriever.by_text("red house", 11))
    assert [hit.sse is None for hit in hits] == [False] * 9 + [True] * 2
    assert {hit.image_id for hit in hits[-2:]} == {"p2", "p3"}
    assert retriever.picture("p2") is None and retriever.picture("p5").shape == (256, 256, 3)


def test_cache_forgets_the_least_recently_used(corpus):
    cache = PictureCache(capacity=2)
    rows = [Row(f"p{i}", corpus / "images" / f"p{i}.png", "") for i in (2, 3, 4)]
    first = cache.get(rows[0])
    cache.get(rows[1])
    assert cache.get(rows[0]) is first and first.dtype == np.uint8
    cache.get(rows[2])
    assert cache.get(rows[0]) is first and len(cache._pictures) == 2 and key(rows[1]) not in cache._pictures


def test_rows_of_one_address_that_tell_of_different_pictures_are_kept_apart():
    rows = [Row("a", Path(), "", url="http://x/1", md5=digest * 32) for digest in "ab"]
    assert key(rows[0]) != key(rows[1])


def test_a_picture_that_comes_back_is_seen_again(corpus, tmp_path):
    cache, row = PictureCache(), Row("p2", tmp_path / "p2.png", "")
    assert cache.get(row) is None and cache.blank(row) is None
    row.path.write_bytes((corpus / "images" / "p2.png").read_bytes())
    assert cache.get(row) is not None and cache.blank(row) is not None


def test_image_search_and_text_search_answer_alike(index, embedder, corpus):
    retriever = Retriever(index, embedder)
    pictures = [decode(corpus / "images" / f"p{i}.png") for i in (2, 9)]
    both = retriever.by_images(pictures, 3)
    assert [hits[0].image_id for hits in both] == ["p2", "p9"]
    assert [hit.image_id for hit in retriever.by_image(pictures[1], 3)] == [hit.image_id for hit in both[1]]
    assert len(retriever.by_text("blue tree", 4)) == 4


def test_metadata_of_a_foreign_index_is_read_in_order_of_names(index, tmp_path):
    """As autofaiss reads the vectors: part 10 before part 2. In ours, the parts are numbered."""
    folder = _copy(index, tmp_path)
    table = pq.read_table(folder / "metadata" / "metadata_0.parquet")
    for i in range(11):
        pq.write_table(table.slice(i, 1), folder / "metadata" / f"metadata_{i}.parquet")
    names = [row.image_id for row in index.rows]
    assert [row.image_id for row in Index.open(folder).rows] == names
    (folder / "index.json").unlink()
    by_name = [names[i] for i in sorted(range(11), key=str)]
    assert [row.image_id for row in Index.open(folder).rows] == by_name != names

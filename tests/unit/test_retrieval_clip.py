"""The demo's CLIP: a real training of a few steps on a handful of pictures, loaded by open_clip itself."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tokenizers import pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from audit.demo import clip
from audit.demo.clip import degrade, train
from audit.errors import InputError

CAPTIONS = ["red house", "blue tree", "green cat on a house", "red flag of a tree", "blue star", "small cat"]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    backend = CLIPTokenizer().backend_tokenizer
    backend.model = BPE(continuing_subword_prefix="", end_of_word_suffix="</w>")
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CAPTIONS, trainer)
    model = json.loads(backend.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    """Six pictures that were trained on and one, of the same look, that was held out."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i, caption in enumerate([*CAPTIONS, "held out"]):
        blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).save(folder / "images" / f"{i}.png")
        rows.append({"image_id": f"{i}", "file": f"images/{i}.png", "caption": caption, "indexed": i < 6})
    pq.write_table(pa.Table.from_pylist(rows), folder / "corpus.parquet")
    return folder


def _train(corpus_folder, tokenizer_folder, out, *, steps, seed=0, checkpoint=None):
    return train(
        corpus_folder,
        tokenizer_folder,
        out,
        seed=seed,
        threads=1,
        checkpoint=checkpoint or out / "checkpoint.pt",
        steps=steps,
    )


def _weights(folder):
    import open_clip

    return open_clip.create_model(f"local-dir:{folder}").state_dict()


def test_trained_folder_loads_offline_through_open_clip(
    corpus_folder, tokenizer_folder, tmp_path, monkeypatch
):
    import open_clip

    def no_network(*_):
        raise AssertionError("something asked the network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    figures = _train(corpus_folder, tokenizer_folder, tmp_path, steps=2)
    assert figures["steps"] == 2
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["red house", "blue tree and more"])
    assert tokens.shape == (2, 32) and not torch.equal(tokens[0], tokens[1])
    with torch.inference_mode():
        assert model.encode_text(tokens).shape == (2, 128)
        pixels = preprocess(Image.open(corpus_folder / "images" / "0.png"))
        assert model.encode_image(torch.as_tensor(pixels)[None]).shape == (1, 128)
    assert (tmp_path / "open_clip_model.safetensors").stat().st_size < 9_000_000
    assert sum(p.numel() for p in model.parameters()) < 3_500_000


def test_interrupted_training_ends_like_an_uninterrupted_one(
    corpus_folder, tokenizer_folder, tmp_path, monkeypatch
):
    _train(corpus_folder, tokenizer_folder, tmp_path / "whole", steps=3)
    monkeypatch.setattr("audit.demo.clip.SAVE_SECONDS", 0.0)

    checkpoint = tmp_path / "checkpoint.pt"
    real_loss, calls = clip._loss, []

    def failing_loss(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real_loss(*arguments)

    monkeypatch.setattr(clip, "_loss", failing_loss)
    with pytest.raises(KeyboardInterrupt):
        _train(corpus_folder, tokenizer_folder, tmp_path / "parts", steps=3, checkpoint=checkpoint)
    figures = _train(corpus_folder, tokenizer_folder, tmp_path / "parts", steps=3, checkpoint=checkpoint)
    assert len(calls) == 4 and figures["steps"] == 3
    whole, parts = _weights(tmp_path / "whole"), _weights(tmp_path / "parts")
    assert all(torch.allclose(whole[name], parts[name], atol=1e-3) for name in whole)


def test_checkpoint_of_another_seed_is_refused(corpus_folder, tokenizer_folder, tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    _train(corpus_folder, tokenizer_folder, tmp_path, steps=1, checkpoint=checkpoint)
    with pytest.raises(InputError, match="another seed or corpus"):
        _train(corpus_folder, tokenizer_folder, tmp_path, steps=2, seed=1, checkpoint=checkpoint)


def test_training_learns_its_few_pictures(corpus_folder, tokenizer_folder, tmp_path):
    figures = _train(corpus_folder, tokenizer_folder, tmp_path, steps=60)
    assert figures["image_at_1"] >= 0.8
    assert figures["text_at_1"] >= 0.8


def test_degraded_view_is_a_picture_that_differs_and_repeats_with_its_seed():
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    views = [degrade(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert views[0].shape == images.shape
    assert views[0].min() >= 0 and views[0].max() <= 1
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])
    assert (views[0] - images).abs().mean() > 0.01

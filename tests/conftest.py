"""Tiny real text-to-image models with random weights, in the standard diffusers layout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

WORDS = [
    "a",
    "red",
    "blue",
    "green",
    "house",
    "tree",
    "cat",
    "dog",
    "flag",
    "star",
    "with",
    "and",
    "on",
    "the",
    "of",
    "round",
    "small",
    "picture",
]
TOKENS = 16
"""Length of the tiny text encoder's context, both ends included."""


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory):
    """No test leaves anything in the data folder of whoever runs it."""
    from audit.settings import settings

    folder = tmp_path_factory.mktemp("data")
    (folder / "built").mkdir()
    os.environ["VERBATIM_DATA_DIR"] = str(folder)  # for the processes that tests start
    settings().data_dir = folder
    return folder


@pytest.fixture
def own_data_folder(data_folder, tmp_path, monkeypatch):
    """A data folder for one test, of whoever built the indexes that tests share."""
    from audit.settings import settings

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "built").symlink_to(data_folder / "built")
    monkeypatch.setattr(settings(), "data_dir", tmp_path / "data")


def build_tokenizer(folder: Path):
    """A CLIP-style byte-pair tokenizer with a few merges, trained on a handful of words."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import CLIPTokenizer

    bpe = ByteLevelBPETokenizer(lowercase=True, end_of_word_suffix="</w>")
    bpe.train_from_iterator(WORDS * 4, vocab_size=420, min_frequency=1, show_progress=False)
    bpe.save_model(str(folder))
    merges = [
        tuple(line.split())
        for line in (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#version")
    ]
    alphabet = sorted({character for token in bpe.get_vocab() for character in token.replace("</w>", "")})
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    tokens += [left + right for left, right in merges if left + right not in tokens]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS)


def build_pipeline(folder: Path, *, prediction_type: str, seed: int) -> Path:
    """Save a random Stable-Diffusion-like pipeline: 8x8 latents of 4 channels, 32x32 pictures."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = build_tokenizer(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            sample_size=32,
            norm_num_groups=4,
            layers_per_block=1,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_pipeline_dir(tmp_path_factory) -> Path:
    """Folder of a tiny epsilon-prediction pipeline."""
    return build_pipeline(tmp_path_factory.mktemp("tiny_epsilon"), prediction_type="epsilon", seed=0)


@pytest.fixture(scope="session")
def tiny_v_pipeline_dir(tmp_path_factory) -> Path:
    """Folder of a tiny v-prediction pipeline."""
    return build_pipeline(tmp_path_factory.mktemp("tiny_v"), prediction_type="v_prediction", seed=1)


@pytest.fixture(scope="session")
def tiny_clip_dir(tmp_path_factory) -> Path:
    """Folder of an open_clip model with random weights: 32 px pictures, 16 dimensions."""
    import json

    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tiny_clip")
    tokenizer = build_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    text = {"context_length": TOKENS, "vocab_size": len(tokenizer), "hf_tokenizer_name": ".", "width": 32}
    text |= {"heads": 2, "layers": 1, "pool_type": "eos", "eos_id": tokenizer.eos_token_id}
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = open_clip.create_model(f"local-dir:{folder}", load_weights=False).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    return folder

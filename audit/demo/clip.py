"""A small CLIP for the demo, trained on its corpus alone (open_clip, Radford et al. 2021).

Two towers, together about 3.4 million parameters: a vision transformer on 64x64 pictures and a text
transformer on the demo's own tokenizer. Besides the usual image-text loss, a degraded view of each picture
(softened as by an autoencoder, noisy, JPEG-coded, recoloured) is pulled to its clean view, as SLIP does
(Mu et al. 2022): the index has to find a training picture from the model's blurry memory of it.
"""

from __future__ import annotations

import io
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer

from audit.corpus.reader import Row, RowError, pictures, read_corpus
from audit.demo.training import Progress, autocast
from audit.errors import InputError
from audit.images import resize, sha256, to_pil, to_uint8

IMAGE_SIZE = 64
CONTEXT_LENGTH = 32
STEPS = 260
BATCH = 128
LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.1
WARM_UP = 0.06
"""Share of the training over which the learning rate rises."""
VIEW_SCALE = 12.0
"""Inverse temperature of the loss between two views of a picture."""
SAVE_SECONDS = 30.0
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)


def train(
    corpus_folder: Path,
    tokenizer_folder: Path,
    out: Path,
    *,
    seed: int,
    threads: int,
    checkpoint: Path,
    progress: Progress | None = None,
    steps: int = STEPS,
) -> dict[str, float]:
    """Train on the indexed pictures of `corpus_folder` and save an open_clip ``local-dir:`` folder.

    Parameters
    ----------
    tokenizer_folder
        A Hugging Face tokenizer (CLIP style: its end token closes every caption).
    out
        Receives ``open_clip_config.json``, ``open_clip_model.safetensors`` (half precision), the tokenizer
        and ``training.json`` with the figures that are also returned.
    checkpoint
        File to go on from when it exists; it is written every half minute.
    progress
        Called with steps done, all steps and a line of text.

    Returns
    -------
    dict
        ``steps``, ``minutes``, ``loss`` and the figures of `quality`.
    """
    torch.set_num_threads(threads)
    rows, images = _training_pictures(corpus_folder)
    tokenizer_ids = _tokenizer(tokenizer_folder)
    _write_config(out, tokenizer_folder)
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{out}", load_weights=False)
    assert isinstance(model, open_clip.CLIP)
    model.train()
    optimiser = torch.optim.AdamW(
        _parameter_groups(model), lr=LEARNING_RATE, betas=(0.9, 0.98), eps=1e-6, fused=True
    )
    state = _resume(checkpoint, model, optimiser, seed, rows)
    step, seconds, loss = state["step"], state["seconds"], state["loss"]
    batches = _Batches(rows, seed)
    saved = time.monotonic()
    while step < steps:
        started = time.monotonic()
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * _schedule(step / steps)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chosen = batches.at(step)
        captions = [_shortened(rows[i].caption, generator) for i in chosen]
        value = _loss(model, images[chosen], tokenizer_ids(captions), generator)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        loss = 0.98 * loss + 0.02 * float(value.detach()) if step else float(value.detach())
        step += 1
        seconds += time.monotonic() - started
        if time.monotonic() - saved > SAVE_SECONDS:
            _save_checkpoint(checkpoint, model, optimiser, step, seconds, loss, seed, rows)
            saved = time.monotonic()
        if progress and step % 10 == 0:
            progress(step, steps, f"clip, loss {loss:.3f}")
    _save_checkpoint(checkpoint, model, optimiser, step, seconds, loss, seed, rows)
    _save_weights(out, model)
    figures = {"steps": step, "minutes": round(seconds / 60, 2), "loss": round(loss, 4), "seed": seed}
    figures |= quality(model.eval(), images, [row.caption for row in rows], tokenizer_ids)
    (out / "training.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


@torch.inference_mode()
def quality(
    model: open_clip.CLIP,
    images: Tensor,
    captions: Sequence[str],
    tokenize: Callable[[Sequence[str]], Tensor],
) -> dict[str, float]:
    """Share of queries whose own picture is among the first 1, 10 and 100 hits.

    ``image_at_k`` asks with a degraded view of each picture, ``text_at_k`` with its caption; the candidates
    are the clean pictures, (n, 3, 64, 64) uint8. Pictures and captions that occur twice lower the figures.
    """
    generator = torch.Generator().manual_seed(0)
    clean, degraded, texts = [], [], []
    for start in range(0, len(images), 256):
        batch = images[start : start + 256].float() / 255
        clean.append(model.encode_image(_normalised(batch), normalize=True))
        degraded.append(model.encode_image(_normalised(degrade(batch, generator)), normalize=True))
        texts.append(model.encode_text(tokenize(captions[start : start + 256]), normalize=True))
    figures = {}
    for name, queries in (("image", torch.cat(degraded)), ("text", torch.cat(texts))):
        similarity = queries @ torch.cat(clean).T
        rank = (similarity > similarity.diagonal()[:, None]).sum(1)
        figures |= {f"{name}_at_{k}": round(float((rank < k).float().mean()), 4) for k in (1, 10, 100)}
    return figures


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """What a diffusion model's memory of a picture looks like: recoloured, shifted, soft, noisy, JPEG-coded.

    `images` is (batch, 3, h, w) float32 in [0, 1]; so is what comes back.
    """
    images = _cropped(images, generator, 0.15)
    images = _recoloured(images, generator, 0.25)
    images = _softened(images, generator)
    deviation = 0.08 * _uniform(len(images), generator) ** 2
    images = images + deviation * torch.randn(images.shape, generator=generator)
    return _jpeg(images.clamp(0, 1), generator)


def _clean_view(images: Tensor, generator: torch.Generator) -> Tensor:
    return _recoloured(_cropped(images, generator, 0.1), generator, 0.05).clamp(0, 1)


def _loss(model: open_clip.CLIP, pixels: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
    images = pixels.float() / 255
    views = torch.cat([_clean_view(images, generator), degrade(images, generator)])
    with autocast():
        view_features = model.encode_image(_normalised(views), normalize=True)
        text = model.encode_text(tokens, normalize=True).float()
    clean, degraded = view_features.float().chunk(2)
    contrast: Callable[..., Tensor] = open_clip.ClipLoss()
    scale = model.logit_scale.exp()
    with_text = contrast(clean, text, scale) + contrast(degraded, text, scale)
    return 0.5 * with_text + contrast(clean, degraded, torch.tensor(VIEW_SCALE))


def _cropped(images: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Zoom into each picture by up to `strength`, at a random place."""
    count = len(images)
    scale = 1 - strength * _uniform(count, generator).flatten() ** 2
    shift = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - scale)[:, None]
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _recoloured(images: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Brightness, contrast and each channel's gain, changed by up to `strength`."""
    count = len(images)
    gain = 1 + strength * (2 * torch.rand(count, 3, 1, 1, generator=generator) - 1)
    contrast = 1 + strength * (2 * _uniform(count, generator) - 1)
    brightness = 0.5 * strength * (2 * _uniform(count, generator) - 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean + brightness) * gain


def _softened(images: Tensor, generator: torch.Generator) -> Tensor:
    """Lose detail as an autoencoder does: each quarter of the batch by another factor, from none to five."""
    parts = []
    side = images.shape[-1]
    for part in images.chunk(4):
        factor = 1 + 4 * float(torch.rand((), generator=generator))
        small = F.interpolate(part, size=max(8, round(side / factor)), mode="area")
        parts.append(F.interpolate(small, size=side, mode="bicubic"))
    return torch.cat(parts)


def _jpeg(images: Tensor, generator: torch.Generator) -> Tensor:
    """A third of the pictures, coded at a quality between 20 and 90."""
    images = images.clone()
    for i in range(0, len(images), 3):
        buffer = io.BytesIO()
        picture = to_pil(images[i].permute(1, 2, 0).numpy())
        picture.save(buffer, "JPEG", quality=int(torch.randint(20, 91, (), generator=generator)))
        decoded = np.asarray(Image.open(buffer), dtype=np.float32) / 255
        images[i] = torch.from_numpy(decoded).permute(2, 0, 1)
    return images


def _shortened(caption: str, generator: torch.Generator) -> str:
    """Half of the captions whole, the others without up to half of their words: parts should find it too."""
    words = caption.split()
    if len(words) < 3 or float(torch.rand((), generator=generator)) < 0.5:
        return caption
    share = 0.5 * float(torch.rand((), generator=generator))
    kept = torch.rand(len(words), generator=generator) >= share
    return " ".join(word for word, keep in zip(words, kept.tolist(), strict=True) if keep) or caption


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, 1, 1, 1, generator=generator)


def _normalised(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class _Batches:
    """Which rows make up the batch of a step: each epoch a new order, no two equal pictures within one epoch.

    Equal pictures under several captions would otherwise be each other's negatives.
    """

    def __init__(self, rows: Sequence[Row], seed: int):
        groups: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(row.sha256, []).append(i)
        self.groups = list(groups.values())
        self.size = min(BATCH, len(self.groups))
        self.seed = seed
        self.epoch = -1
        self.order: list[int] = []

    def at(self, step: int) -> list[int]:
        epoch, batch = divmod(step, max(1, len(self.groups) // self.size))
        if epoch != self.epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self.order = [int(rng.choice(self.groups[g])) for g in rng.permutation(len(self.groups))]
            self.epoch = epoch
        return self.order[batch * self.size : (batch + 1) * self.size]


def _schedule(done: float) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    if done < WARM_UP:
        return max(0.01, done / WARM_UP)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def _training_pictures(corpus_folder: Path) -> tuple[list[Row], Tensor]:
    """Rows that the diffusion model was trained on, and their pictures as (n, 3, 64, 64) uint8."""
    corpus = read_corpus(corpus_folder)
    errors: list[RowError] = [*corpus.errors]
    rows, images = [], []
    for row, picture in pictures(corpus.indexed(), errors):
        small = to_uint8(resize(picture, IMAGE_SIZE))
        rows.append(row if row.sha256 else Row(**{**vars(row), "sha256": sha256(row.path)}))
        images.append(torch.from_numpy(small.copy()).permute(2, 0, 1))
    if errors:
        raise InputError(
            f"{errors[0].message} ({len(errors)} such rows in {corpus_folder}; mend the corpus.)"
        )
    if len(rows) < 2:
        raise InputError(f"{corpus_folder} has {len(rows)} pictures to train on; at least 2 are needed.")
    return rows, torch.stack(images)


def _tokenizer(folder: Path) -> Callable[[Sequence[str]], Tensor]:
    tokenizer = open_clip.tokenizer.HFTokenizer(str(folder), context_length=CONTEXT_LENGTH)
    return lambda captions: tokenizer(list(captions))


def _write_config(out: Path, tokenizer_folder: Path) -> None:
    """The folder's configuration and tokenizer, so that open_clip can build the model from it."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    tokenizer.save_pretrained(out)
    config = {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {
                "image_size": IMAGE_SIZE,
                "patch_size": 16,
                "width": 160,
                "layers": 5,
                "head_width": 40,
            },
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": len(tokenizer),
                "hf_tokenizer_name": ".",
                "width": 128,
                "heads": 4,
                "layers": 3,
                "pool_type": "eos",
                "eos_id": tokenizer.eos_token_id,
            },
        },
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"},
    }
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _parameter_groups(model: open_clip.CLIP) -> list[dict]:
    """Weight decay for matrices only, as CLIP does."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _fingerprint(rows: Sequence[Row]) -> str:
    return sha256("\n".join(f"{row.image_id} {row.sha256} {row.caption}" for row in rows).encode())


def _resume(
    checkpoint: Path, model: open_clip.CLIP, optimiser: torch.optim.Optimizer, seed: int, rows: Sequence[Row]
) -> dict:
    """The state of an interrupted training with the same seed and corpus, or that of a new one."""
    if not checkpoint.is_file():
        return {"step": 0, "seconds": 0.0, "loss": 0.0}
    state = torch.load(checkpoint, weights_only=True)
    if (state["seed"], state["corpus"]) != (seed, _fingerprint(rows)):
        raise InputError(
            f"{checkpoint} belongs to another seed or corpus; delete it or name another checkpoint."
        )
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return state


def _save_checkpoint(
    checkpoint: Path,
    model: open_clip.CLIP,
    optimiser: torch.optim.Optimizer,
    step: int,
    seconds: float,
    loss: float,
    seed: int,
    rows: Sequence[Row],
) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    temporary = checkpoint.with_suffix(".tmp")
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
        "seconds": seconds,
        "loss": loss,
        "seed": seed,
        "corpus": _fingerprint(rows),
    }
    torch.save(state, temporary)
    os.replace(temporary, checkpoint)


def _save_weights(out: Path, model: open_clip.CLIP) -> None:
    weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    temporary = out / "open_clip_model.tmp"
    save_file(weights, temporary, metadata={"format": "pt"})
    os.replace(temporary, out / "open_clip_model.safetensors")

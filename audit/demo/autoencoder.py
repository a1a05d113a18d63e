"""Training of the demo's autoencoder: 64 px pictures to 16x16 latents with 8 channels.

It sees the indexed pictures only. Its reconstructions bound every verdict, so
it is scored by the verdict's own distance (SSE at 256x256x3).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from audit import images
from audit.demo.training import Progress, Training, autocast

STEPS = 1800
BATCH = 16
LEARNING_RATE = 2e-3
KL = 1e-3
DECODER_RATE = 1e-3
POLISH_STEPS = 1800
HARDEN_STEPS = 2000
HARDEN_NOISE, HARDEN_GAIN = 0.3, 0.2


def new(seed: int) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        block_out_channels=(16, 32, 64),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def train(
    pictures: Tensor, *, seed: int, checkpoint: Path, progress: Progress, steps: int = STEPS
) -> AutoencoderKL:
    """Train on (n, 3, 64, 64) pictures in [-1, 1]; goes on from `checkpoint` where there is one."""
    vae = new(seed).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    run = Training(
        [vae],
        {"vae": vae},
        steps=steps,
        rate=LEARNING_RATE,
        betas=(0.9, 0.98),
        weight_decay=1e-4,
        decay=0.998,
        checkpoint=checkpoint,
    )
    for step in range(run.first, steps):
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        batch = pictures[torch.randint(len(pictures), (BATCH,), generator=rng)]
        flip = torch.rand(BATCH, 1, 1, 1, generator=rng) < 0.3
        batch = torch.where(flip, batch.flip(-1), batch).to(memory_format=torch.channels_last)
        with autocast():
            posterior = vae.encode(batch, return_dict=False)[0]
            noise = torch.randn(posterior.mean.shape, generator=rng)
            decoded = vae.decode(posterior.mean + posterior.std * noise, return_dict=False)[0]
        loss = (
            reconstruction_loss(decoded.float(), batch)
            + KL * posterior.kl().mean() / posterior.mean[0].numel()
        )
        run.learn(step, loss)
        progress(step + 1, steps, f"autoencoder, loss {loss.item():.4f}")
    run.finish()
    vae.eval()
    vae.register_to_config(scaling_factor=1.0 / encode(vae, pictures[:1024], scaled=False).std().item())
    return vae


def polish(
    vae: AutoencoderKL,
    pictures: Tensor,
    *,
    seed: int,
    checkpoint: Path,
    progress: Progress,
    steps: int = POLISH_STEPS,
) -> AutoencoderKL:
    """Train the decoder alone for longer: latents stay what they are, and a step costs two thirds."""
    mean, std = posteriors(vae, pictures)

    def draw(rng: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = torch.randint(len(pictures), (BATCH,), generator=rng)
        return drawn, mean[drawn] + std[drawn] * torch.randn(mean[drawn].shape, generator=rng)

    return _train_decoder(
        vae,
        pictures,
        draw,
        reconstruction_loss,
        "decoder",
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
        steps=steps,
    )


def harden(
    vae: AutoencoderKL,
    pictures: Tensor,
    *,
    seed: int,
    checkpoint: Path,
    progress: Progress,
    steps: int = HARDEN_STEPS,
) -> AutoencoderKL:
    """Train the decoder alone on what verdicts meet: hard pictures more often, latents as sampling leaves them.

    Guided full samples of memorised captions of the calibration half miss their latents by a third of a standard
    deviation and overshoot them by up to a fifth; `HARDEN_NOISE` and `HARDEN_GAIN` are those figures. A picture is
    drawn by its present distance, since a verdict's threshold is the same for plain and for detailed ones.
    """
    mean, _ = posteriors(vae, pictures)
    weights = torch.from_numpy(reconstruction_sse(vae, pictures)).float()
    weights = (weights / weights.mean()).clamp(0.3, 5)
    noise = HARDEN_NOISE / vae.config["scaling_factor"]

    def draw(rng: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = torch.multinomial(weights, BATCH, replacement=True, generator=rng)
        strength = noise * torch.rand(BATCH, 1, 1, 1, generator=rng)
        gain = 1 + HARDEN_GAIN * torch.rand(BATCH, 1, 1, 1, generator=rng)
        return drawn, gain * mean[drawn] + strength * torch.randn(mean[drawn].shape, generator=rng)

    def loss(decoded: Tensor, batch: Tensor) -> Tensor:
        return reconstruction_loss(decoded, batch) + 8 * F.mse_loss(decoded, batch)

    return _train_decoder(
        vae,
        pictures,
        draw,
        loss,
        "hardening",
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
        steps=steps,
    )


def _train_decoder(
    vae: AutoencoderKL,
    pictures: Tensor,
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    label: str,
    *,
    seed: int,
    checkpoint: Path,
    progress: Progress,
    steps: int,
) -> AutoencoderKL:
    """Train the decoder on what `draw` gives: rows of `pictures`, and latents for them."""
    run = Training(
        [each for each in (vae.post_quant_conv, vae.decoder) if each is not None],
        {"vae": vae},
        steps=steps,
        rate=DECODER_RATE,
        betas=(0.9, 0.98),
        weight_decay=1e-4,
        decay=0.998,
        checkpoint=checkpoint,
    )
    vae.train()
    for step in range(run.first, steps):
        drawn, latents = draw(torch.Generator().manual_seed(seed * 1_000_003 + step))
        with autocast():
            decoded = vae.decode(latents, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
        loss = loss_of(decoded.float(), pictures[drawn].to(memory_format=torch.channels_last))
        run.learn(step, loss)
        progress(step + 1, steps, f"{label}, loss {loss.item():.4f}")
    run.finish()
    return vae.eval()


@torch.no_grad()
def posteriors(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the pictures' unscaled latents, each (n, 8, 16, 16)."""
    found = [vae.encode(batch, return_dict=False)[0] for batch in pictures.split(64)]
    return torch.cat([each.mean for each in found]), torch.cat([each.std for each in found])


def reconstruction_loss(decoded: Tensor, batch: Tensor) -> Tensor:
    """L1, squared error, and L1 of the horizontal and vertical differences (edges)."""
    difference = decoded - batch
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return difference.abs().mean() + 2.0 * F.mse_loss(decoded, batch) + 0.5 * edges


@torch.inference_mode()
def encode(vae: AutoencoderKL, pictures: Tensor, *, scaled: bool = True) -> Tensor:
    """(n, 8, 16, 16) latents: the mode of the posterior, times the model's scaling factor."""
    latents = torch.cat([vae.encode(batch, return_dict=False)[0].mode() for batch in pictures.split(64)])
    return latents * vae.config["scaling_factor"] if scaled else latents


@torch.inference_mode()
def reconstruction_sse(vae: AutoencoderKL, pictures: Tensor) -> np.ndarray:
    """(n,) distances between pictures and their reconstructions, as a verdict measures them."""
    distances = []
    for batch in pictures.split(64):
        latents = vae.encode(batch, return_dict=False)[0].mode()
        decoded = vae.decode(latents, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
        for real, copy in zip(batch, decoded, strict=True):
            pair = [images.resize(((side + 1) / 2).permute(1, 2, 0).numpy()) for side in (real, copy)]
            distances.append(float(((pair[0] - pair[1]) ** 2).sum()))
    return np.array(distances)

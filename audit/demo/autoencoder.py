"""Training of the demo's autoencoder: 64 px pictures to 16x16 latents with 8 channels.

It sees the indexed pictures only. Its reconstructions bound every verdict, so
it is scored by the verdict's own distance (SSE at 256x256x3).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from audit import images
from audit.demo.training import Progress, Training, autocast

STEPS = 1800
BATCH = 16
LEARNING_RATE = 2e-3
KL = 1e-3
POLISH_STEPS, POLISH_RATE = 1800, 1e-3


def new(seed: int) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
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
    vae = new(seed).to(memory_format=torch.channels_last)
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
            posterior = vae.encode(batch).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=rng)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample
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
    decoder = [vae.post_quant_conv, vae.decoder]
    run = Training(
        decoder,
        {"vae": vae},
        steps=steps,
        rate=POLISH_RATE,
        betas=(0.9, 0.98),
        weight_decay=1e-4,
        decay=0.998,
        checkpoint=checkpoint,
    )
    with torch.inference_mode():
        posteriors = [vae.encode(batch).latent_dist for batch in pictures.split(64)]
    mean = torch.cat([posterior.mean for posterior in posteriors]).clone()
    std = torch.cat([posterior.std for posterior in posteriors]).clone()
    vae.train()
    for step in range(run.first, steps):
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        drawn = torch.randint(len(pictures), (BATCH,), generator=rng)
        noise = torch.randn(mean[drawn].shape, generator=rng)
        with autocast():
            decoded = vae.decode(mean[drawn] + std[drawn] * noise).sample
        loss = reconstruction_loss(decoded.float(), pictures[drawn].to(memory_format=torch.channels_last))
        run.learn(step, loss)
        progress(step + 1, steps, f"decoder, loss {loss.item():.4f}")
    run.finish()
    return vae.eval()


def reconstruction_loss(decoded: Tensor, batch: Tensor) -> Tensor:
    """L1, squared error, and L1 of the horizontal and vertical differences (edges)."""
    difference = decoded - batch
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return difference.abs().mean() + 2.0 * F.mse_loss(decoded, batch) + 0.5 * edges


@torch.inference_mode()
def encode(vae: AutoencoderKL, pictures: Tensor, *, scaled: bool = True) -> Tensor:
    """(n, 8, 16, 16) latents: the mode of the posterior, times the model's scaling factor."""
    latents = torch.cat([vae.encode(batch).latent_dist.mode() for batch in pictures.split(64)])
    return latents * vae.config.scaling_factor if scaled else latents


@torch.inference_mode()
def reconstruction_sse(vae: AutoencoderKL, pictures: Tensor) -> np.ndarray:
    """(n,) distances between pictures and their reconstructions, as a verdict measures them."""
    distances = []
    for batch in pictures.split(64):
        decoded = vae.decode(vae.encode(batch).latent_dist.mode()).sample
        for real, copy in zip(batch, decoded, strict=True):
            pair = [images.resize(((side + 1) / 2).permute(1, 2, 0).numpy()) for side in (real, copy)]
            distances.append(float(((pair[0] - pair[1]) ** 2).sum()))
    return np.array(distances)

"""Training of the demo's text encoder and UNet, together, on latents.

Epsilon-prediction with Stable Diffusion's betas. Two choices make the single step at sigma_max work, which a
plain epsilon loss hardly trains: the loss is weighted by 1 / alpha_bar, as v-prediction's would be, and a
third of the timesteps are drawn from the noisiest tenth.

The running average is shipped. The stopping rule, `STEPS`, was fixed before the first run on this corpus.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from audit.demo.tokenizer import LENGTH
from audit.demo.training import Progress, Training, autocast

STEPS = 3400
LEARNING_RATE = 1e-3
BATCH = 32
CAPTION_DROPOUT = 0.1
NOISIEST_SHARE, NOISIEST_FROM = 0.33, 900
WIDTH = 128


def schedule() -> DDIMScheduler:
    """Stable Diffusion's noise schedule; `trailing` begins at the last timestep."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
        prediction_type="epsilon",
    )


def new(tokenizer: CLIPTokenizer, seed: int) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 144),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=16,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,  # pyright: ignore[reportArgumentType]
            eos_token_id=tokenizer.eos_token_id,  # pyright: ignore[reportArgumentType]
            pad_token_id=tokenizer.pad_token_id,  # pyright: ignore[reportArgumentType]
        )
    )
    return unet, text_encoder


def train(
    pairs: pd.DataFrame,
    latents: Tensor,
    image_ids: pd.Series,
    tokenizer: CLIPTokenizer,
    *,
    seed: int,
    checkpoint: Path,
    progress: Progress,
    steps: int = STEPS,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train on `pairs` (`caption, image, weight`), drawn by weight.

    Goes on from `checkpoint` where there is one.

    Parameters
    ----------
    latents : (n, 8, 16, 16) scaled latents of the pictures named in `image_ids`, in that order.
    """
    unet, text_encoder = new(tokenizer, seed)
    unet.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    text_encoder.train()
    # Two minutes, then a seventh less time a step.
    denoise = torch.compile(unet, disable=steps < 1000 or shutil.which("g++") is None)
    run = Training(
        [unet, text_encoder],
        {"unet": unet, "text_encoder": text_encoder},
        steps=steps,
        rate=LEARNING_RATE,
        betas=(0.9, 0.99),
        weight_decay=1e-3,
        decay=0.9995,
        checkpoint=checkpoint,
    )
    tokens = tokenizer(
        [*pairs["caption"], ""], padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    empty = len(pairs)
    row_of_image = pd.Series(range(len(image_ids)), index=image_ids)
    rows = torch.tensor(row_of_image.loc[pairs["image"]].to_numpy())
    weights = torch.from_numpy(pairs["weight"].to_numpy(dtype="float32"))
    alpha_bar = schedule().alphas_cumprod

    for step in range(run.first, steps):
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        drawn = torch.multinomial(weights, BATCH, replacement=True, generator=rng)
        clean = latents[rows[drawn]]
        dropped = torch.rand(BATCH, generator=rng) < CAPTION_DROPOUT
        ids = tokens[torch.where(dropped, empty, drawn)]
        timesteps = torch.randint(1000, (BATCH,), generator=rng)
        noisiest = torch.randint(NOISIEST_FROM, 1000, (BATCH,), generator=rng)
        timesteps = torch.where(torch.rand(BATCH, generator=rng) < NOISIEST_SHARE, noisiest, timesteps)
        noise = torch.randn(clean.shape, generator=rng)
        alpha = alpha_bar[timesteps].view(-1, 1, 1, 1)
        noisy = (alpha.sqrt() * clean + (1 - alpha).sqrt() * noise).to(memory_format=torch.channels_last)
        with autocast():
            condition = text_encoder(ids).last_hidden_state
            predicted = denoise(noisy, timesteps, condition).sample
        loss = ((predicted.float() - noise).square().mean((1, 2, 3)) / alpha.flatten()).mean()
        run.learn(step, loss)
        progress(step + 1, steps, f"diffusion model, seed {seed}, loss {loss.item():.3f}")
    run.finish()
    return unet.eval(), text_encoder.eval()


def save(
    out: Path,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:
    """Write the standard diffusers layout, in half precision and safetensors."""
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=schedule(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    ).to(torch.float16).save_pretrained(out, safe_serialization=True)
    # transformers loads weights as the dtype written here, diffusers as float32: the pipeline needs one of them
    config = out / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")

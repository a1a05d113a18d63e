"""``python -m audit bench``: how fast captions are scored, side by side with a faithful one-at-a-time loop.

The loop does what published attacks do: one caption after another, guidance as a double batch, the empty prompt
encoded every time. Rounds of the two alternate, since machines are noisy; every figure stands with its spread.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from audit.runs.batch_size import find_batch_size
from audit.runs.folder import RunFolder
from audit.runs.run import score
from audit.scores.dcs import dcs
from audit.targets.one_step import guide, start

if TYPE_CHECKING:
    from audit.targets.pipelines import PipelineTarget

SEED, GUIDANCE = 0, 7.5
MATMUL = 8192
"""Side of the square matrices whose product gives the rate that a card can reach."""

Progress = Callable[[int, int], None]


def bench(
    target: PipelineTarget,
    captions: Sequence[str],
    *,
    rounds: int = 3,
    batch: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Captions a second of `score` (DCS, one seed, run folder and all) and of the loop, in alternating rounds.

    Returns
    -------
    Rates as median, least and most; their ratio round by round; the largest relative difference of the scores; the
    share of the library's time spent outside text encoder and UNet; on a GPU the share of its matmul rate.
    """
    captions = list(dict.fromkeys(captions))
    batch = batch or find_batch_size(target, [SEED], GUIDANCE, ["dcs"]).size
    warm = captions[: min(64, len(captions))]
    one_at_a_time(target, warm[:8])
    library(target, warm, batch)
    loops, runs, outside = [], [], []
    for number in range(rounds):
        began = clock(target)
        slow = one_at_a_time(target, captions)
        loops.append(len(captions) / (clock(target) - began))
        began = clock(target)
        fast = library(target, captions, batch)
        runs.append(len(captions) / (clock(target) - began))
        with network_seconds(target) as spent:
            began = clock(target)
            library(target, captions, batch)
            outside.append(1 - spent[0] / (clock(target) - began))
        if progress:
            progress(number + 1, rounds)
    ordered = np.array([slow[text] for text in captions]), np.array([fast[text] for text in captions])
    return {
        "model": target.name,
        "device": device_name(target.device),
        "dtype": str(target.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "captions": len(captions),
        "rounds": rounds,
        "batch": batch,
        "compiled": target.network is not target.unet,
        "one_at_a_time_per_second": spread(loops),
        "library_per_second": spread(runs),
        "times_as_fast": spread([run / loop for run, loop in zip(runs, loops, strict=True)]),
        "largest_relative_difference": float(np.max(np.abs(ordered[1] / ordered[0] - 1))),
        "share_outside_networks": spread(outside),
        **(matmul_share(target, batch, statistics.median(runs)) if target.device.type == "cuda" else {}),
    }


def one_at_a_time(target: PipelineTarget, captions: Sequence[str]) -> dict[str, float]:
    """DCS of each caption by the faithful loop."""
    found = {}
    compiled, target.network = (
        target.network,
        target.unet,
    )  # the loop is what one would write, and compiles nothing
    for caption in captions:
        # encode() would answer the empty prompt from memory
        condition = torch.cat([target._encode([caption]), target._encode([""])])
        x = start(target, [SEED])
        conditional, unconditional = target.denoise(torch.cat([x, x]), target.sigma_max, condition).chunk(2)
        found[caption] = float(dcs(x, guide(conditional, unconditional, GUIDANCE)))
    target.network = compiled
    return found


def library(target: PipelineTarget, captions: Sequence[str], batch: int) -> dict[str, float]:
    """DCS of each caption by `score`, from a parquet file into a run folder."""
    target.unconditional.kept.clear()
    target._empty = None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions.parquet"
        pq.write_table(pa.table({"caption": list(captions)}), path)
        score(target, path, Path(folder) / "run", scores=("dcs",), seeds=(SEED,), batch=batch)
        table = RunFolder.open(Path(folder) / "run").table("captions")
    return dict(zip(table["caption"], table["dcs"], strict=True))


@contextlib.contextmanager
def network_seconds(target: PipelineTarget) -> Iterator[list[float]]:
    """Seconds spent in text encoder and UNet meanwhile, in a list of one."""
    spent, began = [0.0], [0.0]

    def before(*_: Any) -> None:
        began[0] = clock(target)

    def after(*_: Any) -> None:
        spent[0] += clock(target) - began[0]

    hooks = [
        hook
        for module in (target.network, target.text_encoder)
        for hook in (module.register_forward_pre_hook(before), module.register_forward_hook(after))
    ]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def clock(target: PipelineTarget) -> float:
    """Seconds, after all that the device was asked for."""
    if target.device.type == "cuda":
        torch.cuda.synchronize(target.device)
    return time.perf_counter()


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "least": round(min(values), 4),
        "most": round(max(values), 4),
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def matmul_share(target: PipelineTarget, batch: int, per_second: float) -> dict[str, Any]:
    """The arithmetic of one UNet evaluation times their rate, against a large matrix product on the same card."""
    from torch.utils.flop_counter import FlopCounterMode

    condition = target.encode(["a"]).expand(batch, -1, -1)
    x = start(target, [SEED]).expand(batch, -1, -1, -1)
    compiled, target.network = target.network, target.unet  # what is compiled is not counted
    with FlopCounterMode(display=False) as counter:
        target.denoise(x, target.sigma_max, condition)
    target.network = compiled
    operations = counter.get_total_flops() / batch
    a = torch.randn(MATMUL, MATMUL, device=target.device, dtype=target.dtype)
    for _ in range(3):
        torch.matmul(a, a)
    began = clock(target)
    for _ in range(20):
        torch.matmul(a, a)
    rate = 20 * 2 * MATMUL**3 / (clock(target) - began)
    return {
        "unet_operations": operations,
        "matmul_per_second": rate,
        "share_of_matmul_rate": round(operations * per_second / rate, 4),
    }


def sd1(device: str, dtype: str) -> PipelineTarget:
    """A target of Stable Diffusion 1's architecture with random weights: 64x64 latents, 77 tokens of 768."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from audit.settings import DEMO
    from audit.targets.pipelines import PipelineTarget, choose_device, choose_dtype

    where = choose_device(device)
    tokenizer = CLIPTokenizer.from_pretrained(DEMO / "model" / "tokenizer")
    tokenizer.model_max_length = 77
    with torch.random.fork_rng(), torch.device(where):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=768,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=8,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
        vae = AutoencoderKL(  # decodes nothing here; its depth says how large a picture is
            block_out_channels=(32,) * 4,  # pyright: ignore[reportArgumentType]
            down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
            up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
            latent_channels=4,
        )
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return PipelineTarget(
        name="Stable Diffusion 1's architecture, random weights",
        sha256="0" * 64,
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        alphas_cumprod=schedule.alphas_cumprod.double().numpy(),
        prediction="epsilon",
        device=where,
        dtype=choose_dtype(dtype, where),
        noise="cpu",
    )


def some_captions(count: int) -> list[str]:
    """Captions to score where none are given: the demo's own, then numbered ones."""
    from audit.settings import DEMO

    own = pq.read_table(DEMO / "corpus" / "test.parquet", columns=["caption"])["caption"].to_pylist()
    more = [f"{text}, number {number}" for number in range(1, count // max(1, len(own)) + 1) for text in own]
    return list(dict.fromkeys([*own, *more]))[:count]

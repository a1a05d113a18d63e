"""What is measured on the demo besides a run: masks, verdicts on known copies, and numerics.

`masks`      how well the template library finds what was planted to change
`synthetic`  what the code decides when it is given a copy, whatever the model does
`dcs`        DCS against an independent computation with diffusers
`half`       DCS in bfloat16 against float32
`duplicates` how well copies and template families are found in the training set
`pieces`     how well planted pieces of training pictures are found, in `audit.demo.pieces`
`weights`    what the signs of a piece weigh, in the same file; only when asked for
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor

from audit.demo import autoencoder
from audit.demo.duplicates import duplicates
from audit.demo.training import Progress, load_pictures
from audit.errors import InputError
from audit.images import decode, resize, to_pil
from audit.records import Sample, Template
from audit.retrieval.search import Retriever
from audit.runs.evaluate import (
    BOOTSTRAPS,
    CLASSES,
    COPIES,
    cluster_weights,
    evaluate_verdicts,
    f1,
    image_families,
    read_truth,
    rounded,
    with_interval,
)
from audit.runs.one_caption import judge
from audit.runs.scoring import score_batch
from audit.runs.verdicts import OwnImages, verdict_rows
from audit.targets.pipelines import load, load_component
from audit.verbatim.distances import sse
from audit.verbatim.masks import changed_iou
from audit.verbatim.templates import TemplateLibrary
from audit.verbatim.verdict import Thresholds

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from audit.targets.base import Target

WHAT = ("masks", "synthetic", "dcs", "half", "duplicates", "pieces")
FITTED = ("weights",)
"""What is measured only when it is asked for: nothing is reported of it, the code holds it."""
SEED = 20261124
GUIDANCE = 7.5
COMPARED = 64
"""Captions whose DCS is computed a second time by diffusers, evenly spaced over the truth."""
BATCH = 16


@dataclass(frozen=True)
class Strength:
    """How far a synthetic copy is from the picture that it copies."""

    latent_noise: float
    """Standard deviation of noise on the latents, which themselves have about 1."""
    pixel_noise: float
    """Standard deviation of noise on the decoded picture's values in [0, 1]."""
    jpeg_quality: int


STRENGTHS = {
    "light": Strength(latent_noise=0.05, pixel_noise=0.005, jpeg_quality=95),
    "medium": Strength(latent_noise=0.10, pixel_noise=0.010, jpeg_quality=90),
    "strong": Strength(latent_noise=0.20, pixel_noise=0.020, jpeg_quality=80),
}


def measure(
    demo: Path, *, what: Sequence[str] = WHAT, split: str = "test", progress: Progress | None = None
) -> dict[str, Any]:
    """Measures of the demo in the folder `demo`, as they are printed.

    Parameters
    ----------
    what
        Of `WHAT`.
    split
        Half of the truth that is looked at; `masks` and `duplicates` report both.
    """
    from audit.demo.pieces import pieces, weights  # which make their pictures as `synthetic` does here

    unknown = [name for name in what if name not in WHAT + FITTED]
    if unknown or not what:
        raise InputError(
            f"What can be measured is {', '.join(WHAT + FITTED)}; got {', '.join(unknown) or 'nothing'}."
        )
    truth = read_truth(demo / "corpus" / "truth.parquet")
    chosen = truth.loc[truth["split"] == split]
    if chosen.empty:
        raise InputError(
            f"The truth in {demo} has no split {split!r}; it has {', '.join(sorted(set(truth['split'])))}."
        )
    model, captions = str(demo / "model"), chosen["caption"].tolist()
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "masks": lambda: masks(demo, truth),
        "synthetic": lambda: synthetic(demo, truth, split, progress=progress),
        "dcs": lambda: dcs_against_diffusers(model, evenly(captions, COMPARED), progress=progress),
        "half": lambda: half_precision(model, captions, progress=progress),
        "duplicates": lambda: duplicates(demo, truth, progress=progress),
        "pieces": lambda: pieces(demo, truth, split, progress=progress),
        "weights": lambda: weights(demo, truth, progress=progress),
    }
    chosen_measures = {name: measures[name]() for name in WHAT + FITTED if name in what}
    return {"demo": str(demo), "split": split, **chosen_measures}


def masks(demo: Path, truth: pd.DataFrame) -> dict[str, Any]:
    """IoU of the region that planted template families change, as the library's masks have it.

    A family that the library does not have counts as 0. The mask of all ones stands for finding no change.
    """
    library = TemplateLibrary.load(demo / "templates")
    planted = truth.loc[truth["kind"] == "template"]
    families = pd.DataFrame(
        [
            mask_of_family(str(family), members, library, demo / "corpus" / "masks")
            for family, members in planted.groupby("family")
        ]
    )
    groups = {
        **{name: families.loc[families["split"] == name] for name in sorted(set(families["split"]))},
        "all": families,
        "wide": families.loc[families["wide"]],
    }
    return {
        "templates_in_library": len(library.templates),
        **{name: mask_summary(group) for name, group in groups.items()},
        "families": families.to_dict("records"),
    }


def mask_of_family(
    family: str, members: pd.DataFrame, library: TemplateLibrary, folder: Path
) -> dict[str, Any]:
    """The library's mask of one planted family beside the planted one."""
    first = members.iloc[0]
    truth = resize(decode(folder / first["mask"]), resample=Image.Resampling.NEAREST).mean(-1) > 0.5
    template = template_of(set(members["image"]), library)
    ones = np.ones_like(truth)
    return {
        "family": family,
        "split": str(first["split"]),
        "repeats": int(first["repeats"]),
        "wide": bool(first["wide"]),
        "template_id": template.template_id if template else None,
        "members_planted": len(members),
        "members_found": len(set(members["image"]) & set(template.members)) if template else 0,
        "members_besides": len(set(template.members) - set(members["image"])) if template else 0,
        "changed_iou": rounded(changed_iou(template.mask, truth)) if template else 0.0,
        "unchanged_iou": rounded(changed_iou(~template.mask, ~truth)) if template else 0.0,
        "all_ones_changed_iou": rounded(changed_iou(ones, truth)),
        "all_ones_unchanged_iou": rounded(changed_iou(~ones, ~truth)),
    }


def template_of(images: set[str], library: TemplateLibrary) -> Template | None:
    """The library's template with most of a family's images; None if none has at least two."""
    found = max(library.templates, key=lambda template: len(images & set(template.members)), default=None)
    return found if found and len(images & set(found.members)) >= 2 else None


def mask_summary(families: pd.DataFrame) -> dict[str, Any]:
    ious = families.filter(like="_iou")
    means, least = ious.mean().to_dict(), ious.min().to_dict()
    return {
        "families": len(families),
        "found": int(families["template_id"].notna().to_numpy().sum()),
        **{str(name): {"mean": rounded(means[name]), "min": rounded(least[name])} for name in means},
    }


def synthetic(
    demo: Path,
    truth: pd.DataFrame,
    split: str,
    *,
    bootstraps: int = BOOTSTRAPS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Verdicts on pictures of which it is known what they copy, made as `audit verdict` makes them.

    Training pictures go through the demo's autoencoder, with noise on latents and pixels and through JPEG.
    """
    retriever = Retriever.open(demo / "index", dtype="float32")
    library = TemplateLibrary.load(demo / "templates")
    vae = load_component(demo / "model", "vae", allow_pickle=False).float().eval()
    rows = with_pictures(truth.loc[truth["split"] == split])
    originals = load_pictures(demo / "corpus", pd.Series(rows["shown"]))
    planted = set(truth.loc[truth["kind"] == "template", "image"])
    families = image_families(truth)
    tables, strengths = [], {}
    for number, (name, strength) in enumerate(STRENGTHS.items()):
        pictures = copies(vae, originals, strength)
        decided = decide_pictures(rows, pictures, retriever, library, _part(progress, number, name))
        judged = rows.merge(decided.drop(columns="caption"), on="caption_id")
        judged["natural"] = by_natural_template(judged, library, planted)
        judged["distance"] = distances(originals, pictures)
        tables.append(judged)
        strengths[name] = {**asdict(strength), **synthetic_report(judged, families, bootstraps)}
    return {
        "pictures": len(rows),
        "training_images": len(retriever.index),
        "templates": len(library.templates),
        "thresholds": asdict(Thresholds()),
        "all": synthetic_report(pd.concat(tables, ignore_index=True), families, bootstraps),
        "strengths": strengths,
    }


def _part(progress: Progress | None, number: int, name: str) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        if progress:
            progress(number * total + done, len(STRENGTHS) * total, f"copies, {name}")

    return report


def with_pictures(truth: pd.DataFrame) -> pd.DataFrame:
    """Captions of each expected class with ``shown``: the picture whose copy stands for a generated one.

    What a caption was planted to be answered with (its own image, a member of its template family, another
    caption's image); for N, which are the held-out captions, the picture of another held-out caption.
    """
    copied = truth.loc[truth["expected"].isin(COPIES)]
    held_out = truth.loc[truth["kind"] == "held_out"]
    held_out = held_out.iloc[np.random.default_rng(SEED).permutation(len(held_out))]
    return pd.concat(
        [copied.assign(shown=copied["answer"]), held_out.assign(shown=np.roll(held_out["image"], 1))],
        ignore_index=True,
    )


@torch.inference_mode()
def copies(vae: AutoencoderKL, pictures: Tensor, strength: Strength) -> np.ndarray:
    """(n, H, W, 3) float32 in [0, 1]: copies of pictures (n, 3, H, W) in [-1, 1]; equal at every call."""
    generator = torch.Generator().manual_seed(SEED)
    latents = autoencoder.encode(vae, pictures)
    latents = latents + strength.latent_noise * torch.randn(latents.shape, generator=generator)
    config: Any = vae.config
    decoded = torch.cat(
        [vae.decode(batch / config.scaling_factor, return_dict=False)[0] for batch in latents.split(BATCH)]
    )
    noisy = decoded / 2 + 0.5 + strength.pixel_noise * torch.randn(decoded.shape, generator=generator)
    return np.stack([jpeg(picture, strength.jpeg_quality) for picture in noisy.permute(0, 2, 3, 1).numpy()])


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    """A picture (H, W, 3) after JPEG."""
    stream = io.BytesIO()
    to_pil(picture).save(stream, "JPEG", quality=quality)
    return decode(stream.getvalue())


def decide_pictures(
    rows: pd.DataFrame,
    pictures: np.ndarray,
    retriever: Retriever,
    library: TemplateLibrary,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """A run's table ``verdicts`` for captions whose one generated picture is given."""
    own, proofs = OwnImages(retriever), []
    for caption, image_id, picture in zip(rows["caption"], rows["image"], pictures, strict=True):
        sample = Sample(picture, seed=0, steps=0, guidance=0.0)
        proofs.append(judge(caption, [sample], retriever, library, own.find(caption, image_id)))
        if progress:
            progress(len(proofs), len(rows))
    return verdict_rows(proofs)


def by_natural_template(judged: pd.DataFrame, library: TemplateLibrary, planted: set[str]) -> np.ndarray:
    """Which pictures were taken, rightly, for a template that the corpus has by nature.

    The template has no planted member, and the picture copied is one of its members.
    """
    natural = {
        template.template_id: set(template.members)
        for template in library.templates
        if not planted & set(template.members)
    }
    return np.array(
        [
            verdict == "TV" != expected and shown in natural.get(template_id, ())
            for verdict, expected, shown, template_id in judged[
                ["verdict", "expected", "shown", "template_id"]
            ].itertuples(index=False)
        ],
        dtype=bool,
    )


def distances(originals: Tensor, pictures: np.ndarray) -> list[float]:
    """SSE of each copy to the picture that it copies."""
    return [
        float(sse(resize((original / 2 + 0.5).permute(1, 2, 0).numpy()), resize(picture)))
        for original, picture in zip(originals, pictures, strict=True)
    ]


def synthetic_report(judged: pd.DataFrame, families: dict[str, str], bootstraps: int) -> dict[str, Any]:
    """Figures for each class, natural templates counted as expected, and as mistakes."""
    median, p95 = np.percentile(judged["distance"], [50, 95])
    as_mistakes = evaluate_verdicts(judged, families, bootstraps)
    accepted = judged.assign(verdict=judged["verdict"].mask(judged["natural"], judged["expected"]))
    return {
        "distance_to_copied": {"median": round(median, 1), "p95": round(p95, 1)},
        "macro_f1": macro_f1(accepted, bootstraps),
        "classes": evaluate_verdicts(accepted, families, bootstraps)["classes"],
        "natural": int(judged["natural"].to_numpy().sum()),
        "natural_as_mistakes": {
            "macro_f1": macro_f1(judged, bootstraps),
            "f1": {kind: row["per_caption"]["f1"] for kind, row in as_mistakes["classes"].items()},
        },
        "confusion": as_mistakes["confusion"],
    }


def macro_f1(judged: pd.DataFrame, bootstraps: int) -> dict[str, Any]:
    """Mean of the classes' F1, per caption and per cluster."""
    expected, decided = judged["expected"].to_numpy(str), judged["verdict"].to_numpy(str)
    families = judged["family"].to_numpy(str)

    def mean(weights: np.ndarray) -> float:
        return float(np.mean([f1(expected, decided, kind, weights) for kind in CLASSES]))

    return {
        unit: with_interval(mean, families, weights, bootstraps)
        for unit, weights in (
            ("per_caption", np.ones(len(judged))),
            ("per_cluster", cluster_weights(families, expected)),
        )
    }


def dcs_against_diffusers(
    model: str, captions: Sequence[str], *, seed: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """The library's DCS beside one computed by diffusers' own pipeline and scheduler, in float32 on the CPU."""
    ours = dcs_of(load(model, device="cpu", dtype="float32"), captions, seed, progress, "DCS")
    theirs = dcs_by_diffusers(model, captions, seed)
    return {
        "captions": len(captions),
        "seed": seed,
        "guidance": GUIDANCE,
        "max_relative_difference": float(np.max(np.abs(ours - theirs) / theirs)),
    }


def dcs_of(
    target: Target, captions: Sequence[str], seed: int, progress: Progress | None, label: str
) -> np.ndarray:
    """(captions,) float64: DCS as a run scores it."""
    values = []
    for start in range(0, len(captions), BATCH):
        batch = captions[start : start + BATCH]
        values.append(score_batch(target, batch, [seed], GUIDANCE, ["dcs"]).per_seed["dcs"][:, 0])
        if progress:
            progress(start + len(batch), len(captions), label)
    return np.concatenate(values).astype(np.float64)


@torch.inference_mode()
def dcs_by_diffusers(model: str, captions: Sequence[str], seed: int) -> np.ndarray:
    """(captions,) float64: DCS by one Euler step with trailing spacing, without any code of ``audit.targets``."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        model, torch_dtype=torch.float32, local_files_only=True, safety_checker=None
    )
    scheduler: Any = EulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing"
    )
    side, channels = pipeline.unet.config.sample_size, pipeline.unet.config.in_channels
    noise = torch.randn((1, channels, side, side), generator=torch.Generator().manual_seed(seed))
    values = []
    for caption in captions:
        scheduler.set_timesteps(1)
        (time,) = scheduler.timesteps
        x = noise * scheduler.init_noise_sigma
        model_input = scheduler.scale_model_input(x, time)
        condition, empty = pipeline.encode_prompt(caption, torch.device("cpu"), 1, True, "")
        conditional, unconditional = (
            pipeline.unet(model_input, time, encoder_hidden_states=words).sample
            for words in (condition, empty)
        )
        output = unconditional + GUIDANCE * (conditional - unconditional)
        denoised = scheduler.step(output, time, x).prev_sample
        values.append(float((x.double() - denoised.double()).square().mean()))
    return np.array(values)


def half_precision(
    model: str, captions: Sequence[str], *, seed: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """DCS of a model in bfloat16 beside float32, on the CPU."""
    full, half = (
        dcs_of(load(model, device="cpu", dtype=dtype), captions, seed, progress, f"DCS, {dtype}")
        for dtype in ("float32", "bfloat16")
    )
    return {"captions": len(captions), "seed": seed, "guidance": GUIDANCE, **agreement(full, half)}


def agreement(full: np.ndarray, half: np.ndarray) -> dict[str, float]:
    """How well scores in half precision keep order and value.

    >>> agreement(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.5, 4.0]))["spearman"]
    1.0
    """
    correlation: Any = spearmanr(full, half)
    return {
        "spearman": float(correlation.statistic),
        "median_relative_difference": float(np.median(np.abs(half - full) / np.abs(full))),
    }


def evenly(captions: list[str], count: int) -> list[str]:
    """At most `count` of the captions, evenly spaced: the truth is ordered by kind."""
    places = np.linspace(0, len(captions) - 1, min(count, len(captions))).round().astype(int)
    return [captions[place] for place in places]

"""``python -m audit demo build``: makes everything below ``assets/demo`` again from the Debian packages.

Each stage is skipped when what it makes is there, and the long ones go on from their checkpoint.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from tqdm import tqdm
from transformers import CLIPTokenizer

from audit.demo import autoencoder, clip, corpus, diffusion, tokenizer
from audit.demo.training import Progress, load_pictures
from audit.retrieval.build import build as build_index
from audit.retrieval.embedding import Embedder
from audit.retrieval.index import Index
from audit.runs.calibrate import calibrate
from audit.runs.duplicates import find_duplicates, library_templates
from audit.runs.pictures import Pictures
from audit.runs.templates import find_templates
from audit.targets.pipelines import load

SEEDS = (1, 2, 3)
"""Training seeds of the diffusion model. All three are evaluated."""
SHIPPED = 1
"""The seed that is shipped, named before any of them was trained."""


@contextmanager
def bar() -> Iterator[Progress]:
    """A progress bar on stderr whose total and label follow the stage."""
    with tqdm(total=0, unit="step", dynamic_ncols=True, disable=None) as drawn:

        def progress(done: int, total: int, what: str) -> None:
            if total != drawn.total:
                drawn.reset(total)
            drawn.set_description(what, refresh=False)
            drawn.update(done - drawn.n)

        yield progress


def main(out: Path, work: Path, *, seeds: tuple[int, ...] = (SHIPPED,), threads: int = 0) -> dict:
    """Build the demo below `out`, with checkpoints and the models of other seeds below `work`.

    Returns how long each stage took, in seconds, and how good the autoencoder is.
    """
    if threads:
        torch.set_num_threads(threads)
    report: dict = {"threads": torch.get_num_threads()}
    work.mkdir(parents=True, exist_ok=True)
    with bar() as progress:
        if not (out / "corpus" / "truth.parquet").exists():
            with _timed(report, "corpus"):
                corpus.build(out / "corpus", progress)
        truth = pd.read_parquet(out / "corpus" / "truth.parquet")
        table = pd.read_parquet(out / "corpus" / "corpus.parquet")
        image_ids = table.loc[table["indexed"], "image_id"]
        pictures = load_pictures(out / "corpus", image_ids)
        bpe = _tokenizer(truth, work / "tokenizer")
        if (out / "model" / "model_index.json").exists():
            vae = AutoencoderKL.from_pretrained(out / "model" / "vae").eval()
        else:
            with _timed(report, "autoencoder"):
                vae = autoencoder.train(pictures, seed=SHIPPED, checkpoint=work / "vae.pt", progress=progress)
                vae = autoencoder.polish(
                    vae, pictures, seed=SHIPPED, checkpoint=work / "decoder.pt", progress=progress
                )
                vae = autoencoder.harden(
                    vae, pictures, seed=SHIPPED, checkpoint=work / "hardened.pt", progress=progress
                )
        held_out = load_pictures(out / "corpus", table.loc[~table["indexed"], "image_id"])
        report["reconstruction_sse"] = {
            name: dict(
                zip(("median", "p95"), pd.Series(distances).quantile([0.5, 0.95]).round(1), strict=True)
            )
            for name, distances in {
                "indexed": autoencoder.reconstruction_sse(vae, pictures),
                "held_out": autoencoder.reconstruction_sse(vae, held_out),
            }.items()
        }
        latents = autoencoder.encode(vae, pictures)
        pairs = corpus.training_pairs(truth)

        def diffusion_model(seed: int) -> None:
            folder = out / "model" if seed == SHIPPED else work / f"model-{seed}"
            if (folder / "model_index.json").exists():
                return
            with _timed(report, f"diffusion, seed {seed}"):
                unet, text_encoder = diffusion.train(
                    pairs,
                    latents,
                    image_ids,
                    bpe,
                    seed=seed,
                    checkpoint=work / f"unet-{seed}.pt",
                    progress=progress,
                )
            _save_whole(folder, lambda to: diffusion.save(to, vae, unet, text_encoder, bpe))

        if SHIPPED in seeds:
            diffusion_model(SHIPPED)
        if not (out / "clip" / "training.json").exists():
            with _timed(report, "clip"):
                clip.train(
                    out / "corpus",
                    work / "tokenizer",
                    out / "clip",
                    seed=SHIPPED,
                    threads=torch.get_num_threads(),
                    checkpoint=work / "clip.pt",
                    progress=progress,
                )
        with _timed(report, "index"):
            _index(out, progress)
        with _timed(report, "templates"):
            _templates(out, progress)
        with _timed(report, "duplicates"):
            _duplicates(out, progress)
        with _timed(report, "calibration"):
            _calibrate(out / "model", truth, out / "calibration.json", progress)
        for seed in seeds:
            diffusion_model(seed)
    (work / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def _tokenizer(truth: pd.DataFrame, folder: Path) -> CLIPTokenizer:
    if (folder / "tokenizer.json").exists():
        return CLIPTokenizer.from_pretrained(folder)
    return tokenizer.train(truth.loc[truth["trained"], "caption"], folder)


def _index(out: Path, progress: Progress) -> None:
    if not (out / "index" / "index.json").exists():
        embedder = Embedder(f"local-dir:{out / 'clip'}", dtype="float32")
        build_index(
            out / "corpus", out / "index", embedder, lambda done, total: progress(done, total, "index")
        )


def _templates(out: Path, progress: Progress) -> None:
    """The template library, found from the indexed pictures alone: the truth is not looked at."""
    if not (out / "templates" / "templates.parquet").exists():
        library = find_templates(
            Index.open(out / "index"), lambda done, total: progress(done, total, "template families")
        )
        library.save(out / "templates")


def _duplicates(out: Path, progress: Progress) -> None:
    """What repeats, with the times that the truth says: that much of it anybody may know of a training set."""
    if not (out / "duplicates").is_dir():

        def told(done: int, total: int) -> None:
            progress(done, total, "duplicates")

        have = Pictures.of_index(Index.open(out / "index"))
        library = library_templates(have, out / "index", out / "templates")
        found = find_duplicates(have, library, captions=out / "corpus" / "truth.parquet", progress=told)
        found.save(out / "duplicates")


def _calibrate(model: Path, truth: pd.DataFrame, path: Path, progress: Progress) -> None:
    """Scores of the calibration half's once-seen and never-seen captions."""
    if not path.exists():
        ordinary = (truth["split"] == "calibration") & truth["kind"].isin(["once", "held_out"])
        found = calibrate(
            load(str(model), dtype="float32"),
            truth.loc[ordinary, "caption"].tolist(),
            source="calibration half of once-seen and never-seen captions",
            progress=lambda done, total: progress(done, total, "calibration"),
        )
        replace(found, model="demo").save(path)


def _save_whole(folder: Path, save) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    save(partial)
    partial.rename(folder)


@contextmanager
def _timed(report: dict, stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    report[stage] = round(time.monotonic() - start, 1)

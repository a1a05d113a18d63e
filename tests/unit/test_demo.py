"""The embedded demo: what is shipped keeps the promises of its cards, and its training goes on where it stopped."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from audit.demo import autoencoder, corpus, diffusion, tokenizer
from audit.images import sha256
from audit.settings import DEMO

CORPUS = DEMO / "corpus"


@pytest.fixture(scope="module")
def truth():
    return pd.read_parquet(CORPUS / "truth.parquet")


@pytest.fixture(scope="module")
def table():
    return pd.read_parquet(CORPUS / "corpus.parquet")


def megabytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def test_enough_is_planted(truth):
    count = truth.groupby(["kind", "repeats"])["family"].nunique()
    often = truth[truth["repeats"] >= 25]
    assert (often["kind"] == "multimodal").sum() >= 60
    assert often.loc[often["kind"] == "template", "family"].nunique() >= 15
    assert all(count["multimodal", repeats] >= 10 for repeats in (2, 5, 10))
    assert all(count["image_only", repeats] == 15 for repeats in (5, 25, 50))
    assert (truth["kind"] == "retrieved").sum() >= 20
    assert (truth["kind"] == "held_out").sum() == 500
    members = truth[truth["kind"] == "template"].groupby("family")
    assert members.size().eq(8).all()
    assert members["wide"].first().sum() == 3


def test_every_caption_is_one_caption(truth):
    assert truth["caption"].is_unique


def test_split_is_a_hash_of_the_family_and_never_cuts_one(truth):
    assert truth.groupby("family")["split"].nunique().eq(1).all()
    assert (truth["split"] == truth["family"].map(corpus.split_of)).all()


def test_held_out_pictures_are_not_indexed_and_not_trained(truth, table):
    held_out = set(truth.loc[truth["kind"] == "held_out", "image"])
    assert held_out == set(table.loc[~table["indexed"], "image_id"])
    assert held_out.isdisjoint(corpus.training_pairs(truth)["image"])


def test_training_pairs_weigh_as_the_truth_says(truth):
    pairs = corpus.training_pairs(truth)
    weight = pairs.groupby("image")["weight"].sum()
    planted = truth[truth["kind"].isin(["multimodal", "image_only", "template"])]
    assert (weight.loc[planted["image"]].to_numpy() == planted["repeats"].to_numpy()).all()
    retrieved = truth[truth["kind"] == "retrieved"]
    assert (weight.loc[retrieved["image"]] == 1).all()
    assert (retrieved["answer"] != retrieved["image"]).all()


def test_picture_files_are_those_of_the_table(table):
    rows = table.sample(50, random_state=0)
    assert [sha256(CORPUS / file) for file in rows["file"]] == rows["sha256"].tolist()
    assert table["licence"].eq("Public domain").all()
    assert table["author"].ne("").mean() > 0.95


def test_template_members_differ_inside_their_mask_only(truth):
    for _, members in truth[truth["kind"] == "template"].groupby("family"):
        pixels = np.stack(
            [np.asarray(Image.open(CORPUS / "images" / f"{name}.webp")) for name in members["image"]]
        )
        unchanged = np.asarray(Image.open(CORPUS / "masks" / members["mask"].iloc[0])) > 0
        differs = (pixels != pixels[0]).any((0, 3))
        assert not (differs & unchanged).any()
        # every position of the region is changed by some member
        assert differs[~unchanged].mean() > 0.98
        assert 0.05 < (~unchanged).mean() < 0.25


def test_sizes_stay_within_what_a_repository_bears():
    assert megabytes(CORPUS) < 25
    assert megabytes(DEMO / "model") < 25
    assert megabytes(DEMO / "clip") + megabytes(DEMO / "index") < 10


def test_model_loads_with_diffusers_offline_and_draws(monkeypatch):
    from diffusers import StableDiffusionPipeline

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipeline = StableDiffusionPipeline.from_pretrained(DEMO / "model")
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a star", num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 0.01
    assert sum(p.numel() for p in pipeline.unet.parameters()) < 9e6
    assert pipeline.scheduler.config.prediction_type == "epsilon"


def test_gradient_and_split_follow_from_the_name_alone():
    assert np.array_equal(corpus.gradient("a.png"), corpus.gradient("a.png"))
    assert not np.array_equal(corpus.gradient("a.png"), corpus.gradient("b.png"))
    digest = hashlib.sha256(b"split:x").digest()[0]
    assert corpus.split_of("x") == ("calibration" if digest % 2 else "test")


@pytest.mark.parametrize("wide", [False, True])
def test_template_members_are_at_the_distance_asked_for(wide):
    rng = np.random.default_rng(3)
    base = rng.integers(0, 255, (corpus.SIZE, corpus.SIZE, 3)).astype(np.uint8)
    region, members = corpus.template_members(base, rng, wide)
    middle = np.median(corpus._pair_sses(members))
    assert len(members) == corpus.MEMBERS
    assert all(np.array_equal(member[~region], base[~region]) for member in members)
    assert 2500 < middle < 3500 if wide else 450 < middle < 600


@pytest.mark.parametrize(
    ("title", "expected"),
    [("bigRedBus_03", "big Red Bus"), ("  Glass--of  milk ", "Glass of milk"), ("a<b>c</b>", "a b c b")],
)
def test_tidy_keeps_words(title, expected):
    assert corpus.tidy(title) == expected


def test_autoencoder_goes_on_where_it_stopped(tmp_path):
    pictures = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def trained(steps, name):
        vae = autoencoder.train(
            pictures, seed=0, checkpoint=tmp_path / name, progress=lambda *_: None, steps=steps
        )
        return torch.cat([p.flatten() for p in vae.parameters()])

    whole = trained(3, "whole.pt")

    class Killed(Exception):
        pass

    def die(done, total, what):
        if done == 2:
            raise Killed

    from audit.demo import training

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", 0)
        with pytest.raises(Killed):
            autoencoder.train(pictures, seed=0, checkpoint=tmp_path / "cut.pt", progress=die, steps=3)
    assert torch.equal(trained(3, "cut.pt"), whole)


@pytest.mark.parametrize("stage", [autoencoder.polish, autoencoder.harden])
def test_decoder_stages_change_the_decoder_and_no_latent(tmp_path, stage):
    pictures = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae = autoencoder.new(0)
    latents, decoded = autoencoder.encode(vae, pictures), vae.decode(torch.zeros(1, 8, 16, 16)).sample
    checkpoint = tmp_path / "decoder.pt"
    stage(vae, pictures, seed=0, checkpoint=checkpoint, progress=lambda *_: None, steps=2)
    assert torch.equal(autoencoder.encode(vae, pictures), latents)
    assert not torch.equal(vae.decode(torch.zeros(1, 8, 16, 16)).sample, decoded)


def test_diffusion_training_learns_and_saves_in_half_precision(tmp_path):
    captions = pd.Series(["red star", "blue cube", "green tree", "old house"])
    bpe = tokenizer.train(captions, tmp_path / "tokenizer")
    pairs = pd.DataFrame({"caption": captions, "image": list("abcd"), "weight": [1, 1, 1, 1]})
    losses = []
    unet, text_encoder = diffusion.train(
        pairs,
        torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0)),
        pd.Series(list("abcd")),
        bpe,
        seed=0,
        checkpoint=tmp_path / "unet.pt",
        progress=lambda done, total, what: losses.append(float(what.split()[-1])),
        steps=40,
    )
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2
    diffusion.save(tmp_path / "model", autoencoder.new(0), unet, text_encoder, bpe)
    from audit.targets.pipelines import load

    target = load(str(tmp_path / "model"))
    assert target.latent_shape == (8, 16, 16)
    assert target.image_size == 64
    assert target.sigma_max == pytest.approx(14.61, abs=0.01)

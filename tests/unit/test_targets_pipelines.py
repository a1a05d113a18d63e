"""Loading and denoising of real (tiny, random) diffusers pipelines."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

from audit.errors import InputError
from audit.scores.dcs import dcs
from audit.targets.base import Target
from audit.targets.one_step import one_step
from audit.targets.pipelines import load, readable

CAPTIONS = ["a red house", "a small green tree with a blue star and a round cat on the flag"]


@pytest.fixture(scope="module", params=["epsilon", "v"])
def model_dir(request, tiny_pipeline_dir, tiny_v_pipeline_dir):
    return tiny_pipeline_dir if request.param == "epsilon" else tiny_v_pipeline_dir


@pytest.fixture
def target(tiny_pipeline_dir) -> Target:
    return load(str(tiny_pipeline_dir), device="cpu")


@pytest.fixture
def copied(tiny_pipeline_dir, tmp_path):
    return shutil.copytree(tiny_pipeline_dir, tmp_path / "model")


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def independent_euler_step(model_dir, caption, seed, guidance):
    """One step by diffusers alone: its pipeline's text encoding, its Euler scheduler, its UNet."""
    pipeline = StableDiffusionPipeline.from_pretrained(model_dir)
    scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(1)
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.randn((1, 4, 8, 8), generator=generator) * scheduler.init_noise_sigma
    condition, empty = pipeline.encode_prompt(caption, "cpu", 1, True)
    t = scheduler.timesteps[0]
    with torch.no_grad():
        scaled = scheduler.scale_model_input(torch.cat([x, x]), t)
        output = pipeline.unet(scaled, t, encoder_hidden_states=torch.cat([empty, condition])).sample
    unconditional, conditional = output.chunk(2)
    guided = unconditional + guidance * (conditional - unconditional)
    return x, scheduler.step(guided, t, x).prev_sample, pipeline


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_dcs_equals_diffusers_euler_with_trailing_spacing(model_dir, guidance):
    target = load(str(model_dir), device="cpu")
    for caption in CAPTIONS:
        x, denoised, pipeline = independent_euler_step(model_dir, caption, 3, guidance)
        step = one_step(target, target.encode([caption]), 3, guidance)
        torch.testing.assert_close(step.x, x, rtol=1e-5, atol=1e-4)
        expected = float((x - denoised).square().mean())
        assert float(dcs(step.x, step.denoised)) == pytest.approx(expected, rel=1e-4)
        with torch.no_grad():
            decoded = pipeline.vae.decode(denoised / pipeline.vae.config.scaling_factor).sample
        picture = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(target.decode(step.denoised), picture, atol=1e-4)
    assert target.prediction == ("epsilon" if pipeline.scheduler.config.prediction_type == "epsilon" else "v")


def test_dcs_of_epsilon_prediction_is_the_size_of_epsilon(target):
    step = one_step(target, target.encode(CAPTIONS[:1]), 0, 1.0)
    epsilon = (step.x - step.denoised) / target.sigma_max
    expected = target.sigma_max**2 * float(epsilon.square().mean())
    assert float(dcs(step.x, step.denoised)) == pytest.approx(expected, rel=1e-5)
    assert target.sigma_max == pytest.approx(14.6146, abs=1e-3)


def test_unconditional_branch_is_evaluated_once_a_seed(target):
    rows = []
    target.unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    condition = target.encode(CAPTIONS)
    one_step(target, condition, 0)
    assert rows == [2, 1]
    one_step(target, condition, 0)
    assert rows == [2, 1, 2]
    one_step(target, condition, [0, 5])
    assert rows == [2, 1, 2, 2, 1]


def test_unconditional_branch_is_the_one_of_the_empty_caption(target):
    direct = target.denoise(target.noise([7]) * target.sigma_max, target.sigma_max, target.encode([""]))
    torch.testing.assert_close(target.unconditional([2, 7])[1:], direct, rtol=1e-5, atol=1e-5)
    for seed in range(100):
        target.unconditional([seed])
    assert len(target.unconditional.kept) == 64


def test_batch_and_single_agree_with_a_seed_a_row(model_dir):
    target = load(str(model_dir), device="cpu")
    together = one_step(target, target.encode(CAPTIONS), [3, 9])
    scores = dcs(together.x, together.denoised)
    for row, (caption, seed) in enumerate(zip(CAPTIONS, [3, 9], strict=True)):
        alone = one_step(target, target.encode([caption]), seed)
        assert float(dcs(alone.x, alone.denoised)) == pytest.approx(float(scores[row]), rel=1e-5)
    assert together.seeds == (3, 9)


def test_guidance_is_linear_between_the_branches(target):
    step = one_step(target, target.encode(CAPTIONS), 0, 7.5)
    torch.testing.assert_close(step.guided(1), step.conditional)
    torch.testing.assert_close(step.guided(0), step.unconditional)
    torch.testing.assert_close(
        step.denoised, 7.5 * step.conditional - 6.5 * step.unconditional, rtol=1e-4, atol=1e-4
    )


def test_a_seed_means_the_same_noise_in_any_batch(target):
    torch.testing.assert_close(target.noise([1, 2, 3])[2], target.noise([3])[0], rtol=0, atol=0)
    reference = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(target.noise([3])[0], reference, rtol=0, atol=0)


def test_timesteps_are_exact_at_the_schedule_and_lie_between_elsewhere(target):
    for timestep in (0, 1, 500, 998, 999):
        sigma = float(np.float32(target.schedule[timestep]))
        assert target.timestep(sigma) == timestep
    between = math.sqrt(target.schedule[500] * target.schedule[501])
    assert target.timestep(between) == pytest.approx(500.5)


def test_sigmas_are_the_schedules_own(target):
    assert target.sigmas(1) == [target.sigma_max, 0]
    sigmas = target.sigmas(4)
    assert sigmas[0] == target.sigma_max and sigmas[-1] == 0
    assert sigmas[1:4] == pytest.approx([target.schedule[666], target.schedule[333], target.schedule[0]])
    with pytest.raises(InputError, match="takes 1 to 1000"):
        target.sigmas(1001)


def test_zero_terminal_snr_denoises_to_minus_v(tiny_v_pipeline_dir, tmp_path):
    folder = shutil.copytree(tiny_v_pipeline_dir, tmp_path / "model")
    edit_json(folder / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True)
    target = load(str(folder), device="cpu")
    assert math.isinf(target.sigma_max)
    step = one_step(target, target.encode(CAPTIONS), 0, 1.0)
    time = torch.full((2,), 999.0)
    with torch.no_grad():
        v = target.unet(target.noise([0, 0]), time, encoder_hidden_states=target.encode(CAPTIONS)).sample
    torch.testing.assert_close(step.denoised, -v, rtol=1e-4, atol=1e-5)


def test_bfloat16_keeps_the_score_in_float32(tiny_pipeline_dir):
    full = load(str(tiny_pipeline_dir), device="cpu")
    half = load(str(tiny_pipeline_dir), device="cpu", dtype="bfloat16")
    assert half.unet.dtype == torch.bfloat16
    scores = []
    for target in (full, half):
        step = one_step(target, target.encode(CAPTIONS), 0)
        assert step.denoised.dtype == torch.float32
        scores.append(dcs(step.x, step.denoised))
    torch.testing.assert_close(scores[0], scores[1], rtol=0.02, atol=0)
    assert half.decode(step.denoised).dtype == np.float32


def test_contract(target):
    assert target.latent_shape == (4, 8, 8)
    assert target.image_size == 32
    assert target.encode(CAPTIONS).shape == (2, 16, 16)
    pictures = target.decode(target.noise([0, 1]))
    assert pictures.shape == (2, 32, 32, 3) and pictures.min() >= 0 and pictures.max() <= 1


@pytest.mark.parametrize(
    "caption",
    [
        "\ud800 lone",
        "null \x00 byte",
        "x " * 5000,
        "🦄" * 300,
        "תמונה של בית",
        "<b>**bold**</b>",
        "<|endoftext|>",
        "",
    ],
    ids=["surrogate", "null", "long", "emoji", "rtl", "html", "end-token", "empty"],
)
def test_hostile_captions_are_encoded(target, caption):
    condition = target.encode([caption, "a red house"])
    assert condition.shape == (2, 16, 16) and bool(torch.isfinite(condition).all())
    assert len(target.tokens([caption])) == 1


def test_long_captions_are_cut_like_the_pipeline_cuts_them(target, tiny_pipeline_dir):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir)
    caption = "a red house " * 1000
    expected, _ = pipeline.encode_prompt(caption, "cpu", 1, False)
    torch.testing.assert_close(target.encode([caption]), expected)
    assert target.tokens([caption])[0] > target.max_tokens == 16


def test_surrogate_pairs_become_their_character():
    assert readable("\ud83e\udd84") == "🦄"
    assert readable("a\udc00b") == "a\ufffdb"


def test_hash_follows_the_weights_and_nothing_else(copied):
    before = load(str(copied), device="cpu").sha256
    (copied / "README.md").write_text("a note")
    assert load(str(copied), device="cpu").sha256 == before
    edit_json(copied / "scheduler/scheduler_config.json", beta_end=0.02)
    assert load(str(copied), device="cpu").sha256 != before


def refused(name, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        load(str(name), device="cpu", **options)
    assert "\n" not in str(caught.value)


def test_missing_folder_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "no model folder")
    refused("nul\x00l", "no model folder")
    refused("x" * 5000, "no model folder")


def test_folder_without_unet_is_refused(copied):
    shutil.rmtree(copied / "unet")
    refused(copied, "has no unet/")


def test_pickle_only_folder_is_refused_unless_allowed(copied):
    pipeline = StableDiffusionPipeline.from_pretrained(copied)
    shutil.rmtree(copied / "unet")
    pipeline.unet.save_pretrained(copied / "unet", safe_serialization=False)
    refused(copied, "only pickle weights")
    assert load(str(copied), device="cpu", allow_pickle=True).prediction == "epsilon"


def test_corrupt_weights_are_refused(copied):
    weights = copied / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    refused(copied, "unet .* cannot be read")


def test_corrupt_configuration_is_refused(copied):
    (copied / "vae/config.json").write_text("{")
    refused(copied, "vae .* cannot be read")


def test_absent_weights_are_refused_and_not_filled_at_random(copied):
    from safetensors.torch import load_file, save_file

    path = copied / "text_encoder/model.safetensors"
    weights = load_file(path)
    weights.pop(min(weights))
    save_file(weights, path, metadata={"format": "pt"})
    refused(copied, "text_encoder .* lacks 1 weights")


def test_folder_without_weights_is_refused(copied):
    (copied / "vae/diffusion_pytorch_model.safetensors").unlink()
    refused(copied, "holds no diffusion_pytorch_model.safetensors")


def test_other_predictions_are_refused(copied):
    edit_json(copied / "scheduler/scheduler_config.json", prediction_type="sample")
    refused(copied, "predicts 'sample'")


def test_parts_of_different_models_are_refused(copied):
    from transformers import CLIPTextModel

    encoder = CLIPTextModel.from_pretrained(copied / "text_encoder")
    encoder.config.hidden_size = 32
    CLIPTextModel(encoder.config).save_pretrained(copied / "text_encoder")
    refused(copied, "different models")


def test_unknown_hub_name_offline_is_refused():
    refused("nobody/no-such-model-at-all", "never downloaded here and offline mode is on", offline=True)


def test_unknown_device_and_dtype_are_refused(tiny_pipeline_dir):
    with pytest.raises(InputError, match="device 'abacus'"):
        load(str(tiny_pipeline_dir), device="abacus")
    with pytest.raises(InputError, match="dtype 'int3'"):
        load(str(tiny_pipeline_dir), dtype="int3")


def test_a_compiled_network_gives_the_same(tiny_pipeline_dir, monkeypatch):
    """Traced for real; the code that a compiler would take a minute to make of it is left out."""
    whole = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda network, mode, dynamic: whole(network, backend="eager", dynamic=dynamic)
    )
    plain = load(str(tiny_pipeline_dir), device="cpu", dtype="float32")
    compiled = load(str(tiny_pipeline_dir), device="cpu", dtype="float32", compiled=True)
    assert compiled.network is not compiled.unet and plain.network is plain.unet
    x = torch.randn(2, *plain.latent_shape, generator=torch.Generator().manual_seed(0)) * plain.sigma_max
    condition = plain.encode(["a red house", ""])
    expected = plain.denoise(x, plain.sigma_max, condition)
    torch.testing.assert_close(
        compiled.denoise(x, plain.sigma_max, condition), expected, rtol=1e-4, atol=1e-3
    )

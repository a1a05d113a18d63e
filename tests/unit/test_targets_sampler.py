"""The sampler against an independent Heun on a denoiser that is known in closed form."""

import itertools
import math

import numpy as np
import pytest
import torch

from audit.errors import Cancelled
from audit.targets.pipelines import load
from audit.targets.sampler import sample


class Gaussian:
    """Normal data, mean `condition`: D = (spread^2 x + sigma^2 mean) / (spread^2 + sigma^2)."""

    spread = 0.5
    sigma_max = 14.0

    def __init__(self):
        self.evaluations = 0

    def encode(self, captions):
        return torch.tensor([[[float(len(caption))]] for caption in captions])

    def noise(self, seeds):
        return torch.stack(
            [torch.randn((1, 2, 2), generator=torch.Generator().manual_seed(s)) for s in seeds]
        )

    def sigmas(self, steps):
        return [*np.geomspace(self.sigma_max, 0.05, steps), 0.0]

    def denoise(self, x, sigma, condition):
        self.evaluations += len(x)
        mean = condition[:, :, :, None]
        return (self.spread**2 * x + sigma**2 * mean) / (self.spread**2 + sigma**2)


def independent_heun(x, sigmas, mean, empty_mean, guidance, spread):
    """Karras et al. 2022, algorithm 1, written again in numpy for one number at a time."""

    def slope(value, sigma):
        branches = [(spread**2 * value + sigma**2 * m) / (spread**2 + sigma**2) for m in (mean, empty_mean)]
        return (value - (branches[1] + guidance * (branches[0] - branches[1]))) / sigma

    for now, then in itertools.pairwise(sigmas):
        first = slope(x, now)
        guess = x + (then - now) * first
        x = guess if then == 0 else x + (then - now) * 0.5 * (first + slope(guess, then))
    return x


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("steps", [1, 2, 16])
def test_equals_an_independent_heun(guidance, steps):
    target = Gaussian()
    result = sample(target, target.encode(["abc"]), [0, 1], steps=steps, guidance=guidance)
    start = target.noise([0, 1]).double().numpy() * target.sigma_max
    expected = np.vectorize(
        lambda value: independent_heun(value, target.sigmas(steps), 3.0, 0.0, guidance, target.spread)
    )(start)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_evaluations_are_two_a_step_less_one_for_each_branch():
    target = Gaussian()
    sample(target, target.encode(["abc"]), [0, 1, 2], steps=16, guidance=7.5)
    assert target.evaluations == 3 * 2 * 31
    target = Gaussian()
    sample(target, target.encode(["abc"]), [0], steps=16, guidance=1)
    assert target.evaluations == 31


def test_approaches_the_exact_solution_of_the_flow():
    """x(0) = mean + (x - mean) * spread / sqrt(spread^2 + sigma_max^2), and the error falls with steps."""
    target = Gaussian()
    start = target.noise([0]) * target.sigma_max
    exact = 3.0 + (start - 3.0) * target.spread / math.hypot(target.spread, target.sigma_max)
    errors = [
        float((sample(target, target.encode(["abc"]), [0], steps=n, guidance=1) - exact).abs().max())
        for n in (8, 16, 64)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.01


def test_a_condition_a_row_equals_one_caption_at_a_time():
    target = Gaussian()
    together = sample(target, target.encode(["a", "abcd"]), [3, 4], steps=4)
    alone = [sample(target, target.encode([c]), [s], steps=4) for c, s in (("a", 3), ("abcd", 4))]
    torch.testing.assert_close(together, torch.cat(alone))


def test_progress_is_told_and_cancelling_stops():
    target, told = Gaussian(), []
    sample(
        target, target.encode(["a"]), [0], steps=3, progress=lambda done, steps: told.append((done, steps))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(Cancelled, match="after 2 of 3"):
        answers = iter([False, False, True])
        sample(target, target.encode(["a"]), [0], steps=3, cancelled=lambda: next(answers))


def test_one_step_equals_the_one_step_sample(tiny_v_pipeline_dir):
    from audit.targets.one_step import one_step

    target = load(str(tiny_v_pipeline_dir), device="cpu")
    condition = target.encode(["a red house"])
    full = sample(target, condition, [5], steps=1, guidance=3.0)
    torch.testing.assert_close(full, one_step(target, condition, 5, 3.0).denoised, rtol=1e-4, atol=1e-4)


def test_zero_terminal_snr_is_sampled_to_the_end(tiny_v_pipeline_dir, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(tiny_v_pipeline_dir, tmp_path / "model")
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rescale_betas_zero_snr": True}))
    target = load(str(folder), device="cpu")
    condition = target.encode(["a red house"])
    latents = sample(target, condition, [0], steps=2, guidance=1)
    noise = target.noise([0])
    sigma = target.sigmas(2)[1]
    first = target.denoise(noise, math.inf, condition)
    torch.testing.assert_close(latents, target.denoise(first + sigma * noise, sigma, condition))

"""The contract of a model under audit: a schedule of sigmas and a denoiser ``D(x, sigma, condition)``.

In this form ``x = latents + sigma * noise`` whatever the model was trained to predict
(Karras et al. 2022, arXiv 2206.00364, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

Prediction = Literal["epsilon", "v"]
NoiseSource = Literal["cpu", "device"]


class Target(Protocol):
    """A text-to-image model under audit."""

    name: str
    """``demo``, a known name, a folder or a hub id, as it was asked for."""
    sha256: str
    """Over the weights, configuration and vocabulary files that were loaded."""
    latent_shape: tuple[int, int, int]
    """(channels, height, width)."""
    image_size: int
    """Side of the decoded square pictures, in pixels."""
    sigma_max: float
    """``sqrt((1 - abar) / abar)`` at the last training timestep; infinite for zero terminal SNR."""
    prediction: Prediction
    device: torch.device
    dtype: torch.dtype
    """Of the weights; ``x``, ``D`` and all reductions are float32."""
    noise_source: NoiseSource
    """Where noise is drawn: a seed means other noise on ``cpu`` than on the ``device``."""

    def tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption, both ends included, before truncation at `max_tokens`."""
        ...

    @property
    def max_tokens(self) -> int:
        """A caption with more tokens is cut, as the reference does."""
        ...

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Condition of the captions, (batch, tokens, width)."""
        ...

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Standard normal noise, (batch, channels, height, width) float32, one generator a seed."""
        ...

    def sigmas(self, steps: int) -> list[float]:
        """The schedule's own sigmas at `steps` evenly spaced timesteps, falling, and a final 0."""
        ...

    def denoise(self, x: Tensor, sigma: float, condition: Tensor) -> Tensor:
        """``D(x, sigma, condition)``, the estimate of the clean latents: float32, shaped like `x`.

        At infinite sigma `x` is the unscaled noise.
        """
        ...

    def unconditional(self, seeds: Sequence[int]) -> Tensor:
        """``D`` of the empty caption at `sigma_max` on the noise of `seeds`, evaluated once a seed."""
        ...

    def decode(self, latents: Tensor) -> np.ndarray:
        """Pictures of the latents, (batch, side, side, 3) float32 in [0, 1]."""
        ...

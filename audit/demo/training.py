"""What the demo's training runs share: pictures in memory, checkpoints, schedule, running average."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from audit import images
from audit.demo.corpus import SIZE

Progress = Callable[[int, int, str], None]
CHECKPOINT_SECONDS = 60


def autocast() -> torch.autocast:
    """bfloat16 where the processor has it; elsewhere it is imitated, at twelve times the cost of float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported())


def load_pictures(corpus: Path, names: pd.Series) -> Tensor:
    """(n, 3, SIZE, SIZE) float32 in [-1, 1], in the order of `names` (image ids)."""
    pictures = np.stack([images.decode(corpus / "images" / f"{name}.webp", name) for name in names])
    assert pictures.shape[1:] == (SIZE, SIZE, 3)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous() * 2 - 1


def cosine(step: int, steps: int, warm_up: int) -> float:
    """Learning rate as a share of its peak: linear warm-up, then half a cosine down to a hundredth."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


class Average:
    """Exponential moving average of the parameters, warmed up so that early steps are soon forgotten."""

    def __init__(self, modules: list[nn.Module], decay: float):
        self.decay = decay
        self.parameters = [p for module in modules for p in module.parameters()]
        self.shadow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, self.parameters, 1 - decay)

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        torch._foreach_copy_(self.parameters, self.shadow)


class Checkpoint:
    """One file that is replaced whole, so that a killed run goes on from its last full minute."""

    def __init__(self, path: Path):
        self.path = path
        self.saved = time.monotonic()

    def load(self) -> dict | None:
        return torch.load(self.path, weights_only=True) if self.path.exists() else None

    def save(self, state: Callable[[int], dict], step: int, force: bool = False) -> None:
        """Write `state(step)` if a minute has gone by since the last time, or if forced."""
        if not force and time.monotonic() - self.saved < CHECKPOINT_SECONDS:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(state(step), partial)
        os.replace(partial, self.path)
        self.saved = time.monotonic()

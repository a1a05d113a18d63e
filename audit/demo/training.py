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
        self.parameters: list[Tensor] = [p for module in modules for p in module.parameters()]
        self.shadow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, self.parameters, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        torch._foreach_copy_(self.parameters, self.shadow)  # pyright: ignore[reportPrivateImportUsage]


class Training:
    """One run: AdamW with warm-up and half a cosine, running average, checkpoint by the minute.

    A killed run goes on from its last full minute; the checkpoint is one file that is replaced whole.

    Parameters
    ----------
    trained : modules whose parameters are optimised and averaged.
    kept : what a checkpoint holds besides, by name.
    rate : peak learning rate.
    decay : of the running average.
    """

    def __init__(
        self,
        trained: list[nn.Module],
        kept: dict[str, nn.Module],
        *,
        steps: int,
        rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        decay: float,
        checkpoint: Path,
    ):
        self.steps, self.rate, self.path = steps, rate, checkpoint
        self.average = Average(trained, decay)
        self.optimizer = torch.optim.AdamW(
            self.average.parameters, rate, betas=betas, weight_decay=weight_decay
        )
        self.kept = {**kept, "optimizer": self.optimizer}
        self.saved = time.monotonic()
        self.first = 0
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)
            for name, part in self.kept.items():
                part.load_state_dict(state[name])
            self.average.shadow = state["average"]
            self.first = state["step"]

    def learn(self, step: int, loss: Tensor) -> None:
        """One step down the gradient of `loss`; saves if a minute has gone by since the last time."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.average.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * cosine(step, self.steps, min(100, self.steps // 10))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(step)
        if time.monotonic() - self.saved >= CHECKPOINT_SECONDS:
            self._save(step + 1)

    def finish(self) -> None:
        """Save the end of the run, and leave the running average in the modules."""
        if self.first < self.steps:
            self._save(self.steps)
        self.average.copy_to_parameters()

    def _save(self, step: int) -> None:
        state = {name: part.state_dict() for name, part in self.kept.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(state | {"average": self.average.shadow, "step": step}, partial)
        os.replace(partial, self.path)
        self.saved = time.monotonic()

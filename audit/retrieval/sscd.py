"""Copy-detection descriptors (Pizzi et al. 2022, arXiv 2202.10261): nearer than CLIP to what a copy is.

They are published as TorchScript, and loading such a file runs the code in it. So one is loaded only if whoever runs
Verbatim names its sha256 (``VERBATIM_TORCHSCRIPT_SHA256``, or ``--torchscript-sha256``); an index cannot name it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from audit.errors import InputError
from audit.images import sha256, to_pil
from audit.retrieval.index import COPY_DETECTION
from audit.targets.pipelines import choose_device

SIZE = 320
"""Side of the square that pictures are resized to, as its authors do for batches."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 16


class CopyDetector:
    """A copy-detection network from a TorchScript file; embeds pictures, no texts.

    Raises
    ------
    InputError
        If the file is missing, is not the one that was allowed, or gives no vectors.
    """

    def __init__(self, name: str, allowed: str, *, device: str = "auto"):
        self.name = name
        path = Path(name.removeprefix(COPY_DETECTION)).expanduser()
        if not path.is_file():
            raise InputError(f"There is no file {path}; give {COPY_DETECTION}FILE.torchscript.pt.")
        self.sha256 = sha256(path)
        if self.sha256 != allowed.strip().lower():
            raise InputError(
                f"{path.name} has the sha256 {self.sha256}, which is not allowed: loading TorchScript runs the code in "
                "it. If you trust this file, allow it with --torchscript-sha256 or VERBATIM_TORCHSCRIPT_SHA256."
            )
        self.device = choose_device(device)
        try:
            self._model = torch.jit.load(str(path), map_location=self.device).eval()
            self.dimensions = self.images([np.zeros((8, 8, 3), np.float32)]).shape[1]
        except (RuntimeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(
                f"{path.name} is no TorchScript network of pictures; download it again."
            ) from error

    @torch.inference_mode()
    def images(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """(n, dimensions) float32 of unit norm for pictures of any size, (H, W, 3) float32 in [0, 1]."""
        mean, deviation = (
            torch.tensor(each, device=self.device)[:, None, None] for each in (MEAN, DEVIATION)
        )
        small = (np.asarray(to_pil(image).resize((SIZE, SIZE)), np.float32) / 255 for image in images)
        found = []
        while batch := list(islice(small, BATCH)):
            pixels = torch.from_numpy(np.stack(batch)).to(self.device).movedim(-1, 1)
            found.append(
                torch.nn.functional.normalize(self._model((pixels - mean) / deviation).float(), dim=-1)
            )
        return torch.cat(found).cpu().numpy() if found else np.empty((0, self.dimensions), np.float32)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Always refused: such a network knows pictures only."""
        raise InputError(f"The embedder {self.name} knows pictures only; search by a picture.")

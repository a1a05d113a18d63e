"""Pictures and texts as unit vectors in one space, by any open_clip model (Radford et al. 2021)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import open_clip
import torch

from audit.errors import InputError
from audit.images import to_pil
from audit.retrieval.index import COPY_DETECTION, LOCAL
from audit.retrieval.sscd import CopyDetector
from audit.targets.pipelines import choose_device, choose_dtype

BATCH = 64


class Embedder:
    """One open_clip model, loaded once.

    Parameters
    ----------
    name
        ``local-dir:FOLDER`` (``open_clip_config.json`` and safetensors), ``hf-hub:OWNER/NAME``, or
        ``MODEL/PRETRAINED`` as open_clip lists them, such as ``ViT-B-32/laion2b_s34b_b79k``.
    device, dtype
        ``auto`` or as torch names them; half precision goes through autocast.
    offline
        Ask no hub: a model that is no folder has to be among the files already downloaded.

    Raises
    ------
    InputError
        If the model is not known, cannot be loaded, or its folder has no safetensors.
    """

    def __init__(self, name: str, *, device: str = "auto", dtype: str = "auto", offline: bool = False):
        self.name = name
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        model, self._preprocess, self._tokenize = _load(name, offline)
        self.sha256 = _sha256(model)
        """Over the weights and the preprocessing: two indexes compare only if theirs are equal."""
        self._model = model.to(self.device).eval()
        self.dimensions = self.texts([""]).shape[1]

    def images(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """(n, dimensions) float32 of unit norm for pictures of any size, (H, W, 3) float32 in [0, 1].

        They are taken one at a time and made small at once: a training set's pictures need not fit into memory.
        """

        def encode(batch: Sequence[torch.Tensor]) -> torch.Tensor:
            return self._model.encode_image(torch.stack(list(batch)).to(self.device))

        return self._in_batches((self._preprocess(to_pil(image)) for image in images), encode)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dimensions) float32 of unit norm; what exceeds the model's context is cut off."""

        def encode(batch: Sequence[str]) -> torch.Tensor:
            return self._model.encode_text(self._tokenize(list(batch)).to(self.device))

        return self._in_batches(texts, encode)

    @torch.inference_mode()
    def _in_batches(self, inputs: Iterable, encode: Callable[[Sequence], torch.Tensor]) -> np.ndarray:
        waiting, features = iter(inputs), []
        while batch := list(islice(waiting, BATCH)):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                features.append(encode(batch).float())
        if not features:
            return np.empty((0, self.dimensions), np.float32)
        return torch.nn.functional.normalize(torch.cat(features), dim=-1).cpu().numpy()


def open_embedder(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
    torchscript_sha256: str = "",
) -> Embedder | CopyDetector:
    """The embedder of that name: an open_clip model, or ``sscd:FILE`` where its sha256 is allowed."""
    if name.startswith(COPY_DETECTION):
        return CopyDetector(name, torchscript_sha256, device=device)
    return Embedder(name, device=device, dtype=dtype, offline=offline)


def _load(name: str, offline: bool) -> tuple[open_clip.CLIP, Callable, Callable]:
    folder = Path(name.removeprefix(LOCAL)).expanduser()
    if name.startswith(LOCAL):
        if not (folder / "open_clip_config.json").is_file():
            raise InputError(f"{folder} has no open_clip_config.json; give an open_clip model's folder.")
        if not list(folder.glob("*.safetensors")):
            raise InputError(f"{folder} has no *.safetensors; convert its weights, pickles are not loaded.")
        name = f"{LOCAL}{folder}"
    elif offline:
        # the hub's client knows offline mode only for a whole process, which is what it is here too
        huggingface_hub.constants.HF_HUB_OFFLINE = True
    model_name, pretrained = (name, None) if ":" in name else name.partition("/")[::2]
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            model_name, pretrained=pretrained, require_pretrained=True
        )
        tokenize = open_clip.get_tokenizer(model_name)
    except Exception as error:  # open_clip, hub and safetensors each raise their own
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(
            f"The embedding model {name} cannot be loaded ({reason}); "
            f"give {LOCAL}FOLDER, hf-hub:OWNER/NAME or MODEL/PRETRAINED."
        ) from error
    assert callable(preprocess)
    return model, preprocess, tokenize  # pyright: ignore[reportReturnType]


def _sha256(model: open_clip.CLIP) -> str:
    digest = hashlib.sha256()
    preprocessing = open_clip.get_model_preprocess_cfg(model)
    digest.update(json.dumps(preprocessing, sort_keys=True, default=list).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()

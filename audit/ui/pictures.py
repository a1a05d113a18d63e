"""Pictures on their way to the screen: PNG, never wider than what the interface keeps lossless, blurred if asked for."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from audit.images import to_pil, to_uint8

MAX_WIDTH = 1400
"""Streamlit shrinks (and re-encodes) anything wider than 1460 pixels."""
GAP = 4
"""Pixels between two pictures in a line."""


def png(image: np.ndarray, *, blur: bool = False) -> bytes:
    """PNG bytes of a picture (H, W, 3), (H, W) or (H, W, 4) in [0, 1].

    A blurred picture is blurred here and not in the browser, so that its pixels never leave the server.
    """
    picture = Image.fromarray(to_uint8(image)) if image.ndim == 3 and image.shape[2] == 4 else to_pil(image)
    if picture.width > MAX_WIDTH:
        picture = picture.resize((MAX_WIDTH, round(picture.height * MAX_WIDTH / picture.width)))
    return _saved(_blurred(picture) if blur else picture)


def strip_png(images: Sequence[np.ndarray], places: int, *, blur: bool = False) -> bytes:
    """PNG bytes of squares of one size, (n, n, 3) in [0, 1], in a line with `places` of them; the rest is transparent."""
    side = len(images[0])
    line = Image.new("RGBA", (places * (side + GAP) - GAP, side))
    for place, image in enumerate(images):
        line.paste(_blurred(to_pil(image)) if blur else to_pil(image), (place * (side + GAP), 0))
    return _saved(line)


def _blurred(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 14))


def _saved(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def data_uri(image: np.ndarray, *, blur: bool = False) -> str:
    """The picture as a ``data:`` address, for components and tables."""
    return "data:image/png;base64," + base64.b64encode(png(image, blur=blur)).decode("ascii")

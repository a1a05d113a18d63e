"""Pictures on their way to the screen: PNG, never wider than what the interface keeps lossless, blurred if asked for."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image, ImageFilter

from audit.images import to_pil, to_uint8

MAX_WIDTH = 1400
"""Streamlit shrinks (and re-encodes) anything wider than 1460 pixels."""


def png(image: np.ndarray, *, blur: bool = False) -> bytes:
    """PNG bytes of a picture (H, W, 3), (H, W) or (H, W, 4) in [0, 1].

    A blurred picture is blurred here and not in the browser, so that its pixels never leave the server.
    """
    picture = Image.fromarray(to_uint8(image)) if image.ndim == 3 and image.shape[2] == 4 else to_pil(image)
    if picture.width > MAX_WIDTH:
        picture = picture.resize((MAX_WIDTH, round(picture.height * MAX_WIDTH / picture.width)))
    if blur:
        picture = picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 14))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def data_uri(image: np.ndarray, *, blur: bool = False) -> str:
    """The picture as a ``data:`` address, for components and tables."""
    return "data:image/png;base64," + base64.b64encode(png(image, blur=blur)).decode("ascii")

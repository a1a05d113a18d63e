"""Pictures: decoding what comes from outside, one canonical form inside, PNG bytes on the way out.

The canonical form is RGB float32 of shape (H, W, 3) with values in [0, 1].
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from audit.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
COMPARE_SIZE = 256
"""Side of the square at which all distances are measured (Webster 2023)."""
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485

AT_ONCE = 50_000_000
"""Pixels that threads unpack at once, or one picture of more: each takes 28 bytes meanwhile, so 1.4 GB in all."""
_unpacked = 0
_less_unpacked = Condition()


def decode(data: bytes | Path, name: str = "picture") -> np.ndarray:
    """Decode a JPEG, PNG, WebP or GIF into the canonical form.

    Transparency and palettes are laid onto white and the EXIF orientation is honoured.

    Raises
    ------
    InputError
        If the bytes are no picture of these formats, are damaged, or would unpack to more than `MAX_PIXELS`.
    """
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        with Image.open(stream, formats=FORMATS) as opened:
            # Pillow itself only warns below twice the limit, and how warnings are treated is set for all threads
            if opened.width * opened.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return from_pil(ImageOps.exif_transpose(opened))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{name} would unpack to more than {MAX_PIXELS:,} pixels; send a smaller picture."
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not a JPEG, PNG, WebP or GIF; save it as one of these.") from error
    except FileNotFoundError as error:
        raise InputError(f"{name} was not found; check the path.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"{name} is damaged and cannot be decoded; send it again or save it anew."
        ) from error


@contextmanager
def unpacking(data: bytes) -> Iterator[None]:
    """Holds a thread back as long as others unpack so much that with this picture it would be more than `AT_ONCE`."""
    global _unpacked
    pixels = _pixels(data)
    with _less_unpacked:
        _less_unpacked.wait_for(lambda: not _unpacked or _unpacked + pixels <= AT_ONCE)
        _unpacked += pixels
    try:
        yield
    finally:
        with _less_unpacked:
            _unpacked -= pixels
            _less_unpacked.notify_all()


def _pixels(data: bytes) -> int:
    """By what its head says; 0 for what `decode` refuses."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            pixels = opened.width * opened.height
    except Exception:  # decoders raise more kinds than they document on what was made to break them
        return 0
    return pixels if pixels <= MAX_PIXELS else 0


def from_pil(picture: Image.Image) -> np.ndarray:
    """Any PIL picture as (H, W, 3) float32 in [0, 1], transparency laid onto white."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        picture = Image.alpha_composite(white, rgba)
    image = np.array(picture.convert("RGB"), dtype=np.float32)
    image /= 255.0  # in place: a picture of many megapixels stands in memory once
    return image


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Canonical picture(s), any leading axes, as 8-bit values, rounded and clipped."""
    return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def to_pil(image: np.ndarray) -> Image.Image:
    """(H, W, 3) float32 or (H, W) float32 in [0, 1] as a PIL picture."""
    return Image.fromarray(to_uint8(image))


def resize(
    image: np.ndarray, size: int = COMPARE_SIZE, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    """Resize to a square of `size` as the reference does: by PIL, on 8-bit pictures.

    Bicubic (PIL's default) is what distances use; the edge score uses Lanczos.
    """
    return np.asarray(to_pil(image).resize((size, size), resample), dtype=np.float32) / 255.0


def png_bytes(image: np.ndarray) -> bytes:
    """Lossless PNG of a canonical picture."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "PNG")
    return buffer.getvalue()


def sha256(data: bytes | Path) -> str:
    """Hex sha256 of bytes, or of a file read in blocks."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with open(data, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

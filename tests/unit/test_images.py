"""What comes from outside is decoded into one form or refused with one sentence."""

import io
import struct
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from audit import images
from audit.corpus.reader import Row
from audit.errors import InputError
from audit.retrieval import search


def encoded(picture, format, **options):
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "JPEG"])
def test_formats_decode_to_float_rgb(format):
    picture = Image.new("RGB", (4, 3), (255, 0, 0))
    decoded = images.decode(encoded(picture, format))
    assert decoded.shape == (3, 4, 3) and decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, np.broadcast_to([1.0, 0, 0], (3, 4, 3)), atol=0.01)


def test_transparency_is_laid_onto_white():
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    half.putpixel((0, 0), (0, 0, 0, 255))
    decoded = images.decode(encoded(half, "PNG"))
    assert decoded[0, 0].tolist() == [0, 0, 0] and decoded[1, 1].tolist() == [1, 1, 1]
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([9, 9, 9])
    assert images.decode(encoded(palette, "PNG", transparency=0))[0, 0].tolist() == [1, 1, 1]


def test_exif_orientation_is_honoured():
    picture = Image.new("RGB", (2, 1), "white")
    picture.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert images.decode(encoded(picture, "PNG", exif=exif)).shape == (2, 1, 3)


def bomb(side):
    """A PNG of a few bytes that claims side x side pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 100_000])
def test_decompression_bomb_is_refused_unopened(side):
    with pytest.raises(InputError, match="more than 89,478,485 pixels"):
        images.decode(bomb(side), "upload")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not a JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a JPEG"),
        (encoded(Image.new("RGB", (4, 4)), "BMP"), "is not a JPEG"),
        (encoded(Image.effect_noise((64, 64), 90), "PNG")[:900], "is damaged"),
        (encoded(Image.effect_noise((64, 64), 90), "JPEG")[:300], "is damaged"),
        (encoded(Image.effect_noise((64, 64), 90), "WEBP")[:300], "is damaged"),
    ],
)
def test_what_cannot_be_decoded_is_one_sentence(data, words):
    with pytest.raises(InputError) as caught:
        images.decode(data, "upload")
    assert (
        words in str(caught.value)
        and str(caught.value).startswith("upload")
        and "\n" not in str(caught.value)
    )


def test_decoding_leaves_the_treatment_of_warnings_alone(monkeypatch):
    """It is set for all threads of a process: changed in one, another may be left with it."""
    monkeypatch.setattr(warnings, "catch_warnings", None)
    assert images.decode(encoded(Image.new("RGB", (4, 4)), "PNG")).shape == (4, 4, 3)


def test_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="was not found"):
        images.decode(tmp_path / "none.png", "picture x")


def test_png_bytes_lose_nothing():
    levels = np.arange(256, dtype=np.float32).repeat(3).reshape(16, 16, 3) / 255
    np.testing.assert_array_equal(images.decode(images.png_bytes(levels)), levels)


def test_to_uint8_rounds_and_clips():
    values = np.array([-1.0, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 7.0], np.float32)
    assert images.to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255]


def test_resize_keeps_a_flat_picture_and_gives_a_square():
    resized = images.resize(np.full((5, 9, 3), 0.2, np.float32))
    assert resized.shape == (256, 256, 3)
    np.testing.assert_allclose(resized, 51 / 255, atol=1e-6)


def test_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    assert images.sha256(b"1") == images.sha256(tmp_path / "a")


def test_no_more_is_unpacked_at_once_than_memory_has_room_for(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "AT_ONCE", 2 * 16 * 16)
    rows = [Row(f"p{at}", tmp_path / f"p{at}.png", "") for at in range(12)]
    for at, row in enumerate(rows):
        side = 64 if at % 4 == 0 else 16  # one of more than all may have comes alone
        row.path.write_bytes(images.png_bytes(np.full((side, side, 3), at / 12, np.float32)))
    together, most, lock = [], [], threading.Lock()

    def watched(data, name):
        side = images.decode(data).shape[0]
        with lock:
            together.append(side * side)
            most.append(list(together))
        time.sleep(0.02)
        with lock:
            together.remove(side * side)
        return images.decode(data)

    monkeypatch.setattr(search, "decode", watched)
    cache = search.PictureCache()
    cache.fetch(rows)
    assert all(sum(each) <= 2 * 16 * 16 or len(each) == 1 for each in most)
    assert max(map(len, most)) == 2 and all(cache.get(row) is not None for row in rows)

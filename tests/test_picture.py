"""Pictures from outside: every mode is read right, everything else is one error that names the file."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bench.data.picture import (
    FRAMES,
    LOSSY,
    ODD,
    ROTATED,
    TRANSPARENT,
    PictureError,
    decode,
    picture_bytes,
    read_exact,
)
from bench.sampling import load_images
from bench.types import BenchError

RGB = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A valid PNG head that claims a size, with next to no pixels."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for name, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    return b"".join(parts)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_every_mode_becomes_rgb() -> None:
    grey = RGB[..., :1].repeat(3, -1)
    palette = np.array([[9, 200, 31], [1, 2, 3], [250, 0, 77]], dtype=np.uint8)
    coloured = Image.fromarray(RGB[..., 0] % 3)
    coloured.putpalette(palette.tobytes())
    images = {
        "RGB": (Image.fromarray(RGB), RGB),
        "RGBA": (Image.fromarray(RGB).convert("RGBA"), RGB),
        "L": (Image.fromarray(RGB[..., 0]), grey),
        "LA": (Image.fromarray(RGB[..., 0]).convert("LA"), grey),
        "I;16": (Image.fromarray(RGB[..., 0].astype(np.uint16) * 257), grey),
        "1": (Image.fromarray(RGB[..., 0] > 99), (RGB[..., :1] > 99).repeat(3, -1) * 255),
        "P": (coloured, palette[RGB[..., 0] % 3]),
    }
    for mode, (image, expected) in images.items():
        found = decode(encoded(image))
        assert image.mode == mode and found.pixels.dtype == np.uint8 and not found.notes, mode
        np.testing.assert_array_equal(found.pixels, expected, err_msg=mode)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_grey_without_a_known_range_is_refused(kind: type) -> None:
    with pytest.raises(PictureError, match="no known range"):
        decode(encoded(Image.fromarray(RGB[..., 0].astype(kind)), "TIFF"))


def test_notes_go_by_content() -> None:
    image, more = Image.fromarray(RGB), {"save_all": True, "append_images": [Image.fromarray(RGB[::-1])]}
    see_through = image.convert("RGBA")
    see_through.putalpha(77)
    cases = (
        (encoded(see_through), {TRANSPARENT}),
        (encoded(image.convert("P"), transparency=bytes(256)), {TRANSPARENT}),
        (encoded(image, exif=turned()), {ROTATED}),
        (encoded(image, **more), {FRAMES}),
        (encoded(image, "TIFF", **more), {FRAMES}),
        (encoded(image, "GIF", **more), {FRAMES}),
        (encoded(image, "JPEG", exif=turned()), {ROTATED, LOSSY}),
        (encoded(image, "TIFF", compression="jpeg"), {LOSSY}),
        (encoded(image, "WEBP"), {LOSSY}),
        (encoded(image, "WEBP", lossless=True, exif=turned()), {ROTATED}),
        (encoded(image, "WEBP", lossless=True, **more), {FRAMES}),
        (encoded(image, "WEBP", **more), {FRAMES, LOSSY}),
        (encoded(image, "BMP"), set()),
        (encoded(image, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0cut"), {LOSSY, ODD}),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's are caught, not shown
        for number, (data, notes) in enumerate(cases):
            assert decode(data).notes == notes, number


def test_what_pillow_calls_a_bomb_is_nothing_odd_below_the_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", RGB.shape[0] * RGB.shape[1] - 1)
    assert decode(encoded(Image.fromarray(RGB))).notes == frozenset()


def test_hostile_pictures_are_one_class_of_error(tmp_path: Path) -> None:
    plain = encoded(Image.fromarray(RGB))
    text = PngInfo()
    text.add_text("workflow", "x" * (1 << 21), zip=True)
    wrong = bytearray(plain)
    wrong[-20] ^= 255
    hostile = {
        "empty": b"",
        "text": b"version https://git-lfs",
        "bomb": png_of(60_000, 60_000),
        "long": png_of(1 << 20, 1),
        "short": png_of(900, 900),
        "text chunk": encoded(Image.fromarray(RGB), pnginfo=text),
        "checksum": bytes(wrong),
        "cut": plain[: len(plain) // 2],
        "cut in its head": plain[:20],
        "another program's": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    for name, data in hostile.items():
        with pytest.raises(PictureError):
            decode(data)
        path = tmp_path / f"{name}.png"
        path.write_bytes(data)
        with pytest.raises(BenchError, match=rf"{name}\.png.* Paint it\.") as told:
            read_exact(path, advice="Paint it.")
        assert "object at" not in str(told.value), name


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "dead.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(1 << 40)
    for name in ("dead", "loop", "folder", "pipe", "sparse", "missing"):
        with pytest.raises(PictureError) as told:
            picture_bytes(tmp_path / f"{name}.png")
        assert "Errno" not in str(told.value), name


def test_damaged_bytes_never_raise_anything_else() -> None:
    image = Image.fromarray(RGB)
    more = {"save_all": True, "append_images": [image]}
    seeds = [
        *(encoded(image, f) for f in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")),
        *(encoded(image, f, **more) for f in ("PNG", "WEBP", "TIFF", "GIF")),
        encoded(image.convert("P"), transparency=3),
        encoded(image, "JPEG", exif=turned()),
        encoded(image.convert("I;16")),
    ]
    rng = np.random.default_rng(0)
    for number in range(600):
        data = bytearray(seeds[number % len(seeds)])
        for place in rng.integers(0, len(data), 3):
            data[place : place + 1] = rng.bytes(rng.integers(0, 4))
        try:
            assert decode(bytes(data)).pixels.shape[2:] == (3,)
        except PictureError:
            continue


def test_own_pictures_lose_nothing_and_have_their_size(tmp_path: Path) -> None:
    path = tmp_path / "own.png"
    path.write_bytes(encoded(Image.fromarray(RGB)))
    assert np.array_equal(read_exact(path, advice="", size=(12, 16)), RGB)
    with pytest.raises(BenchError, match="16 x 12 pixels, not 12 x 16"):
        read_exact(path, advice="", size=(16, 12))
    with pytest.raises(BenchError, match="mode RGB, not L"):
        read_exact(path, advice="", mode="L")
    for data in (
        encoded(Image.fromarray(RGB), "JPEG"),
        encoded(Image.fromarray(RGB), exif=turned()),
        encoded(Image.fromarray(RGB[..., 0].astype(np.uint16) * 257)),
    ):
        path.write_bytes(data)
        with pytest.raises(BenchError, match=r"own\.png"):
            read_exact(path, advice="")


def test_a_picture_of_a_known_size_may_be_larger_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.png"
    path.write_bytes(encoded(Image.fromarray(RGB)))
    monkeypatch.setattr("bench.data.picture.MOST_PIXELS", 99)
    with pytest.raises(BenchError, match="16 x 12"):
        read_exact(path, advice="")
    assert np.array_equal(read_exact(path, advice="", size=(12, 16)), RGB)


def test_a_sample_of_another_size_is_named(tmp_path: Path) -> None:
    for name, image in (("a", RGB), ("b", RGB), ("c", RGB[:9])):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    assert load_images(tmp_path, ["a", "b"], size=(12, 16)).shape == (2, 12, 16, 3)
    with pytest.raises(BenchError, match=r"c\.png.*16 x 9 pixels, not 16 x 12"):
        load_images(tmp_path, ["a", "b", "c"])
    with pytest.raises(BenchError, match=r"a\.png.*16 x 12 pixels, not 9 x 9"):
        load_images(tmp_path, ["a", "b"], size=(9, 9))

"""Image files show what a viewer shows, and hold the numbers they seem to hold, or are refused."""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from ppap.files.pictures import PictureError, read_grey, read_labels, read_picture

GREY = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
SMALL = np.array([[0, 3, 7], [255, 7, 3]], np.uint8)


def shown(path: Path) -> np.ndarray:
    return np.asarray(read_picture(path))


def coloured_palette(numbers: np.ndarray) -> Image.Image:
    image = Image.fromarray(numbers).convert("P")
    image.putpalette([(37 * k * (channel + 1)) % 256 for k in range(256) for channel in range(3)])
    return image


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize(
    "numbers",
    [GREY.astype(np.uint16) * 257, GREY.astype(np.int32) * 257, GREY.astype(np.float32) / 255],
    ids=["16 bits", "16 of 32 bits", "floats"],
)
def test_a_picture_of_more_bits_is_that_of_8(
    numbers: np.ndarray, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"grey.{suffix if numbers.dtype == np.uint16 else 'tiff'}"
    Image.fromarray(numbers).save(path)
    assert np.array_equal(shown(path), np.repeat(GREY[..., None], 3, axis=2))


@pytest.mark.parametrize(
    "numbers",
    [
        GREY.astype(np.int32),
        GREY.astype(np.int32) * 65536,
        GREY.astype(np.float32),
        GREY / np.float32(255) - np.float32(0.5),
        np.full((4, 4), np.nan, np.float32),
    ],
    ids=["8 of 32 bits", "32 bits", "floats to 255", "negative", "no number"],
)
def test_a_picture_whose_white_nobody_knows_is_refused(numbers: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(numbers).save(tmp_path / "a.tiff")
    with pytest.raises(PictureError, match="what is white"):
        read_picture(tmp_path / "a.tiff")


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
@pytest.mark.parametrize("numbers", [GREY, GREY.astype(np.uint16) * 257], ids=["8", "16"])
def test_a_turned_camera_is_turned_back(
    orientation: int, turns: int, numbers: np.ndarray, tmp_path: Path
) -> None:
    image = Image.fromarray(numbers)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(shown(tmp_path / "a.png")[..., 0], np.rot90(GREY, turns))
    assert np.array_equal(read_grey(tmp_path / "a.png"), np.rot90(numbers, turns))
    assert np.array_equal(read_labels(tmp_path / "a.png"), np.rot90(numbers, turns))


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[0, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    palette = coloured_palette(SMALL)
    palette.save(tmp_path / "b.png", transparency=3)
    assert shown(tmp_path / "a.png")[:, 0].tolist() == [[200, 0, 0], [255, 255, 255]]
    assert shown(tmp_path / "b.png")[0, 1].tolist() == [255, 255, 255]
    assert shown(tmp_path / "b.png")[0, 2].tolist() == [37 * 7 % 256, 37 * 14 % 256, 37 * 21 % 256]
    with pytest.raises(PictureError, match="transparent"):
        read_grey(tmp_path / "b.png", coloured=True)


def test_what_is_transparent_among_greys_of_16_bits_is_white(tmp_path: Path) -> None:
    numbers = GREY.astype(np.uint16) * 257
    Image.fromarray(numbers).save(tmp_path / "a.png", transparency=int(numbers[0, 1]))
    Image.fromarray(numbers).save(tmp_path / "b.png", transparency=3)  # which no pixel has
    expected = np.where(GREY[0, 1] == GREY, 255, GREY)
    assert np.array_equal(shown(tmp_path / "a.png")[..., 0], expected)
    assert np.array_equal(shown(tmp_path / "b.png")[..., 0], GREY)
    with pytest.raises(PictureError, match="transparent"):
        read_grey(tmp_path / "a.png")
    assert np.array_equal(read_grey(tmp_path / "b.png"), numbers)


@pytest.mark.parametrize("order", [[255, 0, 3, 7], [7, 3, 0, 255]])
def test_a_palette_of_greys_is_read_for_its_greys(order: list[int], tmp_path: Path) -> None:
    places = np.vectorize(order.index)(SMALL).astype(np.uint8)
    image = Image.fromarray(places).convert("P")
    image.putpalette([grey for grey in order for _ in range(3)])
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_grey(tmp_path / "a.png"), SMALL)
    with pytest.raises(PictureError, match="either may be meant"):
        read_labels(tmp_path / "a.png")


def test_a_palette_of_colours_stands_for_its_places(tmp_path: Path) -> None:
    coloured_palette(SMALL).save(tmp_path / "a.png")
    assert np.array_equal(read_labels(tmp_path / "a.png"), SMALL)
    with pytest.raises(PictureError, match="palette of colours"):
        read_grey(tmp_path / "a.png")
    # A palette of every grey in its place says the same either way.
    Image.fromarray(SMALL).convert("P").save(tmp_path / "b.png")
    assert np.array_equal(read_labels(tmp_path / "b.png"), SMALL)
    assert np.array_equal(read_grey(tmp_path / "b.png"), SMALL)


def test_labels_that_compression_or_few_bits_may_have_changed_are_refused(tmp_path: Path) -> None:
    Image.fromarray(SMALL).save(tmp_path / "a.jpg")
    Image.fromarray(SMALL).save(tmp_path / "b.png", bits=4)
    with pytest.raises(PictureError, match="compressed with loss"):
        read_labels(tmp_path / "a.jpg")
    with pytest.raises(PictureError, match="compressed with loss"):
        read_grey(tmp_path / "a.jpg", exact=True)
    with pytest.raises(PictureError, match="fewer than 8 bits"):
        read_labels(tmp_path / "b.png")
    assert read_grey(tmp_path / "a.jpg").shape == SMALL.shape


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.tiff", {"compression": "jpeg"}),
        ("a.avif", {"quality": 50}),
        ("a.webp", {"quality": 50}),
        ("a.jp2", {}),
    ],
)
def test_labels_in_what_may_be_compressed_with_loss_are_refused(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    kind = Path(name).suffix[1:]
    if not features.check({"tiff": "libtiff", "jp2": "jpg_2000"}.get(kind, kind)):
        pytest.skip("Pillow was built without it")
    Image.fromarray(np.repeat(np.repeat(SMALL, 16, 0), 16, 1)).save(tmp_path / name, **options)
    for read in (read_labels, functools.partial(read_grey, exact=True)):
        with pytest.raises(PictureError, match="compressed with loss"):
            read(tmp_path / name)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "raw"])
def test_labels_in_tiffs_without_loss_are_read(compression: str, tmp_path: Path) -> None:
    Image.fromarray(SMALL).save(tmp_path / "a.tiff", compression=compression)
    assert np.array_equal(read_labels(tmp_path / "a.tiff"), SMALL)


def tiff(numbers: np.ndarray, bits: int, white: int = 1, signed: int = 1) -> bytes:
    """A TIFF of greys, whose 0 is white if ``white`` is 0, signed if ``signed`` is 2."""
    content, (height, width) = numbers.tobytes(), numbers.shape
    width = width * 8 * numbers.itemsize // bits
    start = 10 + 12 * 9 + 4
    values = {256: width, 257: height, 258: bits, 259: 1, 262: white, 273: start, 278: height}
    entries = (values | {279: len(content), 339: signed}).items()
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, 9) + tags + bytes(4) + content


def test_tiffs_whose_numbers_pillow_takes_for_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    wide = SMALL.astype("<u2") * 257
    for content in (tiff(SMALL, 8), tiff(wide, 16)):
        path.write_bytes(content)
        assert np.array_equal(shown(path)[..., 0], SMALL)
        assert np.array_equal(read_labels(path).astype(np.uint8), SMALL)
    everything = (read_picture, read_grey, read_labels)
    white = "0 is white|white where it holds 0"
    for content, why, readers in (
        (tiff(SMALL, 8, signed=2), "signed numbers of 8 bits", everything),
        (tiff(wide, 16, white=0), white, everything),
        (tiff(SMALL, 8, white=0), white, everything[1:]),
        (tiff(SMALL, 4), "fewer than 8 bits", everything[2:]),
    ):
        path.write_bytes(content)
        for read in readers:
            with pytest.raises(PictureError, match=why):
                read(path)
    path.write_bytes(tiff(SMALL, 8, white=0))
    assert np.array_equal(shown(path)[..., 0], 255 - SMALL)


@pytest.mark.parametrize(
    "header", [b"P5 3 2 7\n", b"P5 3 2 255\n", b"P2 3 2 7\n", b"P5 3 2 4095\n", b"P5 3 2 65535\n"]
)
def test_numbers_of_a_pgm_are_as_they_are_in_the_file(header: bytes, tmp_path: Path) -> None:
    """Pillow makes 255 or 65535 of what is white there; a picture is that."""
    numbers, top = SMALL % 8, int(header.split()[3])
    text = " ".join(map(str, numbers.flat)).encode()
    kind = ">u2" if top > 255 else "u1"
    content = text if header.startswith(b"P2") else numbers.astype(kind).tobytes()
    (tmp_path / "a.pgm").write_bytes(header + content)
    for read in (read_labels, read_grey):
        found = read(tmp_path / "a.pgm")
        assert found.dtype == (np.uint16 if top > 255 else np.uint8)
        assert np.array_equal(found, numbers)
    assert np.array_equal(shown(tmp_path / "a.pgm")[..., 0], (numbers * (255 / top)).round())


def test_bits_whose_1_is_black_are_a_picture_and_no_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.pbm").write_bytes(b"P1 3 1\n0 1 0\n")
    assert shown(tmp_path / "a.pbm")[0, :, 0].tolist() == [255, 0, 255]
    assert read_grey(tmp_path / "a.pbm", coloured=True)[0].tolist() == [255, 0, 255]
    for read in (read_labels, read_grey):
        with pytest.raises(PictureError, match="white where it holds 0"):
            read(tmp_path / "a.pbm")


@pytest.mark.parametrize("suffix", ["tiff", "gif", "png"])
def test_of_several_images_in_a_file_the_first_is_not_taken_for_all(
    suffix: str, tmp_path: Path
) -> None:
    path, pages = tmp_path / f"a.{suffix}", [Image.fromarray(SMALL + k) for k in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    for read in (read_labels, read_grey, functools.partial(read_grey, coloured=True)):
        with pytest.raises(PictureError, match=r"holds 3 images; save the one"):
            read(path)
    assert np.array_equal(shown(path)[..., 0], SMALL)  # what a viewer shows at first


def test_smaller_copies_in_a_tiff_are_of_the_same_image(tmp_path: Path) -> None:
    smaller = Image.fromarray(SMALL[:1, :1])
    smaller.encoderinfo = {"tiffinfo": {254: 1}}
    path = tmp_path / "a.tiff"
    Image.fromarray(SMALL).save(path, save_all=True, append_images=[smaller])
    with Image.open(path) as image:
        assert image.n_frames == 2
    assert np.array_equal(read_labels(path), SMALL)
    assert np.array_equal(read_grey(path), SMALL)


def test_labels_of_one_bit_are_0_and_1(tmp_path: Path) -> None:
    Image.fromarray(SMALL > 3).save(tmp_path / "a.png")
    found = read_labels(tmp_path / "a.png")
    assert found.dtype == np.uint8
    assert np.array_equal(found, SMALL > 3)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0" + b"0" * 100, None])
def test_what_is_no_image_is_refused_in_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    for read in (read_picture, read_grey, read_labels):
        with pytest.raises(PictureError, match=r"a\.png cannot be read as an image") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_an_image_cut_short_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "bmp", "tiff", "gif"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:700])
        with pytest.raises(PictureError, match="cannot be read as an image"):
            read_picture(path)

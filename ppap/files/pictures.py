"""Image files: what a viewer shows of them, or the numbers that they hold, never something else.

Pillow's own conversions cut 16 bits off at 255, read a palette's places for its greys, keep the
colour under transparent pixels and leave a camera's orientation to the viewer. What cannot be read
without a guess is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, TiffImagePlugin

from ppap.files.checkpoints import one_line

__all__ = ["PictureError", "read_grey", "read_labels", "read_picture"]

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
"""How TIFFs may be compressed with loss."""
FEW_BITS = ("L;2", "L;4")
"""How greys of fewer bits than 8 are packed."""
WHITE = {"L": 255, "I": 65535}
"""Of a PGM in Pillow, by its mode."""
KIND_OF_PAGE, PHOTOMETRIC, SAMPLE_FORMAT = 254, 262, 339
"""Tags of TIFFs."""
WHITE_IS_ZERO, SIGNED = 0, 2
"""Values of the last two."""
T = TypeVar("T")
Numbers = npt.NDArray[Any]


class PictureError(ValueError):
    """An image file that is missing, damaged, or not what is asked of it."""


def read_picture(path: str | Path) -> Image.Image:
    """The picture in an image file, upright, as RGB of 8 bits, on white where it is transparent.

    Grey pictures may have 16 bits, or floats in [0, 1].

    Raises:
        PictureError: if the file is missing, damaged or of numbers without an agreed range.
    """
    return _opened(path, lambda image: _in_colour(path, image))


def read_grey(path: str | Path, coloured: bool = False, exact: bool = False) -> Numbers:
    """(H, W) grey levels of an image file, upright: 8 or 16 bits, or what a TIFF or PGM holds.

    A palette of greys gives its greys, and black and white are 0 and 255.

    Args:
        path: the file.
        coloured: whether a palette of colours gives their brightness.
        exact: whether single numbers mean something, which compression with loss does not keep.

    Raises:
        PictureError: if the file is missing or damaged, has colours or transparent pixels, holds
            several images, or is compressed with loss and must not be.
    """
    return _opened(path, lambda image: _levels(path, image, coloured, exact))


def read_labels(path: str | Path) -> Numbers:
    """(H, W) integers of an image file of labels, upright: grey levels, or places in a palette.

    Raises:
        PictureError: if the file is missing, damaged, compressed with loss, of colours without a
            palette, of several images, or does not say which numbers it means: a palette of greys
            other than their places, greys of fewer than 8 bits, or white that is 0.
    """
    return _opened(path, lambda image: _label_numbers(path, image))


def _opened(path: str | Path, read: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(path) as image:
            _refuse_misread(path, image)
            return read(image)
    except PictureError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise PictureError(f"{path} cannot be read as an image ({one_line(error)})") from error


def _refuse_misread(path: str | Path, image: Image.Image) -> None:
    """What Pillow takes for something else."""
    tags = getattr(image, "tag_v2", {})
    if image.mode == "L" and SIGNED in tags.get(SAMPLE_FORMAT, ()):
        raise PictureError(f"{path} holds signed numbers of 8 bits; save 16 bits")
    if image.mode in SIXTEEN_BITS and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        raise PictureError(f"{path} holds 16 bits of which 0 is white; save it so that 0 is black")


def _refuse_several(path: str | Path, image: Image.Image) -> None:
    """Of several images, but for smaller copies of the first, nobody can tell which is meant."""
    count: int = getattr(image, "n_frames", 1)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        smaller = 0
        for page in range(1, count):
            image.seek(page)
            smaller += image.tag_v2.get(KIND_OF_PAGE, 0) & 1
        image.seek(0)
        count -= smaller
    if count > 1:
        raise PictureError(f"{path} holds {count} images; save the one that is meant")


def _refuse_white_zero(path: str | Path, image: Image.Image) -> None:
    tags = getattr(image, "tag_v2", {})
    bits = image.format == "PPM" and image.mode == "1"
    if bits or tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        raise PictureError(
            f"{path} has white where it holds 0, and either the numbers or the greys may be meant; "
            "save it so that 0 is black"
        )


def _in_colour(path: str | Path, image: Image.Image) -> Image.Image:
    top = _pgm_top(image, shown=True)
    image = ImageOps.exif_transpose(image)
    if image.mode in (*SIXTEEN_BITS, "I", "F"):
        clear = _clear_grey(image)
        eight = _eight_bits(path, _unstretched(np.asarray(image), top))
        image = Image.fromarray(eight if clear is None else np.where(clear, np.uint8(255), eight))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _clear_grey(image: Image.Image) -> npt.NDArray[np.bool_] | None:
    """(H, W) where a grey picture of 16 bits is transparent, of which Pillow keeps the one grey."""
    clear = image.info.get("transparency")
    return np.asarray(image) == clear if isinstance(clear, int) else None


def _has_clear_pixels(image: Image.Image) -> bool:
    if image.mode in SIXTEEN_BITS:
        clear = _clear_grey(image)
        return clear is not None and bool(clear.any())
    opaque = not image.has_transparency_data
    return not opaque and bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)


def _eight_bits(path: str | Path, numbers: Numbers) -> npt.NDArray[np.uint8]:
    low, high = numbers.min(), numbers.max()
    if numbers.dtype.kind == "f":
        fits, top = bool(low >= 0 and high <= 1), 1.0
    elif numbers.dtype.itemsize == 2:
        fits, top = True, 65535.0
    else:  # 32 bits, in which 16 are often kept; small numbers may as well be of 8
        fits, top = bool(low >= 0 and 255 < high <= 65535), 65535.0
    if not fits:
        raise PictureError(
            f"{path} holds {numbers.dtype} numbers from {low} to {high}, of which nobody can tell "
            "what is white; save 8 or 16 bits"
        )
    return np.asarray((numbers.astype(np.float64) * (255 / top)).round(), np.uint8)


def _levels(path: str | Path, image: Image.Image, coloured: bool, exact: bool) -> Numbers:
    _refuse_several(path, image)
    if exact:
        _refuse_loss(path, image)
    if not coloured:
        _refuse_white_zero(path, image)
    if _has_clear_pixels(image):
        raise PictureError(f"{path} has transparent pixels; lay it on a plain ground first")
    top = _pgm_top(image, shown=coloured)
    image = ImageOps.exif_transpose(image)
    if image.mode == "P":
        if not coloured and not _grey_palette(image):
            raise PictureError(f"{path} has a palette of colours; save greys")
        image = image.convert("RGB").convert("L")
    elif image.mode == "1":
        image = image.convert("L")
    return _unstretched(_one_channel(path, image), top)


def _label_numbers(path: str | Path, image: Image.Image) -> Numbers:
    _refuse_several(path, image)
    _refuse_loss(path, image)
    _refuse_white_zero(path, image)
    if any(_raw_mode(tile) in FEW_BITS for tile in getattr(image, "tile", [])):
        raise PictureError(
            f"{path} holds greys of fewer than 8 bits, which may stand for 0, 1, 2 or be spread "
            "over 0 to 255; save 8 bits"
        )
    top = _pgm_top(image, shown=False)
    image = ImageOps.exif_transpose(image)
    if image.mode == "P" and (palette := _grey_palette(image)):
        used = np.unique(np.asarray(image)).tolist()
        if any(palette[place] != place for place in used):
            raise PictureError(
                f"{path} has a palette of greys that are not their places, and either may be "
                "meant; save the labels as greys without a palette"
            )
    found = _unstretched(_one_channel(path, image), top)
    return found.astype(np.uint8) if image.mode == "1" else found


def _raw_mode(tile: Any) -> Any:
    """How pixels are packed in a part of a file."""
    return tile.args[0] if isinstance(tile.args, tuple) else tile.args


def _pgm_top(image: Image.Image, shown: bool) -> int | None:
    """The number that a PGM has for white, of which Pillow makes the one that is ``shown``."""
    if image.format != "PPM" or image.mode not in WHITE:
        return None
    (tile,) = getattr(image, "tile", [])
    stretched = tile.codec_name.startswith("ppm")
    return tile.args[1] if stretched and not shown else WHITE[image.mode]


def _unstretched(found: Numbers, top: int | None) -> Numbers:
    """The numbers of a PGM, up to the one for white, in 8 or 16 bits."""
    if top is None:
        return found
    white = WHITE["L" if found.dtype == np.uint8 else "I"]
    return (found * (top / white)).round().astype(np.uint8 if white == 255 else np.uint16)


def _refuse_loss(path: str | Path, image: Image.Image) -> None:
    if image.format in LOSSY or image.info.get("compression") in LOSSY_TIFF:
        raise PictureError(f"{path} is compressed with loss, which changes numbers; save a PNG")


def _grey_palette(image: Image.Image) -> list[int] | None:
    """The greys of an image's palette by their places; None if there are colours among them."""
    palette = image.getpalette() or []
    colours = np.array(palette, np.uint8).reshape(-1, 3)
    grey = (colours == colours[:, :1]).all()
    return colours[:, 0].tolist() if grey else None


def _one_channel(path: str | Path, image: Image.Image) -> Numbers:
    found = np.array(image)
    if found.ndim != 2 or not found.size:
        raise PictureError(
            f"{path} holds {image.mode} pixels, of {len(image.getbands())} channels; a map is "
            "(H, W) numbers: save one channel"
        )
    return found

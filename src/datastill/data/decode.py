"""From encoded images to arrays: one way for files, parquet, arrays and datasets alike."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from datastill.core.errors import InputError
from datastill.data.raw import Request

if TYPE_CHECKING:
    from PIL import Image

#: Modes that become L or RGB without a loss, so nobody need be asked.
_SILENT = {"L": "L", "RGB": "RGB", "1": "L", "P": "RGB"}


class ImageError(InputError):
    """An image that cannot be used; the text names it."""


class CorruptImage(ImageError):
    """An image that cannot be decoded, which `skip_bad` may pass over."""


def decode_image(data: bytes | Image.Image, name: str, request: Request) -> np.ndarray:
    """One image as (c, h, w) uint8.

    EXIF orientation is applied, palettes become RGB and 1-bit images L. Conversions asked for by
    `request.mode` drop an alpha channel and take the upper 8 bits of as many as there are.

    Args:
        data: an encoded file, or an open image.
        name: what errors call it.
        request: gives mode and size.

    Raises:
        CorruptImage: it cannot be decoded.
        ImageError: its mode needs `mode=`.
    """
    from PIL import Image, ImageOps

    try:
        image = Image.open(io.BytesIO(data)) if isinstance(data, bytes) else data
        depth = _depth(image, data)
        image = ImageOps.exif_transpose(image)
        image.load()
    except Exception as error:  # decoders raise whatever they like: OSError, SyntaxError, struct.error, ...
        raise CorruptImage(
            f"{name} is not a readable image ({_short(error)}); mend or remove it, or skip such images with "
            "skip_bad (--skip-bad)."
        ) from error
    return to_array(resize(convert(image, name, request.mode, depth), request.size))


def _depth(image: Image.Image, data: bytes | Image.Image) -> int:
    """Bits of a pixel that an image of more than 8 says it has; 32 where nothing is known but that."""
    if not image.mode.startswith("I"):
        return 8
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        bits = tags.get(258, (32,))  # BitsPerSample
        return int(bits[0] if isinstance(bits, tuple) else bits)
    if image.format == "PNG" and isinstance(data, bytes):
        chunk = data.find(b"sBIT", 0, 4096)  # significant bits, before the pixels
        return data[chunk + 4] if 0 < chunk < len(data) - 4 else 16
    # older versions of Pillow open PNG of 16 bits as "I", and all scale the values of PPM to 16
    return 16 if image.mode.startswith("I;16") or image.format in ("PNG", "PPM") else 32


def convert(image: Image.Image, name: str, mode: str | None, depth: int = 8) -> Image.Image:
    """The image in `mode`, or in L or RGB where that loses nothing; `depth` is that of its pixels."""
    if mode is None:
        silent = _SILENT.get(image.mode)
        if silent is None:
            what = f"of mode {image.mode!r} ({_MEANING.get(image.mode, 'not plain gray or color')})"
            raise ImageError(f"{name} is {what}; convert all images with mode='RGB' or 'L' (--mode RGB).")
        mode = silent
    if image.mode == mode:
        return image
    if image.mode == "F":
        raise ImageError(f"{name} holds floating-point pixels; store 8-bit images, or load arrays in [0, 1].")
    if image.mode.startswith("I"):
        return _eight_bits(image, name, depth).convert(mode)
    if image.mode == "P":
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of transparency
    return image.convert(mode)


_MEANING = {
    "RGBA": "with transparency",
    "LA": "with transparency",
    "PA": "with transparency",
    "CMYK": "for print",
    "I;16": "16 bits per pixel",
    "I": "more than 8 bits per pixel",
    "F": "floating point",
}


def _eight_bits(image: Image.Image, name: str, depth: int) -> Image.Image:
    from PIL import Image

    values = np.asarray(image).astype(np.int64)  # Pillow itself would clip at 255
    if not 8 <= depth <= 16 or values.min() < 0:
        what = f"integers from {values.min()} to {values.max()}"
        raise ImageError(f"{name} holds {what}, of which it is not known what is black and white; store 8 or 16 bits.")
    return Image.fromarray((values.clip(0, 2**depth - 1) >> (depth - 8)).astype(np.uint8))


def resize(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Scaled to cover (height, width), then cropped about the center: the aspect ratio is kept."""
    if size is None or image.size == (size[1], size[0]):
        return image
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (size[1], size[0]), method=Image.Resampling.BILINEAR)


def to_array(image: Image.Image) -> np.ndarray:
    """(c, h, w) uint8 of an L or RGB image."""
    array = np.asarray(image)
    return array[None].copy() if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def refit(array: np.ndarray, request: Request) -> np.ndarray:
    """A (c, h, w) array, uint8 or float32, in the mode and size that were asked for."""
    c = len(array)
    if request.mode == "RGB" and c == 1:
        array = np.repeat(array, 3, axis=0)
    elif request.mode == "L" and c == 3:
        array = _luma(array)
    elif request.mode is not None and c != len(request.mode):
        raise ImageError(f"Images of {c} channels have no mode {request.mode!r}; leave mode out or pick channels.")
    if request.size is None or array.shape[1:] == request.size:
        return array
    from PIL import Image

    return np.stack([np.asarray(resize(Image.fromarray(plane), request.size)) for plane in array])


def _luma(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        from PIL import Image

        return to_array(Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0))).convert("L"))
    weights = np.array([0.299, 0.587, 0.114], dtype=array.dtype)
    return np.asarray(np.tensordot(weights, array, 1)[None])


def _short(error: Exception) -> Any:
    text = " ".join(str(error).split()) or type(error).__name__
    if "BytesIO" in text:  # Pillow names the object in memory, not the file
        return "no image format that is known here"
    return text if len(text) < 80 else type(error).__name__

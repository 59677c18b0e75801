"""From codes to images."""

from collections.abc import Mapping, Sequence

from datastill.core.errors import InputError


def stored_shape(shapes: Mapping[str, Sequence[int]]) -> tuple[int, int, int, int]:
    """The shape of the leaf `images` (n, c, h, w), which the decoders of this package have.

    Raises:
        InputError: there is no such leaf, it has other dimensions, or no number in it.
    """
    found = tuple(shapes.get("images", ()))
    if len(found) != 4 or 0 in found:
        raise InputError(f"The stored images are {list(found)}, and (images, channels, height, width) are needed.")
    n, c, h, w = found
    return n, c, h, w

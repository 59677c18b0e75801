"""Which augmentation fits which data."""

from __future__ import annotations

from datastill.augment.dsa import Dsa, without_flip

ALL = "color_crop_cutout_flip_scale_rotate"

#: Images of at least so many pixels a side are augmented by "auto".
AUGMENTED_SIDE = 16
#: Sets whose meaning a mirror image changes: digits, letters, signs.
_NO_FLIP = ("mnist", "svhn", "digits", "usps", "emnist", "kmnist", "omniglot", "gtsrb", "cmnist")


def strategy_for(name: str, shape: tuple[int, int, int]) -> str:
    """The DSA strategy for a data set: none for small images, no flip for digits and letters, else all operations."""
    if min(shape[1:]) < AUGMENTED_SIDE:
        return "none"
    plain = name.split(":")[0].split("/")[-1].lower().replace("-", "_")
    mirrored = plain in _NO_FLIP
    return without_flip(ALL) if mirrored else ALL


def make_augment(strategy: str, name: str, shape: tuple[int, int, int]) -> Dsa | None:
    """The augmentation of a method's `augment` field: a strategy, "none", or "auto" (see `strategy_for`)."""
    chosen = strategy_for(name, shape) if strategy == "auto" else strategy
    return None if chosen == "none" else Dsa(chosen)


def composite_strategy(strategy: str, name: str, shape: tuple[int, int, int]) -> str:
    """That of methods which match under several operations at once, as IDC: "auto" is color, crop and cutout."""
    if strategy != "auto":
        return strategy
    return "none" if strategy_for(name, shape) == "none" else "color_crop_cutout"

"""Strength of each corruption at level 1 to 5, as in CIFAR-10-C, and which corruptions make a set.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ICLR
2019, arXiv:1903.12261); their values for 32 x 32 pixels, which are not those for ImageNet.
"""

from __future__ import annotations

from typing import Any

from datastill.core.errors import InputError, nearest

#: Arguments of each corruption after the image, by level; see the functions for their meaning.
LEVELS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "gaussian_noise": ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
    "shot_noise": ((500,), (250,), (100,), (75,), (50,)),
    "impulse_noise": ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
    "speckle_noise": ((0.06,), (0.10,), (0.12,), (0.16,), (0.20,)),
    "gaussian_blur": ((0.4,), (0.6,), (0.7,), (0.8,), (1.0,)),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
    # the last of np.arange(1, end, 0.01) with end 1.06, 1.11, 1.16, 1.21, 1.26: by rounding, the first two reach theirs
    "zoom_blur": ((1.06,), (1.11,), (1.15,), (1.2,), (1.25,)),
    "fog": ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
    "frost": ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "snow": (
        (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
    ),
    "contrast": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
    "brightness": ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
    "saturate": ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),
    "jpeg": ((80,), (65,), (58,), (50,), (40,)),
    "pixelate": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
    "elastic": ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, "water"),
        (0.65, 0.1, 0.8, 0.7, 0.5, "water"),
        (0.65, 0.3, 1.0, 0.69, 0.5, "water"),
        (0.65, 0.1, 0.7, 0.69, 0.6, "mud"),
        (0.65, 0.1, 0.5, 0.68, 0.6, "mud"),
    ),
    "original": ((), (), (), (), ()),
}

#: Corruptions by bias value: types 0 and 1 of the generator of "Learning from Failure"; the mix of DFA as we
#: remember it from its paper (Lee et al., NeurIPS 2021), not checked against its code.
PRESETS: dict[str, tuple[str, ...]] = {
    "0": (
        "snow", "frost", "fog", "brightness", "contrast", "spatter", "elastic", "jpeg", "pixelate", "saturate",
    ),
    "1": (
        "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "gaussian_blur", "defocus_blur",
        "glass_blur", "motion_blur", "zoom_blur", "original",
    ),
    "dfa": (
        "brightness", "contrast", "gaussian_noise", "frost", "elastic", "gaussian_blur", "defocus_blur",
        "impulse_noise", "saturate", "pixelate",
    ),
}  # fmt: skip


def corruption_list(text: str) -> tuple[str, ...]:
    """A preset ("0", "1", "dfa") or names joined by + ("snow+fog+jpeg"), as names by bias value.

    Raises:
        InputError: an unknown or repeated name, or fewer than two.
    """
    if text in PRESETS:
        return PRESETS[text]
    names = tuple(text.split("+"))
    for name in names:
        if name not in LEVELS:
            told = nearest(name, [*LEVELS, *PRESETS])
            raise InputError(f"There is no corruption {name!r}. {told}")
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"corruptions={text} must name two or more corruptions once each, joined by +.")
    return names


def level_of_severity(severity: int) -> int:
    """The level 1..5 of the set that the literature calls "severity 1..4": its generator counts from 0.

    Raises:
        InputError: a severity outside 1..4.
    """
    if severity not in (1, 2, 3, 4):
        raise InputError(f"Published sets have a severity of 1 to 4, not {severity}; give level= to choose freely.")
    return severity + 1

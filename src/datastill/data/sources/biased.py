"""The biased benchmark sets: colored digits, garments on backgrounds, corrupted photographs."""

from __future__ import annotations

from datastill.data.raw import Raw, Request
from datastill.data.sources import source


@source("cmnist")
def cmnist(
    request: Request, *, ratio: float = 0.05, severity: int = 4, seed: int = 0, shuffle: bool = True,
    base: str = "mnist", train: int = 0, test: int = 0,
) -> Raw:  # fmt: skip
    """Colored MNIST; see `data.biased.build.Options` and `data.biased.colored.Colors`."""
    from datastill.data.biased.build import Options, build
    from datastill.data.biased.colored import Colors

    options = Options(base=base, ratio=ratio, seed=seed, shuffle=shuffle, train=train, test=test)
    return build("cmnist", request, options, lambda where: Colors(severity))


@source("bg-fmnist")
def bg_fmnist(
    request: Request, *, ratio: float = 0.05, backgrounds: str = "procedural", mask: str = "soft", gain: float = 4.0,
    threshold: int = 10, seed: int = 0, shuffle: bool = True, base: str = "fashion_mnist", train: int = 0,
    test: int = 0,
) -> Raw:  # fmt: skip
    """FashionMNIST on backgrounds; see `data.biased.build.Options` and `data.biased.backgrounds.OnBackgrounds`."""
    from datastill.data.biased.backgrounds import OnBackgrounds
    from datastill.data.biased.build import Options, build

    options = Options(base=base, ratio=ratio, seed=seed, shuffle=shuffle, train=train, test=test)
    return build("bg-fmnist", request, options, lambda where: OnBackgrounds(backgrounds, mask, gain, threshold, where))


@source("ccifar10")
def ccifar10(
    request: Request, *, ratio: float = 0.05, corruptions: str = "0", level: int = 5, frost: str = "", seed: int = 0,
    shuffle: bool = True, base: str = "cifar10", train: int = 0, test: int = 0,
) -> Raw:  # fmt: skip
    """Corrupted CIFAR-10; see `data.biased.build.Options` and `data.biased.corrupted.Corrupted`."""
    from datastill.data.biased.build import Options, build
    from datastill.data.biased.corrupted import Corrupted

    options = Options(base=base, ratio=ratio, seed=seed, shuffle=shuffle, train=train, test=test)
    return build("ccifar10", request, options, lambda where: Corrupted(corruptions, level, frost))

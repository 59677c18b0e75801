"""`debias`: a real set with weights that undo a bias in it.

Every matching loss takes weighted class means of real samples, so weights on the set are all that de-biased
distillation needs. A network that has learned the bias tells which samples follow it: they crowd together in its
embedding (`density`), and it is right on them (`loss`). They weigh little.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch
from pydantic import Field
from torch import Tensor

from datastill.core.allocator import keep_freed_memory
from datastill.core.cost import Stopwatch, pick_device
from datastill.core.errors import InputError, nearest
from datastill.core.plan import Progress, silent
from datastill.core.ranges import Seed, checked
from datastill.data import load_real
from datastill.data.cache import cache_folder, kept
from datastill.data.sources import join_options, split_options, typed_option
from datastill.debias.density import ByDensity
from datastill.debias.diagnosis import OF_LABELS, KeptRecord, conflict_mass, describe_weights
from datastill.debias.loss import ByLoss
from datastill.debias.oracle import group_weights
from datastill.store.files import digest, read_tensors, write_tensors
from datastill.store.schema import Kind, Name, Number, Record, Text, as_record

if TYPE_CHECKING:
    from datastill.data.real import RealSet


class Way(Protocol):
    """How weights come about; a new one is a class here and an entry of `WAYS`."""

    record: ClassVar[type[KeptRecord]]
    advice: ClassVar[tuple[str, str]]  #: as `describe_weights` takes it

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Its options, each with a value of its type."""

    @classmethod
    def words(cls, name: str) -> tuple[str, ...]:
        """What an option takes besides values of its type."""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """With these options; refuses what it does not know."""

    def key(self, real: RealSet, seed: int, device: torch.device) -> dict[str, Any]:
        """Everything that its weights depend on, JSON-able."""

    def run(self, real: RealSet, seed: int, device: torch.device, progress: Progress) -> tuple[Tensor, dict[str, Any]]:
        """Weights (n,) float64 that sum to 1 in every class, and what is to be said of them, as `record`."""

    def warnings(self, report: Mapping[str, Any]) -> list[str]:
        """What of it a user should hear."""


WAYS: dict[str, type[Way]] = {"kde": ByDensity, "loss": ByLoss}
HOW = (*WAYS, "oracle", "none")


@checked
def debias(
    real: Any,
    how: str = "kde",
    *,
    seed: Seed = 0,
    device: str = "cpu",
    progress: Progress = silent,
    folder: Path | None = None,
    **options: Any,
) -> tuple[RealSet, dict[str, Any]]:
    """The set with a weight per image, and a report on the weights.

    Weights have mean 1 in every class, so that equal ones are no weights at all: a loss over several classes still
    gives each class its share of the images. They are constants: they are learned once, from the training images alone,
    and replace any that the set had.

    Args:
        real: the real set, as `load_real` takes it.
        how: "kde", inverse density; "loss", the loss of a network that is trained to follow the bias; "oracle", 1 /
            n(class, bias) from the set's bias labels, for diagnosis only; "none", no weights. Options may stand in it,
            as in "kde:power=1".
        seed: of the network that is trained.
        device: where it is trained and densities are taken.
        progress: told how the training goes.
        folder: where weights are kept and found again, by the hash of what they depend on; None keeps none.
        **options: of "kde": the fields of `Kernel` (variance, power, scope, ...) and of `Extractor` (epochs, tau,
            read, ...); of "loss": those of `ByLoss` (steps, q, power, ...).

    Returns:
        The set, and a JSON-able report: what was done and with which numbers, effective sample sizes, `warnings`,
        variances that the automatic rules would take, and `conflict_mass` where the set knows its bias.

    Raises:
        InputError: unknown `how` or option, a number out of range, or "oracle" for a set without bias labels.
    """
    from datastill.data.real import RealSet

    how, options = _asked(how, options)
    real = real if isinstance(real, RealSet) else load_real(real)
    if not len(real):
        raise InputError(f"{real.name or 'The set'} has no images to weigh; give it some.")
    watch = Stopwatch()
    keep_freed_memory()
    report: dict[str, Any] = {"how": how}
    if how == "none":
        _refuse(options, how)
        weights = None
    elif how == "oracle":
        _refuse(options, how)
        weights = group_weights(real.labels, _bias_of(real))
    else:
        way = WAYS[how].of(options)
        weights, told = _kept(way, real, seed, pick_device(device), progress, folder)
        report |= told
    if weights is not None:
        weights = (weights * real.counts[real.labels]).float()
        advice = WAYS[how].advice if how in WAYS else OF_LABELS
        report |= describe_weights(weights, real.labels, real.class_names, advice)
        report["warnings"] += way.warnings(report) if how in WAYS else []
    if real.bias is not None:
        report["conflict_mass"] = conflict_mass(weights, real.labels, real.bias)
    # what is found again has taken what it took when it was made
    seconds = max(report.get("seconds", 0.0), watch.read()["seconds"])
    return real.with_weights(weights), {**report, "seconds": seconds}


def weighted_set(
    real: Any, text: str, seed: int, device: str = "cpu", progress: Progress = silent
) -> tuple[RealSet, dict[str, Any]]:
    """`debias` from words: "kde", "loss", "oracle", or with options as in "kde:variance=0.05,power=1".

    Weights are kept in the cache, so that runs of several methods share them. With "draw=true" real images are drawn in
    proportion to their weights and then count alike, where otherwise they are drawn alike and weighted: the expectation
    is the same, the variance of small batches smaller.

    Raises:
        InputError: as `debias`, or an option that is no number or word of the kind that it takes.
    """
    how, draw, options = way_of(text)
    weighted, report = debias(real, how, seed=seed, device=device, progress=progress, folder=_folder(), **options)
    return weighted, {**report, "draw": draw}


def kept_set(real: RealSet, text: str, seed: int, device: str = "cpu") -> RealSet | None:
    """What `weighted_set` returns, where nothing must be trained for it; None where the cache has no such weights.

    Raises:
        InputError: as `weighted_set`.
    """
    how, _, options = way_of(text)
    if how in WAYS:
        way = WAYS[how].of(options)
        if not _place(_folder(), way, real, seed, pick_device(device)).is_file():
            return None
    return weighted_set(real, text, seed, device)[0]


def way_of(text: str) -> tuple[str, bool, dict[str, Any]]:
    """The way that words name, whether images are drawn by weight, and its options in their types.

    Raises:
        InputError: an unknown way or option, or a value that cannot be.
    """
    how, given = split_options(text)
    if how not in HOW:
        raise InputError(f"There is no way {how!r} to de-bias. {nearest(how, HOW)}")
    draw = how != "none" and typed_option(given.pop("draw", "false"), False, "--debias draw")
    options: dict[str, Any] = dict(given)
    if how in WAYS:
        options = {name: _value(WAYS[how], name, value) for name, value in given.items()}
        WAYS[how].of(options)
    else:
        _refuse(options, how)
    return how, draw, options


def _asked(how: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A way and its options, from words and keywords.

    Raises:
        InputError: an unknown way, an option given twice, or draw, which is of how images are drawn.
    """
    name, draw, given = way_of(how)
    if draw or "draw" in options:
        raise InputError(
            "To draw real images by weight is for the method: leave draw out here, or give distill the unweighted set "
            f'and debias="{with_draw(how)}".'
        )
    if twice := given.keys() & options.keys():
        raise InputError(f"{', '.join(sorted(twice))} of {name} is given twice; give it once.")
    return name, {**given, **options}


def without_draw(text: str) -> str:
    """The same way with weights in the losses: "kde:power=1" from "kde:draw=true,power=1"."""
    how, given = split_options(text)
    given = {name: value for name, value in given.items() if name != "draw"}
    return join_options(how, given)


def with_draw(text: str) -> str:
    """The same way with real images drawn by weight: "kde:draw=true,power=1" from "kde:power=1"."""
    how, given = split_options(text)
    given = {"draw": "true"} | {name: value for name, value in given.items() if name != "draw"}
    return join_options(how, given)


def _value(way: type[Way], name: str, text: str) -> Any:
    """An option in the type of its default."""
    defaults = way.defaults()
    if name not in defaults or text in way.words(name):
        return text  # what is unknown is refused, with the known names, where it is used
    try:
        return typed_option(text, defaults[name], f"--debias {name}")
    except InputError as error:
        words = " or ".join(way.words(name))
        raise InputError(f"{error} It may also be {words}." if words else str(error)) from None


class Weighed(Record):
    """How real images were weighted, as manifests have it: numbers of the way stand beside these."""

    how: Name
    asked: Text | None = None
    warnings: list[Text] = Field(default_factory=list)
    effective_samples: list[Number] = Field(default_factory=list)
    conflict_mass: Number | None = None


def _folder() -> Path:
    """Where weights are kept that came of words."""
    return cache_folder() / "weights"


def _place(folder: Path, way: Way, real: RealSet, seed: int, device: torch.device) -> Path:
    """The file of a folder that keeps these weights."""
    return Path(folder) / f"weights-{digest(way.key(real, seed, device))}.safetensors"


def _kept(
    way: Way, real: RealSet, seed: int, device: torch.device, progress: Progress, folder: Path | None
) -> tuple[Tensor, dict[str, Any]]:
    """Weights (n,) float64 and what is to be said of them; from the folder where they are there."""
    path = None if folder is None else _place(folder, way, real, seed, device)
    if path is not None and path.is_file():
        return _read(path, way, real)
    watch = Stopwatch()
    weights, report = way.run(real, seed, device, progress)
    report |= {"seed": seed, "seconds": watch.read()["seconds"]}
    if path is not None:
        with kept("The weights are"):
            write_tensors(path, {"weights": weights}, {"report": json.dumps(report), "key": path.stem})
    return weights, report


def _read(path: Path, way: Way, real: RealSet) -> tuple[Tensor, dict[str, Any]]:
    """Kept weights (n,) float64 and what is to be said of them.

    Raises:
        InputError: the file is damaged, of other weights, or holds none that sum to 1 in each class.
    """
    try:
        tensors, meta = read_tensors(path, {"weights": Kind(("F64", "F32"), (1,))})
        report = as_record(meta.get("report", ""), path, way.record)
    except InputError as error:
        raise InputError(f"{error} Remove {path} to have the weights computed again.") from error
    if meta.get("key", path.stem) != path.stem:  # older files have no key
        raise InputError(f"{path} holds other weights than its name says; remove it to have them computed again.")
    weights = tensors.get("weights")
    if weights is None or len(weights) != len(real) or bool((weights < 0).any()) or not _sum_to_one(weights, real):
        raise InputError(f"{path} does not hold a weight for each image; remove it to have them computed again.")
    return weights, {name: report[name] for name in way.record.model_fields if name in report}


def _sum_to_one(weights: Tensor, real: RealSet) -> bool:
    """In every class that has images."""
    sums = torch.bincount(real.labels, weights=weights.double(), minlength=real.classes)
    return bool(((sums[real.counts > 0] - 1).abs() < 1e-4).all())


def _refuse(options: Mapping[str, Any], how: str) -> None:
    if options:
        raise InputError(f"De-biasing by {how!r} has no options, and {', '.join(options)} was given.")


def _bias_of(real: RealSet) -> Tensor:
    if real.bias is None:
        raise InputError("Oracle weights need the bias label of every image, and this set has none; take loss or kde.")
    return real.bias

"""`debias`: a real set with weights that undo a bias in it.

Every matching loss takes weighted class means of real samples, so weights on the set are all that de-biased
distillation needs: w_i ~ f(x_i)^-p with f the density of x_i among its class in the embedding of a network that has
learned the bias. Samples that follow the bias crowd together and weigh little.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from pydantic import Field
from torch import Tensor

from datastill.core.allocator import keep_freed_memory
from datastill.core.cost import Stopwatch, pick_device
from datastill.core.errors import InputError, nearest
from datastill.core.plan import Progress, silent
from datastill.core.ranges import Count, Rate, Seed, check_fields, checked
from datastill.data import load_real
from datastill.data.cache import cache_folder, kept
from datastill.data.sources import split_options, typed_option
from datastill.debias.diagnosis import conflict_mass, describe_weights
from datastill.debias.kde import density, inverse_density, median_variance, spread_variance
from datastill.debias.oracle import group_weights
from datastill.store.files import digest, read_tensors, write_tensors
from datastill.store.schema import Kind, Name, Number, Record, Text, as_record
from datastill.training.extractor import Extractor, with_options

if TYPE_CHECKING:
    from datastill.data.real import RealSet

HOW = ("kde", "oracle", "none")
#: A variance this many times the one of most unequal weights, or less than it by that, is worth a word.
_FAR = 5.0
RULES = {"median": median_variance, "spread": spread_variance}


@dataclass(frozen=True)
class Kernel:
    """From embeddings to weights, see `kde.density` and `kde.inverse_density`."""

    variance: Rate | Literal["median", "spread"] = (
        0.03  #: s^2 of exp(-d^2 / (2 s^2)) on unit vectors; or a rule: "median" or "spread"
    )
    power: Annotated[float, Ge(0), Le(1000)] = (
        1.5  #: weights are density^-power: 1 is the plain inverse; a weight temperature is 1 / power
    )
    scope: Literal["class", "global", "batch"] = "class"  #: "class"; "global" and "batch" for comparison
    leave_one_out: bool = False  #: leave a sample out of its own density
    density_batch: Count = 256  #: samples per batch in scope "batch"

    def __post_init__(self) -> None:
        check_fields(self, "{name} of kde")

    def weights(self, z: Tensor, y: Tensor, seed: int) -> tuple[Tensor, float]:
        """Weights (n,) float64 that sum to 1 per class, and the variance that was taken.

        Raises:
            InputError: an unknown rule or scope, a number out of range, or a rule that finds no variance.
        """
        variance = self._variance(z, y, seed)
        f = density(
            z,
            y,
            variance,
            scope=self.scope,
            leave_one_out=self.leave_one_out,
            batch=self.density_batch,
            seed=seed,
        )
        return inverse_density(f, y, self.power), variance

    def _variance(self, z: Tensor, y: Tensor, seed: int) -> float:
        if not isinstance(self.variance, str):
            return float(self.variance)
        found = rule_variances(z, y, self.power, seed)[self.variance]
        if found is None:
            raise InputError(
                f"The rule {self.variance!r} finds no variance: the embedding does not vary within classes."
            )
        return found


@checked
def debias(
    real: RealSet,
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
        real: the real set.
        how: "kde", inverse density; "oracle", 1 / n(class, bias) from the set's bias labels, for diagnosis only;
            "none", no weights.
        seed: of the extractor.
        device: where the extractor is trained and densities are taken.
        progress: told how the training of the extractor goes.
        folder: where weights are kept and found again, by the hash of what they depend on; None keeps none.
        **options: of "kde": the fields of `Kernel` (variance, power, scope, ...) and of `Extractor` (epochs, tau,
            read, ...).

    Returns:
        The set, and a JSON-able report: what was done and with which numbers, effective sample sizes, `warnings`,
        variances that the automatic rules would take, and `conflict_mass` where the set knows its bias.

    Raises:
        InputError: unknown `how` or option, a number out of range, or "oracle" for a set without bias labels.
    """
    _check_way(how)
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
        weights, told = _by_density(real, seed, pick_device(device), progress, folder, options)
        report |= told
    if weights is not None:
        weights = (weights * real.counts[real.labels]).float()
        report |= describe_weights(weights, real.labels, real.classes)
        report["warnings"] += _warn_of_variance(report)
    if real.bias is not None:
        report["conflict_mass"] = conflict_mass(weights, real.labels, real.bias)
    return real.with_weights(weights), {**report, "seconds": watch.read()["seconds"]}


def weighted_set(
    real: Any, text: str, seed: int, device: str = "cpu", progress: Progress = silent
) -> tuple[RealSet, dict[str, Any]]:
    """`debias` from words: "kde", "oracle", or with options as in "kde:variance=0.05,power=1".

    Weights are kept in the cache, so that runs of several methods share them. With "draw=true" real images are drawn in
    proportion to their weights and then count alike, where otherwise they are drawn alike and weighted: the expectation
    is the same, the variance of small batches smaller.

    Raises:
        InputError: as `debias`, or an option that is no number or word of the kind that it takes.
    """
    from datastill.data.real import RealSet

    how, draw, options = way_of(text)
    data = real if isinstance(real, RealSet) else load_real(real)
    folder = cache_folder() / "weights"
    weighted, report = debias(data, how, seed=seed, device=device, progress=progress, folder=folder, **options)
    return weighted, {**report, "draw": draw}


def way_of(text: str) -> tuple[str, bool, dict[str, Any]]:
    """The way that words name, whether images are drawn by weight, and its options in their types.

    Raises:
        InputError: an unknown way or option, or a value that cannot be.
    """
    how, given = split_options(text)
    _check_way(how)
    draw = typed_option(given.pop("draw", "false"), False, "--debias draw")
    options = {name: _value(name, value) for name, value in given.items()}
    if how == "kde":
        _settings(options)
    else:
        _refuse(options, how)
    return how, draw, options


def _check_way(how: str) -> None:
    if how not in HOW:
        raise InputError(f"There is no way {how!r} to de-bias. {nearest(how, HOW)}")


def _value(name: str, text: str) -> Any:
    """An option in the type of its default."""
    defaults = {f.name: f.default for f in (*fields(Kernel), *fields(Extractor))}
    if name not in defaults or (name == "variance" and text in RULES):
        return text  # what is unknown is refused, with the known names, where it is used
    default = 0 if defaults[name] is None else defaults[name]  # epochs: None is automatic
    return typed_option(text, default, f"--debias {name}")


class Weighed(Record):
    """How real images were weighted, as manifests have it: numbers of the way stand beside these."""

    how: Name
    asked: Text | None = None
    warnings: list[Text] = Field(default_factory=list)


class KernelRecord(Record):
    """The kernel and the variance that it took."""

    variance: Number


class WeightsRecord(Record):
    """What is kept beside weights."""

    kernel: KernelRecord
    rule: Text | None
    extractor: dict[str, Any]
    rules: dict[str, Number | None]


def _by_density(
    real: RealSet, seed: int, device: torch.device, progress: Progress, folder: Path | None, options: dict[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """Weights (n,) float64 and what is to be said of them; from the folder where they are there."""
    kernel, extractor = _settings(options)
    key = {**extractor.key(real, seed, device), "kernel": asdict(kernel)}
    path = None if folder is None else Path(folder) / f"weights-{digest(key)}.safetensors"
    if path is not None and path.is_file():
        tensors, meta = read_tensors(path, {"weights": Kind(("F64", "F32"), (1,))})
        weights, report = tensors.get("weights"), as_record(meta.get("report", ""), path, WeightsRecord)
        if weights is None or len(weights) != len(real) or bool((weights < 0).any()):
            raise InputError(f"{path} does not hold a weight for each image; remove it to have them computed again.")
        return weights, report
    z = extractor.run(real, seed, device, progress).to(device)
    weights, variance = kernel.weights(z, real.labels, seed)
    report = {
        "kernel": {**asdict(kernel), "variance": variance},
        "rule": kernel.variance if isinstance(kernel.variance, str) else None,
        "extractor": asdict(extractor.settled(len(real))),
        "rules": rule_variances(z, real.labels, kernel.power, seed),
        "seed": seed,
    }
    if path is not None:
        with kept("The weights are"):
            write_tensors(path, {"weights": weights}, {"report": json.dumps(report)})
    return weights, report


def rule_variances(z: Tensor, y: Tensor, power: float, seed: int) -> dict[str, float | None]:
    """The variance that each automatic rule takes, None where it finds none."""
    found = {
        "median": median_variance(z, y, seed=seed),
        "spread": spread_variance(z, y, power=power, seed=seed),
    }
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _warn_of_variance(report: Mapping[str, Any]) -> list[str]:
    """A sentence where the weights would vary most at quite another variance."""
    taken, better = report.get("kernel", {}).get("variance"), report.get("rules", {}).get("spread")
    if report.get("rule") or not taken or not better or max(taken / better, better / taken) < _FAR:
        return []
    return [f"In this embedding weights vary most at a variance of {better:g}, not {taken:g}: try variance='spread'."]


def _settings(options: Mapping[str, Any]) -> tuple[Kernel, Extractor]:
    names = [f.name for f in fields(Kernel)]
    known = [*names, *(f.name for f in fields(Extractor))]
    for name in options:
        if name not in known:
            raise InputError(f"De-biasing by density has no option {name!r}. {nearest(name, known)}")
    kernel = Kernel(**{name: value for name, value in options.items() if name in names})
    return kernel, with_options(Extractor(), **{n: v for n, v in options.items() if n not in names})


def _refuse(options: Mapping[str, Any], how: str) -> None:
    if options:
        raise InputError(f"De-biasing by {how!r} has no options, and {', '.join(options)} was given.")


def _bias_of(real: RealSet) -> Tensor:
    if real.bias is None:
        raise InputError("Oracle weights need the bias label of every image, and this set has none; use how='kde'.")
    return real.bias

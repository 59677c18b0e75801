"""Weights by density: w_i ~ f(x_i)^-p with f the density of x_i among its class, in an embedding that keeps the bias.

Of Cui, Wang, Xie and Hsieh, *Mitigating Bias in Dataset Distillation*, ICML 2024, arXiv:2406.06609.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Le
from torch import Tensor, device

from datastill.core.errors import InputError, nearest
from datastill.core.plan import Progress
from datastill.core.ranges import Count, check_fields
from datastill.debias.diagnosis import OF_DENSITY, KeptRecord
from datastill.debias.kde import density, inverse_density, median_variance, spread_variance
from datastill.store.schema import Number, Record, Text
from datastill.training.extractor import Extractor, with_options

if TYPE_CHECKING:
    from datastill.data.real import RealSet

#: A variance this many times the one of most unequal weights, or less than it by that, is worth a word.
_FAR = 5.0
RULES = {"median": median_variance, "spread": spread_variance}


@dataclass(frozen=True)
class Kernel:
    """From embeddings to weights, see `kde.density` and `kde.inverse_density`."""

    variance: Annotated[float, Ge(1e-9), Le(1e6)] | Literal["median", "spread"] = (
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


class KernelRecord(Record):
    """The kernel and the variance that it took."""

    variance: Number


class DensityRecord(KeptRecord):
    """What is kept beside weights by density."""

    kernel: KernelRecord
    rule: Text | None
    extractor: dict[str, Any]
    rules: dict[str, Number | None]


@dataclass(frozen=True)
class ByDensity:
    """The way "kde"."""

    kernel: Kernel
    extractor: Extractor

    record: ClassVar[type[KeptRecord]] = DensityRecord
    advice: ClassVar[tuple[str, str]] = OF_DENSITY

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Of the kernel and of the extractor; what is None is automatic, a whole number."""
        found = {f.name: f.default for f in (*fields(Kernel), *fields(Extractor))}
        return {name: 0 if value is None else value for name, value in found.items()}

    @classmethod
    def words(cls, name: str) -> tuple[str, ...]:
        """Rules, in the place of a variance."""
        return tuple(RULES) if name == "variance" else ()

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """With these fields of `Kernel` and `Extractor`."""
        names = [f.name for f in fields(Kernel)]
        known = [*names, *(f.name for f in fields(Extractor))]
        for name in options:
            if name not in known:
                raise InputError(f"De-biasing by density has no option {name!r}. {nearest(name, [*known, 'draw'])}")
        kernel = Kernel(**{name: value for name, value in options.items() if name in names})
        return cls(kernel, with_options(Extractor(), **{n: v for n, v in options.items() if n not in names}))

    def key(self, real: RealSet, seed: int, device: device) -> dict[str, Any]:
        """Everything that the weights depend on, JSON-able."""
        return {**self.extractor.key(real, seed, device), "kernel": asdict(self.kernel)}

    def run(self, real: RealSet, seed: int, device: device, progress: Progress) -> tuple[Tensor, dict[str, Any]]:
        """Learn the embedding and weigh in it."""
        z = self.extractor.run(real, seed, device, progress).to(device)
        weights, variance = self.kernel.weights(z, real.labels, seed)
        return weights, {
            "kernel": {**asdict(self.kernel), "variance": variance},
            "rule": self.kernel.variance if isinstance(self.kernel.variance, str) else None,
            "extractor": asdict(self.extractor.settled(len(real))),
            "rules": rule_variances(z, real.labels, self.kernel.power, seed),
        }

    def warnings(self, report: Mapping[str, Any]) -> list[str]:
        """A sentence where the weights would vary most at quite another variance."""
        taken, better = report.get("kernel", {}).get("variance"), report.get("rules", {}).get("spread")
        if report.get("rule") or not taken or not better or max(taken / better, better / taken) < _FAR:
            return []
        return [
            f"In this embedding weights vary most at a variance of {better:g}, not {taken:g}: try kde:variance=spread."
        ]


def rule_variances(z: Tensor, y: Tensor, power: float, seed: int) -> dict[str, float | None]:
    """The variance that each automatic rule takes, None where it finds none."""
    found = {
        "median": median_variance(z, y, seed=seed),
        "spread": spread_variance(z, y, power=power, seed=seed),
    }
    return {name: value if math.isfinite(value) else None for name, value in found.items()}

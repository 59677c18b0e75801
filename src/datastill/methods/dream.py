"""Dataset Distillation by Representative Matching (DREAM: Liu et al., ICCV 2023, arXiv:2302.14416).

L as in the host, with B_c not a random batch of class c but the images nearest to the k centroids of the class, in the
features of the step's network, clustered anew every `interval` steps; the synthetic images start from such too.

- Needs: what the host needs.
- Cost: as the host, and C * candidates / interval forward passes a step for the clusters.
- Departs: at most 1,000 random images of a class are clustered at a time, where the paper takes all (`--recipe paper`);
  two centroids never share an image; features are of the normalized images that are matched, and batch norm is frozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from datastill.core.errors import InputError, nearest
from datastill.core.ranges import Amount, Count
from datastill.core.registry import Method, method, with_overrides

if TYPE_CHECKING:
    from typing import Self

    from datastill.core.plan import Plan, Task

#: Passes of Lloyd's algorithm that a clustering takes, for estimates.
_PASSES = 15
#: Of a time that does not pay for everything, candidates for each cluster.
_CANDIDATES_EACH = 8
#: Hyper-parameters of a host that are DREAM's own.
_OWN = ("steps", "real_batch", "init")


@method("dream", paper="arXiv:2302.14416", family="gradient")
@dataclass(frozen=True, kw_only=True)
class Dream(Method):
    """Match on real images that stand for clusters of their class, in the place of a host's random batches."""

    paper_values: ClassVar[dict[str, Any]] = {"candidates": 0}
    settled_by_budget: ClassVar[frozenset[str]] = frozenset({"host_settings", "steps", "real_batch", "candidates"})

    #: whose batches and start are exchanged: idc, idc-i, dc, dsa, dm, dm-fast; with its settings as idc:outer=20
    host: str = "idc"
    host_settings: str = ""  #: of the host where it says nothing else, as outer=20,net_images=200; a time settles them
    steps: Amount = 0  #: image updates; 0 is the host's number
    interval: Count = 10  #: steps between two clusterings
    real_batch: Count = 128  #: clusters, and so real images, per class and step
    candidates: Amount = 1_000  #: most real images of a class that are clustered at a time; 0 is all
    weighting: Literal["equal", "size"] = "equal"  #: what an image counts: as any other, or its cluster's size
    init: Literal["clusters", "host"] = "clusters"  #: start from images that stand for clusters, or as the host does

    def __post_init__(self) -> None:
        self._host()

    def for_task(self, task: Task) -> Self:
        """The number of steps of the host."""
        return replace(self, steps=self._host(task).steps)

    def build(self, task: Task) -> Plan:
        """The host's plan with another sampler and start."""
        from dataclasses import replace

        from datastill.core.plan import PerClass
        from datastill.decoders.multi_formation import MultiFormation
        from datastill.sampling.representative import Candidates, ClusteredReal, Representatives

        plan = self._host(task).build(task)
        if not isinstance(plan.sampler, PerClass) or plan.prepare:
            raise InputError(
                f"{self.host} takes no batches of each class that others could replace; take idc, dc, dsa or dm as the "
                "host of dream."
            )
        candidates = Candidates(self.candidates)
        plan = replace(plan, sampler=Representatives(self.real_batch, self.interval, candidates, self.weighting))
        if self.init == "host":
            return plan
        factor = plan.decoder.factor if isinstance(plan.decoder, MultiFormation) else 1
        return replace(plan, init=ClusteredReal(factor, candidates))

    def macs_per_step(self, task: Task) -> float:
        """The host's, one pass per candidate, and distances of candidates to centroids."""
        return self._host(task).macs_per_step(task) + self._clustering_macs(task)

    def scaled(self, task: Task, seconds: float) -> Self:
        """The host's cheaper steps, fewer candidates, then fewer steps."""
        host = self._host(task)
        cheap = host.scaled(task, seconds)
        if cheap == host and self.affordable(task, seconds) >= self.steps:
            return self
        values: dict[str, Any] = {f.name: getattr(cheap, f.name) for f in fields(cheap)}
        most = _CANDIDATES_EACH * values["real_batch"]
        found = replace(
            self,
            host_settings=_written(cheap),
            real_batch=values["real_batch"],
            candidates=min(self.candidates or most, most),
        )
        return replace(found, steps=max(20, min(self.steps, found.affordable(task, seconds))))

    @contextmanager
    def rehearse(self, task: Task) -> Iterator[tuple[Self, float]]:
        """A method whose every step clusters so few images that all cost the same, and no time of preparation."""
        most = int(max(task.real.counts)) if task.real.counts.numel() else 0
        each = -(-min(self.candidates or most, most) // self.interval)
        yield replace(self, interval=1, candidates=max(each, self.real_batch + 1)), 0.0

    def nominal_preparation(self, task: Task) -> float:
        """Nothing is prepared."""
        return 0.0

    def at_pace(self, task: Task, seconds: float, preparation: float, step: float) -> Self:
        """As `scaled`, where each nominal second of steps takes so many."""
        return self.scaled(task, seconds / step)

    def _clustering_macs(self, task: Task) -> float:
        counts = [min(self.candidates or int(n), int(n)) for n in task.real.counts]
        features = task.network.embed_size
        clustering = sum(n for n in counts if n > self.real_batch) * self.real_batch * features * _PASSES
        return (sum(counts) * task.network.macs + clustering) / self.interval

    def _host(self, task: Task | None = None) -> Any:
        """The host with its settings, and for a task with those that follow from it.

        Raises:
            InputError: there is no such host, or no such setting of it.
        """
        host = _read(self.host, self.host_settings)
        if task is None:
            return host
        taken = {"real_batch": self.real_batch, **({"steps": self.steps} if self.steps else {})}
        return with_overrides(host, taken).for_task(task)


def _may_host(cls: type[Method]) -> bool:
    """Whether a method draws batches of real images, and prepares nothing that a time would have to pay for."""
    prepares = cls.with_cheap_preparation is not Method.with_cheap_preparation
    return "real_batch" in {f.name for f in fields(cls)} and not prepares and not issubclass(cls, Dream)


def _read(text: str, usual: str = "") -> Method:
    """A host out of "idc:outer=20,net_images=200", and of settings that hold where it says nothing else.

    Raises:
        InputError: an unknown host or setting, or a setting that is dream's own.
    """
    from datastill.core.registry import methods
    from datastill.data.sources import split_options, typed_option

    name = text.partition(":")[0]
    known = {name: info for name, info in methods().items() if _may_host(info.cls)}
    if name not in known:
        raise InputError(f"dream has no host {name!r}. {nearest(name, known)}")
    host = known[name].cls()
    given = {**split_options(f"{name}:{usual}")[1], **split_options(text)[1]}
    for option in set(_OWN) & set(given):
        raise InputError(f"{option} is a setting of dream itself; leave it out of host={text}.")
    defaults = {f.name: getattr(host, f.name) for f in fields(host)}
    values = {n: typed_option(v, defaults.get(n), f"{name}:{n}") for n, v in given.items()}
    return with_overrides(host, values, "{name} of the host " + name)


def _written(host: Method) -> str:
    """The settings of a host that are not its defaults, as `_read` takes them."""
    usual = type(host)()
    changed = {f.name: getattr(host, f.name) for f in fields(host) if f.name not in _OWN}
    return ",".join(f"{n}={v}" for n, v in changed.items() if v != getattr(usual, n))

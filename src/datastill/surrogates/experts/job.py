"""What all experts of a buffer share: their settings, and the folder that they are written to."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from datastill.augment.dsa import Dsa
from datastill.augment.strategies import strategy_for
from datastill.core.cost import pick_device
from datastill.core.errors import InputError
from datastill.core.precision import casting
from datastill.core.ranges import Few, Seed, checked
from datastill.store.checkpoint import plain, refuse_other
from datastill.store.files import digest
from datastill.surrogates.experts.files import write_record
from datastill.surrogates.experts.identity import about, shared_identity
from datastill.surrogates.experts.layout import Layout
from datastill.surrogates.experts.partial import Partial
from datastill.surrogates.experts.policies import Policy, describe_policy, get_policy
from datastill.surrogates.experts.store import META, PARTIAL, new_meta, open_buffer, read_meta

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.models.factory import NetworkFactory


@dataclass(frozen=True)
class Job:
    """What all experts of a buffer share; see `make_job`."""

    folder: Path
    network: NetworkFactory
    real: RealSet
    layout: Layout
    policy: Policy
    augment: str
    epochs: int
    last: int  #: the epoch of the last snapshot
    seed: int
    device: torch.device
    test_accuracy: bool
    lossy: bool
    span: int
    config: dict[str, Any]  #: everything that the numbers in a buffer depend on, JSON-able
    precision: str = "float32"  #: of the arithmetic of training; what is stored is float32 in any case
    compiled: bool = False  #: whether training runs compiled code

    def partial(self, expert: int) -> Partial:
        """The files of an expert in training."""
        return Partial(self.folder / PARTIAL, expert, self.layout.width, digest(self.config))


@checked
def make_job(
    real: RealSet,
    network: NetworkFactory,
    folder: Path,
    *,
    epochs: Few = 50,
    stop_after: Few | None = None,
    policy: str | Policy = "sgd",
    augment: str = "auto",
    seed: Seed = 0,
    device: str | torch.device = "auto",
    precision: str = "float32",
    compiled: bool = False,
    test_accuracy: bool = False,
    lossy: bool = False,
    span: Few = 2,
) -> Job:
    """Settle everything that experts depend on, without doing anything yet.

    Args:
        epochs: of the policy's schedule.
        stop_after: train only so many of them: segments of `span` epochs that start before `max_start` need
            max_start - 1 + span.
        policy: how they are trained: a name with numbers ("sgd", "sgd:lr=0.05"), or a policy.
        augment: DSA strategy, "none", or "auto", which suits the data (see `augment.strategies`).
        seed: of every draw.
        device: "auto", "cpu", "cuda", "mps".
        precision: "float32", or "bf16" for convolutions and matrix products of training, where the processor is fast
            at it; weights and snapshots are float32. Such experts are others, and other buffers.
        compiled: train by compiled code (`core.compilation`), with policies whose steps are plain ones; the numbers
            are the same up to rounding, which makes other experts too.
        test_accuracy: read the test split after every epoch. It is never used, and not read unless asked for: what
            is chosen by it is chosen on test data.

    Raises:
        InputError: something given cannot be used.
    """
    last = epochs if stop_after is None else stop_after
    if last > epochs:
        raise InputError(
            f"stop_after is {last}, and the schedule has {epochs} epochs; train for more, or stop earlier."
        )
    if test_accuracy:
        _ = real.known_test
    where = device if isinstance(device, torch.device) else pick_device(device)
    casting(where, precision)
    strategy = strategy_for(real.name, real.shape) if augment == "auto" else augment
    Dsa(strategy)
    layout, how = Layout.of(network(0)), get_policy(policy)
    _refuse_kind(real, how)
    if real.weights is not None and not how.takes_weights:
        raise InputError(
            f"The policy {how.name} chooses by itself which images an expert sees; take it or weights (--debias), not "
            "both."
        )
    config = {
        **shared_identity(network, real, layout),
        "epochs": epochs,
        "snapshots": last + 1,
        "policy": describe_policy(how),
        "augment": strategy,
        "seed": int(seed),
        "device": where.type,
        "test_accuracy": test_accuracy,
        **({} if precision == "float32" else {"precision": precision}),
        **({"compile": True} if compiled else {}),
    }
    return Job(
        folder, network, real, layout, how, strategy, epochs, last, seed, where, test_accuracy, lossy, span,
        dict(plain(config)), precision, compiled,
    )  # fmt: skip


def _refuse_kind(real: RealSet, policy: Policy) -> None:
    """Two towers are trained by a policy of their own, and nothing else is."""
    of_pairs = policy.name == "contrastive"
    if of_pairs and real.kind != "pairs":
        raise InputError(
            f"The policy contrastive trains two towers on pairs of images and sentences, and {real.name} has classes; "
            "take the policy sgd."
        )
    if real.kind == "pairs" and not of_pairs:
        raise InputError(
            f"{real.name} has pairs of images and sentences, and the policy {policy.name} trains on classes; take the "
            "policy contrastive."
        )


def begin(job: Job) -> None:
    """Make the folder and its `meta.json`, or make sure that they are of this job."""
    folder = job.folder
    if (folder / META).is_file():
        refuse_other(job.config, read_meta(folder)["config"], folder)
        open_buffer(folder)
        return
    if job.layout.statistics and not job.policy.uses_statistics:
        warnings.warn(
            f"{job.network} keeps running statistics: they are stored beside its parameters, but trajectory matching "
            "matches parameters alone, and published results are of networks without them (norm=instance).",
            stacklevel=3,
        )
    write_record(folder / META, new_meta(job.config, job.layout, about(job.network, job.real)))

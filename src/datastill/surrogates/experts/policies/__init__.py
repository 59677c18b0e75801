"""How experts are trained: a policy is one epoch of training, with its own numbers.

A policy is a frozen dataclass of its numbers in a file of its own, and a line in `POLICIES`. The numbers are part of
a buffer's configuration, so buffers of other numbers are other buffers.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from datastill.core.errors import InputError, nearest
from datastill.core.ranges import Numbers, Words, declared
from datastill.core.rng import Rng
from datastill.training.hard import Images

#: Policies by name, and the class of each, imported when it is asked for.
POLICIES = {
    "sgd": "datastill.surrogates.experts.policies.sgd:Sgd",
    "momentum": "datastill.surrogates.experts.policies.momentum:MomentumSgd",
    "gsam": "datastill.surrogates.experts.policies.gsam:Gsam",
    "smooth": "datastill.surrogates.experts.policies.smooth:SmoothSgd",
    "contrastive": "datastill.surrogates.experts.policies.contrastive:ContrastiveSgd",
    "selecmix": "datastill.surrogates.experts.policies.selecmix:SelecMixSgd",
}


@dataclass(frozen=True)
class TrainingSet:
    """What an expert is trained on.

    Attributes:
        x: images in the real set's Space, see `training.hard.Images`.
        y: class positions, (n,) int64; of a set of pairs, vectors of sentences (n, d).
        weight: weight per image (n,), or None; the loss of a batch is its weighted mean.
        augment: DSA strategy, one operation per batch and parameters per image; or "none".
        device: where to train.
        same: of a set of pairs, which image each shows, (n,) int64.
        compiled: whether policies whose steps are plain ones are to run compiled code (`core.compilation`).
    """

    x: Images
    y: Tensor
    weight: Tensor | None
    augment: str
    device: torch.device
    same: Tensor | None = None
    compiled: bool = False


@dataclass(frozen=True)
class Epoch:
    """One epoch of one expert.

    Attributes:
        index: which, from 0.
        count: how many the schedule has, which `stop_after` does not change.
        rng: generators of this expert and epoch. Nothing else may decide a draw; dropout, which knows the global
            generator only, runs inside `core.rng.isolated(rng.derive("dropout"))`, as `training.hard.train` has it.
        state: tensors that the policy keeps from epoch to epoch (momentum); written to checkpoints, and changed by
            the policy in place: `state["momentum/..."] = ...`.
        on_batch: to be called after every step with the positions (b,) and the logits (b, C) before it. It measures,
            and it raises where the run is to stop.
    """

    index: int
    count: int
    rng: Rng
    state: dict[str, Tensor]
    on_batch: Callable[[Tensor, Tensor], None]


class Policy(Protocol):
    """How experts are trained, see `sgd.Sgd`. A frozen dataclass; its fields are its numbers."""

    @property
    def name(self) -> str:
        """As in `POLICIES`."""
        ...

    @property
    def batch(self) -> int:
        """Real images per step."""
        ...

    @property
    def part(self) -> float:
        """Part of the real images that makes an epoch."""
        ...

    @property
    def uses_statistics(self) -> bool:
        """Whether what its experts are for uses running statistics (of batch norm) and not their parameters alone."""
        ...

    @property
    def takes_weights(self) -> bool:
        """Whether weights of images go into its loss; a set with weights is refused where not."""
        ...

    def epoch(self, network: nn.Module, data: TrainingSet, epoch: Epoch) -> float:
        """Train the network in place for one epoch; its mean loss.

        Raises:
            Diverged: a loss is not finite.
        """
        ...


def get_policy(spec: str | Policy) -> Policy:
    """A policy by name, with numbers: "sgd", "sgd:lr=0.05,batch=64"; or a policy, as it is.

    Raises:
        InputError: an unknown name or number.
    """
    if not isinstance(spec, str):
        return spec
    name, _, rest = spec.partition(":")
    if name not in POLICIES:
        raise InputError(f"There is no policy {name!r} to train experts by. {nearest(name, POLICIES)}")
    module, _, attribute = POLICIES[name].partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    known = declared(kind)
    numbers: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, _, value = (p.strip() for p in part.partition("="))
        if key not in known:
            raise InputError(f"The policy {name} has no number {key!r}. {nearest(key, known)}")
        numbers[key] = value
        if not any(isinstance(kind, Words) and value in kind for kind in known[key]):
            whole = any(isinstance(k, Numbers) and k.whole for k in known[key])
            numbers[key] = _number(f"{name}:{part}", value, whole)
    made: Policy = kind(**numbers)
    return made


def describe_policy(policy: Policy) -> dict[str, Any]:
    """The name and the numbers, JSON-able."""
    return {"name": policy.name, **dataclasses.asdict(policy)}  # type: ignore[call-overload]


def _number(text: str, value: str, whole: bool) -> float | int:
    try:
        return int(value) if whole else float(value)
    except ValueError:
        kind = "whole number" if whole else "number"
        raise InputError(f"Cannot read {text!r}: {value!r} is no {kind}; write it as sgd:lr=0.05,batch=64.") from None

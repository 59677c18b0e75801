"""What a method asks for (`Plan`) and what it is asked to do (`Task`): the axes, as contracts.

Every axis is an ordinary object with the few methods named here; there is no base class to inherit from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from datastill.core.batch import Batch
from datastill.core.runtime import Progress as Progress
from datastill.core.runtime import Runtime
from datastill.core.runtime import silent as silent

if TYPE_CHECKING:
    from datastill.core.context import Context
    from datastill.core.space import Space
    from datastill.data.real import RealSet
    from datastill.models.base import Network
    from datastill.models.factory import NetworkFactory

Codes = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """What is to be distilled: the data, the size, the network, the seed; and where that is computed."""

    real: RealSet
    ipc: int
    network: NetworkFactory
    seed: int = 0
    runtime: Runtime = field(default_factory=Runtime)
    folder: Path | None = None  #: where prepared units are kept; None keeps them in memory only
    #: while a unit runs: what those that it needs have prepared
    prepared: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the computation runs."""
        return self.runtime.device

    @property
    def precision(self) -> str:
        """Of the networks' arithmetic: "float32" or "bf16"."""
        return self.runtime.precision

    @property
    def progress(self) -> Progress:
        """Told how a preparation goes."""
        return self.runtime.progress

    @property
    def compile(self) -> bool:
        """Whether first-order passes run as compiled code (`core.compilation`)."""
        return self.runtime.compiled

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.real.classes

    @property
    def labels(self) -> Tensor:
        """Class positions of the synthetic set, class by class, (C * ipc,)."""
        return torch.arange(self.classes).repeat_interleave(self.ipc)


def chunk_for(macs: float, device: torch.device) -> int:
    """Images per forward pass where passes may be cut, so that activations stay in a CPU's cache.

    16 images of the field's usual network (50M multiply-accumulates) measured best on CPUs, more for
    smaller networks in proportion; resolved from sizes, never from timing.
    """
    if device.type != "cpu":
        return 2048
    return max(16, min(4096, round(16 * 50e6 / max(1.0, macs))))


@dataclass(frozen=True)
class Block:
    """Synthetic images that are optimized together, apart from all others."""

    key: int
    index: Tensor  #: positions in the synthetic set, (n,)
    y: Tensor  #: class positions, (n,)

    @property
    def classes(self) -> list[int]:
        """The classes in this block, ascending."""
        return sorted(set(self.y.tolist()))


@dataclass(frozen=True)
class Synthetic:
    """The decoded view of the synthetic set that an objective sees: images in the Space, and labels."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Grads:
    """What an objective may return instead of a loss: gradients with respect to the *decoded* images.

    Attributes:
        loss: detached loss, a scalar or one value per class, for the log and the guard.
        x: d loss / d decoded images, shaped like `Synthetic.x`.
        leaves: gradients of further named leaves (learned labels, a synthetic learning rate).
    """

    loss: Tensor
    x: Tensor
    leaves: Mapping[str, Tensor] = field(default_factory=dict)


class Init(Protocol):
    """Where the synthetic images start."""

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """Images (n, c, h, w) in the Space for the block, and named tensors to keep in the artifact."""
        ...

    def describe(self) -> dict[str, Any]: ...


class Decoder(Protocol):
    """From codes (named leaves) to images."""

    def encode(self, images: Tensor) -> Codes:
        """Codes whose decoding is `images`."""
        ...

    def draw(self, generator: torch.Generator) -> Any:
        """The random part of a decoding (a crop, a noise), or None."""
        ...

    def decode(self, codes: Codes, y: Tensor, record: Any = None) -> Synthetic:
        """Images and their labels; differentiable with respect to the codes."""
        ...

    def backward(self, codes: Codes, y: Tensor, record: Any, grads: Tensor) -> Codes:
        """Gradients of the codes for gradients of the decoded images."""
        ...

    def rendered(self, shapes: Mapping[str, Sequence[int]], ipc: int, classes: int) -> tuple[int, int, int, int]:
        """What `decode` makes of codes of these shapes at most, without making it: images, channels, height, width.

        Raises:
            InputError: the decoder has no use for such codes.
        """
        ...

    def project(self, codes: Codes, context: Context, when: str) -> None:
        """Bring codes back into their valid set, in place; `when` is "step" or "outer"."""
        ...

    def describe(self) -> dict[str, Any]: ...


class Objective(Protocol):
    """What is matched. Steps no optimizer and changes no weights."""

    def __call__(self, context: Context) -> Tensor | Grads:
        """A scalar, a vector per class, or gradients of the decoded images."""
        ...


@runtime_checkable
class Reduces(Protocol):
    """An objective that says whether all it takes of real images goes through `context.reduce`."""

    @property
    def reduces(self) -> bool:
        """Whether a plan may give another `reduce`, which bounds what one image contributes, say."""
        ...


class Surrogates(Protocol):
    """Where the networks come from on which the match is made."""

    def begin(self, context: Context) -> None: ...

    def draw(self, context: Context) -> Any:
        """What `context.surrogate` is in this step: a network, or a segment of an expert's training."""
        ...

    def advance(self, context: Context) -> None: ...

    def state(self) -> dict[str, Tensor]: ...

    def load(self, state: Mapping[str, Tensor]) -> None: ...


@runtime_checkable
class Exchangeable(Protocol):
    """Surrogates that say what they draw, so that others may stand in for them."""

    @property
    def draws(self) -> str:
        """ "network": one for each step, which no step before has changed; or "segment": of an expert's training."""
        ...

    @property
    def factory(self) -> NetworkFactory:
        """What builds the networks."""
        ...


class Sampler(Protocol):
    """Which real samples a step sees."""

    def draw(self, real: RealSet, context: Context) -> Batch: ...


@runtime_checkable
class PerClass(Protocol):
    """A sampler that says how many images of each class it draws, so that another may draw as many."""

    @property
    def per_class(self) -> int | None:
        """Images of every class of the block; None where classes have no number of their own."""
        ...


@runtime_checkable
class DrawsByWeight(Protocol):
    """A sampler of its own kind that can take the weights of real images as frequencies itself."""

    def by_weight(self) -> Sampler:
        """The same sampler, which draws real images in proportion to their weights."""
        ...


class Augment(Protocol):
    """Augmentation as explicit records (see `augment.dsa`)."""

    def draw(self, rows: int, shape: tuple[int, int, int], generator: torch.Generator, one_op: bool = False) -> Any: ...

    def apply(self, x: Tensor, record: Any, rows: Tensor | None = None) -> Tensor: ...


class Labels(Protocol):
    """Labels while synthesizing, and at the end."""

    @property
    def kind(self) -> str:
        """What the final ones are: "classes", "probabilities", "logits", "regression" or "pairs"."""
        ...

    def during(self, context: Context) -> Tensor:
        """Of the block's stored images in this step, (n,) or (n, C).

        The surrogate of the step is there, and the leaves in `context.codes` have a graph.
        """
        ...

    def final(self, context: Context) -> Tensor:
        """Of the block's stored images in the end, (n,) or (n, C)."""
        ...


@runtime_checkable
class CodesFromContext(Protocol):
    """A decoder whose codes begin with what was prepared, where no `encode` of images alone gives them."""

    def begin(self, context: Context, images: Tensor, extra: dict[str, Tensor]) -> Codes:
        """Codes for the start of a block, in the place of `encode`.

        Args:
            context: with what was prepared.
            images: of the init, on the device.
            extra: the init's named tensors: what is taken out of it, latents that an init gave, is not in the artifact.
        """
        ...


@runtime_checkable
class TwoPass(Protocol):
    """A decoder that renders chunk by chunk and without a graph (see `core.two_pass`).

    What it decodes to has no graph, and gradients of its codes come from `backward` alone, which renders again under
    the same record.
    """

    @property
    def chunk(self) -> int:
        """Stored images that are rendered at once."""
        ...


@runtime_checkable
class ByNetwork(Protocol):
    """A decoder that renders with a network, whose weights stand apart from what the decoder says of itself."""

    @property
    def carried(self) -> Mapping[str, Tensor]:
        """Weights that the artifact carries, by name; none where the network is named by its hash."""
        ...

    def expected(self) -> Mapping[str, Sequence[int]]:
        """The shapes of the weights that an artifact must carry, by name; nothing is allocated for it."""
        ...

    def bind(self, weights: Mapping[str, Tensor], space: Space) -> None:
        """Take the weights up, and the Space of the images.

        Raises:
            InputError: they are of another network.
        """
        ...

    def note(self) -> str:
        """A sentence for the notes of the run, or ""."""
        ...


@runtime_checkable
class LearnedLabels(Protocol):
    """Labels with leaves of their own: `during` and `final` read them from `context.codes`."""

    def leaves(self, context: Context, images: Tensor, extra: Mapping[str, Tensor]) -> Codes:
        """Named leaves with a row for each stored image of the block, which move by `Plan.update`.

        Args:
            context: with what was prepared, and the decoder's codes.
            images: of the init, on the device.
            extra: the init's named tensors.
        """
        ...


@runtime_checkable
class Remarks(Protocol):
    """An objective that judges the losses of a block itself, for the notes of the run: nobody else remarks on them."""

    def note(self, losses: Tensor) -> str:
        """A sentence, or "" where there is nothing to say; `losses` are those of all steps of a block."""
        ...


class UpdateRule(Protocol):
    """How one named leaf moves."""

    def bind(self, leaf: Tensor) -> Stepper: ...


class Stepper(Protocol):
    """An update rule bound to a leaf, with its state."""

    early: bool  #: whether `before` moves the leaf ahead of its gradient

    @property
    def lasting(self) -> Collection[str]:
        """Names in `state` that are no momentum: a step that is not taken forgets the others."""
        ...

    def before(self) -> None: ...

    def after(self, grad: Tensor, progress: float) -> None: ...

    def finish(self) -> None:
        """After the last step of a block, before anything is read of its leaves."""
        ...

    def note(self) -> str:
        """A sentence for the notes of the run, or ""."""
        ...

    def state(self) -> dict[str, Tensor]: ...

    def load(self, state: Mapping[str, Tensor]) -> None: ...


class Partition(Protocol):
    """Which synthetic images form a block. Part of the run's hash: other layouts are other methods."""

    def blocks(self, y: Tensor) -> Iterator[Block]: ...

    def describe(self) -> dict[str, Any]: ...


class Unit(Protocol):
    """Something prepared once before synthesis, named by the hash of what it depends on."""

    @property
    def name(self) -> str:
        """What it is called among the prepared, unique in a plan."""
        ...

    def macs(self, task: Task) -> float:
        """Multiply-accumulates of `run`, for estimates and budgets."""
        ...

    def key(self, task: Task) -> dict[str, Any]:
        """Everything that the result depends on, JSON-able."""
        ...

    def run(self, task: Task) -> dict[str, Tensor]:
        """Do the work; a pure function of the task."""
        ...


@runtime_checkable
class Needs(Protocol):
    """A unit that runs after others, and sees in `Task.prepared` what they have prepared."""

    @property
    def needs(self) -> Collection[str]:
        """Their names; what the unit depends on through them is no part of its key."""
        ...


class Companion(Protocol):
    """Something that is kept beside a distilled set, in a folder of its own."""

    @property
    def nbytes(self) -> int: ...

    def save(self, folder: Path) -> object: ...

    def describe(self) -> dict[str, Any]: ...


class Callback:
    """Hooks into the loop, with state that is checkpointed. Override what you need."""

    name = ""  #: unique within a run when `state` is used

    def start(self, context: Context) -> None:
        """A block begins, its codes as initialized; not called when a checkpoint is taken up."""

    def before_real_batch(self, batch: Batch, context: Context) -> Batch:
        """Change the real samples that a step sees (backdoors, re-weighting)."""
        return batch

    def after_net_update(self, network: Network, context: Context) -> None:
        """A surrogate was trained."""

    def after_step(self, context: Context) -> None:
        """An image update is done: `context.step`, `context.loss`, `context.codes`."""

    def numbers(self, context: Context) -> dict[str, float]:
        """What there is to track of this step, by name; asked by trackers, which stand behind other callbacks."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep in a checkpoint."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""


@dataclass(frozen=True)
class AllAtOnce:
    """One block: everything is optimized together, as bi-level matching does."""

    def blocks(self, y: Tensor) -> Iterator[Block]:
        """The one block."""
        yield Block(0, torch.arange(len(y)), y)

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"partition": "all"}


@dataclass(frozen=True)
class ClassMajor:
    """Blocks of `size` classes, for objectives in which classes do not meet; bounds the memory."""

    size: int

    def blocks(self, y: Tensor) -> Iterator[Block]:
        """One block per group of classes."""
        for key, group in enumerate(torch.split(torch.tensor(sorted(set(y.tolist()))), self.size)):
            index = torch.isin(y, group).nonzero().squeeze(1)
            yield Block(key, index, y[index])

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"partition": "class-major", "size": self.size}


@dataclass(frozen=True)
class HardLabels:
    """Labels that stay as they are."""

    kind: ClassVar[str] = "classes"

    def during(self, context: Context) -> Tensor:
        """The block's labels."""
        return context.block.y

    def final(self, context: Context) -> Tensor:
        """The block's labels."""
        return context.block.y


@dataclass(frozen=True)
class Plan:
    """A method's choices along the axes; `steps=0` means that the initialization is the result."""

    init: Init
    decoder: Decoder
    objective: Objective | None = None
    surrogates: Surrogates | None = None
    sampler: Sampler | None = None
    #: from values (n, d) of real samples, their classes, weights and the context to statistics (C, d); None is the
    #: weighted mean of each class
    reduce: Callable[[Tensor, Tensor, Tensor | None, Context], Tensor] | None = None
    augment: Augment | None = None
    labels: Labels = field(default_factory=HardLabels)
    update: Mapping[str, UpdateRule] = field(default_factory=dict)
    partition: Partition = field(default_factory=AllAtOnce)
    steps: int = 0
    prepare: Sequence[Unit] = ()
    #: the surrogates' family, which chunk sizes and threads follow; None is the task's network
    network: NetworkFactory | None = None
    #: initial values of leaves that belong to the whole set and not to its images, such as a learned learning rate, or
    #: a function that gives them after preparation; they stand in `context.codes` beside the decoder's, move by
    #: `update`, and need a single block
    shared: Mapping[str, Tensor] | Callable[[Context], Mapping[str, Tensor]] = field(default_factory=dict)
    #: which of the shared leaves are in the artifact; None is all of them
    keep: Collection[str] | None = None
    #: from the final shared leaves to what the manifest's `student` says besides the protocol: {"lr": 0.02}
    student: Callable[[Mapping[str, Tensor]], Mapping[str, Any]] | None = None
    #: from what was prepared to things that belong beside the set, by the name of their folder in it: the teacher that
    #: labels it, say
    companions: Callable[[Mapping[str, dict[str, Tensor]]], Mapping[str, Companion]] | None = None

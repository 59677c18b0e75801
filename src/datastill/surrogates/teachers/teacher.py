"""A teacher: a trained network with the Space and the class order that its weights belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from datastill.core.errors import InputError
from datastill.core.space import Space
from datastill.models import is_built_in, resolve_network, resolve_recorded
from datastill.models.factory import at_most
from datastill.store.files import CHECKSUM, digest, read_json, read_tensors, refuse_changed, write_sealed, write_tensors
from datastill.store.manifest import Names, SpaceRecord, refuse_unfit_space
from datastill.store.opening import sound_path, stored_bytes
from datastill.store.schema import SPACE, WEIGHTS, Fraction, Name, Record, Side, Text, Whole
from datastill.surrogates.teachers.weights import load_weights

if TYPE_CHECKING:
    from datastill.data.real import RealSet

TENSORS = "teacher.safetensors"
RECORD = "teacher.json"
FORMAT = "datastill-teacher"
#: Training images that a teacher is tried on before it is used.
TRIAL_IMAGES = 2_000


class TeacherRecord(Record):
    """What `teacher.json` says, beside measurements."""

    format: Text
    version: Whole
    id: Name
    network: Text | None
    space: SpaceRecord
    classes: Names
    channels: Side
    size: Annotated[list[Side], Field(min_length=2, max_length=2)]
    trial_accuracy: Fraction | None = None
    accuracy: Fraction | None = None


@dataclass(eq=False)
class Teacher:
    """A frozen network in evaluation mode, which takes images in its own Space.

    Attributes:
        network: maps (n, c, h, w) in `space` to logits (n, K).
        space: what its weights were trained on.
        class_names: of its K logits, in order.
        size: image height and width.
        spec: how `resolve_network` builds it again, or None for a module that only the caller has.
        record: measurements and origin, JSON-able: `trial_accuracy` on training images, `accuracy` on the test split
            where somebody asked for that, origin, seconds, ...
    """

    network: nn.Module
    space: Space
    class_names: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    spec: str | None = None
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network.requires_grad_(False).eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self  # frozen; a method that names one as a field is copied often

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: weights and the network's name, since a class in a user's file is not found there."""
        state = dict(self.__dict__)
        if self.spec is not None:
            state["network"] = self.network.state_dict()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.spec is None:
            return
        module = resolve_network(self.spec, channels=self.channels, classes=len(self.class_names), size=self.size)(0)
        module.load_state_dict(state["network"])
        self.network = module.requires_grad_(False).eval()

    def __str__(self) -> str:
        return f"{self.spec or type(self.network).__name__}, {self.id}"

    @cached_property
    def id(self) -> str:
        """A hash of weights, buffers, Space and classes."""
        return str(digest([self.network.state_dict(), self.space.id, list(self.class_names)]))

    @property
    def nbytes(self) -> int:
        """Bytes of weights and buffers."""
        return sum(t.numel() * t.element_size() for t in self.network.state_dict().values())

    def seen_from(self, space: Space, class_names: Sequence[str]) -> nn.Module:
        """The network for images in another Space, with a logit for each of `class_names` in that order.

        The same module where nothing differs.

        Raises:
            InputError: it does not know one of the classes.
        """
        positions = None
        if tuple(class_names) != self.class_names:
            missing = [name for name in class_names if name not in self.class_names]
            if missing:
                raise InputError(
                    f"The teacher does not know the class {missing[0]!r}; it has {len(self.class_names)} classes "
                    f"({', '.join(self.class_names[:4])}, ...). Name its classes in the order of its logits "
                    "(datastill teacher import --classes)."
                )
            positions = torch.tensor([self.class_names.index(name) for name in class_names])
        if space == self.space and positions is None:
            return self.network
        return _Seen(self.network, self.space, space, positions).eval()

    def check(self, real: RealSet, device: torch.device, brought: bool = True) -> float:
        """Accuracy on up to 2,000 training images of a real set, each class alike.

        Args:
            real: the set.
            device: where to compute.
            brought: whether it was trained elsewhere, which decides what a low accuracy most likely comes from.

        Raises:
            InputError: near chance, or shapes or classes do not fit.
        """
        if (self.channels, *self.size) != tuple(real.shape):
            raise InputError(
                f"The teacher takes images of {(self.channels, *self.size)} (channels, height, width) and "
                f"{real.name} has {tuple(real.shape)}; load the data at that size (--size), or take another teacher."
            )
        seen = self.seen_from(real.space, real.class_names).to(device)
        each = max(1, TRIAL_IMAGES // real.classes)
        index = torch.cat([real.class_index(c)[:each] for c in range(real.classes)])
        accuracy = _accuracy(seen, real, index, device)
        chance = 1 / real.classes
        if accuracy < chance + 0.15 * (1 - chance):
            if not all(bool(t.isfinite().all()) for t in self.network.state_dict().values()):
                raise InputError("The teacher has weights that are not finite (NaN or infinity); take another one.")
            why = (
                "most likely its classes are in another order (give --classes in the order of its logits), or it was "
                "trained on pixels normalized otherwise (--pixels; in Python space=)."
                if brought
                else "train it for longer or at a lower rate (--squeeze-passes, --squeeze-lr; --passes, --lr of "
                "`datastill teacher train`), or bring one (--teacher)."
            )
            raise InputError(
                f"The teacher is right on {100 * accuracy:.1f} % of {len(index):,} training images of {real.name}, "
                f"and guessing gives {100 * chance:.1f} %: {why}"
            )
        return accuracy

    def test_accuracy(self, real: RealSet, device: torch.device) -> float | None:
        """Accuracy on the test split, for the record; nothing is chosen by it. None without a test split."""
        if real.test is None:
            return None
        seen = self.seen_from(real.space, real.class_names).to(device)
        return _accuracy(seen, real.test, torch.arange(len(real.test)), device)

    def save(self, folder: str | Path) -> Path:
        """Write weights and record; the record, which names the weights' hash, is written last."""
        folder = Path(folder)
        tensors = {f"weight/{n}": t for n, t in self.network.state_dict().items()}
        tensors.update({f"space/{n}": t for n, t in self.space.tensors.items()})
        write_tensors(folder / TENSORS, tensors, {"format": FORMAT})
        write_sealed(folder / RECORD, {"format": FORMAT, "version": 1, **self.describe()})
        return folder

    def describe(self) -> dict[str, Any]:
        """Everything but the weights, JSON-able."""
        return {
            "id": self.id,
            "network": self.spec,
            "space": self.space.to_dict(),
            "classes": list(self.class_names),
            "channels": self.channels,
            "size": list(self.size),
            "bytes": self.nbytes,
            **self.record,
        }


class _Seen(nn.Module):
    """A teacher for images in the Space of the data, with the logits of the data's classes."""

    def __init__(self, network: nn.Module, own: Space, given: Space, positions: Tensor | None) -> None:
        super().__init__()
        self.network, self.own, self.given = network, own, given
        self.register_buffer("positions", positions)

    def forward(self, x: Tensor) -> Tensor:
        if self.own != self.given:
            x = self.own.encode(self.given.decode(x))
        logits: Tensor = self.network(x)
        return logits if self.positions is None else logits[:, self.positions]  # type: ignore[index]


def _accuracy(network: nn.Module, real: RealSet, index: Tensor, device: torch.device) -> float:
    right = 0
    with torch.no_grad():
        for part in index.split(200):
            batch = real.batch(part)
            right += int((network(batch.x.to(device)).argmax(1).cpu() == batch.y).sum())
    return right / len(index)


def load_teacher(folder: str | Path, network: Any = None, option: str = "network=") -> Teacher:
    """Read a teacher that `Teacher.save` wrote. A network that is not built in is the caller's to give.

    Args:
        network: for a teacher whose network is not built in: what builds it, as `resolve_network` takes it; or the
            module, whose weights are overwritten.
        option: how a caller gives the network, in an error.

    Raises:
        InputError: the folder holds no teacher, or weights and network do not fit.
    """
    folder = sound_path(folder)
    if not (folder / RECORD).is_file():
        raise InputError(
            f"{folder} holds no teacher (no {RECORD}); make one with `datastill teacher train` or `import`."
        )
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != 1:
        raise InputError(f"{folder / RECORD} is no teacher that this datastill can read.")
    TeacherRecord.of(record, folder / RECORD)
    tensors, _ = read_tensors(folder / TENSORS, {"weight/*": WEIGHTS, "space/*": SPACE})
    names = tuple(record["classes"])
    size = (int(record["size"][0]), int(record["size"][1]))
    shapes: dict[str, Any] = {"channels": record["channels"], "classes": len(names), "size": size}
    module, spec = network, record.get("network")
    if isinstance(network, nn.Module):
        spec = spec if is_built_in(spec) else None
    elif network is not None and not is_built_in(spec):
        factory = resolve_network(network, **shapes)
        module, spec = factory(0), str(factory)
    elif not spec:
        raise InputError(f"The teacher in {folder} was a module of yours; give that module (network=...).")
    else:
        with at_most(stored_bytes(folder / TENSORS) // 2, str(folder / RECORD)):
            module = resolve_recorded(spec, folder / RECORD, option, **shapes)(0)
    load_weights(module, {n.removeprefix("weight/"): t for n, t in tensors.items() if n.startswith("weight/")}, folder)
    whitening = {n.removeprefix("space/"): t for n, t in tensors.items() if n.startswith("space/")}
    told = {name: tensor.shape for name, tensor in whitening.items()}
    said = SpaceRecord.of(record["space"], folder / RECORD)
    refuse_unfit_space(folder / RECORD, said, told, (record["channels"], *size))
    space = Space.from_dict(record["space"], whitening)
    known = ("format", "version", "id", "network", "space", "classes", "channels", "size", "bytes", CHECKSUM)
    teacher = Teacher(
        module,
        space,
        names,
        record["channels"],
        size,
        spec,
        {k: v for k, v in record.items() if k not in known},
    )
    if teacher.id != record["id"]:
        raise InputError(f"The weights in {folder} are not those of its record; they were changed or damaged.")
    refuse_changed(folder / RECORD, record)
    return teacher

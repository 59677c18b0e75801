"""How a snapshot of a network is one row of numbers: parameters in `named_parameters()` order, then statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from datastill.core.errors import InputError


@dataclass(frozen=True)
class Slot:
    """Where a named tensor stands in a row."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)

    def of(self, row: Tensor) -> Tensor:
        """The tensor as a view of a row."""
        return row[self.offset : self.offset + self.numel].view(self.shape)


@dataclass(frozen=True)
class Layout:
    """The columns of a row.

    Attributes:
        parameters: every parameter once, tied ones too, in the order of `named_parameters()`.
        statistics: running statistics (of batch norm), after the parameters; they are never matched.
    """

    parameters: tuple[Slot, ...]
    statistics: tuple[Slot, ...] = ()

    @classmethod
    def of(cls, network: nn.Module) -> Layout:
        """The layout of a network's snapshots.

        Raises:
            InputError: it has no parameters, or some that are not float32.
        """
        named = dict(network.named_parameters())
        other = next((name for name, p in named.items() if p.dtype != torch.float32), None)
        if not named or other is not None:
            what = "no parameters" if not named else f"a parameter of {named[str(other)].dtype} ({other})"
            raise InputError(f"Experts are networks of float32 parameters, and this one has {what}.")
        kept = network.state_dict().keys()
        buffers = {name: b for name, b in network.named_buffers() if name in kept}
        return cls.from_shapes({n: p.shape for n, p in named.items()}, {n: b.shape for n, b in buffers.items()})

    @classmethod
    def from_shapes(cls, parameters: Mapping[str, Any], statistics: Mapping[str, Any]) -> Layout:
        """A layout by names and shapes."""
        shapes = [(name, tuple(int(n) for n in shape)) for name, shape in (*parameters.items(), *statistics.items())]
        starts = [0, *accumulate(prod(shape) for _, shape in shapes)]
        slots = tuple(Slot(name, shape, start) for (name, shape), start in zip(shapes, starts, strict=False))
        return cls(slots[: len(parameters)], slots[len(parameters) :])

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(slot.numel for slot in self.parameters)

    @property
    def width(self) -> int:
        """Numbers in a row: P and the statistics."""
        return self.size + sum(slot.numel for slot in self.statistics)

    def flatten(self, network: nn.Module) -> Tensor:
        """A network's snapshot, (width,) float32 on the CPU: a copy, whatever device the network is on.

        (The reference code keeps `p.detach().cpu()`, which on a CPU is the live weight itself, so that all snapshots
        are the last one.)
        """
        row = torch.empty(self.width)
        parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
        for slots, tensors in ((self.parameters, parameters), (self.statistics, buffers)):
            for slot in slots:
                slot.of(row).copy_(tensors[slot.name].detach())
        return row

    def load(self, network: nn.Module, row: Tensor) -> None:
        """Put a snapshot (width,) back into a network."""
        with torch.no_grad():
            parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
            for slots, tensors in ((self.parameters, parameters), (self.statistics, buffers)):
                for slot in slots:
                    tensors[slot.name].copy_(slot.of(row))

    def to_dict(self) -> dict[str, Any]:
        """What `meta.json` holds."""
        named = {"parameters": self.parameters, "statistics": self.statistics}
        return {
            "P": self.size,
            "width": self.width,
            **{
                kind: [{"name": s.name, "shape": list(s.shape), "offset": s.offset} for s in slots]
                for kind, slots in named.items()
            },
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Layout:
        """The inverse of `to_dict`; raises KeyError, TypeError or ValueError where the record is none."""
        made = cls.from_shapes(
            {str(s["name"]): s["shape"] for s in record["parameters"]},
            {str(s["name"]): s["shape"] for s in record["statistics"]},
        )
        if made.to_dict() != dict(record):
            raise ValueError("offsets, P or width do not follow from the shapes")
        return made

"""What the attribute of a biased set is and what its values are called. Of no image does it say which value it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Color = tuple[float, float, float]


#: Older files spell a kind so.
_KINDS = {"colour": "color"}


@dataclass(frozen=True)
class Attribute:
    """The attribute of a biased set.

    Attributes:
        kind: what it is: "color", "background", "corruption".
        names: of its values in order; value c is the one that most images of class c have.
        colors: where values are colors, each as RGB in [0, 1], else empty.
    """

    kind: str
    names: tuple[str, ...]
    colors: tuple[Color, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        colors = {"colours": [list(one) for one in self.colors]} if self.colors else {}
        return {"kind": self.kind, "names": list(self.names), **colors}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Attribute:
        """Of `to_dict`, also after JSON made lists of it."""
        red_green_blue = tuple((float(r), float(g), float(b)) for r, g, b in record.get("colours", ()))
        return cls(_KINDS.get(record["kind"], str(record["kind"])), tuple(map(str, record["names"])), red_green_blue)


def attribute_of(data: Mapping[str, Any], count: int = 0) -> Attribute:
    """The attribute that a `RealSet.describe()` tells of, with `count` values or more; where it tells none, numbers."""
    told = data.get("attribute")
    known = Attribute.from_dict(told) if told else Attribute("attribute", ())
    more = tuple(str(value) for value in range(len(known.names), count))
    return Attribute(known.kind, known.names + more, known.colors)

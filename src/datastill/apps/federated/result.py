"""What a federated run measured: a row for each round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from datastill.report.markdown import part as markdown
from datastill.report.section import Table
from datastill.store.schema import Count, Fraction, Record, Text

FORMAT = "datastill-federated"


class RoundRecord(Record):
    """`round.json`: one round."""

    round: Count
    accuracy: Fraction
    up_bytes: Count
    down_bytes: Count
    clients: list[Count]
    dropped: dict[Text, Text]
    seconds: float = Field(ge=0, le=1e12)


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        accuracy: of the network after it, on the test split, a fraction.
        up_bytes, down_bytes: what clients sent, and what they were sent.
        clients: those whose payload was used.
        dropped: why others' was not, by their number.
        seconds: of clients and server.
    """

    round: int
    accuracy: float
    up_bytes: int
    down_bytes: int
    clients: Sequence[int]
    dropped: Mapping[str, str]
    seconds: float


@dataclass(frozen=True)
class Federation:
    """What `federated` returns.

    Attributes:
        strategy: its name.
        options: its hyper-parameters.
        config: what else the run depends on.
        rounds: in order.
        sizes: images of every client.
        privacy: epsilon after each round and what it rests on; empty without a mechanism.
        notes: a sentence each.
    """

    strategy: str
    options: Mapping[str, Any]
    config: Mapping[str, Any]
    rounds: Sequence[Round]
    sizes: Sequence[int]
    privacy: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """After the last round."""
        return self.rounds[-1].accuracy

    @property
    def megabytes(self) -> list[float]:
        """Sent up and down until the end of every round."""
        total, found = 0, []
        for one in self.rounds:
            total += one.up_bytes + one.down_bytes
            found.append(total / 1e6)
        return found

    def rows(self) -> Table:
        """A row for each round, as text."""
        head = ["round", "test accuracy %", "MB up", "MB down", "MB so far", "clients", "dropped"]
        head += ["epsilon"] if self.privacy else []
        rows = []
        for k, (one, megabytes) in enumerate(zip(self.rounds, self.megabytes, strict=True)):
            row = [
                str(one.round + 1),
                f"{100 * one.accuracy:.1f}",
                f"{one.up_bytes / 1e6:.2f}",
                f"{one.down_bytes / 1e6:.2f}",
                f"{megabytes:.2f}",
                str(len(one.clients)),
                str(len(one.dropped)),
            ]
            row += [epsilon_text(self.privacy[k]["epsilon"])] if self.privacy else []
            rows.append(row)
        return Table(head, rows)

    def table(self) -> str:
        """In Markdown, a row for each round."""
        return markdown(self.rows()) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "format": FORMAT,
            "version": 1,
            "strategy": self.strategy,
            "options": dict(self.options),
            **self.config,
            "clients_images": list(self.sizes),
            "rounds": [{**vars(one), "megabytes": mb} for one, mb in zip(self.rounds, self.megabytes, strict=True)],
            "privacy": [dict(one) for one in self.privacy],
            "notes": list(self.notes),
        }


def epsilon_text(epsilon: float | None) -> str:
    """For people: "no bound" where it is infinite."""
    if epsilon is None:
        return "no bound"
    return f"{epsilon:.2f}" if epsilon < 1e4 else f"{epsilon:.1e}"

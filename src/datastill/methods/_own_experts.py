"""Methods that are MTT on experts which they train in a way of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from datastill.methods.mtt import MTT


@dataclass(frozen=True, kw_only=True)
class OwnExperts(MTT):
    """MTT, which asks of given experts that they were trained by the policy of the method."""

    voids: ClassVar[dict[str, tuple[str, ...]]] = {
        by: tuple(name for name in names if name != "expert_policy") for by, names in MTT.voids.items()
    }

    def _check(self) -> None:
        super()._check()
        if self.experts:
            from datastill.surrogates.experts import open_buffer
            from datastill.surrogates.experts.identity import refuse_policy

            refuse_policy(open_buffer(self.experts), self.expert_policy)

"""SRe2L++: SRe2L with the recipe of later methods, as the authors of committee voting tell it.

L as in SRe2L, on images that start as patches of real ones of medium difficulty (RDED), seen through crops and flips at
every size. When a network is trained, the teacher labels each batch by the batch's own statistics, in small batches.

- Needs: what SRe2L needs.
- Cost: as SRe2L, and the choice of the start.
- Departs: medium difficulty is the middle of the ranks by loss; the rest is SRe2L as it is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datastill.core.ranges import Count
from datastill.core.registry import method
from datastill.methods.sre2l import SRe2L

if TYPE_CHECKING:
    from datastill.core.plan import Init
    from datastill.surrogates.teachers import TeacherSource


@method("sre2l-plus", paper="SRe2L++", family="decoupled")
@dataclass(frozen=True, kw_only=True)
class SRe2LPlus(SRe2L):
    """SRe2L from patches of real images, through crops; its protocol trains in small batches."""

    steps: Count = 4_000  #: image updates of every block
    init: str = "patches"  #: start from "patches" of real images (RDED), from "real" images or from "noise"
    crop: bool = True  #: random resized crops and flips in recovery, at every size

    paper_values: ClassVar[dict[str, Any]] = {"r_bn": 0.01, "squeeze_passes": 200}

    def start(self, source: TeacherSource) -> Init:
        """Patches of medium loss, so that images of a class are not all its prototype."""
        from datastill.sampling.patches import Patches

        return Patches(source, pick="medium", again=True) if self.init == "patches" else super().start(source)

"""Dataset Condensation with Differentiable Siamese Augmentation (Zhao and Bilen, ICML 2021, arXiv:2102.08259).

L = sum_c D( grad l(A_c(S_c)), grad l(A_c(B_c)) ), D and l as in DC, with A_c one augmentation per class and step,
shared by both sides; the network trains on augmented synthetic images.

- Needs: nothing but the real set and a network family.
- Cost: as DC.
- Departs: as DC; every class and step has a draw of its own (the released code seeds them by the clock).
"""

from __future__ import annotations

from dataclasses import dataclass

from datastill.core.registry import method
from datastill.methods.dc import DC


@method("dsa", paper="arXiv:2102.08259", family="gradient")
@dataclass(frozen=True, kw_only=True)
class DSA(DC):
    """Match weight gradients of each class under one augmentation for both sides."""

    init: str = "real"  #: start from distinct "real" images or from "noise"
    augment: str = "auto"  #: DSA strategy, "none" (then this is DC), or "auto": all operations, no flip for digits

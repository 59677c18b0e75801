"""IDC without multi-formation (IDC-I: Kim et al., ICML 2022, arXiv:2205.14959).

L as in IDC with factor 1: the stored images are the images.

- Needs: nothing but the real set and a network family.
- Cost: as IDC with factor 1.
- Departs: as IDC.
"""

from __future__ import annotations

from dataclasses import dataclass

from datastill.core.ranges import Tiles
from datastill.core.registry import method
from datastill.methods.idc import IDC


@method("idc-i", paper="arXiv:2205.14959", family="gradient")
@dataclass(frozen=True, kw_only=True)
class IDCI(IDC):
    """Match weight gradients of whole stored images, on networks that train on real images."""

    factor: Tiles = 1  #: each stored image is cut into factor x factor; 1 stores whole images

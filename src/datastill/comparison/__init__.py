"""Tables that a reviewer would accept: methods, sizes and seeds under one protocol, and over networks."""

from datastill.comparison.cross import CrossMatrix, cross_architecture
from datastill.comparison.result import Comparison, Row, load_comparison
from datastill.comparison.run import CellsFailed, compare

__all__ = [
    "CellsFailed",
    "Comparison",
    "CrossMatrix",
    "Row",
    "compare",
    "cross_architecture",
    "load_comparison",
]

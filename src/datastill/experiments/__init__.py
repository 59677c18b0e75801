"""Tables that a reviewer would accept: methods, sizes and seeds under one protocol, and over networks."""

from datastill.experiments.comparison import CellsFailed, compare
from datastill.experiments.cross_architecture import CrossMatrix, cross_architecture
from datastill.experiments.result import Comparison, Row, load_comparison

__all__ = [
    "CellsFailed",
    "Comparison",
    "CrossMatrix",
    "Row",
    "compare",
    "cross_architecture",
    "load_comparison",
]

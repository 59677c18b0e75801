"""Expert trajectories: networks trained on the real set, kept epoch by epoch, and segments of them to match.

Train them with `train_experts` (or `datastill experts train`), keep them in a folder, open it with `open_buffer`. In a
plan, `ExpertsUnit` prepares them and `Experts` hands out a `Segment` at each step.
"""

from datastill.surrogates.experts.legacy import import_reference_buffer
from datastill.surrogates.experts.sample import Experts, Growing, Segment
from datastill.surrogates.experts.store import ExpertBuffer, open_buffer
from datastill.surrogates.experts.train import train_experts
from datastill.surrogates.experts.unit import ExpertsUnit

__all__ = [
    "ExpertBuffer",
    "Experts",
    "ExpertsUnit",
    "Growing",
    "Segment",
    "import_reference_buffer",
    "open_buffer",
    "train_experts",
]

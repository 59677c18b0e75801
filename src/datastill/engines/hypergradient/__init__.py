"""Gradients of a trajectory match with respect to images, labels and learning rate, through N student steps.

One plan is drawn and any engine replays it: `full_unroll` (autograd, memory grows with N), `adjoint` (the same numbers
in constant memory), `frozen_path` (TESLA's, biased) and `truncated` (biased).
"""

from datastill.engines.hypergradient.calibrated import Calibrated, Watched
from datastill.engines.hypergradient.lr import KeepPositive, SyntheticLr
from datastill.engines.hypergradient.match import MatchTerm, distance
from datastill.engines.hypergradient.recursion import adjoint, frozen_path, truncated
from datastill.engines.hypergradient.result import HyperGradients
from datastill.engines.hypergradient.steps import InnerPlan, InnerStep, draw_plan
from datastill.engines.hypergradient.student import Student, cross_entropy, cross_entropy_of_logits
from datastill.engines.hypergradient.terminal import adjoint_of_loss
from datastill.engines.hypergradient.unroll import full_unroll

__all__ = [
    "Calibrated",
    "HyperGradients",
    "InnerPlan",
    "InnerStep",
    "KeepPositive",
    "MatchTerm",
    "Student",
    "SyntheticLr",
    "Watched",
    "adjoint",
    "adjoint_of_loss",
    "cross_entropy",
    "cross_entropy_of_logits",
    "distance",
    "draw_plan",
    "frozen_path",
    "full_unroll",
    "truncated",
]

"""Train networks on a distilled set, and on random selections of the same size, and compare on test data."""

from datastill.evaluation.evaluate import evaluate, trained
from datastill.evaluation.regimes import evaluate_regimes
from datastill.evaluation.robustness import Robustness, evaluate_robustness
from datastill.evaluation.scores import Arm, Evaluation

__all__ = ["Arm", "Evaluation", "Robustness", "evaluate", "evaluate_regimes", "evaluate_robustness", "trained"]

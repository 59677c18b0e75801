"""How well one ranking agrees with another."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Agreement:
    """Of accuracies on a proxy with those on the whole set; NaN where one side is constant."""

    spearman: float
    kendall: float  #: tau-b
    spearman_top: float  #: among the networks that are best on the whole set
    overlap: float  #: share of the best on the whole set that are among as many best on the proxy
    chosen: int  #: the network that is best on the proxy; of equals the first
    chosen_accuracy: float  #: its accuracy after training on the whole set


def agreement(proxy: Sequence[float], whole: Sequence[float], top: float = 0.2) -> Agreement:
    """Compare two lists of accuracies of the same networks.

    Args:
        proxy, whole: accuracies after training on either.
        top: share of the networks, best on the whole set first, for `spearman_top` and `overlap`; at least three.
    """
    a, b = np.asarray(proxy, float), np.asarray(whole, float)
    count = min(len(b), max(3, math.ceil(top * len(b))))
    best = np.argsort(-b, kind="stable")[:count]
    chosen = int(np.argmax(a))
    shared = len(set(best.tolist()) & set(np.argsort(-a, kind="stable")[:count].tolist()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        spearman, top_spearman = (float(stats.spearmanr(a[i], b[i]).statistic) for i in (slice(None), best))
        kendall = float(stats.kendalltau(a, b).statistic)
    return Agreement(spearman, kendall, top_spearman, shared / count, chosen, float(b[chosen]))

"""Matching the trajectories of two towers at once (Wu et al., TMLR 2024, arXiv:2308.07545).

L = sum over towers b of ||theta_N^b - theta*_{t+M}^b||^2 / ||theta*_t^b - theta*_{t+M}^b||^2

Both towers stand in one vector theta, each with its own learning rate and its own normalizer; the contrastive loss of
the student couples them. The gradient goes to images, to vectors of sentences and to both rates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.engines import hypergradient as hg
from datastill.engines.flat import FlatModel
from datastill.models.towers import TOWERS, tower_slices
from datastill.objectives.trajectory_match import TrajectoryMatch
from datastill.training.contrastive import contrastive

if TYPE_CHECKING:
    from datastill.objectives.trajectory_match import Segment

#: Leaves of the learning rates of the image tower and the text tower.
RATES = ("lr", "lr_text")


@dataclass(frozen=True)
class PairTrajectoryMatch(TrajectoryMatch):
    """N student steps of both towers on synthetic pairs. The labels are vectors of sentences, (n, d).

    Raises:
        InputError: when called, a network that is no pair of towers.
    """

    def student_options(self, segment: Segment, model: FlatModel, y: Tensor, context: Context) -> dict[str, Any]:
        """With the text tower in the way of the labels, whole batches, and a rate for each tower."""
        usual = super().student_options(segment, model, y, context)
        return usual | {
            "loss_fn": contrastive,
            "label_model": partial(model, method="sentences"),
            "blocks": tuple(self._towers(model).values()),
            "chunk": None,
        }

    def terms_of(self, segment: Segment, model: FlatModel) -> list[hg.MatchTerm]:
        """As of one network, each tower divided by how far its expert went."""
        towers = tuple(self._towers(model).values())
        return [replace(term, towers=towers) for term in self.terms(segment)]

    def alpha(self, rate: hg.SyntheticLr, context: Context) -> Tensor:
        """The rates of both towers, (2,)."""
        return torch.stack([rate.alpha(context.codes.get(name)) for name in RATES])

    def rate_slopes(self, found: hg.HyperGradients, rate: hg.SyntheticLr, context: Context) -> dict[str, Tensor]:
        """Gradients of the leaves of both rates."""
        leaves = {name: context.codes[name].detach() for name in RATES if name in context.codes}
        return {
            name: found.alpha[RATES.index(name)].to(leaf).reshape(leaf.shape) * rate.slope(leaf)
            for name, leaf in leaves.items()
        }

    def _towers(self, model: FlatModel) -> dict[str, slice]:
        towers = tower_slices(model.names, model.numels)
        if len(towers) != len(TOWERS):
            raise InputError("Trajectories of pairs are those of two towers; train experts on a set of pairs.")
        return towers

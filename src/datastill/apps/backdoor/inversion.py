"""For which class does a small patch do? A hint at a trigger, class by class, from networks trained on a set.

For every class c a mask m in [0, 1] and a pattern p are learned such that networks take x (1 - m) + p m for c, x being
images of other classes, with the mask as small as that allows:

    min_{m, p}  cross-entropy(f(x (1 - m) + p m), c) + w_c |m|_1

w_c rises while enough images are taken for c, and falls otherwise. A class whose mask is far smaller than those of the
others has a shortcut (Neural Cleanse: Wang and others, IEEE Symposium on Security and Privacy 2019).

The bound on a mask's share of the median, in the place of median absolute deviations, which ten classes estimate
poorly, is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from datastill.core.errors import InputError
from datastill.core.ranges import Count, Few, Seed, Share, checked
from datastill.core.rng import Rng
from datastill.data.load import load_real
from datastill.data.real import RealSet
from datastill.evaluation.evaluate import trained
from datastill.store.artifact import DistilledSet
from datastill.training.kernel_ridge import Regressor

#: A class is named whose mask is smaller than this share of the median; chosen on digits, see docs/backdoor.md.
NAMED = 0.65
#: Images of every class in a step, and Adam's rate.
BATCH, RATE = 16, 0.2


@dataclass(frozen=True)
class Masks:
    """The smallest that did.

    Attributes:
        masks: by class (C, h, w), in [0, 1]; all ones where none did.
        patterns: by class (C, c, h, w), pixels in [0, 1].
    """

    masks: Tensor
    patterns: Tensor

    @property
    def sizes(self) -> Tensor:
        """Sums of the masks in pixels, (C,)."""
        return self.masks.double().flatten(1).sum(1)


@dataclass(frozen=True)
class Inversion:
    """What was found, and whom it points at.

    Attributes:
        found: masks and patterns.
        sizes: by class, of the masks in pixels.
        ratios: by class, of the sizes to their median.
        suspected: positions of the classes whose ratio is below `NAMED`.
    """

    found: Masks
    sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    suspected: tuple[int, ...]


@checked
def inversion(
    made: DistilledSet,
    real: RealSet | None = None,
    *,
    networks: Few = 3,
    network: Any = None,
    steps: Count = 300,
    goal: Share = 0.5,
    seed: Seed = 0,
) -> Inversion:
    """Look for a patch by which other classes' images are taken for a class, and name classes that need little.

    Args:
        made: the set, of three classes or more.
        real: with a test split, whose images the patches are put on; None where the receiver has the set alone, whose
            own images they are put on then.
        networks: that are trained on the set.
        network: their architecture; None takes the one that the set was distilled with.
        steps: of Adam, on one network after the other.
        goal: share of other classes' images that are to be taken for a class.
        seed: of the networks and of the draws.

    Raises:
        InputError: fewer than three classes, no test images, or networks that cannot be trained as asked for.
    """
    if len(made.class_names) < 3:
        raise InputError("Which class needs the smallest patch says something from three classes on.")
    own = alone(made) if real is None else real
    learners = trained(made, own, networks=networks, network=network, seed=seed)
    return inversion_of(learners, own if real is None else real.known_test, steps=steps, goal=goal, seed=seed)


def inversion_of(
    networks: Sequence[nn.Module], images: RealSet, *, steps: int = 300, goal: float = 0.5, seed: int = 0
) -> Inversion:
    """The same of networks that were trained on a set.

    Args:
        networks: see `smallest`.
        images: that patches are put on.
        steps, goal, seed: see `smallest`.

    Raises:
        InputError: see `smallest`.
    """
    found = smallest(networks, images, steps=steps, goal=goal, seed=seed)
    ratios = found.sizes / found.sizes.median()
    named = (ratios < NAMED).nonzero().flatten().tolist()
    return Inversion(found, tuple(found.sizes.tolist()), tuple(ratios.tolist()), tuple(named))


def smallest(
    networks: Sequence[nn.Module], images: RealSet, *, steps: int = 300, goal: float = 0.5, seed: int = 0
) -> Masks:
    """The smallest masks that do on networks in their turn; the networks stay in eval mode and without gradients.

    Args:
        networks: that map images in the Space to logits (b, C).
        images: that patches are put on; of each class those of all others.
        steps: of Adam at rate .2, each on a mini-batch of 16 images of every class and on one network.
        goal: share of images to be taken for the class, as a running mean over about ten steps of which the luckiest
            counts, so that on all images it may be a good deal less (.42 where .6 was asked, once).
        seed: of the draws.

    Raises:
        InputError: a network is a regression, which has no gradient here, or all images are of one class.
    """
    if any(isinstance(one, Regressor) for one in networks):
        raise InputError("Masks are learned on networks; the set's protocol trains none (protocol=dc-v1 does).")
    for one in networks:
        one.cpu().eval().requires_grad_(False)
    classes, (c, h, w) = images.classes, images.shape
    others = [(images.labels != k).nonzero().flatten() for k in range(classes)]
    if not all(len(rows) for rows in others):
        raise InputError("All images are of one class; a patch that turns others into it has none to be put on.")
    generator = Rng(seed).generator("inversion")
    leaves = [torch.full((classes, 1, 1, h, w), -2.0), 0.2 * torch.randn(classes, 1, c, h, w, generator=generator)]
    optimizer = torch.optim.Adam([leaf.requires_grad_() for leaf in leaves], lr=RATE, betas=(0.5, 0.9))
    weight, rate = torch.full((classes,), 1e-2), torch.zeros(classes)
    best = Masks(torch.ones(classes, h, w), torch.zeros(classes, c, h, w))
    wanted = torch.arange(classes).repeat_interleave(BATCH)
    for step in range(steps):
        rows = [own[torch.randint(len(own), (BATCH,), generator=generator)] for own in others]
        x = images.pixels(torch.cat(rows)).unflatten(0, (classes, BATCH))
        mask, pattern = (torch.sigmoid(leaf) for leaf in leaves)
        logits = networks[step % len(networks)](images.space.encode((x * (1 - mask) + pattern * mask).flatten(0, 1)))
        losses = nn.functional.cross_entropy(logits, wanted, reduction="none").unflatten(0, (classes, BATCH)).mean(1)
        sizes = mask.flatten(1).sum(1)
        for leaf, grad in zip(leaves, torch.autograd.grad((losses + weight * sizes).sum(), leaves), strict=True):
            leaf.grad = grad
        hit = (logits.argmax(1) == wanted).float().unflatten(0, (classes, BATCH)).mean(1)
        rate = 0.9 * rate + 0.1 * hit
        enough = rate >= goal
        better = enough & (sizes.detach() < best.masks.flatten(1).sum(1))
        best.masks[better] = mask.detach()[better, 0, 0]
        best.patterns[better] = pattern.detach()[better, 0]
        optimizer.step()
        weight = torch.where(enough, weight * 1.05, weight / 1.05**1.5).clamp(1e-5, 10)
    return best


def alone(made: DistilledSet) -> RealSet:
    """The set's own images as a real set without a test split."""
    source = (made.pixels, made.hard_labels)
    return load_real(source, holdout=0, space=made.space, class_names=made.class_names)

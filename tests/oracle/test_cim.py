"""CIM against plain loops over pairs: which tile stands beside which real image, and what their distance is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import datastill
from datastill.augment.dsa import Dsa
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import Block, Callback, ClassMajor, Plan, Synthetic
from datastill.core.rng import Rng, isolated
from datastill.decoders.pixels import Pixels
from datastill.engines.inner import last_maps
from datastill.methods.cim import CIM
from datastill.objectives.paired import PairedFeatures
from datastill.sampling.patches import Patches
from datastill.surrogates.teachers import Brought, Teacher
from decoupled_data import NETWORK, digits, task_of, teacher


def odd_set() -> datastill.data.RealSet:
    """Noise of 9 x 11 pixels, which no factor divides."""
    x = torch.randint(0, 256, (24, 3, 9, 11), generator=Rng(7).generator("images"), dtype=torch.uint8)
    return datastill.load_real((x, torch.arange(2).repeat(12)), holdout=0)


def scorer(real: datastill.data.RealSet) -> Teacher:
    """A network with an inner layer that is easy to compute by hand."""
    with isolated(0):
        network = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 9 * 11, 2))
    return Teacher(network, real.space, real.class_names, 3, (9, 11))


def naive(
    images: Tensor, anchors: list[list[Tensor]], factor: int, network: nn.Module, record: Any, augment: Dsa
) -> Tensor:
    """Pair by pair: cut, enlarge, augment both by one row, compare."""
    height, width = images.shape[2:]
    sides = [[side // factor + (k < side % factor) for k in range(factor)] for side in (height, width)]
    total = torch.zeros(())
    for i, image in enumerate(images):
        top = 0
        for r in range(factor):
            left = 0
            for c in range(factor):
                tile = image[None, :, top : top + sides[0][r], left : left + sides[1][c]]
                whole = F.interpolate(tile, size=(height, width), mode="bilinear", align_corners=False)
                row = torch.tensor([(r * factor + c) * len(images) + i])
                pair = [augment.apply(x, record, rows=row) for x in (whole, anchors[i][r * factor + c][None])]
                one, other = (torch.tanh(network[0](x)) for x in pair)
                total = total + (one - other).abs().mean()
                left += sides[1][c]
            top += sides[0][r]
    return total


@pytest.mark.parametrize("factor", [2, 3])
def test_every_tile_is_compared_with_the_image_that_it_was(factor: int) -> None:
    real = odd_set()
    mine = scorer(real)
    task = task_of(real, "convnet:width=4,depth=1", ipc=2)
    patches = Patches(Brought(mine, statistics=False), factor, again=True, crops=1, low_scale=1.0, candidates=12)
    block = Block(1, torch.tensor([2, 3]), torch.tensor([1, 1]))
    augment = Dsa("crop_cutout_flip")
    objective = PairedFeatures(patches, "1")
    prepared = {"teacher": {"trial": torch.tensor(1.0)}}
    context = Context(task, Plan(patches, Pixels(), augment=augment), block, Rng(0), (), prepared=prepared)
    images, extra = patches.images(task, block, context)
    images = images + 0.1 * torch.randn(images.shape, generator=Rng(1).generator("moved"))
    context.synthetic, context.surrogate = Synthetic(images.requires_grad_(), block.y), mine.network
    found = objective(context)
    anchors = []
    for row in extra["mixed"].tolist():
        squares = real.batch(torch.tensor(row)).x[:, :, :, 1:10]  # the largest square crop is 9 x 9, in the middle
        anchors.append(list(F.interpolate(squares, size=(9, 11), mode="bilinear", antialias=True)))
    record = augment.draw(2 * factor**2, (3, 9, 11), context.generator("augment"))
    expected = naive(images, anchors, factor, mine.network, record, augment)
    assert torch.allclose(found, expected, rtol=1e-5)
    slopes = [torch.autograd.grad(loss, images, retain_graph=True)[0] for loss in (found, expected)]
    assert torch.allclose(*slopes, atol=1e-6)
    assert float(slopes[0].abs().max()) > 0


def run(**hyper: Any) -> tuple[datastill.DistilledSet, list[float]]:
    """Images of the digits, and the losses of all steps."""
    losses: list[float] = []

    class Losses(Callback):
        def after_step(self, context: Context) -> None:
            losses.append(context.loss)

    values: dict[str, Any] = {"ipc": 2, "steps": 4, "teacher": teacher(), "candidates": 20, **hyper}
    callbacks = [Losses(), *values.pop("callbacks", [])]
    return datastill.distill("cim", digits(), callbacks=callbacks, network=NETWORK, **values), losses


def test_a_whole_image_beside_itself_is_at_distance_zero() -> None:
    (one, _), (more, losses) = (run(factor=1, steps=steps) for steps in (1, 3))
    assert max(losses) == 0
    assert torch.equal(one.images, more.images)


def test_the_last_maps_are_those_of_the_last_block() -> None:
    with isolated(0):
        network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
        assert last_maps(network, torch.zeros(1, 1, 8, 8)) == "1"
        assert last_maps(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), torch.zeros(1, 1, 8, 8)) == ""
    assert not any(m._forward_hooks for m in network.modules())


def test_a_layer_that_is_not_there_is_told() -> None:
    with pytest.raises(InputError, match="no layer 'block9'"):
        run(layer="block9")


def test_a_stopped_run_goes_on_to_the_same_images(tmp_path: Path) -> None:
    class Stop(Callback):
        def after_step(self, context: Context) -> None:
            if context.block.key == 3 and context.step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[Stop()], out=tmp_path / "run", checkpoint_seconds=0.0)
    assert torch.equal(run(out=tmp_path / "run", resume=True)[0].images, run()[0].images)


def test_classes_are_independent_blocks() -> None:
    assert CIM(teacher=teacher()).build(task_of(digits())).partition == ClassMajor(1)


def test_tiles_come_nearer_to_their_images() -> None:
    _, losses = run(steps=40, ipc=1, image_lr=0.05)
    assert sum(losses[35:40]) < 0.75 * sum(losses[:5])

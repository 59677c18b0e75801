"""Patches of real images that a teacher finds easy, set together (checks RD-1 to RD-4)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import datastill
from datastill import load_real
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import AllAtOnce, Callback, Plan
from datastill.core.rng import Rng, isolated
from datastill.data.real import RealSet
from datastill.decoders.pixels import Pixels
from datastill.sampling import patches as module
from datastill.sampling.inits import shuffled_members
from datastill.sampling.patches import Patches, cut, pick_by_loss
from datastill.surrogates.teachers import Brought, Teacher
from decoupled_data import NETWORK, digits, task_of, teacher

CLASSES = 3


def real_set(size: tuple[int, int], each: int = 12) -> RealSet:
    """Noise images of three classes, pixels as they are."""
    generator = Rng(5).generator("images")
    x = torch.randint(0, 256, (CLASSES * each, 3, *size), generator=generator, dtype=torch.uint8)
    return load_real((x, torch.arange(CLASSES).repeat(each)), space="raw", holdout=0)


def scorer(real: RealSet, seed: int = 0) -> Brought:
    """A teacher that is a fixed linear map of the pixels, so that each of them counts."""
    with isolated(seed):
        network = nn.Sequential(nn.Flatten(), nn.Linear(real.shape[0] * real.shape[1] * real.shape[2], real.classes))
    return Brought(Teacher(network, real.space, real.class_names, real.shape[0], (real.shape[1], real.shape[2])))


class Brightness(nn.Module):
    """Surer of class 0 the brighter an image is; of no other class more than of another."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([20 * x.mean((1, 2, 3)), *[torch.zeros(len(x))] * (CLASSES - 1)], 1)


def select(real: RealSet, source: Brought, ipc: int, seed: int = 0, **values: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Images, positions and losses of a selection of all classes."""
    task = task_of(real, NETWORK, ipc=ipc, seed=seed)
    init = Patches(source, **values)
    block = next(AllAtOnce().blocks(task.labels))
    prepared = {"teacher": {"trial": torch.tensor(1.0)}}
    context = Context(task, Plan(init=init, decoder=Pixels()), block, Rng(seed), (), prepared=prepared)
    images, extra = init.images(task, block, context)
    return images, extra["mixed"], extra["loss"]


def halves(side: int, factor: int) -> list[int]:
    """Lengths of the tiles of a side; what is left over goes to the first."""
    return [side // factor + (k < side % factor) for k in range(factor)]


def resized(crop: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(crop.shape[1:]) == size:
        return crop
    return F.interpolate(crop[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def naive(
    real: RealSet, source: Brought, boxes: dict[int, list[list[list[int]]]], ipc: int, factor: int, c: int
) -> tuple[list[Tensor], list[list[int]], list[list[float]]]:
    """The lowest losses and their mosaics, crop by crop in plain Python."""
    height, width = real.shape[1:]
    small = (height // factor, width // factor)
    members = shuffled_members(real, c, 0).tolist()
    best = []
    for position, own in zip(members, boxes[c], strict=True):
        image = real.batch(torch.tensor([position])).x[0]
        scored = []
        for top, left, h, w in own:
            crop = image[:, top : top + h, left : left + w]
            padded = torch.zeros_like(image)
            y, x = (height - small[0]) // 2, (width - small[1]) // 2
            padded[:, y : y + small[0], x : x + small[1]] = resized(crop, small)
            logits = source.given.network(padded[None])[0]
            scored.append((float(-logits.log_softmax(0)[c]), crop))
        loss, crop = min(scored, key=lambda one: one[0])
        best.append((loss, position, crop))
    best.sort(key=lambda one: one[0])
    mosaics, positions, losses = [], [], []
    for i in range(ipc):
        tiles = [best[k * ipc + i] for k in range(factor**2)]
        rows = []
        for r, tall in enumerate(halves(height, factor)):
            row = [resized(tiles[r * factor + q][2], (tall, w)) for q, w in enumerate(halves(width, factor))]
            rows.append(torch.cat(row, 2))
        mosaics.append(torch.cat(rows, 1))
        positions.append([tile[1] for tile in tiles])
        losses.append([tile[0] for tile in tiles])
    return mosaics, positions, losses


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch):
    """Boxes of the tests' own in place of random ones; what was asked for is checked."""

    def install(size: tuple[int, int], each: int, crops: int) -> dict[int, list[list[list[int]]]]:
        generator = Rng(9).generator("boxes")
        made: dict[int, list[list[list[int]]]] = {}

        def boxes_of(generator_: torch.Generator, rows: int, given_size: Any, scale: Any, ratio: Any) -> Tensor:
            assert (rows, given_size, ratio) == (each * crops, size, (1.0, 1.0))
            side = torch.randint(3, min(size) + 1, (rows,), generator=generator)
            top = (torch.rand(rows, generator=generator) * (size[0] - side + 1)).long()
            left = (torch.rand(rows, generator=generator) * (size[1] - side + 1)).long()
            found = torch.stack([top, left, side, side], 1)
            made[len(made)] = found.view(each, crops, 4).tolist()
            return found

        monkeypatch.setattr(module, "resized_crop_boxes", boxes_of)
        return made

    return install


@pytest.mark.parametrize(
    ("size", "factor", "ipc"),
    [((16, 16), 1, 3), ((16, 16), 2, 2), ((33, 33), 2, 2), ((33, 20), 2, 1), ((34, 33), 3, 1), ((9, 14), 1, 5)],
)
def test_selection_and_mosaics_are_those_of_plain_python(size, factor: int, ipc: int, boxes) -> None:
    real = real_set(size)
    source = scorer(real)
    drawn = boxes(size, 12, 4)
    images, positions, losses = select(real, source, ipc, factor=factor, crops=4)
    assert images.shape == (CLASSES * ipc, 3, *size)
    assert torch.isfinite(images).all()
    for c in range(CLASSES):
        own = slice(c * ipc, (c + 1) * ipc)
        mosaics, where, cost = naive(real, source, drawn, ipc, factor, c)
        assert positions[own].tolist() == where
        torch.testing.assert_close(losses[own], torch.tensor(cost), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(images[own], torch.stack(mosaics))


@pytest.mark.parametrize(("size", "factor"), [((33, 33), 2), ((12, 20), 2), ((33, 33), 3)])
def test_ranks_go_to_the_same_tile_of_every_image_first(size: tuple[int, int], factor: int) -> None:
    """Images of one color each: the color of a tile tells its rank, and a gap would show."""
    ipc, each = 2, 2 * factor**2 + 3
    shades = torch.randperm(each, generator=Rng(1).generator("shades"))  # of class 0, brighter is surer
    x = torch.zeros(CLASSES * each, 3, *size, dtype=torch.uint8)
    x[torch.arange(each) * CLASSES] = (10 * shades + 5).to(torch.uint8)[:, None, None, None]
    real = load_real((x, torch.arange(CLASSES).repeat(each)), space="raw", holdout=0)
    source = Brought(Teacher(Brightness(), real.space, real.class_names, 3, size))
    images, positions, losses = select(real, source, ipc, factor=factor)
    for i in range(ipc):
        wanted = torch.full((3, *size), -1.0)
        top = 0
        for r, tall in enumerate(halves(size[0], factor)):
            left = 0
            for q, wide in enumerate(halves(size[1], factor)):
                rank = (r * factor + q) * ipc + i
                wanted[:, top : top + tall, left : left + wide] = (10 * (each - 1 - rank) + 5) / 255
                left += wide
            top += tall
        assert (wanted >= 0).all()
        torch.testing.assert_close(images[i], wanted, atol=1e-6, rtol=0)
    assert sorted(positions[:ipc].flatten().tolist()) == sorted(
        (shades.argsort(descending=True)[: ipc * factor**2] * CLASSES).tolist()
    )
    assert (losses[:ipc].T.flatten().diff() > 0).all()


def test_factor_one_takes_crops_of_the_lowest_loss_and_nothing_else() -> None:
    """Every image that is left out has no crop as good, and each chosen one is a crop of its real image."""
    real = real_set((10, 10))
    source = scorer(real)
    chosen = select(real, source, 4, factor=1, low_scale=1.0, crops=1)
    whole = real.batch(chosen[1][:, 0]).x
    torch.testing.assert_close(chosen[0], whole)  # crops of the whole area are whole images
    every = F.cross_entropy(source.given.network(real.batch(torch.arange(len(real))).x), real.labels, reduction="none")
    for c in range(CLASSES):
        lowest = every[real.labels == c].sort().values[:4]
        torch.testing.assert_close(chosen[2][4 * c : 4 * c + 4, 0], lowest)


def test_candidates_bound_what_is_looked_at() -> None:
    real = real_set((8, 8))
    source = scorer(real)
    seen = select(real, source, 2, candidates=5)[1]
    for c in range(CLASSES):
        assert set(seen[2 * c : 2 * c + 2].flatten().tolist()) <= set(shuffled_members(real, c, 0)[:5].tolist())
    few = select(real, source, 6, candidates=5)[1]  # never fewer candidates than are wanted
    assert len(set(few[:6].flatten().tolist())) == 6


def test_one_seed_gives_one_selection_and_another_another() -> None:
    real = real_set((8, 8))
    source = scorer(real)
    one, same, other = (select(real, source, 2, seed=s)[0] for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_chosen_crops_are_surer_than_random_ones() -> None:
    source = Brought(teacher())
    chosen = select(digits(), source, 5, low_scale=0.3)[2]
    random = select(digits(), source, 5, low_scale=0.3, crops=1, pick="random")[2]
    stratified = select(digits(), source, 5, low_scale=0.3, pick="stratified")[2]
    assert chosen.mean() < 0.2 * random.mean()
    assert chosen.mean() < stratified.mean() < random.mean()


@pytest.mark.parametrize("size", [(7, 5), (4, 9)])
def test_cut_takes_the_box(size: tuple[int, int]) -> None:
    image = torch.rand(2, 9, 11, generator=Rng(0).generator("image"))
    exact = cut(image, torch.tensor([1, 2, *size]), size)
    assert torch.equal(exact, image[:, 1 : 1 + size[0], 2 : 2 + size[1]])
    assert cut(image, torch.tensor([0, 0, 9, 11]), size).shape == (2, *size)


distinct = st.lists(st.integers(-1000, 1000), min_size=1, max_size=40, unique=True)


class TestPick:
    @settings(deadline=None)
    @given(distinct, st.data())
    def test_lowest(self, losses: list[int], data: st.DataObject) -> None:
        n = data.draw(st.integers(1, len(losses)))
        found = pick_by_loss(torch.tensor(losses, dtype=torch.float64), n, "lowest", torch.Generator())
        assert [losses[i] for i in found.tolist()] == sorted(losses)[:n]

    @settings(deadline=None)
    @given(distinct, st.data())
    def test_random(self, losses: list[int], data: st.DataObject) -> None:
        n, seed = data.draw(st.integers(1, len(losses))), data.draw(st.integers(0, 99))
        given_, again = (
            pick_by_loss(torch.tensor(losses), n, "random", torch.Generator().manual_seed(seed)) for _ in range(2)
        )
        assert torch.equal(given_, again)
        values = [losses[i] for i in given_.tolist()]
        assert len(set(values)) == n
        assert values == sorted(values)

    def test_random_takes_any_of_them(self) -> None:
        seen = set()
        for seed in range(60):
            seen |= set(pick_by_loss(torch.arange(9.0), 2, "random", torch.Generator().manual_seed(seed)).tolist())
        assert seen == set(range(9))

    @settings(deadline=None)
    @given(distinct, st.data())
    def test_stratified(self, losses: list[int], data: st.DataObject) -> None:
        n = data.draw(st.integers(1, len(losses)))
        found = pick_by_loss(torch.tensor(losses), n, "stratified", torch.Generator())
        ranks = [sorted(losses).index(losses[i]) for i in found.tolist()]
        assert ranks[0] == 0
        bounds = [*ranks, len(losses)]
        runs = [b - a for a, b in itertools.pairwise(bounds)]
        assert min(runs) >= len(losses) // n
        assert max(runs) <= -(-len(losses) // n)


def test_equal_losses_keep_their_order() -> None:
    assert pick_by_loss(torch.tensor([1.0, 0.0, 1.0, 0.0]), 3, "lowest", torch.Generator()).tolist() == [1, 3, 0]


def test_too_few_images_are_told_in_a_sentence() -> None:
    real = real_set((8, 8))
    with pytest.raises(InputError, match=r"2 images of 3 x 3 patches need 18 images of '0' and there are 12") as told:
        select(real, scorer(real), 2, factor=3)
    assert "--factor 1" in str(told.value)
    assert str(told.value).count(". ") == 0
    with pytest.raises(InputError, match="8 x 8 pixels cannot hold 9 x 9 patches"):
        datastill.distill("rded", digits(), ipc=1, factor=9, teacher=teacher(), network=NETWORK)
    with pytest.raises(InputError, match="need 256 images"):
        datastill.distill("rded", digits(), ipc=4, factor=8, teacher=teacher(), network=NETWORK)


def test_rded_is_the_selection_and_says_how_it_wants_to_be_trained_on() -> None:
    made = datastill.distill("rded", digits(), ipc=3, factor=2, seed=2, teacher=teacher(), network=NETWORK)
    images, positions, losses = select(digits(), Brought(teacher()), 3, seed=2, factor=2)
    assert torch.equal(made.images, images)
    assert torch.equal(made.extra["mixed"], positions)
    assert torch.equal(made.extra["loss"], losses)
    assert (made.extra["loss"].diff(dim=1) >= 0).all()
    assert made.manifest["student"]["patches"] == 2
    assert made.manifest["student"]["labels"] == "teacher"


def test_a_network_without_batch_norm_will_do() -> None:
    plain = "convnet:width=8,depth=1"
    made = datastill.distill("rded", digits(), ipc=1, network=plain, squeeze_passes=6, squeeze_batch=32, candidates=10)
    assert made.manifest["companions"]["teacher"]["network"] == plain
    real = real_set((8, 8))
    images = select(real, Brought(scorer(real).given, statistics=False), 1)[0]
    assert torch.isfinite(images).all()


def test_recovery_may_start_from_the_selection_whatever_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Start(Callback):
        def __init__(self) -> None:
            self.found: dict[int, Tensor] = {}

        def start(self, context: Context) -> None:
            self.found |= dict(zip(context.block.index.tolist(), context.codes["images"].clone(), strict=True))

    start = Start()
    given_ = {"ipc": 2, "seed": 1, "teacher": teacher(), "network": NETWORK}
    scored: list[int] = []
    losses = Patches._losses
    monkeypatch.setattr(Patches, "_losses", lambda self, *rest: scored.append(rest[2]) or losses(self, *rest))
    datastill.distill("sre2l", digits(), init="patches", steps=1, block_classes=4, callbacks=[start], **given_)
    assert sorted(scored) == list(range(10)), "six blocks, and each class is scored once"
    made = datastill.distill("rded", digits(), factor=1, **given_)
    assert start.found.keys() == set(range(20))
    for k, image in enumerate(made.images):
        torch.testing.assert_close(start.found[k], image)


def test_tiles_are_those_that_change_places_in_training() -> None:
    """An image of tiles of one color each: shuffled, it still is one."""
    from datastill.augment.crops import edges
    from datastill.augment.trace import TraceSpec

    for side in (32, 33, 34, 35, 224):
        for factor in (2, 3, 4):
            image = torch.empty(1, 1, side, side)
            for r, (top, bottom) in enumerate(edges(side, factor)):
                for q, (left, right) in enumerate(edges(side, factor)):
                    image[..., top:bottom, left:right] = r * factor + q
            turned = TraceSpec(flip=False, shuffle=factor).replay(1, 1, (1, side, side)).apply(image)
            counts = [turned[0, 0].flatten().tolist().count(k) for k in range(factor**2)]
            assert counts == [image.flatten().tolist().count(k) for k in range(factor**2)]
            lengths = turned[0, 0, 0].unique_consecutive(return_counts=True)[1].tolist()
            assert sorted(lengths) == sorted(right - left for left, right in edges(side, factor))

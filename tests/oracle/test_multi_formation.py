"""Multi-formation against explicit slicing; its init, its place in an artifact, and DM on top of it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datastill import distill, evaluate, load_distilled, load_real
from datastill.cli import main
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.loop import synthesize
from datastill.core.plan import AllAtOnce, Block, Callback, ClassMajor, Init, Partition, Plan, Synthetic, Task
from datastill.core.rng import Rng
from datastill.core.space import Space, normalized
from datastill.data import RealSet
from datastill.decoders.multi_formation import MultiFormation, bounded, tile_edges
from datastill.methods.dm import DM
from datastill.models import resolve_network
from datastill.sampling.inits import MixReal, Noise, RandomReal, make_init, random_indices, several_indices
from datastill.sampling.samplers import ClassBatches
from datastill.store.artifact import DistilledSet
from datastill.store.checkpoint import Checkpointer
from datastill.store.rendering import decoder_of

SMALL = "convnet:width=4,depth=1"


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=Rng(0).generator("x"), dtype=dtype)


def sliced(images: Tensor, factor: int, pad: float) -> list[Tensor]:
    """Every decoded image by explicit loops: tiles row by row, all images of one tile first."""
    h, w = images.shape[2:]
    th, tw = math.ceil(h / factor), math.ceil(w / factor)
    decoded = []
    for i in range(factor):
        for j in range(factor):
            for image in images:
                tile = torch.full((len(image), th, tw), pad, dtype=image.dtype)
                part = image[:, i * th : (i + 1) * th, j * tw : (j + 1) * tw]
                tile[:, : part.shape[1], : part.shape[2]] = part
                decoded.append(F.interpolate(tile[None], size=(h, w), mode="bilinear", align_corners=False)[0])
    return decoded


def fits(side: int, factor: int) -> bool:
    return (factor - 1) * math.ceil(side / factor) < side


class TestDecode:
    @settings(deadline=None, max_examples=40)
    @given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))
    def test_is_explicit_slicing(self, n: int, channels: int, h: int, w: int, factor: int) -> None:
        images, y = noise(n, channels, h, w), torch.arange(n)
        decoder = MultiFormation(factor, pad=0.25)
        if not (fits(h, factor) and fits(w, factor)):
            with pytest.raises(InputError, match="smaller factor"):
                decoder.encode(images)
            return
        made = decoder.decode(decoder.encode(images), y)
        assert torch.allclose(made.x, torch.stack(sliced(images, factor, 0.25)), atol=1e-6)
        assert torch.equal(made.y, y.repeat(factor**2))
        assert len(made.x) == n * factor**2 == n * decoder.decoded(1)

    def test_factor_one_is_the_identity(self) -> None:
        images, y = noise(3, 2, 5, 7), torch.tensor([0, 2, 1])
        for mode in ("single", "multi"):
            made = MultiFormation(1, mode).decode({"images": images}, y)
            assert torch.equal(made.x, images)
            assert torch.equal(made.y, y)

    def test_tiles_of_an_even_image_by_hand(self) -> None:
        """Quadrants of one value each become whole images of that value, top left to bottom right."""
        image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
        made = MultiFormation(2).decode({"images": torch.stack([image, -image])[:, None]}, torch.tensor([5, 6]))
        assert made.x.mean((1, 2, 3)).tolist() == [1, -1, 2, -2, 3, -3, 4, -4]
        assert made.x.std((1, 2, 3)).max() < 1e-6
        assert made.y.tolist() == [5, 6] * 4

    @pytest.mark.parametrize(("storage", "gray"), [({}, 0.0), ({"mean": [0.25], "std": [0.5]}, (0.5 - 0.25) / 0.5)])
    def test_28_pixels_in_thirds(self, storage: dict, gray: float) -> None:
        """Tiles of 10 pixels; the last row and column of tiles hold 2 of padding: mid-gray, or the data's mean."""
        decoder = MultiFormation(3, **storage)
        made = decoder.decode(decoder.encode(torch.full((1, 1, 28, 28), 7.0)), torch.zeros(1, dtype=torch.int64)).x
        assert made.shape == (9, 1, 28, 28)
        assert torch.allclose(made[0], torch.full((1, 28, 28), 7.0))
        assert torch.allclose(made[8, 0, -2:, :], torch.full((2, 28), gray), atol=1e-6)
        assert torch.allclose(made[8, 0, :20, :20], torch.full((20, 20), 7.0))
        assert tile_edges(28, 3) == [(0, 10), (10, 20), (20, 28)]

    def test_multi_is_the_union_of_factors(self) -> None:
        images, y = noise(4, 1, 6, 6), torch.tensor([0, 0, 1, 1])
        made = MultiFormation(3, "multi").decode({"images": images}, y)
        single = [MultiFormation(f).decode({"images": images}, y) for f in (1, 2, 3)]
        assert torch.equal(made.x, torch.cat([one.x for one in single]))
        assert torch.equal(made.y, torch.cat([one.y for one in single]))
        assert len(made.x) == 2 * MultiFormation(3, "multi").decoded(2)

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 60), st.booleans())
    def test_bound_holds_and_uses_every_image(self, stored: list[int], factor: int, bound: int, soft: bool) -> None:
        y = torch.arange(len(stored)).repeat_interleave(torch.tensor(stored))
        if not len(y):
            return
        decoder = MultiFormation(factor, "bound", bound)
        values = torch.arange(1.0, len(y) + 1)
        codes = {"images": values.view(-1, 1, 1, 1).expand(-1, 1, 12, 12)}
        labels = F.one_hot(y, len(stored)).float() if soft else y
        if max(stored) > bound:
            with pytest.raises(InputError, match="bound"):
                decoder.decode(codes, labels)
            return
        made = decoder.decode(codes, labels)
        hard = made.y.argmax(1) if soft else made.y
        counts = torch.bincount(hard, minlength=len(stored)).tolist()
        assert counts == [decoder.decoded(n) if n else 0 for n in stored]
        assert max(counts) <= bound
        source = made.x.mean((1, 2, 3)).round().long()
        assert torch.equal(source.unique(), values.long())
        assert torch.equal(y[source - 1], hard)
        if factor == 2:
            assert all(c == 4 * n or c + 3 > bound for n, c in zip(stored, counts)), "one more would have fitted"

    def test_bound_takes_the_largest_factors_first(self) -> None:
        decoder = MultiFormation(3, "bound", 20)
        assert [decoder.decoded(n) for n in (1, 2, 3, 4, 20)] == [9, 18, 19, 20, 20]
        images = noise(3, 1, 6, 6)
        made = decoder.decode({"images": images}, torch.zeros(3, dtype=torch.int64))
        assert torch.equal(made.x[:18], MultiFormation(3).decode({"images": images[:2]}, torch.zeros(2)).x)
        assert torch.equal(made.x[-1], images[-1])

    def test_soft_labels_and_oblong_images(self) -> None:
        images, y = noise(2, 3, 9, 14), torch.tensor([[0.9, 0.1], [0.3, 0.7]])
        made = MultiFormation(2).decode({"images": images}, y)
        assert made.x.shape == (8, 3, 9, 14)
        assert torch.equal(made.y, y.repeat(4, 1))
        assert torch.allclose(made.x, torch.stack(sliced(images, 2, 0.0)), atol=1e-6)


CASES = [
    MultiFormation(2),
    MultiFormation(3, "multi"),
    MultiFormation(3, "bound", 12),
    MultiFormation(2, mean=[0.3, 0.6], std=[0.2, 0.5]),
]


class TestLinear:
    @pytest.mark.parametrize("decoder", CASES, ids=str)
    def test_affine_and_its_transpose_is_backward(self, decoder: MultiFormation) -> None:
        """Columns of the matrix by decoding unit images; `backward` is its transpose, and so is autograd."""
        shape, y = (2, 2, 5, 6), torch.tensor([0, 0])
        size = math.prod(shape)
        flat = lambda codes: decoder.decode({"images": codes.view(shape)}, y).x.flatten()  # noqa: E731
        zero = flat(torch.zeros(size, dtype=torch.double))
        matrix = torch.stack([flat(unit) - zero for unit in torch.eye(size, dtype=torch.double)], 1)
        codes = noise(size, dtype=torch.double)
        assert torch.allclose(flat(codes), matrix @ codes + zero, atol=1e-12)
        if decoder.mean is None:
            assert not zero.any()
        x = decoder.decode({"images": codes.view(shape)}, y).x
        grads = noise(*x.shape, dtype=torch.double)
        with torch.no_grad():
            found = decoder.backward({"images": codes.view(shape)}, y, None, grads)["images"]
        assert torch.allclose(found.flatten(), matrix.T @ grads.flatten(), atol=1e-12)
        leaf = codes.view(shape).clone().requires_grad_()
        (by_autograd,) = torch.autograd.grad(decoder.decode({"images": leaf}, y).x, leaf, grads)
        assert torch.equal(found, by_autograd)

    @pytest.mark.parametrize("decoder", CASES, ids=str)
    def test_twice_differentiable(self, decoder: MultiFormation) -> None:
        y = torch.tensor([0, 0])
        run: Callable[[Tensor], Tensor] = lambda codes: decoder.decode({"images": codes}, y).x.pow(3).sum()  # noqa: E731
        leaf = noise(2, 2, 3, 3, dtype=torch.double).requires_grad_()
        assert torch.autograd.gradcheck(run, leaf)
        assert torch.autograd.gradgradcheck(run, leaf, torch.ones((), dtype=torch.double).requires_grad_())


class TestStorage:
    def test_pixels_are_normalized_after_formation(self) -> None:
        space = normalized((0.2, 0.4, 0.6), (0.1, 0.2, 0.3))
        pixels, y = torch.rand(2, 3, 7, 5, generator=Rng(1).generator("x")), torch.tensor([0, 1])
        decoder = bounded(2, space, clamp_every=4)
        codes = decoder.encode(space.encode(pixels))
        assert torch.allclose(codes["images"], pixels, atol=1e-6)
        expected = space.encode(torch.stack(sliced(pixels, 2, 0.5)))
        assert torch.allclose(decoder.decode(codes, y).x, expected, atol=1e-5)

    def test_raw_and_zca_spaces(self) -> None:
        raw = bounded(2, Space(), clamp_every=1)
        assert raw.mean is None
        assert raw.decode(raw.encode(torch.ones(1, 1, 3, 3)), torch.zeros(1)).x[3, 0, -1, -1] == 0.5
        with pytest.raises(InputError, match="ZCA"):
            bounded(2, Space("zca"), clamp_every=1)

    @pytest.mark.parametrize("space", [Space(), normalized((0.5,), (0.25,))])
    @pytest.mark.parametrize(
        ("clamp", "every", "wanted"), [("none", 0, []), ("step", 0, [0, 1, 2, 3, 4, 5]), ("outer", 3, [2, 5])]
    )
    def test_clamps_when_it_is_time(self, space: Space, clamp: str, every: int, wanted: list[int]) -> None:
        real = dataclasses.replace(load_real("digits"), space=space, test=None)
        task = Task(real, 1, resolve_network(SMALL, channels=1, classes=10, size=(8, 8)))
        context = Context(
            task, Plan(RandomReal(), MultiFormation()), Block(0, torch.arange(2), task.labels[:2]), Rng(0)
        )
        stored = {} if not space.mean else {"mean": space.mean, "std": space.std}
        for decoder in (MultiFormation(2, clamp=clamp, clamp_every=every, **extra) for extra in ({}, stored)):
            start = torch.tensor([-9.0, 0.1, 0.9, 9.0]).view(4, 1, 1, 1).expand(4, 1, 8, 8)
            low, high = (torch.zeros(1), torch.ones(1)) if decoder.mean else space.bounds()
            clamped = []
            for context.step in range(6):
                codes = {"images": start.clone()}
                decoder.project(codes, context, "step")
                assert torch.equal(codes["images"], start) or torch.equal(codes["images"], start.clamp(low, high))
                clamped += [] if torch.equal(codes["images"], start) else [context.step]
            assert clamped == wanted

    @pytest.mark.parametrize(
        "wrong",
        [
            {"factor": 0}, {"factor": 1.5}, {"factor": True}, {"mode": "double"}, {"mode": "bound"},
            {"clamp": "often"}, {"clamp": "outer"}, {"mean": [0.5]}, {"mean": ["x"], "std": [1.0]},
            {"mean": 0.5, "std": [1.0]}, {"mean": [0.5], "std": [0.0]}, {"mean": [0.5], "std": [1.0, 1.0]},
        ],
    )  # fmt: skip
    def test_bad_options_are_one_sentence(self, wrong: dict) -> None:
        with pytest.raises(InputError):
            MultiFormation(**wrong)

    def test_constants_of_other_images_are_refused(self) -> None:
        with pytest.raises(InputError, match="2 channels"):
            MultiFormation(2, mean=[0.1, 0.2], std=[1, 1]).encode(torch.zeros(1, 3, 4, 4))

    @pytest.mark.parametrize(
        "decoder", [*CASES, bounded(3, normalized((0.5, 0.4), (0.2, 0.1)), clamp_every=100)], ids=str
    )
    @pytest.mark.parametrize("soft", [False, True])
    def test_round_trips_through_an_artifact(self, decoder: MultiFormation, soft: bool, tmp_path) -> None:
        again = decoder_of(json.loads(json.dumps(decoder.describe())))
        assert again == decoder
        manifest = {
            **distill("random", "digits", ipc=1).manifest, "classes": {"names": ["a", "b"]}, "shape": [2, 7, 5],
            "decoder": decoder.describe(),
        }  # fmt: skip
        y = torch.tensor([[0.8, 0.2], [0.1, 0.9]]) if soft else torch.tensor([0, 1])
        made = DistilledSet(decoder.encode(noise(2, 2, 7, 5)), y, Space(), manifest)
        made.save(tmp_path / "set")
        loaded = load_distilled(tmp_path / "set")
        assert torch.equal(loaded.images, made.images)
        assert torch.equal(loaded.targets, made.targets)
        assert len(loaded.images) > 2


def make_task(real: RealSet, ipc: int) -> Task:
    c, *size = real.shape
    return Task(real, ipc, resolve_network(SMALL, channels=c, classes=real.classes, size=size))


def start(init: Init, task: Task, partition: Partition | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Images and extras of an initialization, put together over blocks."""
    plan = Plan(init, MultiFormation(), partition=partition or AllAtOnce())
    outcome = synthesize(plan, task)
    return outcome.codes["images"], outcome.extra


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


class TestMix:
    def test_every_tile_is_a_distinct_real_image(self, digits: RealSet) -> None:
        task = make_task(digits, 3)
        images, extra = start(MixReal(2), task)
        index = extra["mixed"]
        assert index.shape == (30, 4)
        assert index.dtype == torch.int64
        assert len(index.unique()) == 120
        assert torch.equal(digits.labels[index], task.labels[:, None].expand(-1, 4))
        for i in range(30):
            for k in range(4):
                small = digits.batch(index[i, k : k + 1]).x[0, :, ::2, ::2]
                top, left = 4 * (k // 2), 4 * (k % 2)
                assert torch.equal(images[i, :, top : top + 4, left : left + 4], small)

    def test_factor_one_is_random_real(self, digits: RealSet) -> None:
        task = make_task(digits, 2)
        assert torch.equal(start(MixReal(1), task)[0], start(RandomReal(), task)[0])
        assert torch.equal(several_indices(digits, 2, 9, 5)[:, 0], random_indices(digits, 2, 5))

    def test_the_partition_changes_nothing(self, digits: RealSet) -> None:
        task = make_task(digits, 2)
        whole, blocks = start(MixReal(3), task), start(MixReal(3), task, ClassMajor(3))
        assert torch.equal(whole[0], blocks[0])
        assert torch.equal(whole[1]["mixed"], blocks[1]["mixed"])

    def test_padded_oblong_images(self) -> None:
        pixels = torch.rand(40, 3, 28, 10, generator=Rng(0).generator("x"))
        real = load_real((pixels, torch.arange(40) % 2), holdout=0.1)
        images, extra = start(MixReal(3), make_task(real, 1))
        corner = F.interpolate(real.batch(extra["mixed"][:, 8]).x, size=(8, 2), mode="nearest")
        assert torch.equal(images[:, :, 20:, 8:], corner)

    def test_a_small_class_comes_again_in_order(self, digits: RealSet) -> None:
        rows = torch.cat([digits.class_index(c)[: 3 if c == 1 else 50] for c in range(10)])
        real = digits.subset(rows)
        index = several_indices(real, 2, 4, 0)
        assert torch.bincount(index[2:4].flatten()).sort(descending=True).values[:3].tolist() == [3, 3, 2]
        assert len(index[:2].unique()) == 8
        with pytest.raises(InputError, match="fewer than --ipc 4"):
            several_indices(real, 4, 4, 0)

    def test_names(self, digits: RealSet) -> None:
        assert make_init("mix", 3) == MixReal(3)
        assert make_init("real", 3) == RandomReal()
        assert make_init("noise") == Noise()
        assert Noise().describe() == {"init": "noise"}
        assert make_init("noise", pixels=True).describe() != Noise().describe()
        with pytest.raises(InputError, match="'mix'"):
            make_init("mixx")

    def test_noise_in_pixels(self, digits: RealSet) -> None:
        task = make_task(digits.with_space(normalized((0.3,), (0.2,))), 2)
        pixels = task.real.space.decode(start(Noise(pixels=True), task)[0])
        raw = start(Noise(), make_task(digits.with_space(Space()), 2))[0]
        assert torch.allclose(pixels, raw, atol=1e-6)
        assert raw.min() == 0
        assert raw.max() == 1


class TestDM:
    def test_factor_one_is_dm(self, digits: RealSet) -> None:
        plan = DM(steps=3, real_batch=8).build(make_task(digits, 2))
        assert plan.decoder.describe() == {"decoder": "pixels", "clamp": False}
        assert plan.init == RandomReal()
        formed = dataclasses.replace(plan, decoder=MultiFormation(1), init=MixReal(1))
        pairs = [synthesize(p, make_task(digits, 2)) for p in (plan, formed)]
        assert torch.equal(pairs[0].codes["images"], pairs[1].codes["images"])
        assert torch.equal(pairs[0].losses, pairs[1].losses)

    def test_identity_features_have_the_closed_form(self, digits: RealSet) -> None:
        """With f = flatten: 2/(4 ipc) D^T (mean of decoded - mean of real), D the decoder's matrix."""

        class Flat(torch.nn.Module):
            def __init__(self, channels: int, classes: int, size: tuple[int, int]) -> None:
                super().__init__()
                self.flatten = torch.nn.Flatten()
                self.head = torch.nn.Linear(channels * size[0] * size[1], classes)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.flatten(x))

        task = Task(digits, 2, resolve_network(Flat, channels=1, classes=10, size=(8, 8)))
        method = DM(steps=1, real_batch=8, factor=2, image_momentum=0.0, image_lr=1.0, augment="none")
        plan = dataclasses.replace(method.build(task), sampler=ClassBatches(10**6))
        before = start(MixReal(2), task)[0]
        moved = before - synthesize(plan, task).codes["images"]
        leaf = before.clone().requires_grad_()
        decoded: Synthetic = plan.decoder.decode({"images": leaf}, task.labels)
        loss = torch.zeros(())
        for c in range(10):
            real = digits.batch(digits.class_index(c)).x.mean(0)
            loss = loss + (decoded.x[decoded.y == c].mean(0) - real).square().sum()
        assert torch.allclose(moved, torch.autograd.grad(loss, leaf)[0], atol=1e-5)

    @pytest.mark.parametrize("network", [SMALL, SMALL + ",norm=batch"])
    def test_trains_and_evaluates(self, digits: RealSet, network: str, tmp_path) -> None:
        made = distill("dm", digits, ipc=2, network=network, factor=2, steps=4, real_batch=8, out=tmp_path / "run")
        assert made.codes["images"].shape == (20, 1, 8, 8)
        assert made.images.shape == (80, 1, 8, 8)
        assert torch.bincount(made.hard_labels).tolist() == [8] * 10
        assert not torch.equal(made.codes["images"], start(MixReal(2), make_task(digits, 2))[0])
        again = load_distilled(tmp_path / "run")
        assert torch.equal(again.images, made.images)
        assert torch.equal(again.targets, made.targets)
        assert evaluate(again, digits, networks=1, protocol="dsa-quick-v1").mean > 0.2

    def test_starts_and_refusals(self, digits: RealSet) -> None:
        task = make_task(digits, 1)
        assert DM(factor=3).build(task).init == MixReal(3)
        assert DM(factor=2, init="noise").build(task).init == Noise()
        assert DM(factor=2, clamp=True).build(task).decoder == MultiFormation(2, pad=0.0, clamp="step")
        with pytest.raises(InputError, match="factor"):
            DM(factor=0).build(task)
        with pytest.raises(InputError, match="smaller factor"):
            distill("dm", digits, ipc=1, network=SMALL, factor=7, steps=1, real_batch=2)
        with pytest.raises(InputError, match="mean"):
            decoder_of({"decoder": "multi_formation", "mean": [0.1]})

    def test_cost_counts_decoded_images(self, digits: RealSet) -> None:
        task = make_task(digits, 2)
        one, two = (DM(factor=f, real_batch=5).macs_per_step(task) for f in (1, 2))
        assert two - one == task.network.macs * 3 * 20 * 3

    def test_the_command_line_shows_and_exports_it(self, tmp_path, capsys) -> None:
        run = tmp_path / "run"
        args = ["--ipc", "1", "--factor", "2", "--steps", "2", "--real-batch", "4", "--network", SMALL]
        assert main(["distill", "dm", "--data", "digits", *args, "--out", str(run)]) == 0
        assert {"preview.png", "report.html", "comparison.png", "README.md"} <= {p.name for p in run.iterdir()}
        capsys.readouterr()
        assert main(["inspect", str(run)]) == 0
        assert "factor=2" in capsys.readouterr().out
        for form in ("tensors", "imagefolder"):
            target = tmp_path / form
            assert (
                main(
                    ["export", str(run), str(target), "--to", form, *(["--networks", "1"] if form != "tensors" else [])]
                )
                == 0
            )
        assert len(list((tmp_path / "imagefolder").rglob("*.png"))) == 40


def test_a_step_resumes_exactly(digits: RealSet, tmp_path) -> None:
    task = make_task(digits, 1)
    plan = DM(steps=4, real_batch=8, factor=2).build(task)
    whole = synthesize(plan, task).codes["images"]
    keeper = Checkpointer(tmp_path, {}, every_steps=1)

    class Stop(Exception):
        pass

    class Breaks(Callback):
        def after_step(self, context: Context) -> None:
            if context.step == 3:
                raise Stop

    with pytest.raises(Stop):
        synthesize(plan, task, checkpointer=keeper, callbacks=[Breaks()])
    assert torch.equal(synthesize(plan, task, checkpointer=keeper).codes["images"], whole)

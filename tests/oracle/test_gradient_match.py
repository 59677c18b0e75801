"""Gradient matching against the published loop written out, central differences and closed forms."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill import load_real
from datastill.augment.dsa import Dsa
from datastill.core.batch import Batch
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.loop import gradients
from datastill.core.plan import Block, Grads, HardLabels, Plan, Synthetic, Task
from datastill.core.rng import Rng, isolated
from datastill.core.runtime import Runtime
from datastill.data import RealSet
from datastill.decoders.pixels import Pixels
from datastill.engines import class_gradients as engines
from datastill.engines.class_gradients import class_gradients
from datastill.models import resolve_network
from datastill.models.base import Network
from datastill.objectives import gradient_match
from datastill.objectives.gradient_distances import make_distance, one_minus_cosine, parameter_names, row_cosine
from datastill.objectives.gradient_match import GradientMatch
from datastill.sampling.inits import Given
from datastill.sampling.samplers import ClassBatches
from datastill.surrogates.fresh import Fresh

DISTANCES = ("row-cosine", "cos", "mse", "l1")
NORMS = ("instance", "none", "group", "layer", "batch")
ALL = "color_crop_cutout_flip_scale_rotate"


def real_set(counts: tuple[int, ...] = (7, 4, 5), channels: int = 2, side: int = 10) -> RealSet:
    """Classes of unequal size; the source's labels have gaps."""
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([c for c, n in enumerate(counts) for _ in range(n)])
    x = torch.rand(len(y), channels, side, side, generator=generator) + 0.05 * y[:, None, None, None]
    return load_real((x.clamp(0, 1), 3 * y + 2), holdout=0.0)


class Fixed:
    """The same real batch at every step."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def draw(self, real: RealSet, context: Context) -> Batch:
        return self.batch


def context_of(
    network: str = "convnet:width=4,depth=2",
    *,
    ipc: int = 2,
    dtype: torch.dtype = torch.float64,
    augment: str = "none",
    real: RealSet | None = None,
    frozen: bool = True,
) -> Context:
    """One step: noise for images, all real images, a network in train mode."""
    real = real or real_set()
    factory = resolve_network(network, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    task = Task(real, ipc, factory)
    batch = real.batch(torch.randperm(len(real), generator=torch.Generator().manual_seed(4)))
    batch = dataclasses.replace(batch, x=batch.x.to(dtype))
    images = torch.randn(len(task.labels), *real.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    plan = Plan(Given(images), Pixels(), sampler=Fixed(batch), augment=None if augment == "none" else Dsa(augment))
    context = Context(task, plan, Block(0, torch.arange(len(images)), task.labels), Rng(0), step=3, steps=9)
    context.surrogate = factory(5).to(dtype).requires_grad_(not frozen)
    context.synthetic = Synthetic(images, task.labels)
    return context


def at(context: Context, x: Tensor) -> Context:
    return dataclasses.replace(context, synthetic=Synthetic(x, context.synthetic.y))


def published_distance(synthetic: list[Tensor], real: list[Tensor], distance: str, parity: bool) -> Tensor:
    """One class, as a script would have it."""
    if distance == "row-cosine":
        total = torch.zeros((), dtype=synthetic[0].dtype)
        for a, b in zip(synthetic, real):
            if a.ndim >= 2:
                a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
                if not parity:  # dead rows cost 1 and have no gradient
                    lengths = (side.detach().norm(dim=1) for side in (a, b))
                    live = torch.stack([n > 1e-14 * n.max() for n in lengths]).all(0)
                    total, a, b = total + (~live).sum(), a[live], b[live]
                norms = a.norm(dim=1) * b.norm(dim=1)
                total = total + (1 - (a * b).sum(1) / (norms + 1e-6 if parity else norms)).sum()
        return total
    a, b = (torch.cat([g.flatten() for g in side]) for side in (synthetic, real))
    if distance == "cos":
        return 1 - a @ b / (a.norm() * b.norm() + (1e-6 if parity else 0))
    return (a - b).square().sum() if distance == "mse" else (a - b).abs().sum()


def literal_dc(context: Context, distance: str = "row-cosine", layers: str = "matrices", parity: bool = False):
    """The published step: class after class, whole batches, autograd through everything; losses and pixel gradient."""
    network, batch, augment = context.surrogate, context.plan.sampler.batch, context.plan.augment
    record = None
    if augment is not None:
        record = augment.draw(context.task.classes, context.task.real.shape, context.generator("augment"))
    names = parameter_names(network, layers)
    parameters = [dict(network.named_parameters())[name] for name in names]
    flags = [p.requires_grad for p in parameters]
    x, y = context.synthetic.x.clone().requires_grad_(), context.synthetic.y
    losses = []
    for p in parameters:
        p.requires_grad_(True)
    for c in y.unique().tolist():
        sides = []
        for images, labels, weight in ((batch.x, batch.y, batch.weight), (x, y, None)):
            mine, targets = images[labels == c], labels[labels == c]
            if augment is not None:
                mine = augment.apply(mine, record, rows=targets)
            each = F.cross_entropy(network(mine), targets, reduction="none")
            w = torch.ones_like(each) if weight is None else weight[labels == c].to(each)
            sides.append(torch.autograd.grad((each * w).sum() / w.sum(), parameters, create_graph=True))
        real = [g.detach() for g in sides[0]]
        losses.append(published_distance(list(sides[1]), real, distance, parity))
    (pixels,) = torch.autograd.grad(sum(losses), x)
    for p, flag in zip(parameters, flags):
        p.requires_grad_(flag)
    return torch.stack(losses).detach(), pixels


def assert_near(out: Grads, expected: tuple[Tensor, Tensor], tolerance: float) -> None:
    loss, pixels = expected
    assert out.loss.shape == loss.shape
    assert not out.loss.requires_grad
    assert not out.x.requires_grad
    assert (out.loss - loss).abs().max() <= tolerance * loss.abs().max()
    assert (out.x - pixels).abs().max() <= tolerance * pixels.abs().max()
    assert pixels.abs().max() > 0


class TestPublishedLoop:
    @pytest.mark.parametrize(
        ("norm", "engine"),
        [(n, e) for n in NORMS for e in ("auto", "loop", "vmap", "joint") if n != "batch" or e in ("auto", "loop")],
    )
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
    def test_dc_and_dsa(self, norm: str, engine: str, dtype: torch.dtype, tolerance: float) -> None:
        for augment in ("none", ALL):
            context = context_of(f"convnet:width=4,depth=2,norm={norm}", dtype=dtype, augment=augment)
            assert_near(GradientMatch(engine=engine)(context), literal_dc(context), tolerance)

    @pytest.mark.parametrize("distance", DISTANCES)
    @pytest.mark.parametrize("layers", ["all", "matrices", "conv"])
    def test_distances_and_layers(self, distance: str, layers: str) -> None:
        """mse and l1 over convolutions are IDC's."""
        context = context_of("convnet:width=4,depth=2,norm=none")
        assert_near(GradientMatch(distance, layers)(context), literal_dc(context, distance, layers), 1e-10)

    @pytest.mark.parametrize("distance", ["row-cosine", "cos"])
    def test_parity_is_the_published_epsilon(self, distance: str) -> None:
        context = context_of()
        match = GradientMatch(distance, parity=True)(context)
        assert_near(match, literal_dc(context, distance, parity=True), 1e-10)
        assert (match.loss - GradientMatch(distance)(context).loss).abs().min() > 0

    @pytest.mark.parametrize("network", ["mlp", "lenet", "resnet18"])
    def test_other_networks(self, network: str) -> None:
        context = context_of(network, ipc=1, real=real_set((2, 3), channels=1, side=14))
        assert_near(GradientMatch()(context), literal_dc(context), 1e-8)

    def test_weights_of_real_images(self) -> None:
        context = context_of()
        batch = context.plan.sampler.batch
        weighted = dataclasses.replace(batch, weight=torch.linspace(0, 3, len(batch)))
        context.plan = dataclasses.replace(context.plan, sampler=Fixed(weighted))
        assert_near(GradientMatch()(context), literal_dc(context), 1e-7)

    def test_two_and_forty_classes(self) -> None:
        for counts, ipc in (((6, 1), 1), ((2,) * 40, 1)):
            context = context_of("convnet:width=4,depth=1", ipc=ipc, real=real_set(counts, 1, 8))
            assert_near(GradientMatch()(context), literal_dc(context), 1e-10)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("augment", ["none", "color_scale_rotate"])
def test_pixel_gradient_against_central_differences(distance: str, augment: str) -> None:
    context = context_of(augment=augment)
    objective = GradientMatch(distance, "all")
    out = objective(context)
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        direction = torch.randn(out.x.shape, dtype=torch.float64, generator=generator)
        step = 1e-6 * direction
        ahead, behind = (objective(at(context, context.synthetic.x + s)).loss.sum() for s in (step, -step))
        expected = float(out.x.flatten() @ direction.flatten())
        assert float(ahead - behind) / 2e-6 == pytest.approx(expected, rel=1e-5)


class TestDistances:
    def gradients(self, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = {"conv": (3, 128, 64, 3, 3), "linear": (3, 10, 200), "layer": (3, 16, 8, 8), "bias": (3, 10)}
        return {n: scale * torch.randn(s, dtype=dtype, generator=generator) for n, s in shapes.items()}

    @pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-7, 1e-13])
    @pytest.mark.parametrize("distance", DISTANCES)
    def test_equal_gradients_have_no_distance(self, distance: str, scale: float) -> None:
        g = self.gradients(scale)
        assert make_distance(distance)(g, g).abs().max() <= 1e-6
        leaf = {name: value.clone().requires_grad_() for name, value in g.items()}
        slopes = torch.autograd.grad(make_distance(distance)(leaf, g).sum(), list(leaf.values()), allow_unused=True)
        assert all(s is None or torch.isfinite(s).all() for s in slopes)

    def test_the_published_epsilon_is_far_from_it(self) -> None:
        g = self.gradients(1e-6)
        assert (row_cosine(g, g, parity=True) > 100).all()

    def test_rows_may_be_rescaled(self) -> None:
        g, other = self.gradients(dtype=torch.float64), self.gradients(dtype=torch.float64)
        other = {name: value.roll(1, 0) for name, value in other.items()}
        factor = torch.rand(3, 128, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
        scaled = g | {"conv": g["conv"] * factor}
        assert torch.allclose(row_cosine(g, other), row_cosine(scaled, other), rtol=1e-12)
        short = {name: value * 1e-6 for name, value in scaled.items()}
        assert torch.allclose(row_cosine(g, other), row_cosine(short, other), rtol=1e-9)

    def test_rows_and_their_number(self) -> None:
        """Opposite gradients cost 2 a row: 128 of the convolution, 10 of the linear layer, 16 of the layer norm."""
        g = self.gradients(dtype=torch.float64)
        opposite = {name: -value for name, value in g.items()}
        assert torch.allclose(row_cosine(g, opposite), torch.full((3,), 2.0 * (128 + 10 + 16), dtype=torch.float64))

    @pytest.mark.parametrize("parity", [False, True])
    @pytest.mark.parametrize("zero", ["both", "synthetic", "real"])
    def test_zero_rows(self, zero: str, parity: bool) -> None:
        """A dead filter costs 1. Two dead ones pull nowhere, and nothing is ever not a number."""
        g, other = self.gradients(), self.gradients()
        for side, name in ((g, "synthetic"), (other, "real")):
            if zero in ("both", name):
                side["conv"][:, 5] = 0
        conv = g["conv"].clone().requires_grad_()
        loss = row_cosine({"conv": conv}, {"conv": other["conv"]}, parity=parity)
        assert torch.allclose(loss, torch.ones(3), atol=1e-2 if parity else 1e-4)
        (slope,) = torch.autograd.grad(loss.sum(), conv)
        assert torch.isfinite(slope).all()
        if zero == "both" or not parity:
            assert not slope[:, 5].any()

    def test_rounding_noise_is_no_direction(self) -> None:
        """A row a millionth of a millionth as long as the others is what is left of a sum that cancels."""
        g, other = self.gradients(), self.gradients()
        noise = torch.randn(3, 64, 3, 3, generator=torch.Generator().manual_seed(3))
        g["conv"][:, 5] = 1e-12 * noise
        conv = g["conv"].clone().requires_grad_()
        loss = row_cosine({"conv": conv}, {"conv": other["conv"]})
        assert torch.allclose(loss, torch.ones(3), atol=1e-4)
        assert not torch.autograd.grad(loss.sum(), conv)[0][:, 5].any()

    @pytest.mark.parametrize("scale", [1.0, 1e-10])
    def test_slope_of_the_cosine(self, scale: float) -> None:
        generator = torch.Generator().manual_seed(0)
        a, b = (scale * torch.randn(4, 6, dtype=torch.float64, generator=generator) for _ in range(2))
        a.requires_grad_()
        loss = one_minus_cosine((a * b).sum(1), (a * a).sum(1), (b * b).sum(1), torch.ones(4, dtype=torch.bool))
        assert torch.allclose(loss, 1 - F.cosine_similarity(a, b, dim=1, eps=0), rtol=1e-12)
        (slope,) = torch.autograd.grad(loss.sum(), a)
        unit, other = F.normalize(a.detach(), eps=0), F.normalize(b, eps=0)
        expected = -(other - (unit * other).sum(1, keepdim=True) * unit) / a.detach().norm(dim=1, keepdim=True)
        assert (slope - expected).abs().max() <= 1e-12 * expected.abs().max()

    def test_unknown_or_senseless(self) -> None:
        for name, parity, message in (("cosin", False, "'cos'"), ("mse", True, "no epsilon")):
            with pytest.raises(InputError, match=message):
                make_distance(name, parity)
        with pytest.raises(InputError, match="two axes"):
            row_cosine({"bias": torch.ones(2, 3)}, {"bias": torch.ones(2, 3)})


def test_layers_are_chosen_by_module() -> None:
    """A linear layer of any rank is no convolution, and a layer norm is a matrix for DC."""
    network = resolve_network("convnet:width=4,depth=2,norm=layer", channels=1, classes=3, size=(8, 8))(0)
    assert parameter_names(network, "conv") == ["body.conv1.weight", "body.conv2.weight"]
    matrices = parameter_names(network, "matrices")
    assert "body.norm1.weight" in matrices
    assert "head.weight" in matrices
    assert "head.bias" not in matrices
    assert parameter_names(network, "all") == [name for name, _ in network.named_parameters()]
    mlp = resolve_network("mlp", channels=1, classes=3, size=(8, 8))(0)
    assert parameter_names(mlp, "conv") == parameter_names(mlp, "matrices")  # nothing else to match
    with pytest.raises(InputError, match="Did you mean 'conv'"):
        parameter_names(mlp, "convs")


class Linear(nn.Module):
    """A softmax model."""

    def __init__(self, channels: int, classes: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.head = nn.Linear(channels * size[0] * size[1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(x))


def test_closed_form_of_a_linear_model() -> None:
    """One image per class: the row of class r is (p_r - 1[r = c]) x, so D = sum_r (1 - sign sign' cos(x, x'))."""
    real = real_set((1, 1, 1))
    factory = resolve_network(Linear, channels=2, classes=3, size=(10, 10))
    context = context_of(ipc=1, real=real)
    context.task = dataclasses.replace(context.task, network=factory)
    context.surrogate = factory(0).double()
    head = context.surrogate.module.head
    batch = context.plan.sampler.batch
    x, other = context.synthetic.x.flatten(1), batch.x[batch.y.argsort()].flatten(1)
    slope, other_slope = (torch.softmax(head(v), 1) - torch.eye(3) for v in (x, other))
    cosine = F.cosine_similarity(x, other)[:, None] * slope.sign() * other_slope.sign()
    assert torch.allclose(GradientMatch()(context).loss, (1 - cosine).sum(1), rtol=1e-10)
    squared = (slope[:, :, None] * x[:, None] - other_slope[:, :, None] * other[:, None]).square().sum((1, 2))
    assert torch.allclose(GradientMatch("mse")(context).loss, squared, rtol=1e-10)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_groups_of_classes_change_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(augment=ALL, ipc=3)
    monkeypatch.setattr(gradient_match, "classes_at_once", lambda *sizes: 3)
    whole = GradientMatch()(context)
    monkeypatch.setattr(gradient_match, "classes_at_once", lambda *sizes: size)
    monkeypatch.setattr(Context, "chunk", 2)
    pieces = GradientMatch()(context)
    assert_near(pieces, (whole.loss, whole.x), 1e-10)


def test_nothing_to_match_on_the_same_images() -> None:
    """S_c = B_c with one augmentation for both sides; and no augmentation is the strategy "none"."""
    real = real_set((3, 3, 3))
    for augment in ("none", ALL):
        context = context_of(ipc=3, real=real, augment=augment, dtype=torch.float32)
        batch = context.plan.sampler.batch
        context = at(context, batch.x[batch.y.argsort(stable=True)])
        for distance in DISTANCES:
            out = GradientMatch(distance)(context)
            assert out.loss.abs().max() < 2e-5
    context = context_of()
    absent = GradientMatch()(context)
    context.plan = dataclasses.replace(context.plan, augment=Dsa("none"))
    none = GradientMatch()(context)
    assert torch.equal(absent.x, none.x)
    assert torch.equal(absent.loss, none.loss)


class TestSubset:
    def test_at_most_so_many_per_class(self) -> None:
        context = context_of(ipc=6)
        out = GradientMatch(synthetic_batch=4)(context)
        moved = out.x.flatten(1).abs().amax(1) > 0
        assert torch.bincount(context.synthetic.y[moved]).tolist() == [4, 4, 4]
        again = GradientMatch(synthetic_batch=4)(context)
        assert torch.equal(out.x, again.x)
        other = GradientMatch(synthetic_batch=4)(dataclasses.replace(context, step=4)).x.flatten(1).abs().amax(1) > 0
        assert not torch.equal(moved, other)
        kept = dataclasses.replace(context, synthetic=Synthetic(context.synthetic.x[moved], context.synthetic.y[moved]))
        assert_near(GradientMatch()(kept), (out.loss, out.x[moved]), 1e-10)

    def test_enough_is_all(self) -> None:
        context = context_of(ipc=3)
        assert torch.equal(GradientMatch(synthetic_batch=3)(context).x, GradientMatch()(context).x)
        with pytest.raises(InputError, match="one image per class"):
            GradientMatch(synthetic_batch=0)


class TestCoupledSamples:
    def test_batch_statistics_are_refused_to_fast_engines(self) -> None:
        for engine in ("vmap", "joint"):
            with pytest.raises(InputError, match="couples samples"):
                GradientMatch(engine=engine)(context_of("convnet:width=4,depth=1,norm=batch"))

    def test_frozen_statistics_are_fast(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The family couples samples in training mode, this network does not."""
        context = context_of("convnet:width=4,depth=2,norm=batch")
        context.surrogate.eval()
        ran: list[str] = []
        joint = engines.ENGINES["joint"]
        monkeypatch.setitem(engines.ENGINES, "joint", lambda *a: ran.append("joint") or joint(*a))
        assert_near(GradientMatch()(context), literal_dc(context), 1e-10)
        assert ran

    def test_layers_that_only_a_probe_finds(self) -> None:
        class Centered(nn.Module):
            def __init__(self, channels: int, classes: int, size: tuple[int, int]) -> None:
                super().__init__()
                self.register_buffer("seen", torch.zeros(()))
                self.conv = nn.Conv2d(channels, 4, 3)
                self.flatten = nn.Flatten()
                self.head = nn.Linear(4 * (size[0] - 2) * (size[1] - 2), classes)

            def forward(self, x: Tensor) -> Tensor:
                self.seen += 1
                x = torch.tanh(self.conv(x))
                return self.head(self.flatten(x - x.mean(0, keepdim=True)))

        factory = resolve_network(Centered, channels=2, classes=3, size=(10, 10))
        context = context_of(ipc=3)
        context.task = dataclasses.replace(context.task, network=factory)
        context.surrogate = factory(0).double()
        seen = {name: value.clone() for name, value in context.surrogate.named_buffers()}
        out = GradientMatch()(context)
        assert all(torch.equal(value, seen[name]) for name, value in context.surrogate.named_buffers())
        assert_near(out, literal_dc(context), 1e-10)
        with pytest.raises(InputError, match="couples samples"):
            GradientMatch(engine="joint")(context)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_network_stays_as_it_is(norm: str, frozen: bool) -> None:
    context = context_of(f"convnet:width=4,depth=2,norm={norm}", frozen=frozen, dtype=torch.float32)
    network: Network = context.surrogate
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = context.synthetic.x.clone()
    GradientMatch()(context)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.requires_grad is not frozen and p.grad is None for p in network.parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in network.modules())
    assert network.training
    assert torch.equal(context.synthetic.x, images)


def test_classes_without_real_images_stay() -> None:
    for distance in DISTANCES:
        context = context_of()
        batch = context.plan.sampler.batch
        context.plan = dataclasses.replace(context.plan, sampler=Fixed(batch.of(batch.y != 1)))
        out = GradientMatch(distance)(context)
        assert float(out.loss[1]) == 0
        assert not out.x[context.synthetic.y == 1].any()
        whole = GradientMatch(distance)(context_of())
        others = context.synthetic.y != 1
        assert torch.allclose(out.x[others], whole.x[others], rtol=1e-9, atol=1e-12)


def test_in_the_loop_in_both_precisions() -> None:
    """Through `core.loop.gradients`, with fresh frozen networks; bf16 is near float32."""
    real = real_set((8, 9, 10), 3, 12)
    factory = resolve_network("convnet:width=8,depth=2", channels=3, classes=3, size=(12, 12))
    images = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    made = []
    for precision in ("float32", "bf16"):
        task = Task(real, 2, factory, runtime=Runtime(precision=precision))
        plan = Plan(
            Given(images),
            Pixels(),
            objective=GradientMatch(),
            surrogates=Fresh(factory),
            sampler=ClassBatches(4),
            augment=Dsa(ALL),
            labels=HardLabels(),
        )
        context = Context(task, plan, Block(0, torch.arange(6), task.labels), Rng(0), steps=9)
        context.codes = {"images": images}
        context.surrogate = plan.surrogates.draw(context)
        made.append(gradients(context, None))
    (loss, exact), (low_loss, low) = made
    assert loss.shape == (3,)
    assert low["images"].dtype == torch.float32
    assert low_loss.dtype == torch.float32
    assert torch.isfinite(low["images"]).all()
    assert torch.allclose(low_loss, loss, rtol=0.1)
    assert F.cosine_similarity(low["images"].flatten(), exact["images"].flatten(), dim=0) > 0.9


@pytest.mark.parametrize("option", [{"distance": "l2"}, {"engine": "jont"}, {"layers": "convs"}])
def test_bad_options_are_refused_at_once(option: dict[str, str]) -> None:
    with pytest.raises(InputError, match="There is no"):
        GradientMatch(**option)


def test_soft_labels_are_refused() -> None:
    context = context_of()
    context.synthetic = Synthetic(context.synthetic.x, torch.ones(6, 3) / 3)
    with pytest.raises(InputError, match="soft labels"):
        GradientMatch()(context)


def test_real_gradients_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """One function gives the real statistics: with zeros for them, mse is the squared length of the synthetic ones."""
    context = context_of()
    exact = gradient_match.real_gradients
    monkeypatch.setattr(gradient_match, "real_gradients", lambda *a: {n: 0 * g for n, g in exact(*a).items()})
    x, y = context.synthetic.x, context.synthetic.y
    names = parameter_names(context.surrogate, "matrices")
    rows = class_gradients(context.surrogate, x, y, y.unique(), names=names, engine="loop")
    expected = sum(g.square().flatten(1).sum(1) for g in rows.values())
    assert torch.allclose(GradientMatch("mse")(context).loss, expected, rtol=1e-10)


def test_isolated_dropout_is_reproducible() -> None:
    class Dropping(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.dropout(self.flatten(x), 0.5, self.training))

    factory = resolve_network(Dropping, channels=2, classes=3, size=(10, 10))
    context = context_of()
    context.task = dataclasses.replace(context.task, network=factory)
    context.surrogate = factory(0).double()
    made = []
    for _ in range(2):
        with isolated(9):
            made.append(GradientMatch()(context).x)
    assert torch.equal(*made)

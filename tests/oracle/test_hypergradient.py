"""The engines of trajectory matching against autograd, finite differences and hand-simulated lists."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.augment.dsa import Dsa
from datastill.core.errors import InputError
from datastill.core.rng import Rng, isolated
from datastill.core.update import Sgd
from datastill.engines.flat import FlatModel
from datastill.engines.hypergradient import (
    KeepPositive,
    MatchTerm,
    SyntheticLr,
    adjoint,
    cross_entropy_of_logits,
    draw_plan,
    frozen_path,
    full_unroll,
    truncated,
)
from datastill.engines.hypergradient.convolution import FastDoubleBackward
from datastill.models import ConvNet

N, IMAGES, CLASSES, SHAPE = 6, 5, 3, (2, 8, 8)


def network(norm: str = "group", dtype=torch.float64, **options) -> nn.Module:
    with isolated(1):
        net = ConvNet(SHAPE[0], CLASSES, SHAPE[1:], width=8, depth=2, norm=norm, **options)
    return net.to(dtype).train()


class Case:
    """A student of random images, three targets, and everything that the engines take."""

    def __init__(self, net=None, *, steps=N, soft=True, alpha=0.3, augment=None, batch=3, terms=1, dtype=torch.float64):
        self.net = network(dtype=dtype) if net is None else net.to(dtype)
        g = torch.Generator().manual_seed(0)
        self.model = FlatModel(self.net)
        self.theta0 = self.model.flatten()
        self.x = torch.randn(IMAGES, *SHAPE, generator=g, dtype=torch.float64).to(dtype)
        y = torch.randn(IMAGES, CLASSES, generator=g, dtype=torch.float64).softmax(1).to(dtype)
        self.y = y if soft else torch.arange(IMAGES) % CLASSES
        self.alpha = torch.tensor(alpha, dtype=dtype)
        self.plan = draw_plan(IMAGES, steps, batch, augment, SHAPE, Rng(3))
        self.options = {"augment": augment}
        at = [steps, steps // 3, 2 * steps // 3][:terms]
        self.terms = [MatchTerm(s, self.target(g, dtype), weight=1 / (k + 1)) for k, s in enumerate(at)]

    def target(self, generator, dtype) -> Tensor:
        noise = torch.randn(self.model.size, generator=generator, dtype=torch.float64)
        return self.theta0 + 0.1 * noise.to(dtype)

    def run(self, engine, **changes):
        x, y, alpha = (changes.pop(name, getattr(self, name)) for name in ("x", "y", "alpha"))
        options = {**self.options, **changes}
        return engine(self.model, self.theta0, x, y, alpha, self.plan, self.terms, **options)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


def assert_same(a, b, within: float, exact=None) -> None:
    """Equal up to `within`; where `exact` is `b` in float64, up to what `b` itself is off by, if that is more.

    How float32 rounds depends on the processor's kernels: a scalar such as d alpha, a sum of terms that cancel, is off
    by 3e-5 on some, in the plain unroll as much as in the adjoint.
    """
    for name in ("loss", "x", "alpha", "theta", "distances"):
        mine, theirs = getattr(a, name), getattr(b, name)
        own = 0.0 if exact is None else 2 * relative(theirs.double(), getattr(exact, name))
        assert relative(mine, theirs) <= max(within, min(own, 1e-4)), name
    assert (a.y is None) == (b.y is None)
    if a.y is not None:
        assert relative(a.y, b.y) <= within


DSA = Dsa("color_crop_cutout_flip_scale_rotate")
VARIANTS = {
    "plain": ({}, {}),
    "hard labels": ({"soft": False}, {}),
    "momentum": ({}, {"momentum": 0.9}),
    "weight decay": ({}, {"weight_decay": 0.05}),
    "both": ({}, {"momentum": 0.9, "weight_decay": 0.05}),
    "three terms, momentum, decay, scale": ({"terms": 3}, {"momentum": 0.9, "weight_decay": 0.05, "scale": 1.7}),
    "augmentation": ({"augment": DSA}, {}),
    "chunks": ({"augment": DSA, "batch": 5}, {"chunk": 2}),
    "label logits": ({}, {"loss_fn": cross_entropy_of_logits}),
    "whole set": ({"batch": None}, {}),
    "instance norm": ({"net": "instance"}, {}),
    "layer norm, max pool": ({"net": "layer"}, {}),
    "batch norm": ({"net": "batch"}, {}),
    "no norm, swish": ({"net": "none"}, {}),
    "dropout": ({"net": "dropout", "augment": DSA}, {"check": True}),
    "dropout in chunks": ({"net": "dropout", "batch": 5}, {"check": True, "chunk": 2, "momentum": 0.5}),
}


def make(options: dict, dtype=torch.float64) -> Case:
    net = options.get("net")
    if net == "dropout":
        with isolated(4):
            net = nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, CLASSES))
    elif net is not None:
        net = network(net, pool="max" if net == "layer" else "avg", activation="swish" if net == "none" else "relu")
    return Case(**{**options, "net": net}, dtype=dtype)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_adjoint_is_the_full_unroll(variant, dtype, within):
    make_options, options = VARIANTS[variant]
    case = make(make_options, dtype)
    reference = case.run(full_unroll, **{k: v for k, v in options.items() if k != "check"})
    found = case.run(adjoint, **options)
    plain = {k: v for k, v in options.items() if k != "check"}
    exact = (
        make(make_options).run(full_unroll, **plain) if dtype == torch.float32 and "dropout" not in variant else None
    )
    assert_same(found, reference, within, exact)
    assert found.x.abs().sum() > 0
    options = plain
    assert_same(case.run(truncated, last=N, **options), found, 1e-12)


def naive_unroll(case: Case, *, freeze: bool, momentum=0.0, weight_decay=0.0, last=N) -> tuple[Tensor, ...]:
    """The unroll; `freeze` holds theta_i constant inside g_i, `last` makes all but the last steps constant."""
    x, y, alpha = (t.clone().requires_grad_() for t in (case.x, case.y, case.alpha))
    theta, b = case.theta0, torch.zeros_like(case.theta0)
    for i, step in enumerate(case.plan.steps):
        if i == len(case.plan) - last:
            theta, b = theta.detach(), b.detach()
        at = theta.detach().requires_grad_() if freeze or not theta.requires_grad else theta
        logits = case.model(at, x[step.index])
        loss = -(y[step.index] * F.log_softmax(logits, 1)).sum(1).mean()
        (g,) = torch.autograd.grad(loss, at, create_graph=True)
        b = momentum * b + g + weight_decay * theta
        theta = theta - alpha * b
    target = case.terms[0].target
    loss = (theta - target).square().sum() / (case.theta0 - target).square().sum()
    return torch.autograd.grad(loss, [x, y, alpha])


@pytest.mark.parametrize("options", [{}, {"momentum": 0.8, "weight_decay": 0.03}])
def test_every_engine_is_its_definition(options):
    case = Case()
    for engine, extra, definition in (
        (full_unroll, {}, {"freeze": False}),
        (adjoint, {}, {"freeze": False}),
        (frozen_path, {}, {"freeze": True}),
        (truncated, {"last": 2}, {"freeze": False, "last": 2}),
    ):
        found = case.run(engine, **extra, **options)
        for a, b in zip((found.x, found.y, found.alpha), naive_unroll(case, **definition, **options)):
            assert relative(a, b) < 1e-10, engine.__name__


def test_images_that_no_step_uses_have_zero_gradient():
    case = Case(steps=2, batch=2)
    unused = case.plan.visits() == 0
    assert unused.any()
    found = case.run(adjoint)
    assert (found.x[unused] == 0).all()
    assert (found.x[~unused] != 0).flatten(1).any(1).all()


def test_one_step_makes_all_engines_equal():
    case = Case(steps=1)
    reference = case.run(full_unroll)
    for found in (case.run(adjoint), case.run(frozen_path), case.run(truncated, last=1)):
        assert_same(found, reference, 1e-10)


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.01, 0.02, 0.10), (0.1, 0.2, 0.6), (0.5, 0.5, 1.0)])
def test_the_frozen_path_is_not_the_gradient(alpha, low, high):
    case = Case(network("instance"), steps=10, alpha=alpha, batch=None)
    exact, frozen = case.run(adjoint), case.run(frozen_path)
    assert low < relative(frozen.x, exact.x) < high
    assert relative(frozen.alpha, exact.alpha) > low / 5
    assert torch.equal(frozen.loss, exact.loss)


def test_the_released_script_halves_the_pixel_gradient():
    case = Case()
    whole, half = case.run(frozen_path), case.run(frozen_path, reference_half=True)
    assert torch.equal(half.x * 2, whole.x)
    assert torch.equal(half.alpha, whole.alpha)
    assert torch.equal(half.y, whole.y)


def test_against_central_differences():
    case = Case(terms=3, augment=DSA)
    options, h = {"momentum": 0.9, "weight_decay": 0.02}, 1e-6
    found = case.run(adjoint, **options)

    def loss(**changed) -> float:
        return float(case.run(full_unroll, **changed, **options).loss)

    numeric = (loss(alpha=case.alpha + h) - loss(alpha=case.alpha - h)) / (2 * h)
    assert abs(numeric - float(found.alpha)) <= 1e-6 * abs(numeric)
    for at in ((0, 0, 3, 3), (2, 1, 4, 5), (4, 0, 2, 6)):
        bump = torch.zeros_like(case.x)
        bump[at] = h
        numeric = (loss(x=case.x + bump) - loss(x=case.x - bump)) / (2 * h)
        assert abs(numeric - float(found.x[at])) <= 1e-6 * float(found.x.abs().max())


def test_a_match_that_is_reached_and_a_start_that_is_the_end():
    case = Case()
    case.terms = [MatchTerm(N, case.run(adjoint).theta)]
    found = case.run(adjoint)
    assert found.loss <= 1e-12
    assert max(found.x.abs().max(), found.alpha.abs(), found.y.abs().max()) < 1e-12
    none = Case(steps=0)
    for engine in (adjoint, full_unroll, frozen_path):
        found = none.run(engine)
        assert found.loss == 1
        assert found.alpha == 0
        assert not found.x.any()


def test_towers_have_normalizers_of_their_own():
    case = Case()
    half = case.model.size // 2
    towers = (slice(0, half), slice(half, None))
    case.terms = [replace(case.terms[0], towers=towers)]
    theta, target = case.run(full_unroll).theta, case.terms[0].target
    parts = [((theta[t] - target[t]) ** 2).sum() / ((case.theta0[t] - target[t]) ** 2).sum() for t in towers]
    assert relative(case.run(adjoint).loss, sum(parts)) < 1e-12
    assert_same(case.run(adjoint), case.run(full_unroll), 1e-10)


def test_a_decoder_in_front():
    """Gradients of the decoded images are enough: a linear decoder's own gradient follows by the chain rule."""
    case = Case(batch=None)
    codes = torch.randn(2, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def decode(codes: Tensor) -> Tensor:  # two of the four tiles of each stored image, and a plain copy of the first
        tiles = torch.cat([codes[..., :4, :4], codes[..., 4:, 4:]])
        return torch.cat([F.interpolate(tiles, scale_factor=2.0, mode="bilinear"), codes[:1]])

    def loss(codes: Tensor) -> float:
        return float(case.run(full_unroll, x=decode(codes)).loss)

    leaf = codes.clone().requires_grad_()
    found = case.run(adjoint, x=decode(leaf).detach())
    (gradient,) = torch.autograd.grad(decode(leaf), leaf, found.x)
    for at in ((0, 0, 1, 1), (1, 1, 6, 7), (1, 0, 2, 2)):
        bump = torch.zeros_like(codes)
        bump[at] = 1e-6
        numeric = (loss(codes + bump) - loss(codes - bump)) / 2e-6
        assert abs(numeric - float(gradient[at])) <= 1e-6 * float(gradient.abs().max())


def test_chunks_change_nothing_but_rounding():
    case = Case(batch=5, augment=DSA)
    whole = case.run(adjoint)
    for chunk in (1, 2, 3, 99):
        assert_same(case.run(adjoint, chunk=chunk), whole, 1e-10)
        assert_same(case.run(full_unroll, chunk=chunk), whole, 1e-10)


def test_the_second_pass_replays_the_first_and_says_so_when_it_does_not():
    case = make({"net": "dropout", "augment": DSA})
    case.run(adjoint, check=True)
    calls = iter(range(1000))

    class Drifting:
        def draw(self, *args, **kwargs):
            raise NotImplementedError

        def apply(self, x, record, rows=None):
            return x * (1 + next(calls))

    with pytest.raises(AssertionError, match="second run"):
        case.run(adjoint, check=True, augment=Drifting())


def test_replayed_inner_gradients_are_equal_bit_for_bit():
    from datastill.engines.hypergradient.student import Student

    case = make({"net": "dropout", "augment": DSA}, torch.float32)
    student = Student(case.model, case.x, case.y, case.plan, augment=DSA)
    for step in case.plan.steps:
        first = student.gradient(case.theta0, step, case.x, case.y)
        leaf = case.theta0.clone().requires_grad_()
        assert torch.equal(first, student.gradient(leaf, step, case.x, case.y, create_graph=True))


class Bytes:
    """Counts what autograd keeps: the most at any one time."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: Tensor):
        counter, size = self, tensor.nbytes
        tensor = tensor.detach()  # an output that kept itself would be a cycle

        class Held:
            def __init__(self) -> None:
                self.tensor = tensor
                counter.now += size
                counter.most = max(counter.most, counter.now)

            def __del__(self) -> None:
                counter.now -= size

        return Held()


def most_bytes(engine, steps: int) -> int:
    case, counter = Case(steps=steps, batch=None), Bytes()
    with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda held: held.tensor):
        case.run(engine)
    return counter.most


def test_memory_of_the_adjoint_does_not_grow_with_the_steps():
    assert most_bytes(adjoint, 40) <= 1.05 * most_bytes(adjoint, 5)
    assert most_bytes(full_unroll, 40) >= 6 * most_bytes(full_unroll, 5)


def simulated(n: int, batch: int, steps: int, rng: Rng) -> list[list[int]]:
    """The rule of the released code, by hand."""
    out: list[list[int]] = []
    chunks: list[list[int]] = []
    turn = 0
    for _ in range(steps):
        if not chunks:
            order = torch.randperm(n, generator=rng.generator("order", turn)).tolist()
            chunks = [order[i : i + batch] for i in range(0, n, batch)]
            turn += 1
        out.append(chunks.pop())
    return out


@pytest.mark.parametrize(("n", "batch"), [(7, 3), (6, 3), (5, 5), (5, 8), (4, 1)])
def test_batches_come_from_the_end_and_the_short_one_first(n, batch):
    plan = draw_plan(n, 9, batch, DSA, SHAPE, Rng(7))
    assert [step.index.tolist() for step in plan.steps] == simulated(n, batch, 9, Rng(7))
    sizes = [len(step.index) for step in plan.steps]
    if n == 7:
        assert sizes == [1, 3, 3] * 3
    per_pass = -(-n // batch)
    whole = draw_plan(n, 2 * per_pass, batch, None, SHAPE, Rng(7))
    assert whole.visits().tolist() == [2] * n
    for step in plan.steps:
        assert len(step.record) == len(step.index)
        assert len(step.record.ops.unique()) == 1  # one operation per step, parameters per image
    assert len({step.seed for step in plan.steps}) == 9


@pytest.mark.parametrize("geometry", [{}, {"stride": 2, "padding": 1}, {"groups": 2, "dilation": 2, "bias": False}])
@pytest.mark.parametrize("whole", [True, False])
def test_convolution_with_fast_double_backward(geometry, whole):
    """Value, gradient in the weights, and the gradients of its inner product with a direction."""
    with isolated(0):
        model = FlatModel(nn.Sequential(nn.Conv2d(2, 4, 3, **geometry), nn.Tanh(), nn.Conv2d(4, 3, 2)).double())
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 2, 7, 6, dtype=torch.float64, generator=g)
    direction = torch.randn(model.size, dtype=torch.float64, generator=g)

    def gradients(model) -> list[Tensor]:
        leaf, images = plain.flatten().requires_grad_(), x.clone().requires_grad_()
        out = model(leaf, images)
        (first,) = torch.autograd.grad(out.sin().sum(), leaf, create_graph=True)
        inner = first @ direction
        second = torch.autograd.grad(inner, [leaf, images])
        return [out, inner.detach() + getattr(model, "tally", 0), *second, *([first] if whole else [])]

    plain = model
    for a, b in zip(gradients(FastDoubleBackward(model, whole)), gradients(model)):
        assert relative(a, b) < 1e-12


class Standardized(nn.Module):
    """A convolution whose weights are no plain view of theta, as in norm-free networks; used twice over."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        w = self.conv.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 0.1)
        x = F.conv2d(x, w, self.conv.bias, padding=1).tanh()
        x = self.conv(F.conv2d(x, w, padding="same")).tanh()
        return self.head(x.flatten(1))


def test_convolution_weights_that_are_functions_of_theta():
    with isolated(0):
        case = Case(Standardized())
    assert_same(case.run(adjoint), case.run(full_unroll), 1e-10)


def test_flat_model():
    net = network("batch", dtype=torch.float32)
    model = FlatModel(net)
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    theta = model.flatten()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    logits = model(theta, x)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())  # running statistics too
    assert torch.equal(logits, net(x))
    leaf = theta.clone().requires_grad_()
    (flat,) = torch.autograd.grad(model(leaf, x).square().sum(), leaf)
    parts = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    assert torch.equal(flat, torch.cat([p.flatten() for p in parts]))
    assert torch.equal(model.flatten(model.split(theta)), theta)
    described = model.describe()
    assert described["size"] == len(theta) == sum(p.numel() for p in net.parameters())
    assert described["offsets"][1] == net.body.conv1.weight.numel()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.fixed = nn.Linear(4, 2).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fixed(self.b(self.a(x).tanh()))


def test_flat_model_with_tied_and_fixed_weights():
    with isolated(0):
        net = Tied()
    model = FlatModel(net)
    assert model.names == ("a.weight", "a.bias", "b.bias")
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(model.flatten(), x), net(x))
    leaf = model.flatten().requires_grad_()
    (flat,) = torch.autograd.grad(model(leaf, x).sum(), leaf)
    net(x).sum().backward()
    assert torch.allclose(flat[:16], net.a.weight.grad.flatten())
    assert FlatModel(net.requires_grad_(False)).size == 16 + 4 + 4 + 8 + 2  # a template: all of it
    with pytest.raises(InputError, match="34 weights"):
        FlatModel(net)(leaf, x)
    with pytest.raises(InputError, match="one type"):
        FlatModel(nn.Flatten())


def test_bad_input_is_named():
    case = Case()
    with pytest.raises(InputError, match="step 9 of 6"):
        adjoint(case.model, case.theta0, case.x, case.y, case.alpha, case.plan, [MatchTerm(9, case.theta0)])
    with pytest.raises(InputError, match="matched with"):
        adjoint(case.model, case.theta0, case.x, case.y, case.alpha, case.plan, [MatchTerm(1, case.theta0[:3])])
    with pytest.raises(InputError, match="4 and 5 labels"):
        case.run(adjoint, x=case.x[:4])
    with pytest.raises(InputError, match="at least one step"):
        case.run(truncated, last=0)
    with pytest.raises(InputError, match="no augmentation was given"):
        Case(augment=DSA).run(adjoint, augment=None)
    with pytest.raises(InputError, match="batch of 0"):
        draw_plan(3, 2, 0, None, SHAPE, Rng(0))


@pytest.mark.parametrize("kind", ["raw", "log", "softplus"])
@pytest.mark.parametrize("alpha", [1e-3, 0.05, 2.0])
def test_learning_rate_as_a_leaf(kind, alpha):
    lr = SyntheticLr(kind, alpha)
    r = lr.leaf().double()
    assert abs(float(lr.alpha(r)) / alpha - 1) < 1e-5
    h = 1e-6
    slope = (float(lr.alpha(r + h)) - float(lr.alpha(r - h))) / (2 * h)
    assert abs(float(lr.slope(r)) / slope - 1) < 1e-6
    # a first step of the leaf moves alpha as a raw one would move
    size = lr.step_size(1e-7)
    moved = float(lr.alpha(r - size * lr.slope(r)))
    assert abs((moved - float(lr.alpha(r))) / -1e-7 - 1) < 1e-2


def test_gradient_through_the_learning_rate_leaf():
    case = Case()
    for kind in ("raw", "log", "softplus"):
        lr = SyntheticLr(kind, 0.3)
        r = lr.leaf().double()
        analytic = float(case.run(adjoint, alpha=lr.alpha(r)).alpha * lr.slope(r))
        up, down = (float(case.run(full_unroll, alpha=lr.alpha(r + h)).loss) for h in (1e-6, -1e-6))
        assert abs((up - down) / 2e-6 - analytic) <= 1e-6 * abs(analytic)
    assert SyntheticLr("fixed", 0.3).slope(torch.tensor(0.3)) == 0
    with pytest.raises(InputError, match="kind of learned"):
        SyntheticLr("sigmoid", 0.1)
    with pytest.raises(InputError, match="above zero"):
        SyntheticLr("raw", 0.0)


def test_a_raw_learning_rate_never_crosses_zero():
    leaf = torch.tensor([0.01])
    stepper = KeepPositive(Sgd(lr=1.0, momentum=0.5)).bind(leaf)
    stepper.after(torch.tensor([0.004]), 0.0)
    assert torch.allclose(leaf, torch.tensor([0.006]))
    stepper.after(torch.tensor([0.1]), 0.0)
    assert torch.allclose(leaf, torch.tensor([0.006]))
    assert stepper.refused == 1
    stepper.after(torch.tensor([0.001]), 0.0)  # momentum was forgotten
    assert torch.allclose(leaf, torch.tensor([0.005]))
    again = KeepPositive(Sgd(lr=1.0, momentum=0.5)).bind(leaf.clone())
    again.load(stepper.state())
    assert again.refused == 1

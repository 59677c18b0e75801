"""Experts of FTD and AST: each step against one written out, the identities of GSAM, and the schedule of AST."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.core.errors import Diverged, InputError
from datastill.core.rng import Rng, isolated
from datastill.models.zoo import ConvNet
from datastill.surrogates.experts.policies import Epoch, TrainingSet, get_policy
from datastill.surrogates.experts.policies.gsam import Gsam, direction, perturbation
from datastill.surrogates.experts.policies.sgd import Sgd
from datastill.surrogates.experts.policies.smooth import SmoothSgd, penalty

X = torch.rand(14, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(14) % 3
WEIGHT = torch.rand(14, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def network(norm: str = "group") -> nn.Module:
    with isolated(1):
        return ConvNet(2, 3, (8, 8), width=4, depth=2, norm=norm).double()


def trained(policy, net: nn.Module, index: int = 0, count: int = 4, state=None, weight=None, augment="none") -> float:
    epoch = Epoch(index, count, Rng(0).child("epoch", index), {} if state is None else state, lambda i, logits: None)
    return policy.epoch(net, TrainingSet(X, Y, weight, augment, torch.device("cpu")), epoch)


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def order(index: int, batch: int) -> tuple[Tensor, ...]:
    return torch.randperm(14, generator=Rng(0).child("epoch", index).generator("order", 0)).split(batch)


def gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    found = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
    return torch.cat([g.flatten() for g in found])


def put(net: nn.Module, theta: Tensor) -> None:
    torch.nn.utils.vector_to_parameters(theta.clone(), net.parameters())


def literal_gsam(policy: Gsam, net: nn.Module) -> None:
    """Flat vectors, one step after the other."""
    for rows in order(0, policy.batch):
        w = weights(net)
        first = gradient(net, X[rows], Y[rows])
        e = w**2 * first / (w * first).norm() if policy.form == "adaptive" else first / first.norm()
        put(net, w + policy.rho * e)
        second = gradient(net, X[rows], Y[rows])
        cosine = first @ second / (first.norm() * second.norm())
        orthogonal = first - cosine * first.norm() * second / second.norm()
        put(net, w - policy.lr * (second - policy.alpha * orthogonal + policy.weight_decay * w))


class TestGsam:
    @pytest.mark.parametrize("form", ["adaptive", "plain"])
    @pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
    def test_is_the_written_out_step(self, form: str, alpha: float) -> None:
        """With alpha = 0 and the plain form this is SAM by hand."""
        policy = Gsam(lr=0.1, batch=5, rho=0.3, alpha=alpha, form=form, weight_decay=0.01)  # type: ignore[arg-type]
        ours, theirs = network(), network()
        trained(policy, ours)
        literal_gsam(policy, theirs)
        torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-9, atol=1e-12)
        plain = network()
        trained(Sgd(lr=0.1, batch=5, weight_decay=0.01), plain)
        assert not torch.allclose(weights(ours), weights(plain), rtol=1e-4)

    def test_without_a_radius_it_is_sgd(self) -> None:
        ours, theirs = network(), network()
        loss = trained(Gsam(lr=0.1, batch=5, rho=0.0), ours, weight=WEIGHT, augment="crop_flip")
        assert loss == pytest.approx(trained(Sgd(lr=0.1, batch=5), theirs, weight=WEIGHT, augment="crop_flip"))
        torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-9, atol=1e-12)

    def test_what_is_taken_off_is_orthogonal(self) -> None:
        g = torch.Generator().manual_seed(3)
        first, second = ([torch.randn(s, generator=g, dtype=torch.float64) for s in ((3, 2), (4,))] for _ in range(2))
        off = [b - d for b, d in zip(second, direction(first, second, 1.0), strict=True)]
        flat = [torch.cat([t.flatten() for t in part]) for part in (off, second, first)]
        assert abs(float(flat[0] @ flat[1])) < 1e-10
        assert float(flat[0] @ flat[2]) > 0.1  # and is of the first
        e = torch.cat([t.flatten() for t in perturbation(second, first, 0.7, "plain")])
        assert float(e.norm()) == pytest.approx(0.7)

    def test_the_weights_come_back_exactly(self) -> None:
        """A rate so small that no weight moves shows what going there and back leaves: nothing."""
        net = network()
        before = weights(net)
        trained(Gsam(lr=1e-30, batch=5, rho=0.5), net)
        assert float((weights(net) - before).abs().max()) < 1e-27  # as far as the rate itself goes

    def test_running_statistics_are_those_of_the_first_pass(self) -> None:
        ours, theirs = network("batch"), network("batch")
        trained(Gsam(lr=1e-30, batch=14, rho=0.5), ours)
        with torch.no_grad():
            theirs.train()(X[order(0, 14)[0]])
        for name, buffer in theirs.named_buffers():
            torch.testing.assert_close(dict(ours.named_buffers())[name], buffer)


def literal_smooth(policy: SmoothSgd, net: nn.Module, epochs: int, count: int) -> None:
    """Textbook SGD on the whole loss, with torch's own second derivatives."""
    w, b = weights(net), torch.zeros(0)
    for index in range(epochs):
        late = index > count // 2 + 1
        if index in (0, count // 2 + 2):
            b = torch.zeros_like(w)
        factor = min(1.0, 0.5 + 0.5 * index / policy.ramp) if policy.ramp else 1.0
        for rows in order(index, policy.batch):
            x = X[rows].clone().requires_grad_()
            (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
            norms = slope.square().sum(1).sqrt() if policy.norm == "channel" else slope.flatten(1).norm(dim=1)
            loss = factor * F.cross_entropy(net(X[rows]), Y[rows])
            loss = loss + policy.penalty * (norms - policy.target).square().mean()
            grads = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
            flat = [torch.zeros_like(p) if g is None else g for p, g in zip(net.parameters(), grads, strict=True)]
            g = torch.cat([t.flatten() for t in flat]) + policy.weight_decay * w
            b = policy.momentum * b + g
            w = w - policy.lr * (0.6 if late else 1.0) * b
            put(net, w)


class TestSmooth:
    @pytest.mark.parametrize("norm", ["channel", "sample"])
    def test_is_the_written_out_step(self, norm: str) -> None:
        """Five epochs of five: ramp, penalty, decay, momentum over epochs, and the drop that forgets it."""
        policy = SmoothSgd(lr=0.05, batch=5, ramp=3, target=0.4, norm=norm)  # type: ignore[arg-type]
        ours, theirs, state = network(), network(), {}
        for index in range(5):
            trained(policy, ours, index, 5, state)
        literal_smooth(policy, theirs, 5, 5)
        torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-8, atol=1e-11)

    def test_the_ramp(self) -> None:
        found = [round(SmoothSgd().factor(e), 6) for e in range(12)]
        assert found == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.0]
        assert SmoothSgd(ramp=0).factor(0) == 1.0

    def test_parts_and_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Small parts give the mean over the batch, in which an image counts by its weight."""
        whole, parts = network(), network()
        trained(SmoothSgd(lr=0.1, batch=7), whole, weight=WEIGHT)
        monkeypatch.setattr("datastill.surrogates.experts.policies.smooth._PIXELS", 3 * 64)
        trained(SmoothSgd(lr=0.1, batch=7), parts, weight=WEIGHT)
        torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-9, atol=1e-12)
        twice = network()
        trained(SmoothSgd(lr=0.1, batch=7), twice)
        assert not torch.allclose(weights(twice), weights(parts), rtol=1e-5)

    def test_a_pixel_that_nothing_depends_on_has_no_infinite_slope(self) -> None:
        with isolated(0):
            net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
        nn.init.constant_(net[0].bias, -9.0)
        value = penalty(net, X[:2, :, :4, :4].float(), 1.0, "channel")
        assert value.tolist() == [1.0, 1.0]
        value.sum().backward()
        assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in net.parameters())


@pytest.mark.parametrize("name", ["gsam", "smooth"])
def test_divergence_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "X", X * torch.inf)
    with pytest.raises(Diverged, match="not finite"):
        trained(get_policy(name), network())


def test_numbers_are_read_and_bounded() -> None:
    assert get_policy("gsam:alpha=0.3,form=plain") == Gsam(alpha=0.3, form="plain")
    assert get_policy("smooth:penalty=0,norm=sample") == SmoothSgd(penalty=0.0, norm="sample")
    for spec in ("gsam:rho=-1", "gsam:form=true", "smooth:norm=pixel", "smooth:momentum=1"):
        with pytest.raises(InputError):
            get_policy(spec)

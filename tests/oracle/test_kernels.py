"""Kernels against networks and closed forms; ridge regression against scikit-learn and against itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge as Sklearn
from torch import Tensor

from datastill.core.errors import Diverged, InputError
from datastill.core.rng import Rng
from datastill.engines.kernels import ConvKernel, DenseKernel, FeatureKernel, fit_ridge, solved_labels
from datastill.engines.kernels.ridge import refuse_size


def images(n: int, seed: int = 0, side: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 1, side, side, generator=Rng(seed).generator("images"), dtype=torch.float64).to(dtype)


def naive(kernel: DenseKernel, a: Tensor, b: Tensor) -> float:
    """The recursion of one pair as it is written."""
    p, q = a.flatten(), b.flatten()
    w, bias, d = kernel.weight, kernel.bias, len(p)
    xy, xx, yy = (float(w * (u @ v) / d + bias) for u, v in ((p, q), (p, p), (q, q)))
    t = xy
    for _ in range(kernel.depth):
        r = min(1.0, max(-1.0, xy / math.sqrt(xx * yy)))
        k1 = (math.sqrt(1 - r * r) + r * (math.pi - math.acos(r))) / math.pi
        k0 = (math.pi - math.acos(r)) / math.pi
        xy = w / 2 * math.sqrt(xx * yy) * k1 + bias
        xx, yy = w / 2 * xx + bias, w / 2 * yy + bias
        t = xy + t * w / 2 * k0
    return t if kernel.kind == "ntk" else xy


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("depth", [0, 1, 3])
class TestDense:
    def test_is_the_recursion_pair_by_pair(self, kind: str, depth: int) -> None:
        kernel = DenseKernel(kind, depth, normalize=False)
        a, b = images(3), images(4, 1)
        wanted = [[naive(kernel, p, q) for q in b] for p in a]
        assert torch.allclose(kernel.cross(a, b), torch.tensor(wanted, dtype=torch.float64), rtol=1e-10)
        wanted = [[naive(kernel, p, q) for q in a] for p in a]
        assert torch.allclose(kernel.gram(a), torch.tensor(wanted, dtype=torch.float64), rtol=1e-7)

    def test_is_symmetric_and_positive(self, kind: str, depth: int) -> None:
        gram = DenseKernel(kind, depth).gram(images(30))
        assert torch.allclose(gram, gram.T, rtol=1e-12)
        assert torch.linalg.eigvalsh(gram).min() >= -1e-8

    def test_gradients_are_finite_differences(self, kind: str, depth: int) -> None:
        """Of a regression's loss, through the matrix of the support and that between support and targets."""
        kernel, x, t = DenseKernel(kind, depth), images(5).requires_grad_(), images(7, 1)
        y, wanted = (torch.randn(n, 3, generator=Rng(n).generator("y"), dtype=torch.float64) for n in (5, 7))
        y.requires_grad_()

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return (fit_ridge(kernel, x, y, 1e-2)(t) - wanted).square().sum()

        assert torch.autograd.gradcheck(loss, (x, y), eps=1e-6, atol=1e-6, rtol=1e-5)


def windows(grid: list[list[float]]) -> list[list[float]]:
    """Means of 3 x 3 windows at stride 2, zeros around."""
    side = len(grid)
    reach = range((side + 1) // 2)

    def at(i: int, j: int) -> float:
        return grid[i][j] if 0 <= i < side and 0 <= j < side else 0.0

    around = [(u, v) for u in (-1, 0, 1) for v in (-1, 0, 1)]
    return [[sum(at(2 * i + u, 2 * j + v) for u, v in around) / 9 for j in reach] for i in reach]


def naive_convolutional(kernel: ConvKernel, a: Tensor, b: Tensor) -> float:
    """The recursion of one pair, place by place."""
    w, bias, side = kernel.weight, kernel.bias, a.shape[-1]

    def first(p: Tensor, q: Tensor) -> list[list[float]]:
        inner = [[float(p[:, i, j] @ q[:, i, j]) / len(p) for j in range(side)] for i in range(side)]
        return [[w * v + bias for v in row] for row in windows(inner)]

    xy, xx, yy = first(a, b), first(a, a), first(b, b)
    t = [row[:] for row in xy]
    for layer in range(kernel.depth):
        reach = range(len(xy))
        outputs, slopes = [[0.0] * len(xy) for _ in reach], [[0.0] * len(xy) for _ in reach]
        for i in reach:
            for j in reach:
                scale = math.sqrt(xx[i][j] * yy[i][j])
                r = min(1.0, max(-1.0, xy[i][j] / scale))
                outputs[i][j] = scale * (math.sqrt(1 - r * r) + r * (math.pi - math.acos(r))) / math.pi / 2
                slopes[i][j] = t[i][j] * (math.pi - math.acos(r)) / math.pi / 2
                xx[i][j], yy[i][j] = xx[i][j] / 2, yy[i][j] / 2
        if layer == kernel.depth - 1:
            count = len(xy) ** 2
            s = w * sum(map(sum, outputs)) / count + bias
            return s + w * sum(map(sum, slopes)) / count if kernel.kind == "ntk" else s
        xy, xx, yy = ([[w * v + bias for v in row] for row in windows(one)] for one in (outputs, xx, yy))
        t = [[s + w * v for s, v in zip(*rows)] for rows in zip(xy, windows(slopes))]
    raise AssertionError("of depth 1 or more")


def colored(n: int, seed: int = 0, side: int = 5) -> Tensor:
    return torch.randn(n, 2, side, side, generator=Rng(seed).generator("images"), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
class TestConvolutional:
    @pytest.mark.parametrize("depth", [1, 3])
    def test_is_the_recursion_pair_by_pair(self, kind: str, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whole and in chunks of a row."""
        kernel, a, b = ConvKernel(kind, depth, normalize=False), colored(3), colored(4, 1)
        wanted = torch.tensor([[naive_convolutional(kernel, p, q) for q in b] for p in a], dtype=torch.float64)
        assert torch.allclose(kernel.cross(a, b), wanted, rtol=1e-10)
        wanted_gram = torch.tensor([[naive_convolutional(kernel, p, q) for q in a] for p in a], dtype=torch.float64)
        assert torch.allclose(kernel.gram(a), wanted_gram, rtol=1e-7)
        monkeypatch.setattr("datastill.engines.kernels.convolutional._AT_ONCE", 1)
        assert torch.allclose(kernel.cross(a, b), wanted, rtol=1e-10)

    def test_is_symmetric_and_positive(self, kind: str) -> None:
        gram = ConvKernel(kind).gram(colored(20))
        assert torch.allclose(gram, gram.T, rtol=1e-12)
        assert torch.linalg.eigvalsh(gram).min() >= -1e-8

    def test_gradients_are_finite_differences(self, kind: str) -> None:
        kernel, x, t = ConvKernel(kind, 2), colored(2, 0, 4).requires_grad_(), colored(3, 1, 4)
        y, wanted = (torch.randn(n, 3, generator=Rng(n).generator("y"), dtype=torch.float64) for n in (2, 3))

        def loss(x: Tensor) -> Tensor:
            return (fit_ridge(kernel, x, y, 1e-2)(t) - wanted).square().sum()

        assert torch.autograd.gradcheck(loss, (x,), eps=1e-6, atol=1e-6, rtol=1e-5)


def test_convolutional_nngp_is_the_covariance_of_a_wide_network() -> None:
    """Two convolutions at stride 2 and the mean product of outputs at equal places; ten networks, to 3 %."""
    kernel, x = ConvKernel("nngp", 2, normalize=False), colored(3).float()
    generator, width = Rng(3).generator("weights"), 600
    w, b = kernel.weight, kernel.bias

    def convolved(maps: Tensor) -> Tensor:
        weights = torch.randn(width, maps.shape[1], 3, 3, generator=generator) * math.sqrt(w / (9 * maps.shape[1]))
        bias = torch.randn(width, generator=generator) * math.sqrt(b)
        return torch.nn.functional.conv2d(maps, weights, bias, stride=2, padding=1).relu()

    features = torch.stack([convolved(convolved(x)).flatten(1).double() for _ in range(10)])
    covariance = w * (features @ features.mT).mean(0) / features.shape[2] + b
    assert (kernel.gram(x) - covariance).norm() < 0.03 * covariance.norm()


def test_depth_0_is_linear() -> None:
    a, b = images(3), images(4, 1)
    linear = 2 * a.flatten(1) @ b.flatten(1).T / 16 + 0.01
    assert torch.allclose(DenseKernel("ntk", 0, normalize=False).cross(a, b), linear, rtol=1e-12)


def test_nngp_is_the_covariance_of_a_wide_network() -> None:
    """Of one hidden layer of 200,000 ReLUs, to 2 %."""
    kernel, x = DenseKernel("nngp", 1, normalize=False), images(4)
    generator, width, rows = Rng(3).generator("weights"), 200_000, x.flatten(1)
    w = torch.randn(width, 16, generator=generator, dtype=torch.float64) * math.sqrt(kernel.weight / 16)
    b = torch.randn(width, generator=generator, dtype=torch.float64) * math.sqrt(kernel.bias)
    hidden = (rows @ w.T + b).relu()
    covariance = kernel.weight * hidden @ hidden.T / width + kernel.bias
    assert (kernel.gram(x) - covariance).norm() < 0.02 * covariance.norm()


def test_ntk_is_the_inner_product_of_gradients_of_a_wide_network() -> None:
    """One hidden layer in the parametrization of the NTK, to 3 %."""
    kernel, x = DenseKernel("ntk", 1, normalize=False), images(3)
    generator, width = Rng(4).generator("weights"), 20_000
    w1, b1, w2 = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((width, 16), (width,), (width,)))
    leaves = [w.requires_grad_() for w in (w1, b1, w2, torch.zeros((), dtype=torch.float64))]

    def output(row: Tensor) -> Tensor:
        hidden = math.sqrt(kernel.weight / 16) * leaves[0] @ row + math.sqrt(kernel.bias) * leaves[1]
        return math.sqrt(kernel.weight / width) * leaves[2] @ hidden.relu() + math.sqrt(kernel.bias) * leaves[3]

    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(output(r), leaves)]) for r in x.flatten(1)]
    gradients = torch.stack(rows)
    assert torch.allclose(kernel.gram(x), gradients @ gradients.T, rtol=0.03)


def test_normalized_images_do_not_know_brightness_and_contrast() -> None:
    a, b = images(3), images(4, 1)
    assert torch.allclose(DenseKernel().cross(5 * a + 2, b), DenseKernel().cross(a, b), rtol=1e-10)
    assert not torch.allclose(
        DenseKernel(normalize=False).cross(5 * a + 2, b), DenseKernel(normalize=False).cross(a, b)
    )
    assert torch.isfinite(DenseKernel().gram(torch.zeros(2, 1, 4, 4))).all()


class TestRidge:
    kernel, x, t = DenseKernel(), images(20), images(9, 1)
    y = torch.randn(20, 3, generator=Rng(5).generator("y"), dtype=torch.float64)

    def test_agrees_with_scikit_learn(self) -> None:
        gram = self.kernel.gram(self.x)
        lam = 1e-3 * float(gram.trace()) / 20
        theirs = Sklearn(alpha=lam, kernel="precomputed").fit(gram.numpy(), self.y.numpy())
        wanted = theirs.predict(self.kernel.cross(self.t, self.x).numpy())
        np.testing.assert_allclose(fit_ridge(self.kernel, self.x, self.y, 1e-3)(self.t).numpy(), wanted, rtol=1e-8)

    @pytest.mark.parametrize("features", [5, 40])
    def test_primal_is_dual(self, features: int) -> None:
        """Of fewer features than images, and of more."""
        w = torch.randn(16, features, generator=Rng(6).generator("w"), dtype=torch.float64)
        kernel = FeatureKernel(lambda x: (x.flatten(1) @ w).relu())
        gram, cross = kernel.gram(self.x), kernel.cross(self.t, self.x)
        ridge = gram + 1e-3 * gram.trace() / 20 * torch.eye(20)
        dual = cross @ torch.linalg.solve(ridge, self.y)
        assert torch.allclose(fit_ridge(kernel, self.x, self.y, 1e-3)(self.t), dual, atol=1e-8)

    def test_linear_features_give_the_weights_of_ridge_regression(self) -> None:
        rows = self.x.flatten(1)
        lam = 0.1 * rows.square().sum() / 20
        weights = torch.linalg.solve(rows.T @ rows + lam * torch.eye(16), rows.T @ self.y)
        fitted = fit_ridge(FeatureKernel(lambda x: x.flatten(1)), self.x, self.y, 0.1)
        assert torch.allclose(fitted.weights, weights, atol=1e-10)

    def test_on_itself_nothing_is_left_and_a_large_ridge_leaves_zero(self) -> None:
        assert torch.allclose(fit_ridge(self.kernel, self.x, self.y, 1e-12)(self.x), self.y, atol=1e-6)
        assert fit_ridge(self.kernel, self.x, self.y, 1e9)(self.t).abs().max() < 1e-6

    def test_the_order_of_the_support_does_not_matter(self) -> None:
        order = torch.randperm(20, generator=Rng(7).generator("order"))
        one, other = (fit_ridge(self.kernel, self.x[p], self.y[p], 1e-3)(self.t) for p in (order, torch.arange(20)))
        assert torch.allclose(one, other, atol=1e-9)

    @pytest.mark.parametrize("weighted", [False, True])
    def test_solved_labels_are_where_gradient_descent_ends(self, weighted: bool) -> None:
        wanted = torch.randn(60, 2, generator=Rng(8).generator("t"), dtype=torch.float64)
        targets = images(60, 9)
        weight = torch.rand(60, generator=Rng(10).generator("w"), dtype=torch.float64) if weighted else None
        solved = solved_labels(self.kernel, self.x, targets, wanted, 0.1, weight)
        y = torch.zeros(20, 2, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([y], max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            each = (fit_ridge(self.kernel, self.x, y, 0.1)(targets) - wanted).square().sum(1)
            value = (each if weight is None else weight * each).sum()
            value.backward()
            return value

        optimizer.step(loss)
        assert torch.allclose(solved, y.detach(), atol=1e-4)
        assert (solved - self.y[:, :2]).abs().max() > 0.1

    def test_a_ridge_that_is_too_small_grows_and_is_told(self) -> None:
        """An eigenvalue of - 3e-5 asks for a ridge of 1e-4."""

        class Indefinite(DenseKernel):
            def gram(self, x: Tensor) -> Tensor:
                diagonal = torch.ones(len(x), dtype=torch.float64)
                diagonal[0] = -3e-5
                return diagonal.diag()

        fitted = fit_ridge(Indefinite(), self.x, self.y, 1e-6)
        assert fitted.grown == 100
        with pytest.raises(Diverged, match=r"not even with a ridge of 1e-09.*raise the ridge"):
            fit_ridge(Indefinite(), self.x, self.y, 1e-15)

    def test_a_support_that_memory_cannot_hold_is_refused_in_bytes(self) -> None:
        with pytest.raises(InputError, match=r"24,000,000,000,000,000,000 bytes, and cpu has [\d,]+; take fewer"):
            refuse_size(10**9, torch.device("cpu"))

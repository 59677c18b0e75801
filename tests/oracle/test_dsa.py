"""DSA against a literal per-image version, and the identities of spec 3.4."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor

from datastill.augment.dsa import OPERATIONS, Dsa, DsaRecord, apply
from datastill.core.rng import Rng, isolated

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 9, 14)]


def draw(strategy: str, rows: int, shape: tuple[int, int, int], seed: int = 0, **options) -> DsaRecord:
    one_op = options.pop("one_op", False)
    return Dsa(strategy, **options).draw(rows, shape, Rng(seed).generator("test"), one_op=one_op)


def images(n: int, shape: tuple[int, int, int], seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.randn(n, *shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def sample_bilinear(x: np.ndarray, row: float, column: float) -> np.ndarray:
    """Value of x (c, h, w) between pixels, where everything outside is 0."""
    r, c = math.floor(row), math.floor(column)
    value = np.zeros(x.shape[0])
    for dr, dc in ((0, 0), (0, 1), (1, 0), (1, 1)):
        if 0 <= r + dr < x.shape[1] and 0 <= c + dc < x.shape[2]:
            weight = (1 - abs(row - r - dr)) * (1 - abs(column - c - dc))
            value += weight * x[:, r + dr, c + dc]
    return value


def naive_one(x: np.ndarray, op: str, record: DsaRecord, row: int) -> np.ndarray:
    """One operation on one image (c, h, w), as the table of the paper's code says it."""
    height, width = x.shape[1:]
    out = np.zeros_like(x)
    if op == "color":
        x = x + float(record.brightness[row])
        gray = x.mean(0, keepdims=True)
        x = (x - gray) * float(record.saturation[row]) + gray
        return (x - x.mean()) * float(record.contrast[row]) + x.mean()
    if op == "crop":
        dy, dx = record.offset[row].tolist()
        for i in range(height):
            for j in range(width):
                if 0 <= i + dy < height and 0 <= j + dx < width:
                    out[:, i, j] = x[:, i + dy, j + dx]
        return out
    if op == "cutout":
        top, left, bottom, right = record.hole[row].tolist()
        for i in range(height):
            for j in range(width):
                if not (top <= i < bottom and left <= j < right):
                    out[:, i, j] = x[:, i, j]
        return out
    if op == "flip":
        return x[:, :, ::-1].copy() if bool(record.mirrored[row]) else x
    if op == "scale":
        sx, sy = record.factor[row].tolist()
        matrix = [[sx, 0.0], [0.0, sy]]
    else:
        a = float(record.angle[row])
        matrix = [[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]
    for i in range(height):
        for j in range(width):
            u, v = (2 * j + 1) / width - 1, (2 * i + 1) / height - 1
            su, sv = matrix[0][0] * u + matrix[0][1] * v, matrix[1][0] * u + matrix[1][1] * v
            out[:, i, j] = sample_bilinear(x, ((sv + 1) * height - 1) / 2, ((su + 1) * width - 1) / 2)
    return out


def naive(x: Tensor, record: DsaRecord, rows: list[int]) -> Tensor:
    out = []
    for image, row in zip(x.numpy(), rows, strict=True):
        for op in record.ops[row].tolist():
            image = naive_one(image, OPERATIONS[op], record, row)
        out.append(torch.from_numpy(np.ascontiguousarray(image)))
    return torch.stack(out)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", OPERATIONS)
def test_each_operation_equals_the_literal_one(op, shape):
    x = images(6, shape)
    record = draw(op, 6, shape)
    found = apply(x, record)
    assert (found - naive(x, record, list(range(6)))).abs().max() < 1e-6
    if op != "flip" or record.mirrored.any():
        assert (found - x).abs().max() > 0.1  # it did something


@pytest.mark.parametrize("mode", ["single", "multiple"])
def test_mixed_rows_equal_the_literal_one(mode):
    shape = (3, 12, 10)
    x = images(40, shape)
    record = draw("color_crop_cutout_flip_scale_rotate", 7, shape, mode=mode)
    rows = torch.randint(7, (40,), generator=torch.Generator().manual_seed(1))
    if mode == "single":
        assert len(record.ops.unique()) > 2
    assert (apply(x, record, rows) - naive(x, record, rows.tolist())).abs().max() < 1e-6


def test_multiple_follows_the_order_of_the_strategy():
    shape = (1, 10, 10)
    x = images(3, shape)
    record = draw("rotate_crop", 3, shape, mode="multiple")
    other = draw("crop_rotate", 3, shape, mode="multiple")
    assert (apply(x, record) - naive(x, record, [0, 1, 2])).abs().max() < 1e-6
    assert (apply(x, record) - apply(x, other)).abs().max() > 1e-2


@pytest.mark.parametrize("op", [*OPERATIONS, "color_crop_cutout_flip_scale_rotate"])
def test_the_two_sides_of_a_pair_are_augmented_alike(op):
    shape, classes = (3, 16, 16), 5
    a, b = images(20, shape, 1), images(11, shape, 2)
    ya = torch.randint(classes, (20,), generator=torch.Generator().manual_seed(3))
    yb = torch.randint(classes, (11,), generator=torch.Generator().manual_seed(4))
    record = draw(op, classes, shape)
    both = apply(torch.cat([a, b]), record, torch.cat([ya, yb]))
    assert torch.equal(both, torch.cat([apply(a, record, ya), apply(b, record, yb)]))
    one_by_one = [apply(a[i : i + 1], record, ya[i : i + 1]) for i in range(20)]
    assert (both[:20] - torch.cat(one_by_one)).abs().max() < 1e-12


def test_float32_is_close_to_float64():
    x = images(64, (3, 32, 32))
    record = draw("color_crop_cutout_flip_scale_rotate", 64, (3, 32, 32))
    low = apply(x.float(), record)
    assert low.dtype == torch.float32
    assert (low - apply(x, record)).abs().max() < 1e-4


def test_operations_are_chosen_uniformly_and_independently():
    record = draw("color_crop_cutout_flip_scale_rotate", 6000, (3, 32, 32))
    assert record.ops.shape == (6000, 1)
    counts = torch.bincount(record.ops[:, 0], minlength=6)
    assert chisquare(counts.numpy()).pvalue > 0.001
    pairs = torch.bincount(record.ops[:-1, 0] * 6 + record.ops[1:, 0], minlength=36)
    assert chisquare(pairs.numpy()).pvalue > 0.001
    firsts = [int(draw("crop_flip_scale", 3, (1, 8, 8), s, one_op=True).ops[0, 0]) for s in range(900)]
    assert chisquare(np.bincount(firsts, minlength=6)[[1, 3, 4]]).pvalue > 0.001


def test_one_op_is_shared_while_parameters_are_not():
    for seed in range(20):
        record = draw("color_crop_cutout_flip_scale_rotate", 50, (1, 28, 28), seed, one_op=True)
        assert len(record.ops.unique()) == 1
        assert len(record.angle.unique()) == 50


@pytest.mark.parametrize(("side", "shift", "hole"), [(28, 4, 14), (32, 4, 16), (64, 8, 32), (9, 1, 5)])
def test_parameters_have_the_ranges_of_the_table(side, shift, hole):
    record = draw("color", 6000, (3, side, side))

    def uniform(values: Tensor, low: float, high: float) -> None:
        assert kstest(values.double().numpy(), "uniform", (low, high - low)).pvalue > 0.001

    def uniform_integers(values: Tensor, low: int, high: int) -> None:
        assert (int(values.min()), int(values.max())) == (low, high)
        assert chisquare(torch.bincount(values - low).numpy()).pvalue > 0.001

    uniform(record.brightness, -0.5, 0.5)
    uniform(record.saturation, 0.0, 2.0)
    uniform(record.contrast, 0.5, 1.5)
    uniform(record.factor[:, 0], 1 / 1.2, 1.2)
    uniform(record.factor[:, 1], 1 / 1.2, 1.2)
    uniform(record.angle, -math.pi / 12, math.pi / 12)
    for axis in (0, 1):
        uniform_integers(record.offset[:, axis], -shift, shift)
        start, stop = record.hole[:, axis], record.hole[:, axis + 2]
        assert ((stop - start) == hole).all()
        uniform_integers(start + hole // 2, 0, side - hole % 2)
    assert abs(record.mirrored.double().mean() - 0.5) < 0.03
    columns = [record.brightness, record.saturation, record.contrast, *record.factor.T, record.angle]
    columns += [*record.offset.T, record.hole[:, 0], record.hole[:, 1], record.mirrored, record.ops[:, 0] * 0]
    correlation = torch.corrcoef(torch.stack([c.double() for c in columns[:-1]]))
    assert (correlation - torch.eye(len(correlation))).abs().max() < 0.06


def test_each_axis_has_its_own_range():
    record = draw("crop", 4000, (1, 16, 64))
    assert record.offset.abs().amax(0).tolist() == [2, 8]
    assert (record.hole[0, 2:] - record.hole[0, :2]).tolist() == [8, 32]
    assert int(record.hole[:, 2].max()) == 16 + 4
    assert int(record.hole[:, 3].max()) == 64 + 16


def check_derivatives(augment: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """First and second derivatives against finite differences; torch's check draws globally."""
    x = x.clone().requires_grad_()
    with isolated(0):
        assert torch.autograd.gradcheck(augment, x)
        assert torch.autograd.gradgradcheck(lambda x: augment(x) ** 2, x)


@pytest.mark.parametrize("op", OPERATIONS)
def test_every_operation_is_affine_and_differentiable(op):
    shape = (2, 6, 5)
    record = draw(op, 3, shape, seed=2)
    a, b = images(3, shape, 1), images(3, shape, 2)
    zero = torch.zeros_like(a)
    gap = apply(a + b, record) - apply(a, record) - apply(b, record) + apply(zero, record)
    assert gap.abs().max() < 1e-12
    check_derivatives(lambda x: apply(x, record), a)


def test_mixed_rows_are_twice_differentiable():
    shape = (2, 5, 5)
    record = draw("color_crop_cutout_flip_scale_rotate", 4, shape, seed=1)
    rows = torch.tensor([0, 1, 2, 3, 1, 0])
    assert len(record.ops.unique()) >= 2
    check_derivatives(lambda x: apply(x, record, rows), images(6, shape))


def test_neutral_parameters_are_the_identity():
    shape = (3, 11, 8)
    x = images(4, shape)
    neutral = {
        "color": {"brightness": 0.0, "saturation": 1.0, "contrast": 1.0},
        "crop": {"offset": 0},
        "cutout": {"hole": 0},
        "flip": {"mirrored": False},
        "scale": {"factor": 1.0},
        "rotate": {"angle": 0.0},
    }
    for op, values in neutral.items():
        state = draw(op, 4, shape).state()
        for name, value in values.items():
            state[name] = torch.full_like(state[name], value)
        assert (apply(x, DsaRecord.from_state(state)) - x).abs().max() < 1e-6, op


def test_flipping_twice_is_the_identity():
    shape = (3, 8, 8)
    x = images(16, shape)
    record = draw("flip", 16, shape)
    assert record.mirrored.any()
    assert not record.mirrored.all()
    assert torch.equal(apply(apply(x, record), record), x)


def test_saturation_leaves_one_channel_alone():
    state = draw("color", 5, (1, 8, 8)).state()
    state["brightness"].zero_()
    state["contrast"].fill_(1.0)
    x = images(5, (1, 8, 8))
    assert (apply(x, DsaRecord.from_state(state)) - x).abs().max() < 1e-12
    state["saturation"].fill_(0.0)
    y = images(5, (3, 8, 8))
    assert (apply(y, DsaRecord.from_state(state)).std(1)).max() < 1e-12  # all gray


@pytest.mark.parametrize("side", [8, 9, 28])
def test_cutout_zeroes_the_predicted_count(side):
    record = draw("cutout", 200, (2, side, side))
    x = torch.ones(200, 2, side, side)
    stop, start = record.hole[:, 2:].clamp(0, side), record.hole[:, :2].clamp(0, side)
    predicted = 2 * (stop - start).prod(1)
    assert torch.equal((apply(x, record) == 0).sum((1, 2, 3)), predicted)
    most = int(0.5 * side + 0.5) ** 2
    assert int(predicted.max()) == 2 * most
    assert int(predicted.min()) >= 2 * (int(0.5 * side + 0.5) // 2) ** 2


def test_images_and_global_generators_are_left_alone():
    x = images(30, (3, 10, 10))
    before, state = x.clone(), torch.get_rng_state()
    for mode in ("single", "multiple"):
        apply(x, draw("color_crop_cutout_flip_scale_rotate", 30, (3, 10, 10), mode=mode))
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)

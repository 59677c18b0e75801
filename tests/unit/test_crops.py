"""Crops: boxes as drawn by a plain loop, resizing as F.interpolate does it, gradients that stay inside."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from datastill.augment import crops
from datastill.augment.crops import crop_resize, flip, pad_crop_boxes, resized_crop_boxes, roll
from datastill.core.errors import InputError

WHOLE = (1.0, 1.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, 3, height, width, generator=generator(1), dtype=dtype)


def naive_crop(x: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Each crop cut out by itself and interpolated."""
    rows = boxes.expand(len(x), 4).tolist()
    cut = [x[i : i + 1, :, t : t + h, left : left + w] for i, (t, left, h, w) in enumerate(rows)]
    return torch.cat([F.interpolate(c, size=size, mode="bilinear", align_corners=False) for c in cut])


Case = tuple[int, int, list[tuple[int, int, int, int]], tuple[int, int]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    boxes = []
    for _ in range(draw(st.integers(1, 4))):
        h, w = draw(st.integers(1, height)), draw(st.integers(1, width))
        boxes.append((draw(st.integers(0, height - h)), draw(st.integers(0, width - w)), h, w))
    return height, width, boxes, (draw(st.integers(1, 14)), draw(st.integers(1, 14)))


@pytest.fixture(params=["cpu", "elsewhere"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The code for CPUs, and that for other devices, run on the CPU."""
    if request.param == "elsewhere":
        monkeypatch.setattr(crops, "_one_by_one", crops._all_at_once)
        monkeypatch.setattr(crops, "take", crops._gather)
    return str(request.param)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_crops_are_those_of_interpolate(case: Case) -> None:
    height, width, rows, size = case
    boxes = torch.tensor(rows)
    x = images(len(rows), height, width)
    expected = naive_crop(x, boxes, size)
    assert torch.equal(crops._one_by_one(x, boxes, size), expected)
    assert torch.allclose(crops._all_at_once(x, boxes, size), expected, rtol=0, atol=1e-12)
    assert torch.equal(crop_resize(x, boxes, size), expected)
    assert torch.equal(crop_resize(x, boxes[:1], size), naive_crop(x, boxes[:1], size))


@pytest.mark.parametrize(("side", "most"), [(28, 1e-4), (32, 1e-6), (224, 1e-4)])
def test_single_precision_crops_are_those_of_interpolate(side: int, most: float, device: str) -> None:
    """Below 1e-6 where torch fuses its multiplications, else as far off as its own positions in single precision."""
    x = images(8, side, side, torch.float32)
    boxes = resized_crop_boxes(generator(), 8, (side, side))
    assert (crop_resize(x, boxes) - naive_crop(x, boxes, (side, side))).abs().max() < most


def test_a_whole_image_comes_back_bit_for_bit(device: str) -> None:
    x = images(3, 9, 7, torch.float32)
    whole = torch.tensor([[0, 0, 9, 7]])
    assert crop_resize(x, whole) is x
    assert crop_resize(x, whole.expand(3, 4)) is x
    boxes = torch.tensor([[0, 0, 9, 7], [1, 2, 4, 3], [0, 0, 9, 7]])
    cropped = crop_resize(x, boxes)
    assert torch.equal(cropped[[0, 2]], x[[0, 2]])
    assert not torch.equal(cropped[1], x[1])


def test_one_box_serves_the_whole_batch() -> None:
    x = images(1, 12, 12).expand(5, -1, -1, -1)
    view = crop_resize(x, torch.tensor([[2, 3, 5, 6]]))
    assert all(torch.equal(view[0], each) for each in view)


@pytest.mark.parametrize("rows", [1, 4])
def test_the_gradient_is_zero_outside_the_crop_and_exact_inside(rows: int, device: str) -> None:
    boxes = torch.tensor([[2, 1, 5, 6], [0, 0, 3, 3], [4, 4, 4, 4], [0, 0, 8, 8]])[:rows]
    x = images(4, 8, 8).requires_grad_()
    weight = torch.randn(4, 3, 8, 8, generator=generator(2), dtype=torch.float64)
    (ours,) = torch.autograd.grad((crop_resize(x, boxes) * weight).sum(), x)
    (theirs,) = torch.autograd.grad((naive_crop(x, boxes, (8, 8)) * weight).sum(), x)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    for i, (top, left, h, w) in enumerate(boxes.expand(4, 4).tolist()):
        outside = torch.ones(8, 8, dtype=torch.bool)
        outside[top : top + h, left : left + w] = False
        assert (ours[i][:, outside] == 0).all()
        assert (ours[i][:, ~outside] != 0).all()


def test_boxes_are_drawn_as_a_plain_loop_would() -> None:
    """The same uniform numbers, one box after the other, in Python."""
    height, width, low, high = 20, 33, 0.1, 0.9
    boxes = resized_crop_boxes(generator(3), 200, (height, width), (low, high)).tolist()
    table = torch.rand(200, 22, dtype=torch.float64, generator=generator(3)).tolist()
    for box, u in zip(boxes, table, strict=True):
        expected = None
        for k in range(10):
            area = height * width * (low + u[k] * (high - low))
            ratio = math.exp(math.log(3 / 4) + u[10 + k] * (math.log(4 / 3) - math.log(3 / 4)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                expected = [int(u[20] * (height - h + 1)), int(u[21] * (width - w + 1)), h, w]
                break
        assert box == (expected or [0, 3, 20, 27])  # 20 high and 20 * 4/3 wide, centered


def test_boxes_lie_inside_and_have_the_drawn_areas() -> None:
    boxes = resized_crop_boxes(generator(), 4000, (32, 32))
    top, left, h, w = boxes.unbind(1)
    assert int(top.min()) == 0
    assert int(left.min()) == 0
    assert int((top + h).max()) == 32
    assert int((left + w).max()) == 32
    area = (h * w) / 1024
    assert 0.06 < float(area.min()) < 0.1
    assert float(area.max()) == 1
    assert 0.45 < float(area.mean()) < 0.55
    assert 0.7 < float((w / h).min()) < 0.8
    assert 1.25 < float((w / h).max()) < 1.45


def test_boxes_of_the_whole_area_are_the_whole_image_on_squares_and_centered_on_others() -> None:
    assert (resized_crop_boxes(generator(), 500, (28, 28), WHOLE) == torch.tensor([0, 0, 28, 28])).all()
    assert (resized_crop_boxes(generator(), 50, (10, 100), WHOLE) == torch.tensor([0, 43, 10, 13])).all()
    assert (resized_crop_boxes(generator(), 50, (100, 10), WHOLE) == torch.tensor([43, 0, 13, 10])).all()


def test_padded_crops_are_cut_from_images_with_a_border_of_zeros(device: str) -> None:
    x = images(50, 8, 6)
    boxes = pad_crop_boxes(generator(), 50, (8, 6), 2)
    bordered = F.pad(x, (2, 2, 2, 2))
    for i, (top, left, h, w) in enumerate(boxes.tolist()):
        assert (h, w) == (8, 6)
        expected = bordered[i, :, top + 2 : top + 10, left + 2 : left + 8]
        assert torch.equal(crop_resize(x, boxes)[i], expected)
        assert torch.equal(crop_resize(x[i : i + 1], boxes[i : i + 1])[0], expected)
    assert set(boxes[:, 0].tolist()) == set(boxes[:, 1].tolist()) == {-2, -1, 0, 1, 2}


def test_flips_and_rolls(device: str) -> None:
    x = images(3, 5, 4)
    assert torch.equal(flip(x, torch.tensor([True])), x.flip(3))
    assert flip(x, torch.tensor([False])) is x
    mixed = flip(x, torch.tensor([True, False, True]))
    assert torch.equal(mixed, torch.stack([x[0].flip(2), x[1], x[2].flip(2)]))
    assert torch.equal(roll(x, torch.tensor([[2, -1]])), x.roll((2, -1), (2, 3)))
    assert roll(x, torch.tensor([[0, 0]])) is x
    shifts = torch.tensor([[0, 1], [4, -3], [-7, 9]])
    assert torch.equal(
        roll(x, shifts), torch.stack([each.roll(tuple(s), (1, 2)) for each, s in zip(x, shifts.tolist(), strict=True)])
    )


def test_a_draw_is_a_function_of_its_generator() -> None:
    first = resized_crop_boxes(generator(5), 6, (32, 32))
    assert torch.equal(first, resized_crop_boxes(generator(5), 6, (32, 32)))
    assert not torch.equal(first, resized_crop_boxes(generator(6), 6, (32, 32)))


def test_what_cannot_be_is_refused() -> None:
    x = images(3, 5, 4)
    with pytest.raises(InputError, match=r"\(1, 4\) or \(3, 4\)"):
        crop_resize(x, torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="at least one pixel"):
        crop_resize(x, torch.tensor([[0, 0, 0, 4]]))
    for scale in ((0.0, 1.0), (0.5, 0.4), (0.5, 1.5), (float("nan"), 1.0)):
        with pytest.raises(InputError, match="fractions"):
            resized_crop_boxes(generator(), 1, (4, 4), scale)
    with pytest.raises(InputError, match="width over height"):
        resized_crop_boxes(generator(), 1, (4, 4), ratio=(2.0, 1.0))
    with pytest.raises(InputError, match="padding"):
        pad_crop_boxes(generator(), 1, (4, 4), -1)

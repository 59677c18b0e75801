"""The report: snapshots, pictures, curves, neighbors."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from datastill import distill, load_real
from datastill.core.errors import InputError, Interrupted
from datastill.core.plan import Callback
from datastill.core.space import Space
from datastill.report import Snapshots, Timeline, load_snapshots, reproduce
from datastill.report.charts import curves, loss_curve, spans
from datastill.report.neighbors import nearest_real
from datastill.report.pictures import animation, frames, grid, sheet, to_bytes
from datastill.report.snapshots import moments

STEPS = 20


def rand(*shape: int) -> Tensor:
    """Uniform numbers that are the same every time."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def digits():
    return load_real("digits")


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """A short run with its snapshots."""
    snapshots = Snapshots()
    folder = tmp_path_factory.mktemp("run")
    one = distill("dm", digits, ipc=1, steps=STEPS, real_batch=8, out=folder / "a", callbacks=[snapshots])
    return one, snapshots, folder / "a"


# Snapshots


@pytest.mark.parametrize("steps", [0, 1, 2, 7, 100, 20_000])
def test_moments_run_from_the_start_to_the_last_step_and_grow(steps):
    kept = moments(steps)
    assert kept[0] == 0
    assert kept[-1] == steps
    assert kept == sorted(set(kept))
    assert len(kept) <= 12
    gaps = [b - a for a, b in itertools.pairwise(kept)]
    assert gaps == sorted(gaps)


def test_the_timeline_starts_at_the_initialization_and_ends_at_the_result(run, digits):
    one, snapshots, _ = run
    timeline = snapshots.timeline
    assert timeline.steps == tuple(moments(STEPS))
    assert timeline.total == STEPS
    start = distill("random", digits, ipc=1)
    assert (timeline.pixels[0].float() - start.pixels).abs().max() < 1e-3
    assert (timeline.pixels[-1].float() - one.pixels).abs().max() < 1e-3
    assert timeline.pixels.dtype == torch.float16
    assert not torch.equal(timeline.pixels[0], timeline.pixels[-1])


class _StopAfter(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, context) -> None:
        if context.step == self.step:
            raise Interrupted("enough")


def test_a_resumed_run_has_the_identical_timeline(run, digits, tmp_path):
    _, whole, _ = run
    settings = {"ipc": 1, "steps": STEPS, "real_batch": 8, "out": tmp_path / "b", "checkpoint_seconds": 0}
    with pytest.raises(Interrupted):
        distill("dm", digits, callbacks=[Snapshots(), _StopAfter(11)], **settings)
    resumed = Snapshots()
    distill("dm", digits, resume=True, callbacks=[resumed], **settings)
    assert resumed.timeline.steps == whole.timeline.steps
    assert torch.equal(resumed.timeline.pixels, whole.timeline.pixels)
    assert torch.equal(resumed.timeline.labels, whole.timeline.labels)


def test_a_timeline_survives_saving_and_damage_is_refused(run, tmp_path):
    _, snapshots, _ = run
    path = snapshots.save(tmp_path)
    again = load_snapshots(tmp_path)
    assert again.steps == snapshots.timeline.steps
    assert torch.equal(again.pixels, snapshots.timeline.pixels)
    assert again.total == STEPS
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="sound safetensors"):
        load_snapshots(tmp_path)
    assert Snapshots().save(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


class _Stub:
    """As much of a context as snapshots look at."""

    def __init__(self, x: Tensor, y: Tensor, key: int = 0, steps: int = 4) -> None:
        from types import SimpleNamespace as Space_

        from datastill.decoders.pixels import Pixels

        self.plan, self.codes, self.step, self.steps = Space_(decoder=Pixels()), {"images": x}, 0, steps
        self.block = Space_(key=key, y=y)
        self.task = Space_(real=Space_(space=Space()))


def test_snapshots_keep_few_and_small_images_of_the_first_block_only():
    snapshots = Snapshots()
    many = _Stub(rand(3000, 1, 4, 4), torch.arange(100).repeat_interleave(30))
    snapshots.start(many)
    assert torch.bincount(snapshots.timeline.labels).tolist() == [2] * 100
    other = _Stub(rand(5, 1, 4, 4), torch.zeros(5, dtype=torch.int64), key=1)
    snapshots.start(other)
    other.step = 4
    snapshots.after_step(other)
    assert snapshots.timeline.steps == (0,)
    snapshots.start(_Stub(rand(4, 3, 256, 128), torch.arange(4)))  # the same block again: a new run
    assert snapshots.timeline.pixels.shape == (1, 4, 3, 64, 32)


def test_of_several_blocks_the_first_is_kept_and_a_new_run_begins_anew():
    snapshots = Snapshots()
    x = rand(2, 1, 4, 4)
    for _ in range(2):
        snapshots.start(_Stub(x, torch.arange(2)))
        assert len(snapshots.timeline) == 1
    restored = Snapshots()
    restored.load(snapshots.state())
    assert torch.equal(restored.timeline.pixels, snapshots.timeline.pixels)
    assert Snapshots().state() == {}
    restored.load({})
    assert restored.timeline is None


# Pictures


def test_a_tiny_image_is_enlarged_without_smoothing():
    black_and_white = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).view(1, 1, 2, 2)
    picture = sheet(black_and_white, 1)
    assert min(picture.size) >= 48
    assert {rgb for _, rgb in picture.getcolors()} == {(0, 0, 0), (255, 255, 255)}
    assert picture.getpixel((0, 0)) == (0, 0, 0)
    assert picture.getpixel((picture.width - 1, 0)) == (255, 255, 255)


def test_pixels_are_rounded_and_clamped():
    values = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.0, 2.0, float("nan")])
    assert to_bytes(values).tolist() == [0, 0, 0, 1, 255, 255, 255, 0]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_a_grid_shows_each_class_in_its_row(channels):
    x = torch.zeros(4, channels, 8, 8)
    x[2:] = 1.0
    picture = grid(x, torch.tensor([1, 1, 0, 0]), ["white", "black"])
    lit = [picture.getpixel((picture.width - 40, y)) for y in (40, 40 + 59)]
    assert lit[0] != (0, 0, 0)
    assert lit[1][0] == 0


def test_a_cut_grid_says_so(monkeypatch):
    import datastill.report.pictures as pictures

    notes = []
    original = pictures._cuts
    monkeypatch.setattr(pictures, "_cuts", lambda *a: notes.append(original(*a)) or original(*a))
    y = torch.arange(100).repeat_interleave(12)
    small = grid(rand(1200, 3, 8, 8), y, [f"class {i}" for i in range(100)], rows=10)
    assert notes[0] == ["first 10 of 100 classes, first 10 of 12 images per class"]
    whole = grid(rand(10, 3, 8, 8), torch.arange(10), [str(i) for i in range(10)])
    assert notes[1] == []
    assert small.width > whole.width


def test_the_animation_has_a_picture_per_moment(run):
    _, snapshots, _ = run
    gif = Image.open(io.BytesIO(animation(snapshots)))
    assert gif.format == "GIF"
    assert gif.n_frames == len(snapshots.timeline)
    assert gif.info["loop"] == 0
    gif.seek(gif.n_frames - 1)
    last = gif.info["duration"]
    gif.seek(1)
    assert last > gif.info["duration"]


def test_frames_stay_within_their_budget():
    timeline = Timeline((0, 1), rand(2, 40, 3, 16, 16).half(), torch.arange(4).repeat_interleave(10), 1)
    full, cut = frames(timeline), frames(timeline, values=8 * 768)
    assert full[0].size == (10 * 67 - 3, 4 * 67 - 3)
    assert cut[0].size == (2 * 67 - 3, 4 * 67 - 3)


# Curves


def test_curves_are_equal_bytes_and_leave_out_steps_that_are_not_finite():
    losses = torch.linspace(100, 1, 1000)
    losses[500] = float("nan")
    first = curves(losses, [(10, 0.5), (1000, 0.8)])
    assert first == curves(losses, [(10, 0.5), (1000, 0.8)])
    assert b"<svg" in first
    assert curves(losses, format="png").startswith(b"\x89PNG")
    curve = loss_curve(losses)
    assert len(curve.x) == 200
    assert torch.isfinite(curve.y).all()
    assert curve.y[0] > 98
    assert curve.y[-1] < 2
    assert loss_curve(torch.tensor([float("nan"), 2.0, 3.0])).x.tolist() == [2.0, 3.0]
    assert spans(losses)
    assert not spans([1.0, 2.0])
    assert not spans([-1.0, 100.0])


def test_drawing_leaves_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    curves([3.0, 2.0], dark=True)
    assert dict(matplotlib.rcParams) == before


# Neighbors


def test_the_nearest_real_image_is_found_within_the_class(digits):
    index = torch.stack([digits.class_index(c)[5] for c in range(10)])
    found = nearest_real(digits.pixels(index) + 0.001, torch.arange(10), digits)
    assert torch.equal(found.index, index)
    assert torch.allclose(found.distance, torch.full((10,), 0.001), atol=1e-5)
    swapped = nearest_real(digits.pixels(index), torch.arange(10).roll(1), digits)
    assert torch.equal(digits.labels[swapped.index], torch.arange(10).roll(1))
    few = nearest_real(digits.pixels(index), torch.arange(10), digits, limit=2)
    ends = {int(i) for c in range(10) for i in (digits.class_index(c)[0], digits.class_index(c)[-1])}
    assert {int(i) for i in few.index} <= ends


def test_a_method_in_a_file_of_ones_own_is_made_again_from_that_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from datastill.core.registry import method\n"
        "from datastill.methods.random import Random\n\n\n"
        '@method("mine", paper="", family="coreset")\n@dataclass(frozen=True, kw_only=True)\nclass Mine(Random):\n'
        '    """Random by another name."""\n'
    )
    made = distill(str(file), load_real("digits"), ipc=1)
    assert made.manifest["method_file"] == "mine.py"
    assert 'distill("path/to/mine.py", real' in reproduce.python_call(made.manifest)
    assert "datastill distill path/to/mine.py --data digits" in (reproduce.command(made.manifest) or "")
    assert "method_file" not in distill("random", load_real("digits"), ipc=1).manifest

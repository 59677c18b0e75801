"""What colored digits and garments on backgrounds look like, pixel by pixel."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datastill.core.errors import InputError
from datastill.core.rng import undisturbed
from datastill.data import RealSet, load_real
from datastill.data.biased.backgrounds import OnBackgrounds
from datastill.data.biased.colored import COLORS, JITTER, Colors, colors
from datastill.data.biased.masks import LARGEST_HOLE, foreground, holes
from datastill.data.biased.scenes import FolderBackgrounds
from datastill.data.biased.textures import ProceduralBackgrounds


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


class TestColoredDigits:
    @pytest.mark.parametrize("severity", JITTER)
    def test_mean_color_and_spread_of_aligned_images(self, severity: int, digits: RealSet) -> None:
        real = load_real(f"cmnist:base=digits,ratio=0.05,severity={severity}")
        gray = digits.pixels(torch.arange(len(digits))).numpy()[:, 0]
        pixels = real.pixels(torch.arange(len(real))).numpy()
        s = JITTER[severity]
        for c in range(10):
            rows = ((real.labels == c) & (real.bias == c)).nonzero().flatten().numpy()
            bright = gray[rows].reshape(len(rows), -1)
            at = bright.argmax(1)
            found = pixels[rows].reshape(len(rows), 3, -1)[np.arange(len(rows)), :, at]
            found = found / bright[np.arange(len(rows)), at, None]
            wanted = np.array(COLORS[c])
            inside = (wanted > 3 * s) & (wanted < 1 - 3 * s)  # where the clamp changes nothing to speak of
            limit = 3.5 * s / np.sqrt(len(rows)) + 0.5 / 255 / np.sqrt(len(rows))
            assert (np.abs(found.mean(0) - wanted) < limit)[inside].all()
            if s >= 0.01:
                assert found.std(0)[inside] == pytest.approx(s, rel=0.35)

    def test_an_image_is_gray_times_one_color(self) -> None:
        rng = np.random.default_rng(0)
        gray = rng.integers(0, 256, (1, 20, 20), dtype=np.uint8)
        gray[0, :5] = 0
        gray[0, 10, 10] = 255
        made = Colors(1).paint(gray, 3, np.random.default_rng(7))
        drawn = (np.array(COLORS[3]) + np.random.default_rng(7).normal(0, 0.05, 3)).clip(0, 1)
        assert made[:, 10, 10] == pytest.approx(255 * drawn, abs=0.5)
        assert made == pytest.approx(drawn[:, None, None] * gray, abs=0.5)
        assert (made[:, :5] == 0).all()
        order = gray.ravel().argsort(kind="stable")
        assert all((np.diff(channel.ravel()[order].astype(int)) >= 0).all() for channel in made)

    @pytest.mark.parametrize("bias", range(10))
    def test_colors_are_cut_off_at_black_and_white(self, bias: int) -> None:
        """A channel that the jitter takes out of [0, 1] stays at the end; as a byte it would come round."""
        gray, outside = np.arange(256, dtype=np.uint8).reshape(1, 16, 16), 0
        for seed in range(30):
            drawn = np.array(COLORS[bias]) + np.random.default_rng(seed).normal(0, 0.05, 3)
            outside += int(((drawn < 0) | (drawn > 1)).sum())
            made = Colors(1).paint(gray, bias, np.random.default_rng(seed))
            assert made == pytest.approx(drawn.clip(0, 1)[:, None, None] * gray, abs=0.5)
        assert outside > 0 or np.abs(np.array(COLORS[bias]) - 0.5).max() < 0.4

    def test_background_is_black_in_the_set(self, digits: RealSet) -> None:
        real = load_real("cmnist:base=digits")
        index = torch.arange(len(real))
        black = (digits.pixels(index) == 0).expand(-1, 3, -1, -1)
        assert (real.pixels(index)[black] == 0).all()

    def test_colors_beyond_the_table(self) -> None:
        assert colors(4).tolist() == [list(c) for c in COLORS[:4]]
        many = colors(60)
        assert many.shape == (60, 3)
        assert many.min() >= 0
        assert many.max() <= 1
        near = np.abs(many[:, None] - many).max(2) + np.eye(60)
        assert near.min() > 0.01
        assert np.array_equal(many[:20], colors(20))

    def test_the_shortcut_is_there_and_is_useless(self) -> None:
        """A linear classifier on the mean of each channel over the strokes."""
        with undisturbed():  # importing scikit-learn draws from Python's generator
            from sklearn.linear_model import LogisticRegression

        real = load_real("cmnist:base=digits,ratio=0.005,seed=1")
        assert real.test is not None

        def means(one: RealSet) -> np.ndarray:
            pixels = one.pixels(torch.arange(len(one))).flatten(2)
            return (pixels.sum(2) / (pixels.sum(1).max(1).values[:, None] + 1e-6)).numpy()

        linear = LogisticRegression(C=1e4, max_iter=3000).fit(means(real), real.labels)
        told = torch.from_numpy(linear.predict(means(real)))
        assert (told == real.labels).float().mean() > 0.99
        odd = real.test.bias != real.test.labels
        assert (torch.from_numpy(linear.predict(means(real.test))) == real.test.labels)[odd].float().mean() < 0.03


def flooded(solid: np.ndarray) -> np.ndarray:
    """Holes by a flood from the border, pixel by pixel; large ones are left out."""
    h, w = solid.shape

    def spread(start: list[tuple[int, int]], seen: set[tuple[int, int]]) -> set[tuple[int, int]]:
        found, queue = set(start), deque(start)
        while queue:
            y, x = queue.popleft()
            for at in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if 0 <= at[0] < h and 0 <= at[1] < w and not solid[at] and at not in found and at not in seen:
                    found.add(at)
                    queue.append(at)
        return found

    border = [(y, x) for y in range(h) for x in range(w) if (y in (0, h - 1) or x in (0, w - 1)) and not solid[y, x]]
    seen = spread(border, set())
    filled = np.zeros_like(solid)
    for y in range(h):
        for x in range(w):
            if not solid[y, x] and (y, x) not in seen:
                hole = spread([(y, x)], seen)
                seen |= hole
                for at in hole:
                    filled[at] = len(hole) <= LARGEST_HOLE * solid.size
    return filled


class TestMasks:
    def test_holes_against_a_naive_flood(self) -> None:
        rng = np.random.default_rng(0)
        for share in (0.3, 0.5, 0.65, 0.8, 1.0, 0.0):
            for _ in range(8):
                solid = rng.random((17, 13)) < share
                assert np.array_equal(holes(solid), flooded(solid))

    def test_a_ring_with_a_large_hole_stays_open(self) -> None:
        ring = np.zeros((28, 28), bool)
        ring[4:24, 4:24] = True
        ring[8:20, 8:20] = False
        assert not holes(ring).any()
        ring[8:20, 8:20] = True
        ring[12:15, 12:15] = False
        assert holes(ring).sum() == 9

    def test_hard_and_soft(self) -> None:
        gray = np.zeros((28, 28))
        gray[5:20, 5:20] = 30 / 255  # a dark garment
        gray[5, 5:20] = 12 / 255  # its faint outline
        gray[10:12, 10:12] = 0  # a black print
        hard = foreground(gray, "hard", 4.0, 10 / 255)
        assert set(np.unique(hard)) == {0.0, 1.0}
        assert hard[5:20, 5:20].all()
        assert hard.sum() == 15 * 15
        soft = foreground(gray, "soft", 4.0, 10 / 255)
        assert (soft[6:19, 6:19] == 1).all(), "opaque inside"
        assert soft[5, 5:20] == pytest.approx(48 / 255)
        assert soft[19, 6] == pytest.approx(120 / 255)
        assert (soft[hard == 0] == 0).all()


class TestBackgrounds:
    @pytest.mark.parametrize("mask", ["soft", "hard"])
    def test_composition(self, mask: str) -> None:
        rng = np.random.default_rng(0)
        painter = OnBackgrounds(mask=mask)
        gray = np.zeros((1, 28, 28), np.uint8)
        gray[0, 6:22, 8:20] = rng.integers(1, 256, (16, 12))
        gray[0, 12:14, 12:14] = 0
        made = painter.paint(gray, 7, np.random.default_rng(5))
        behind = ProceduralBackgrounds()(7, np.random.default_rng(5), (28, 28)) * 255
        m = foreground(gray[0] / 255, mask, 4.0, 10 / 255)
        assert np.array_equal(made[:, m == 1], np.repeat(gray[:, m == 1], 3, 0))
        assert np.abs(made[:, m == 0] - behind[:, m == 0]).max() <= 0.5 + 1e-9
        between = (m > 0) & (m < 1)
        blend = m * gray[0] + (1 - m) * behind
        assert np.abs(made - blend)[:, between].max(initial=0) <= 0.5 + 1e-9
        assert (m == 1).sum() > 100

    @pytest.mark.parametrize("size", [(28, 28), (8, 8), (20, 33), (64, 64), (1, 1), (3, 50)])
    def test_every_family_at_every_size(self, size: tuple[int, int]) -> None:
        provider = ProceduralBackgrounds()
        for category in range(10):
            for seed in range(5):
                made = provider(category, np.random.default_rng(seed), size)
                assert made.shape == (3, *size)
                assert np.isfinite(made).all()
                assert 0 <= made.min() <= made.max() <= 1
                assert np.array_equal(made, provider(category, np.random.default_rng(seed), size))
                assert not np.array_equal(made, provider(category, np.random.default_rng(seed + 5), size))

    def test_direction_tells_the_stripes_apart(self) -> None:
        """Horizontal stripes vary down the picture, vertical ones across it, diagonal ones along both."""
        provider, shares = ProceduralBackgrounds(), []
        for category in range(3):
            down = across = 0.0
            for seed in range(20):
                gray = provider(category, np.random.default_rng(seed), (28, 28)).mean(0)
                down += float(np.square(np.diff(gray, axis=0)).sum())
                across += float(np.square(np.diff(gray, axis=1)).sum())
            shares.append(down / (down + across))
        assert shares[0] > 0.85
        assert shares[1] < 0.15
        assert 0.4 < shares[2] < 0.6

    def test_mean_color_alone_does_not_decide(self) -> None:
        """Palettes overlap: a linear classifier on the mean color stays far below textures (measured .52)."""
        with undisturbed():  # importing scikit-learn draws from Python's generator
            from sklearn.linear_model import LogisticRegression

        provider, rng = ProceduralBackgrounds(), np.random.default_rng(0)
        x = np.array([provider(k % 10, rng, (28, 28)).mean((1, 2)) for k in range(1500)])
        y = np.arange(1500) % 10
        score = LogisticRegression(C=100, max_iter=1000).fit(x[:1000], y[:1000]).score(x[1000:], y[1000:])
        assert 0.15 < score < 0.6

    def test_train_and_test_share_no_background(self) -> None:
        """The black set shows its backgrounds alone."""
        from datastill.data.biased.build import Options, build
        from datastill.data.raw import Request

        black = np.zeros((400, 28, 28), np.uint8)
        labels = np.arange(400) % 10
        base = ((black, labels), (black, labels))
        raw = build("bg-fmnist", Request(), Options(base=base), lambda where: OnBackgrounds(where=where))
        assert raw.test is not None
        train, test = (
            {image.numpy().tobytes() for image in split.store.stored(torch.arange(400))}
            for split in (raw.train, raw.test)
        )
        assert len(train) == len(test) == 400
        assert not train & test


class TestFolder:
    @pytest.fixture
    def scenes(self, tmp_path: Path) -> Path:
        """Ten categories of six pictures; the red of a pixel is its category, the green its picture."""
        for c in range(10):
            (tmp_path / f"{c}").mkdir()
            for k in range(6):
                size = (40 + 30 * k, 60)
                Image.fromarray(np.full((*size, 3), (20 * c, 40 * k, 7), np.uint8)).save(tmp_path / f"{c}" / f"{k}.png")
        return tmp_path

    def test_pictures_of_train_and_test_are_disjoint(self, scenes: Path) -> None:
        seen = {}
        for where in ("train", "test"):
            provider, rng = FolderBackgrounds(scenes, where), np.random.default_rng(0)
            seen[where] = set()
            for _ in range(300):
                made = provider(4, rng, (28, 20)) * 255
                assert made.shape == (3, 28, 20)
                assert (made[0] == 80).all(), "of its category"
                assert (made[1] == made[1, 0, 0]).all()
                seen[where].add(round(made[1, 0, 0] / 40))
        assert seen == {"train": {1, 2, 3, 4}, "test": {0, 5}}

    def test_cut_outs_differ(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        for c in "ab":
            (tmp_path / c).mkdir()
            for k in range(2):
                Image.fromarray(rng.integers(0, 256, (300, 200, 3), dtype=np.uint8)).save(tmp_path / c / f"{k}.png")
        provider = FolderBackgrounds(tmp_path)
        made = {provider(0, np.random.default_rng(seed), (28, 28)).tobytes() for seed in range(50)}
        assert len(made) == 50

    def test_as_an_option(self, scenes: Path) -> None:
        real = load_real(f"bg-fmnist:base=digits,backgrounds={scenes},ratio=0.05,mask=hard")
        plain = load_real("bg-fmnist:base=digits,ratio=0.05,mask=hard")
        assert real.fingerprint != plain.fingerprint
        corner = real.pixels(torch.arange(len(real)))[:, :, 0, 0] * 255
        of_background = corner[:, 2].round() == 7
        assert of_background.float().mean() > 0.5
        assert torch.equal((corner[:, 0].round() / 20)[of_background].long(), real.bias[of_background])

    def test_bad_folders(self, scenes: Path, tmp_path: Path) -> None:
        for k in range(1, 6):
            (scenes / "3" / f"{k}.png").unlink()
        with pytest.raises(InputError, match="two pictures"):
            FolderBackgrounds(scenes)
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match="sub-folders"):
            FolderBackgrounds(tmp_path / "empty")

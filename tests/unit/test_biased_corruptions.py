"""The twenty corruptions against naive versions, and what must hold for all of them."""

from __future__ import annotations

import colorsys
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.data import load_real
from datastill.data.biased.corruptions import (
    CORRUPTIONS,
    LEVELS,
    PRESETS,
    blur,
    color,
    corrupt,
    corruption_list,
    digital,
    frost,
    level_of_severity,
    noise,
    weather,
)

NAMES = sorted(CORRUPTIONS)
#: These draw nothing.
FIXED = {"gaussian_blur", "defocus_blur", "zoom_blur", "contrast", "brightness", "saturate", "jpeg", "pixelate"}


def smooth_images(count: int, side: int = 32, seed: int = 0) -> np.ndarray:
    """Color images with edges and shades, (n, side, side, 3) uint8."""
    rng, found = np.random.default_rng(seed), []
    y, x = np.mgrid[:side, :side] / side
    for _ in range(count):
        image = np.zeros((side, side, 3)) + rng.uniform(0.1, 0.9, 3)
        for _ in range(6):
            cy, cx, r = rng.uniform(0, 1, 3)
            image[(y - cy) ** 2 + (x - cx) ** 2 < (r / 3) ** 2] = rng.uniform(0, 1, 3)
        found.append(image * (0.6 + 0.4 * np.sin(3 * x + rng.uniform(0, 6)))[:, :, None])
    return (np.array(found).clip(0, 1) * 255).astype(np.uint8)


IMAGES = smooth_images(24)


class TestAll:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("shape", [(32, 32), (9, 11), (64, 48), (1, 5)])
    def test_shape_and_kind(self, name: str, shape: tuple[int, int]) -> None:
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        for level in (1, 2, 3, 4, 5):
            made = corrupt(image, name, level, np.random.default_rng(0))
            assert made.dtype == np.uint8
            assert made.shape == (*shape, 3)
            for flat in (0, 255):
                corrupt(np.full((*shape, 3), flat, np.uint8), name, level, np.random.default_rng(0))

    @pytest.mark.parametrize("name", NAMES)
    def test_bytes_depend_on_the_generator_alone(self, name: str) -> None:
        image, family = IMAGES[0], Rng(3)
        before = image.copy()
        one, same, other = (corrupt(image, name, 5, family.numpy("c", i)) for i in (1, 1, 2))
        assert np.array_equal(one, same)
        assert np.array_equal(one, other) == (name in FIXED | {"original"})
        assert np.array_equal(image, before), "the image was changed in place"

    @pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "speckle_noise", "brightness"])
    def test_levels_beyond_black_and_white_are_cut_off(self, name: str) -> None:
        """As bytes they would come round: white with noise has no black pixel, nor black a white one."""
        for flat in (0, 255):
            made = corrupt(np.full((64, 64, 3), flat, np.uint8), name, 5, np.random.default_rng(0))
            assert np.abs(made.astype(int) - flat).max() < 255 * 0.95
            assert (made == flat).any() or flat == 0

    def test_original_is_the_identity(self) -> None:
        for level in (1, 5):
            assert np.array_equal(corrupt(IMAGES[0], "original", level, np.random.default_rng(0)), IMAGES[0])

    @staticmethod
    def distances(name: str, levels: tuple[int, ...]) -> list[float]:
        """Mean L2 distance to the clean image."""
        far = []
        for level in levels:
            made = [corrupt(image, name, level, Rng(1).numpy("m", k)) for k, image in enumerate(IMAGES)]
            far.append(float(np.mean([np.linalg.norm(m / 255 - i / 255) for m, i in zip(made, IMAGES)])))
        return far

    @pytest.mark.parametrize(
        "name", sorted(set(NAMES) - {"saturate", "elastic", "frost", "glass_blur", "spatter", "original"})
    )
    def test_strength_grows_with_the_level(self, name: str) -> None:
        """The tables of those left out are not made so; what grows there is tested below."""
        far = self.distances(name, (1, 2, 3, 4, 5))
        assert far[0] > 0
        assert all(b >= a for a, b in itertools.pairwise(far)), far

    @pytest.mark.parametrize(
        ("name", "levels"),
        [("spatter", (1, 2, 3)), ("spatter", (4, 5)), ("glass_blur", (2, 4)), ("glass_blur", (3, 5))],
    )
    def test_strength_grows_among_levels_of_a_kind(self, name: str, levels: tuple[int, ...]) -> None:
        """Spatter is water up to level 3, then mud; glass differs in rounds, at one blur."""
        far = self.distances(name, levels)
        assert all(b > a for a, b in itertools.pairwise(far)), far

    def test_glass_blurs_more_at_as_many_rounds(self) -> None:
        detail = []
        for level in (1, 2, 3, 4, 5):
            made = [corrupt(i, "glass_blur", level, Rng(1).numpy("m", k)) / 255 for k, i in enumerate(IMAGES)]
            detail.append(np.mean([np.abs(np.diff(m, axis=0)).mean() for m in made]))
        assert detail[0] >= detail[1] > detail[2]
        assert detail[3] > detail[4]

    def test_frost_hides_more_with_the_level(self) -> None:
        """Its table darkens the picture as the ice grows, so it is the likeness that falls and no distance."""
        alike = []
        for level in (1, 2, 3, 4, 5):
            made = [corrupt(image, "frost", level, Rng(1).numpy("m", k)) for k, image in enumerate(IMAGES)]
            alike.append(np.mean([np.corrcoef(m.ravel(), i.ravel())[0, 1] for m, i in zip(made, IMAGES)]))
        assert all(b < a for a, b in itertools.pairwise(alike)), alike

    @pytest.mark.parametrize("name", ["saturate", "elastic"])
    def test_the_others_change_something_at_every_level(self, name: str) -> None:
        for level in (1, 2, 3, 4, 5):
            made = corrupt(IMAGES[0], name, level, np.random.default_rng(0))
            assert np.abs(made.astype(int) - IMAGES[0]).mean() > 1

    def test_tables(self) -> None:
        assert len(CORRUPTIONS) == 20
        assert set(LEVELS) == set(CORRUPTIONS)
        assert all(len(levels) == 5 for levels in LEVELS.values())
        assert set(PRESETS["0"]) | set(PRESETS["1"]) == set(CORRUPTIONS)
        assert all(len(set(names)) == 10 and set(names) <= set(CORRUPTIONS) for names in PRESETS.values())
        assert (PRESETS["0"][0], PRESETS["1"][9]) == ("snow", "original")
        assert corruption_list("dfa") == PRESETS["dfa"]
        assert corruption_list("fog+jpeg") == ("fog", "jpeg")
        assert [level_of_severity(s) for s in (1, 2, 3, 4)] == [2, 3, 4, 5]

    def test_bad_input(self) -> None:
        rng = np.random.default_rng(0)
        for image, name, level, words in (
            (IMAGES[0], "snwo", 1, "Did you mean 'snow'"),
            (IMAGES[0], "snow", 6, "1 to 5"),
            (IMAGES[0] / 255, "snow", 1, "uint8"),
            (IMAGES[0, :, :, 0], "snow", 1, "uint8"),
        ):
            with pytest.raises(InputError, match=words):
                corrupt(image, name, level, rng)
        for severity in (0, 5):
            with pytest.raises(InputError, match="1 to 4"):
                level_of_severity(severity)


class TestNoise:
    GRAY = np.full((200, 200, 3), 128, np.uint8)

    @pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
    def test_spread_on_gray(self, level: int) -> None:
        def std(name: str) -> float:
            return float(np.std(corrupt(self.GRAY, name, level, np.random.default_rng(level)) / 255))

        gray = 128 / 255
        assert std("gaussian_noise") == pytest.approx(LEVELS["gaussian_noise"][level - 1][0], rel=0.03)
        assert std("speckle_noise") == pytest.approx(gray * LEVELS["speckle_noise"][level - 1][0], rel=0.03)
        assert std("shot_noise") == pytest.approx(np.sqrt(gray / LEVELS["shot_noise"][level - 1][0]), rel=0.03)

    def test_impulses(self) -> None:
        made = noise.impulse_noise(self.GRAY / 255, np.random.default_rng(0), 0.07)
        assert (made == 0).mean() == pytest.approx(0.035, rel=0.1)
        assert (made == 1).mean() == pytest.approx(0.035, rel=0.1)
        assert ((made == 0) | (made == 1) | (made == 128 / 255)).all()


class TestBlur:
    RNG = np.random.default_rng(0)

    def test_flat_images_stay_flat(self) -> None:
        flat = np.full((32, 32, 3), 77, np.uint8)
        for name in ("gaussian_blur", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "pixelate"):
            for level in (1, 3, 5):
                assert np.abs(corrupt(flat, name, level, np.random.default_rng(0)).astype(int) - 77).max() <= 1, name

    @pytest.mark.parametrize("sigma", [0.4, 1.0])
    def test_gaussian_is_separable_weights(self, sigma: float) -> None:
        image = np.zeros((31, 31, 3))
        image[15, 15] = 1
        far = np.arange(-15, 16)
        line = np.exp(-(far**2) / (2 * sigma**2)) * (np.abs(far) <= int(4 * sigma + 0.5))
        wanted = np.outer(line, line) / line.sum() ** 2
        assert blur.gaussian_blur(image, self.RNG, sigma)[:, :, 1] == pytest.approx(wanted, abs=1e-12)

    def test_defocus_is_the_mean_over_a_disc(self) -> None:
        image = np.random.default_rng(1).random((12, 10, 3))
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        plus = sum(padded[2 + dy : 14 + dy, 2 + dx : 12 + dx] for dy, dx in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)))
        assert blur.defocus_blur(image, self.RNG, 1.0, 0.05) == pytest.approx(plus / 5, abs=1e-9)
        box = sum(padded[2 + dy : 14 + dy, 2 + dx : 12 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1))
        assert blur.defocus_blur(image, self.RNG, 1.5, 0.05) == pytest.approx(box / 9, abs=1e-9)
        assert blur._disc(1.0, 0.2).sum() == pytest.approx(1)

    def test_glass_moves_pixels_by_one_at_most(self) -> None:
        image = np.random.default_rng(1).random((12, 10, 3))
        made = blur.glass_blur(image, np.random.default_rng(0), 0.01, 1, 1)
        shifts = [np.pad(image, ((dy, 0), (dx, 0), (0, 0)), mode="edge")[:12, :10] for dy in (0, 1) for dx in (0, 1)]
        chosen = np.array([(made == other).all(2) for other in shifts])
        assert chosen.any(0).all()
        assert all(0.15 < share < 0.4 for share in chosen.mean((1, 2)))

    def test_trail_against_a_loop(self) -> None:
        image = np.random.default_rng(1).random((9, 7))
        for degrees in (0.0, 30.0, -45.0, -90.0, -135.0):
            made = blur.trail(image, 3, 1.5, degrees)
            weights = [np.exp(-(k**2) / (2 * 1.5**2)) for k in range(7)]
            for y in range(9):
                for x in range(7):
                    total = 0.0
                    for k, weight in enumerate(weights):
                        dy = int(np.ceil(k * np.sin(np.radians(degrees)) - 0.5))
                        dx = int(np.ceil(k * np.cos(np.radians(degrees)) - 0.5))
                        total += weight * image[min(max(y + dy, 0), 8), min(max(x + dx, 0), 6)]
                    assert made[y, x] == pytest.approx(total / sum(weights))

    def test_zoom_is_the_mean_of_enlargements(self) -> None:
        image = np.random.default_rng(1).random((13, 11, 3))
        factors = [1 + 0.01 * k for k in range(12)]  # 1 to 1.11
        made = [np.stack([blur.enlarge(image[:, :, c], f) for c in range(3)], 2) for f in factors]
        assert blur.zoom_blur(image, self.RNG, 1.11) == pytest.approx((image + sum(made)) / 13, abs=1e-9)

    def test_zoom_factors_are_the_published_ranges(self) -> None:
        for (largest,), end in zip(LEVELS["zoom_blur"], (1.06, 1.11, 1.16, 1.21, 1.26), strict=True):
            published = np.arange(1, end, 0.01)
            assert len(blur._enlargements(5, largest)) == len(published)
            assert largest == pytest.approx(published[-1])

    def test_enlarge(self) -> None:
        ramp = np.tile(np.arange(9.0), (9, 1))
        assert blur.enlarge(ramp, 2.0)[3] == pytest.approx(4 + (np.arange(9) - 4) / 2)
        assert blur.enlarge(ramp, 1.0) == pytest.approx(ramp)


class TestColor:
    RNG = np.random.default_rng(0)

    def reference(self, image: np.ndarray, change) -> np.ndarray:
        flat = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in image.reshape(-1, 3)]
        return np.array(flat).reshape(image.shape)

    def some(self) -> np.ndarray:
        image = np.random.default_rng(1).random((8, 9, 3))
        image[0] = np.linspace(0, 1, 9)[:, None]  # grays, black and white
        image[1, 0] = (1, 0, 0)
        return image

    @pytest.mark.parametrize("level", [1, 3, 5])
    def test_brightness(self, level: int) -> None:
        (c,) = LEVELS["brightness"][level - 1]
        wanted = self.reference(self.some(), lambda h, s, v: (h, s, min(1, v + c)))
        assert color.brightness(self.some(), self.RNG, c) == pytest.approx(wanted, abs=1e-9)

    @pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
    def test_saturate(self, level: int) -> None:
        factor, added = LEVELS["saturate"][level - 1]
        wanted = self.reference(self.some(), lambda h, s, v: (h, min(1, s * factor + added), v))
        assert color.saturate(self.some(), self.RNG, factor, added) == pytest.approx(wanted, abs=1e-9)

    def test_contrast(self) -> None:
        image = self.some()
        made = color.contrast(image, self.RNG, 0.3)
        assert made.mean((0, 1)) == pytest.approx(image.mean((0, 1)))
        assert made.std((0, 1)) == pytest.approx(0.3 * image.std((0, 1)))


class TestDigital:
    RNG = np.random.default_rng(0)

    def test_jpeg_is_a_round_trip(self) -> None:
        for level, (quality,) in enumerate(LEVELS["jpeg"], 1):
            file = io.BytesIO()
            Image.fromarray(IMAGES[0]).save(file, "JPEG", quality=quality)
            assert np.array_equal(corrupt(IMAGES[0], "jpeg", level, self.RNG), np.asarray(Image.open(file)))

    def test_pixelate_makes_boxes(self) -> None:
        image = np.random.default_rng(1).random((8, 8, 3))
        made = digital.pixelate(image, self.RNG, 0.5)
        boxes = image.reshape(4, 2, 4, 2, 3).mean((1, 3)).repeat(2, 0).repeat(2, 1)
        assert made == pytest.approx(boxes, abs=1.5 / 255)

    def test_elastic_of_nothing_is_the_image(self) -> None:
        image = np.random.default_rng(1).random((9, 12, 3))
        assert digital.elastic(image, self.RNG, 0.0, 0.0, 0.0) == pytest.approx(image)

    def test_elastic_is_the_affine_map_of_its_points(self) -> None:
        """On a picture of its own coordinates the result says where each pixel came from."""
        y, x = np.mgrid[:32, :32]
        image = np.stack([y, x, 0 * y], 2).astype(float)
        made = digital.elastic(image, np.random.default_rng(4), 0.0, 0.0, 0.05)
        old = np.array([16, 16]) + 10 * np.array([[1, 1], [-1, 1], [-1, -1]])
        new = old + np.random.default_rng(4).uniform(-1.6, 1.6, (3, 2))
        inner = made[8:24, 8:24, :2]
        step_y, step_x = inner[1:] - inner[:-1], inner[:, 1:] - inner[:, :-1]
        assert step_y.std((0, 1)) == pytest.approx(0, abs=1e-9)
        for point, came_from in zip(new, old):
            told = inner[0, 0] + (point[0] - 8) * step_y[0, 0] + (point[1] - 8) * step_x[0, 0]
            assert told == pytest.approx(came_from, abs=1e-6)

    def test_elastic_shifts_are_smooth(self) -> None:
        y, x = np.mgrid[:32, :32]
        image = np.stack([y, x, 0 * y], 2).astype(float)
        made = digital.elastic(image, np.random.default_rng(4), 0.1, 0.04, 0.0)[4:-4, 4:-4, :2] - image[4:-4, 4:-4, :2]
        assert 0.1 < made.std() < 1.5
        assert np.abs(np.diff(made, axis=0)).max() < 4 * made.std()


class TestWeather:
    def test_fog_is_a_cloud_below_the_old_maximum(self) -> None:
        image = IMAGES[0] / 255
        made = weather.fog(image, np.random.default_rng(0), 0.75, 2.5)
        cloud = weather.plasma(32, 2.5, np.random.default_rng(0))
        top = image.max()
        assert made == pytest.approx((image + 0.75 * cloud[:, :, None]) * top / (top + 0.75))
        assert made.max() <= top + 1e-12

    @pytest.mark.parametrize("side", [1, 2, 8, 32])
    def test_plasma(self, side: int) -> None:
        cloud = weather.plasma(side, 2.0, np.random.default_rng(0))
        assert cloud.shape == (side, side)
        assert cloud.min() == 0
        assert cloud.max() == pytest.approx(1 if side > 1 else 0)
        assert len(np.unique(cloud)) >= side * side - 1

    def test_a_larger_decay_is_smoother_and_it_wraps(self) -> None:
        def rough(decay: float) -> float:
            clouds = [weather.plasma(32, decay, np.random.default_rng(s)) for s in range(20)]
            return float(np.mean([np.abs(np.diff(c, axis=0)).mean() for c in clouds]))

        assert rough(1.75) > rough(2.5) > rough(3.0)
        clouds = [weather.plasma(32, 3.0, np.random.default_rng(s)) for s in range(20)]
        seam = np.mean([np.abs(c[0] - c[-1]).mean() for c in clouds])
        assert seam < 3 * rough(3.0)

    def test_snow_brightens_and_water_too_and_mud_does_not(self) -> None:
        for name, level, brighter in (("snow", 3, True), ("spatter", 3, True), ("spatter", 5, False)):
            made = np.mean([corrupt(i, name, level, Rng(0).numpy("w", k)) for k, i in enumerate(IMAGES)])
            assert (made > IMAGES.mean()) == brighter, name

    def test_mud_is_brown_and_hides(self) -> None:
        white = np.full((32, 32, 3), 255, np.uint8)
        made = corrupt(white, "spatter", 5, np.random.default_rng(0)) / 255
        covered = (made < 0.99).any(2)
        assert 0.02 < covered.mean() < 0.4
        cover = (1 - made[covered]) / (1 - weather.MUD)
        assert np.ptp(cover, axis=1).max() < 0.02, "all channels are covered alike"
        assert 0.79 < cover.min() <= cover.max() < 1.01
        assert (made[~covered] == 1).all()

    def test_water_covers_more_with_the_level(self) -> None:
        black = np.zeros((32, 32, 3), np.uint8)
        wet = [
            np.mean([(corrupt(black, "spatter", level, np.random.default_rng(s)) > 0).mean() for s in range(20)])
            for level in (1, 2, 3)
        ]
        assert 0.003 < wet[0] < wet[1] < wet[2] < 0.6


class TestFrost:
    def test_textures(self) -> None:
        made = frost.textures()
        assert len(made) == 6
        for picture in made:
            assert picture.shape == (160, 160, 3)
            assert 0 <= picture.min() < picture.max() <= 1
            assert picture.std() > 0.1
            assert picture[:, :, 2].mean() > picture[:, :, 0].mean(), "bluish"
        assert np.array_equal(made[0], frost.texture(Rng(0).numpy("frost", 0)))

    def test_is_a_sum_with_a_cut_out_of_every_picture(self) -> None:
        pictures = tuple(np.full((40, 50, 3), k / 10) for k in range(6))
        black = np.zeros((32, 32, 3))
        seen = {round(frost.frost(black, np.random.default_rng(s), 0.8, 0.5, pictures).mean() * 20) for s in range(80)}
        assert seen == {0, 1, 2, 3, 4, 5}
        white = frost.frost(np.ones((32, 32, 3)), np.random.default_rng(0), 0.8, 0.5, pictures[:1])
        assert white == pytest.approx(np.full((32, 32, 3), 0.8))

    def test_pictures_smaller_than_the_image(self) -> None:
        tiny = (np.random.default_rng(0).random((5, 7, 3)),)
        assert frost.frost(np.zeros((32, 20, 3)), np.random.default_rng(0), 1, 1, tiny).shape == (32, 20, 3)

    def test_a_folder_of_pictures(self, tmp_path: Path) -> None:
        for k in range(2):
            Image.fromarray(np.full((200, 400, 3), (0, 250, 100 * k), np.uint8)).save(tmp_path / f"{k}.png")
        read = frost.read_pictures(tmp_path)
        assert [picture.shape for picture in read] == [(64, 128, 3)] * 2
        options = "ccifar10:base=digits,corruptions=dfa,ratio=0"
        real, plain = load_real(f"{options},frost={tmp_path}"), load_real(options)
        frosted = real.bias == 3
        index = torch.arange(len(real))
        assert torch.equal(real.pixels(index)[~frosted], plain.pixels(index)[~frosted])
        assert (real.pixels(index)[frosted][:, 1] > 0.4).all(), "0.45 of a green of 250"


def test_a_set_holds_each_class_in_its_corruption() -> None:
    """Images of the set are those that `corrupt` makes with the generator of their place in the base."""
    digits = load_real("digits")
    real = load_real("ccifar10:base=digits,corruptions=1,level=3,ratio=0.2,seed=6")
    clean = (digits.pixels(torch.arange(len(digits))) * 255).round().byte().expand(-1, 3, -1, -1)
    family = Rng(6).child("ccifar10", "train")
    for i in range(0, len(real), 7):
        name = PRESETS["1"][int(real.bias[i])]
        wanted = corrupt(clean[i].permute(1, 2, 0).contiguous().numpy(), name, 3, family.numpy("image", i))
        assert np.array_equal((real.pixels(torch.tensor([i]))[0].permute(1, 2, 0) * 255).round().byte().numpy(), wanted)

"""Biased sets: who gets which bias value, how groups are scored, and how the sets come out of `load_real`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datastill.core.errors import InputError
from datastill.data import RealSet, load_real
from datastill.data.biased import assign_bias, assign_unbiased, group_accuracy

MNIST = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
RATIOS = (0.005, 0.01, 0.02, 0.05)


def targets_of(counts: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def table(y: torch.Tensor, b: torch.Tensor, count: int) -> torch.Tensor:
    return torch.bincount(y * count + b, minlength=count * count).view(count, count)


def slow_assignment(targets: list[int], rows: list[list[float]]) -> list[int]:
    """The rule as the specification words it, image by image, in dataset order."""
    milestones = {}
    for c in set(targets):
        total, own = 0.0, []
        for share in rows[c]:
            total += share
            own.append(round(total * targets.count(c)))  # Python rounds half to even
        milestones[c] = own
    seen = dict.fromkeys(targets, 0)
    found = []
    for c in targets:
        found.append(next(b for b, milestone in enumerate(milestones[c]) if milestone > seen[c]))
        seen[c] += 1
    return found


class TestAssign:
    @pytest.mark.parametrize("ratio", RATIOS)
    @pytest.mark.parametrize("seed", [None, 0])
    def test_counts_on_the_classes_of_mnist(self, ratio: float, seed: int | None) -> None:
        y = targets_of(MNIST)
        cells = table(y, assign_bias(y, 10, ratio, seed), 10)
        n = torch.tensor(MNIST)
        assert torch.equal(cells.sum(1), n)
        assert ((n - cells.diagonal()) - ratio * n).abs().max() <= 1
        share = torch.full((10, 10), ratio / 9).fill_diagonal_(1 - ratio)
        assert (cells - share * n[:, None]).abs().max() <= 1

    @pytest.mark.parametrize("ratio", [*RATIOS, 0.0, 0.37, 0.9, 1.0])
    @pytest.mark.parametrize("counts", [(37, 100, 5, 61, 20, 40, 300, 10, 9, 120), MNIST], ids=["small", "mnist"])
    def test_is_the_published_rule(self, counts: tuple[int, ...], ratio: float) -> None:
        y = targets_of(counts, seed=3)
        rows = [[1 - ratio if b == c else ratio / 9 for b in range(10)] for c in range(10)]
        slow = torch.tensor(slow_assignment(y.tolist(), rows))
        assert torch.equal(assign_bias(y, 10, ratio), slow)
        shuffled = assign_bias(y, 10, ratio, seed=8)
        assert torch.equal(table(y, shuffled, 10), table(y, slow, 10)), "to the image, whatever the order"

    @given(st.lists(st.integers(0, 40), min_size=2, max_size=6), st.floats(0, 1), st.integers(0, 2))
    @settings(max_examples=60, deadline=None)
    def test_any_classes_and_ratio(self, counts: list[int], ratio: float, more: int) -> None:
        y, num_bias = targets_of(tuple(counts)), len(counts) + more
        b = assign_bias(y, num_bias, ratio, 5)
        rows = [[1 - ratio if k == c else ratio / (num_bias - 1) for k in range(num_bias)] for c in range(len(counts))]
        for c, n in enumerate(counts):
            cells = torch.bincount(b[y == c], minlength=num_bias)
            assert int(cells.sum()) == n
            assert all(abs(int(cell) - n * share) <= 1 + 1e-9 for cell, share in zip(cells, rows[c]))

    def test_extremes(self) -> None:
        y = targets_of(MNIST)
        assert torch.equal(assign_bias(y, 10, 0.0, 1), y)
        assert not (assign_bias(y, 10, 1.0, 1) == y).any()
        uniform = table(y, assign_bias(y, 10, 0.9, 1), 10)
        assert (uniform - torch.tensor(MNIST)[:, None] / 10).abs().max() <= 1

    def test_the_test_split_is_uniform(self) -> None:
        y = targets_of((980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009))
        cells = table(y, assign_unbiased(y, 10, 0), 10)
        assert (cells - torch.bincount(y)[:, None] / 10).abs().max() <= 1
        assert assign_unbiased(y, 10).tolist() == slow_assignment(y.tolist(), [[0.1] * 10] * 10)
        assert 0.095 < cells.diagonal().sum() / len(y) < 0.105

    def test_order_decides_which_and_never_how_many(self) -> None:
        y = targets_of((200, 100, 50))
        order = torch.randperm(350, generator=torch.Generator().manual_seed(9))
        straight, turned = assign_bias(y, 3, 0.1), assign_bias(y[order], 3, 0.1)
        assert not torch.equal((straight != y)[order], turned != y[order]), "other images conflict"
        assert torch.equal(table(y, straight, 3), table(y[order], turned, 3))
        assert straight[(y == 1).nonzero()[0]] == 0, "without a seed the first image of a class gets value 0"

    def test_seeds(self) -> None:
        y = targets_of((200, 100, 50))
        made = [assign_bias(y, 3, 0.2, seed) for seed in (4, 4, 5)]
        assert torch.equal(made[0], made[1])
        assert not torch.equal(made[0], made[2])
        assert torch.equal(table(y, made[0], 3), table(y, made[2], 3))

    @pytest.mark.parametrize(
        ("targets", "count", "ratio", "words"),
        [([0, 1], 2, 1.5, "ratio"), ([0, 1], 2, math.nan, "ratio"), ([0, 1], 1, 0.0, "two"), ([0, 3], 3, 0.1, "3")],
    )
    def test_bad_input(self, targets: list[int], count: int, ratio: float, words: str) -> None:
        with pytest.raises(InputError, match=words):
            assign_bias(torch.tensor(targets), count, ratio)


class TestGroups:
    @given(st.integers(0, 2**31), st.integers(2, 5), st.integers(0, 2))
    @settings(max_examples=40, deadline=None)
    def test_against_a_loop(self, seed: int, classes: int, more: int) -> None:
        rng, num_bias = np.random.default_rng(seed), classes + more
        p, y = (torch.from_numpy(rng.integers(0, classes, 60)) for _ in range(2))
        b = torch.from_numpy(rng.integers(0, num_bias, 60))
        found = group_accuracy(p, y, b, classes, num_bias)

        def share(chosen: list[bool]) -> float:
            hits = [int(a) == int(c) for a, c, use in zip(p, y, chosen) if use]
            return sum(hits) / len(hits) if hits else math.nan

        same = [int(c) == int(k) for c, k in zip(y, b)]
        expected = [share([True] * 60), share(same), share([not s for s in same])]
        assert list(found[:3]) == pytest.approx(expected, nan_ok=True)
        for c in range(classes):
            for k in range(num_bias):
                cell = share([int(a) == c and int(d) == k for a, d in zip(y, b)])
                assert float(found.matrix[c, k]) == pytest.approx(cell, nan_ok=True)

    def test_a_network_that_sees_the_bias_alone(self) -> None:
        y = targets_of((100,) * 10)
        b = assign_unbiased(y, 10, 0)
        found = group_accuracy(b, y, b, 10, 10)
        assert found[:3] == (pytest.approx(0.1), 1.0, 0.0)
        assert torch.equal(found.matrix, torch.eye(10, dtype=torch.float64))

    def test_groups_without_images_are_nan(self) -> None:
        y = torch.tensor([0, 1])
        found = group_accuracy(y, y, y, 2, 3)
        assert math.isnan(found.conflicting)
        assert found.matrix.isnan().sum() == 4

    @pytest.mark.parametrize(
        ("p", "b", "words"), [(torch.zeros(2, 3), [0, 1], "argmax"), (torch.zeros(2), [0, 7], "0..1")]
    )
    def test_bad_input(self, p: torch.Tensor, b: list[int], words: str) -> None:
        with pytest.raises(InputError, match=words):
            group_accuracy(p, torch.tensor([0, 1]), torch.tensor(b), 2, 2)


def everything(real: RealSet) -> torch.Tensor:
    return real.pixels(torch.arange(len(real)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of unequal sizes, 9 x 11 color pixels, no test split."""
    root, rng = tmp_path_factory.mktemp("base") / "photos", np.random.default_rng(0)
    for name, count in (("apple", 40), ("pear", 25), ("plum", 10)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(root / name / f"{i:03}.png")
    return root


SMALL = {
    "cmnist": "cmnist:base=digits",
    "bg-fmnist": "bg-fmnist:base=digits",
    "ccifar10": "ccifar10:base=digits",
}


class TestLoad:
    @pytest.mark.parametrize("name", SMALL)
    def test_is_an_ordinary_set_with_bias(self, name: str) -> None:
        real = load_real(f"{SMALL[name]},ratio=0.1,train=500,test=300")
        assert isinstance(real, RealSet)
        assert real.test is not None
        assert (real.name, real.shape, len(real), len(real.test)) == (name, (3, 8, 8), 500, 300)
        assert real.bias is not None
        assert real.test.bias is not None
        n = real.counts
        cells = table(real.labels, real.bias, 10)
        assert (n - cells.diagonal() - 0.1 * n).abs().max() <= 1
        assert (table(real.test.labels, real.test.bias, 10) - real.test.counts[:, None] / 10).abs().max() <= 1
        assert f"{int((real.bias != real.labels).sum())} of 500 training images conflict" in " ".join(real.notes)
        pixels = everything(real).double()
        assert real.space.source == "measured"
        assert real.space.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=2e-6)
        assert real.space.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=2e-6)
        assert real.test.space is real.space
        again = load_real(real.source, **real.options)
        assert again.fingerprint == real.fingerprint
        assert torch.equal(again.bias, real.bias)
        assert real.describe()["source"] == f"{SMALL[name]},ratio=0.1,train=500,test=300"

    @pytest.mark.parametrize(
        ("name", "option"),
        [
            *((name, option) for name in SMALL for option in ("ratio=0.2", "seed=1", "shuffle=no", "train=150")),
            ("cmnist", "severity=3"),
            ("bg-fmnist", "mask=hard"),
            ("bg-fmnist", "gain=2"),
            ("bg-fmnist", "threshold=40"),
            ("ccifar10", "level=4"),
            ("ccifar10", "corruptions=1"),
            ("ccifar10", "corruptions=dfa"),
        ],
    )
    def test_the_fingerprint_depends_on_every_option(self, name: str, option: str) -> None:
        few = ("" if option.startswith("train") else "train=200,") + "test=20"
        plain, other = (load_real(f"{SMALL[name]},{extra}") for extra in ("train=200,test=20", f"{few},{option}"))
        assert plain.fingerprint != other.fingerprint

    def test_the_fingerprint_depends_on_the_base(self) -> None:
        one, other = (load_real(f"cmnist:base=digits{extra},test=20") for extra in ("", ":train=898"))
        assert one.fingerprint != other.fingerprint

    def test_test_images_are_the_same_for_every_ratio(self) -> None:
        some = "ccifar10:base=digits,corruptions=1,train=200,test=100"
        one, other = (load_real(f"{some},ratio={ratio}") for ratio in (0.05, 0.5))
        assert not torch.equal(everything(one), everything(other))
        assert torch.equal(everything(one.test), everything(other.test))
        assert torch.equal(one.test.bias, other.test.bias)

    def test_a_subset_has_the_pixels_of_the_full_set(self) -> None:
        """The draw belongs to an image's place in the base: with all aligned, only the rows differ."""
        full, part = (load_real(f"cmnist:base=digits,ratio=0,severity=1{tail}") for tail in ("", ",train=300"))
        known = {image.numpy().tobytes() for image in everything(full)}
        assert all(image.numpy().tobytes() in known for image in everything(part))
        assert len(known) > 890

    def test_bias_goes_with_positions(self) -> None:
        real = load_real("cmnist:base=digits,ratio=0.3")
        rows = torch.tensor([5, 3, 700, 3])
        assert torch.equal(real.subset(rows).bias, real.bias[rows])
        kept, held = real.split(0.2)
        assert len(kept.bias) == len(kept)
        assert len(held.bias) == len(held)
        marked = dataclasses.replace(real, bias=torch.arange(len(real)))
        for part in marked.split(0.2):
            assert torch.equal(everything(part), real.pixels(part.bias))
        assert torch.equal(real.with_space(real.space).bias, real.bias)
        assert torch.equal(real.with_weights(torch.ones(len(real))).bias, real.bias)
        few = load_real("cmnist:base=digits,ratio=0.3", limit=20)
        known = {(image.numpy().tobytes(), int(b)) for image, b in zip(everything(real), real.bias)}
        assert len(few) == 200
        assert all((image.numpy().tobytes(), int(b)) in known for image, b in zip(everything(few), few.bias))
        assert load_real("digits").bias is None

    def test_bias_of_another_length_is_refused(self) -> None:
        real = load_real("digits")
        with pytest.raises(InputError, match="bias"):
            dataclasses.replace(real, bias=torch.zeros(3, dtype=torch.int64))

    def test_storage_makes_no_difference(self) -> None:
        sets = [
            load_real("bg-fmnist:base=digits,train=200,test=100", storage=s) for s in ("memory", "decode", "memmap")
        ]
        assert len({real.fingerprint for real in sets}) == 1

    def test_the_cache_keeps_labels_of_other_bases_apart(self) -> None:
        x = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
        # reached through the same path as any base: identical images, other labels
        from datastill.data.biased.build import Options, build
        from datastill.data.biased.colored import Colors
        from datastill.data.raw import Request

        found = []
        for labels in (np.arange(30) % 3, np.arange(30) // 10):
            options = Options(base=((x, labels), (x, labels)))
            raw = build("cmnist", Request(), options, lambda where: Colors(4))
            found.append(list(raw.train.labels))
        assert found[0] == (np.arange(30) % 3).tolist()
        assert found[1] == (np.arange(30) // 10).tolist()

    def test_a_folder_of_any_shape_without_a_test_split(self, photos: Path) -> None:
        real = load_real(f"ccifar10:base={photos},corruptions=fog+jpeg+original,ratio=0.5,level=2")
        assert real.test is not None
        assert (real.shape, len(real), len(real.test)) == ((3, 9, 11), 60, 15)
        assert real.class_names == ("apple", "pear", "plum")
        assert (table(real.test.labels, real.test.bias, 3) - real.test.counts[:, None] / 3).abs().max() <= 1
        assert "hold-out" in " ".join(real.notes)
        assert load_real(f"cmnist:base={photos}").shape == (3, 9, 11)
        assert load_real(f"bg-fmnist:base={photos}", size=(12, 10)).shape == (3, 12, 10)

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ("cmnist:base=digits,color=red", "no option 'color'"),
            ("cmnist:base=digits,ratio=two", "a number"),
            ("cmnist:base=digits,ratio=1.2", r"\[0, 1\]"),
            ("cmnist:base=digits,ratio=nan", r"\[0, 1\]"),
            ("cmnist:base=digits,severity=6", "1, 2, 3, 4 or 5"),
            ("cmnist:base=digits,train=5", "between 10 and 899"),
            ("cmnist:base=digits,test=5000", "between 10 and 898"),
            ("cmnist:base=./nowhere", "no folder"),
            ("bg-fmnist:base=digits,mask=sof", "Did you mean 'soft'"),
            ("bg-fmnist:base=digits,gain=0", "above 0"),
            ("bg-fmnist:base=digits,gain=inf", "above 0"),
            ("bg-fmnist:base=digits,threshold=255", "0..254"),
            ("bg-fmnist:base=digits,backgrounds=./nowhere", "no folder"),
            ("ccifar10:base=digits,corruptions=2", "no corruption '2'"),
            ("ccifar10:base=digits,corruptions=snow", "two or more"),
            ("ccifar10:base=digits,corruptions=snow+snow", "once each"),
            ("ccifar10:base=digits,corruptions=snow+fog", "10 classes"),
            ("ccifar10:base=digits,level=0", "1 to 5"),
            ("ccifar10:base=digits,frost=./nowhere", "no pictures of frost"),
        ],
    )
    def test_one_sentence_of_what_is_wrong(self, source: str, words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            load_real(source)
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", SMALL)
    def test_gray_is_refused(self, name: str) -> None:
        with pytest.raises(InputError, match="color images"):
            load_real(SMALL[name], mode="L")

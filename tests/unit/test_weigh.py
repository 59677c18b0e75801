"""`datastill weigh`: the crowd and the odd ones of every class."""

from __future__ import annotations

import csv
import dataclasses
import json
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from datastill import load_real
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.data import RealSet
from datastill.debias import debias
from datastill.debias.overview import crowd_and_odd, weighed_classes
from datastill.debias.trial import Trial, trial
from debias_data import biased_set, colored_strokes

BATCH = ["--debias", "loss:batch=1"]
pytestmark = pytest.mark.usefixtures("short_protocols")


@pytest.fixture(scope="module")
def weighed() -> RealSet:
    return debias(colored_strokes(), "oracle")[0]


def test_classes_are_told_by_hand_counted_numbers() -> None:
    real = colored_strokes(per_class=40)
    weights = torch.ones(len(real))
    weights[real.class_index(0)[:2]] = 39.0  # two of forty images of class 0 have 78 of 116 parts
    first, second, _ = weighed_classes(real.with_weights(weights))
    assert (first.name, first.images) == (real.class_names[0], 40)
    assert first.heaviest == pytest.approx(78 / 116)
    assert first.in_effect == pytest.approx(116**2 / (2 * 39**2 + 38))
    assert second.heaviest == pytest.approx(0.05)
    assert second.in_effect == pytest.approx(40)
    odd = real.bias[real.class_index(1)] != 1
    assert second.conflicting == pytest.approx(float(odd.double().mean()))
    blind = dataclasses.replace(real, bias=None).with_weights(weights)
    assert weighed_classes(blind)[0].conflicting is None


def test_the_heaviest_images_are_those_against_the_bias(weighed: RealSet) -> None:
    crowd, odd = crowd_and_odd(weighed, 3)
    assert crowd.shape == odd.shape == (9,)
    assert torch.equal(weighed.labels[crowd], weighed.labels[odd])
    assert (weighed.bias[crowd] == weighed.labels[crowd]).all()
    assert (weighed.bias[odd] != weighed.labels[odd]).all()
    assert len(crowd_and_odd(weighed, 1000)[0]) == 3 * 20  # half of a class


def test_a_set_without_weights_is_refused() -> None:
    with pytest.raises(InputError, match="no weights"):
        weighed_classes(colored_strokes())


@pytest.mark.slow
def test_a_trial_tells_weights_against_a_bias_from_weights_at_random() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat_interleave(2000)
    gray = 0.5 + 0.25 * torch.randn(6000, 1, 12, 12, generator=generator)  # bars that noise makes hard to see
    for c in range(3):
        gray[y == c, :, 3 * c + 1 : 3 * c + 3, 2:-2] += 0.15
    real, _ = debias(biased_set(gray.clamp(0, 1), y, 0.05), "oracle")
    found = trial(real)
    assert found is not None
    assert (found.held, found.odd) == (1200, 60)
    assert found.gain > 0.1
    assert found.may_help
    assert "may help" in found.verdict
    order = torch.cat([c[torch.randperm(len(c), generator=generator)] for c in map(real.class_index, range(3))])
    index = torch.cat([real.class_index(c) for c in range(3)])
    assert real.weights is not None
    shuffled = trial(real.with_weights(real.weights.clone().index_copy(0, index, real.weights[order])))
    assert shuffled is not None
    assert shuffled.gain < found.gain / 2


def test_a_trial_by_hand_and_where_there_is_none(weighed: RealSet) -> None:
    assert Trial(0.9, 0.2, 0.8, 0.5, 100, 50).may_help
    costly = Trial(0.9, 0.2, 0.7, 0.5, 100, 50)
    assert not costly.may_help
    assert "gain 30.0 points on odd images and cost 20.0 on all: not twice as much" in costly.verdict
    assert trial(weighed) is None  # too few odd images
    with pytest.raises(InputError, match="no weights"):
        trial(colored_strokes())


def test_the_command_writes_picture_weights_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "w"
    args = ["weigh", "--data", "cmnist:base=digits,ratio=0.1,train=300", "--out", str(out), "--debias", "kde:width=4"]
    assert main([*args, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["classes"]) == 10
    assert told == json.loads((out / "weights.json").read_text())
    assert (out / "crowd_and_odd.png").read_bytes()[:4] == b"\x89PNG"
    with open(out / "weights.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == told["data"]["images"] == sum(one["images"] for one in told["classes"])
    for one in told["classes"]:
        own = torch.tensor([float(row["weight"]) for row in rows if row["class"] == one["name"]])
        assert float(own.mean()) == pytest.approx(1, abs=1e-4)
    assert main(args) == 0
    assert "weight of the heaviest" in capsys.readouterr().out


def test_weights_name_the_file_of_each_image(tmp_path: Path) -> None:
    """One that cannot be read, and those that are held out, leave no gap between names and weights."""
    for name, tones in {"day": range(12), "night": range(100, 110)}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k, tone in enumerate(tones):
            Image.new("L", (8, 8), 2 * tone).save(tmp_path / "photos" / name / f"{k:02d}.png")
    (tmp_path / "photos" / "day" / "03.png").write_bytes(b"not an image")
    args = ["weigh", "--data", str(tmp_path / "photos"), "--skip-bad", "--out", str(tmp_path / "w")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main([*args, "--debias", "kde:width=4,epochs=1", "--quiet"]) == 0
        real = load_real(tmp_path / "photos", skip_bad=True)
    with open(tmp_path / "w" / "weights.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(real) < 21
    for row in rows:
        path = tmp_path / "photos" / row["image"].split("photos/")[-1]
        tone = real.pixels(torch.tensor([int(row["index"])])).mean() * 255
        assert row["class"] == path.parent.name
        assert float(tone) == pytest.approx(Image.open(path).getpixel((0, 0)), abs=0.5)


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--debias", "none"], "weighs nothing"), (["--images", "0"], "at least 1"), (BATCH, "at least 2")],
)
def test_bad_input_is_one_sentence(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weigh", "--data", "digits", "--out", str(tmp_path / "w"), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_trial_is_not_made_where_all_that_weighs_anything_is_held_out() -> None:
    real = colored_strokes(per_class=2000)
    where = torch.arange(len(real), dtype=torch.float32)
    _, held = real.with_weights(where).split(0.2, 0)
    assert held.weights is not None
    weights = torch.ones(len(real)).where(real.labels > 0, 0.0)
    weights[int(held.weights[held.class_index(0)[0]])] = 1.0
    assert trial(real.with_weights(weights), seed=0) is None


def test_a_table_of_others_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "w"
    out.mkdir()
    (out / "weights.csv").write_text("my,own\n1,2\n")
    assert main(["weigh", "--data", "digits", "--out", str(out)]) == 2
    assert "no table of weights" in capsys.readouterr().err
    assert (out / "weights.csv").read_text() == "my,own\n1,2\n"

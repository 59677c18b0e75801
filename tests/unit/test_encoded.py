"""Finished sets in fewer bits, which are loaded and evaluated as any other."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import datastill
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.data.real import RealSet
from datastill.decoders.encoded import Encoded, patches_of, stream_of
from datastill.exchange.encode import PATCH, encode
from datastill.exchange.refine import rounded
from datastill.models import resolve_network
from datastill.store.artifact import DistilledSet, load_distilled

NET = "convnet:width=4,depth=1"


@pytest.fixture(scope="module")
def real() -> RealSet:
    return datastill.load_real("digits")


@pytest.fixture(scope="module")
def made(real: RealSet) -> DistilledSet:
    return datastill.distill("mosaic", real, ipc=3, network=NET)


def test_eight_bits_are_those_of_image_files(made: DistilledSet, tmp_path: Path) -> None:
    done = datastill.export(made, tmp_path / "small", "encoded")
    again = datastill.load_distilled(tmp_path / "small")
    stored = made.space.decode(made.codes["images"]).clamp(0, 1).mul(255).round() / 255
    wanted = DistilledSet({"images": made.space.encode(stored)}, made.labels, made.space, made.manifest)
    assert torch.allclose(again.images, wanted.images, atol=1e-5)
    assert torch.equal(again.targets, made.targets)
    assert torch.equal(again.images, done.distilled.images)


@pytest.mark.parametrize("bits", [1, 2, 4, 7])
def test_values_are_as_near_as_the_bits_of_their_group_allow(made: DistilledSet, bits: int) -> None:
    small = encode(made, bits)
    pixels = made.space.decode(made.codes["images"]).clamp(0, 1)
    decoder = Encoded(**{k: v for k, v in small.manifest["decoder"].items() if k not in ("decoder", "inner")})
    back = made.space.decode(decoder.decode(small.codes, small.labels).x)
    assert float((back - pixels).abs().max()) <= max(decoder.step) / 2 + 1e-5
    assert max(decoder.step) <= 1 / (2**bits - 1) + 1e-6
    # every patch spans a range inside its group's
    where = patches_of(8, 8, PATCH)
    assert where.view(8, 8)[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("method", ["mosaic", "random"])
def test_refinement_rounds_up_or_down_to_what_other_networks_see_less_of(real: RealSet, method: str) -> None:
    made = datastill.distill(method, real, ipc=3, network=NET)
    plain, fine = encode(made, 2), encode(made, 2, refine=200)
    assert "refined in 200 steps" in fine.manifest["notes"][-1]
    assert fine.manifest["decoder"]["low"] == plain.manifest["decoder"]["low"]
    apart = made.space.decode(fine.images) - made.space.decode(made.images)
    assert float(apart.abs().max()) <= max(plain.manifest["decoder"]["step"]) + 0.05  # never to another neighbor
    factory = resolve_network("convnet:width=16", channels=1, classes=10, size=(8, 8))
    errors = {"plain": 0.0, "fine": 0.0}
    for seed in range(5):
        network = factory(10_000 + seed)
        with torch.no_grad():
            wanted = network.embed(made.images)
            for name, one in (("plain", plain), ("fine", fine)):
                errors[name] += float((network.embed(one.images) - wanted).square().sum() / wanted.square().sum())
    assert errors["fine"] < 0.95 * errors["plain"]
    assert torch.equal(encode(made, 2, refine=5).codes["blob"], encode(made, 2, refine=5).codes["blob"])


@pytest.mark.parametrize("bits", [0, 9, 2.5, -1])
def test_bits_that_there_are_not_are_refused(made: DistilledSet, bits: float) -> None:
    with pytest.raises(InputError, match="bits"):
        encode(made, bits)  # type: ignore[arg-type]


def test_what_is_not_finite_is_not_encoded(real: RealSet) -> None:
    made = datastill.distill("random", real, ipc=1, network=NET)
    made.codes["images"][0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        encode(made)


def test_eight_bits_have_nothing_to_refine(made: DistilledSet, tmp_path: Path, capsys) -> None:
    assert torch.equal(encode(made, 8, refine=9).codes["blob"], encode(made, 8).codes["blob"])
    made.save(tmp_path / "whole")
    command = ["export", str(tmp_path / "whole"), str(tmp_path / "x"), "--to", "encoded", "--refine", "9"]
    assert main([*command, "--no-score"]) == 2
    assert "--refine changes nothing with 8 bits" in capsys.readouterr().err


def test_fewer_bits_take_fewer_bytes_and_lose_more(made: DistilledSet) -> None:
    sizes, errors = [], []
    for bits in (8, 4, 2, 1):
        small = encode(made, bits)
        sizes.append(small.manifest["decoder"]["length"])
        errors.append(float((small.images - made.images).square().mean()))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert sizes[0] < made.codes["images"].numel()


def test_a_number_of_bytes_takes_the_bits_that_fit(made: DistilledSet) -> None:
    four = encode(made, 4).manifest["decoder"]["length"]
    rows = 30 * -(-four // 30)
    assert encode(made, 8, most=rows).manifest["decoder"]["length"] == four
    with pytest.raises(InputError, match="9 bytes are too few for 30 images: they take"):
        encode(made, 8, most=9)


def test_values_are_refined_at_the_bits_that_fit_alone(made: DistilledSet, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[int] = []

    def counted(values: torch.Tensor, most: int, *rest: object) -> torch.Tensor:
        levels.append(most)
        return rounded(values, most, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("datastill.exchange.encode.rounded", counted)
    limit = len(encode(made, 3).codes["blob"].flatten())
    found = encode(made, 7, most=limit, refine=2)
    assert levels in ([2**3 - 1], [2**3 - 1, 2**2 - 1]), "once, or once more where refined values take more"
    assert len(found.codes["blob"].flatten()) <= limit


def test_what_is_encoded_already_is_refused(made: DistilledSet) -> None:
    with pytest.raises(InputError, match="encoded already"):
        encode(encode(made, 2), 2)


@pytest.fixture(scope="module")
def frequencies(real: RealSet) -> DistilledSet:
    return datastill.distill("random", real, ipc=3, network=NET, codes="dct:kept=16,instances=4")


def test_frequencies_in_fewer_bits_are_rendered_as_they_were(frequencies: DistilledSet, tmp_path: Path) -> None:
    sizes, errors = [], []
    for bits in (8, 4, 2, 1):
        done = datastill.export(frequencies, tmp_path / f"{bits}", "encoded", bits=bits)
        again = datastill.load_distilled(tmp_path / f"{bits}")
        assert torch.equal(again.images, done.distilled.images)
        assert torch.equal(again.targets, frequencies.targets)
        sizes.append(again.manifest["decoder"]["length"])
        errors.append(float((again.images - frequencies.images).square().mean()))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert errors[0] < 1e-3 * float(frequencies.images.square().mean())


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_frequencies_share_a_step_that_takes_the_bits_on_average(frequencies: DistilledSet, bits: int) -> None:
    z, small = frequencies.codes["coefficients"], encode(frequencies, bits).manifest["decoder"]
    step = min(small["step"])
    size = z.abs().amax(dim=(0, 1))
    taken = (2 * size / (size / 127).clamp_min(step) + 1).log2().mean()
    assert taken <= bits  # sizes of groups are above those of their members
    assert taken > bits - 0.5
    assert small["low"] == pytest.approx([-127 * s for s in small["step"]])
    again = Encoded(**{k: v for k, v in small.items() if k != "decoder"})
    back = again.decode(encode(frequencies, bits).codes, frequencies.labels).x
    assert float((back - frequencies.images).square().mean()) <= (max(small["step"]) / 2) ** 2 * 16 / 64


def test_one_step_for_all_loses_less_than_a_step_for_each_in_as_many_bytes(real: RealSet) -> None:
    many = datastill.distill("random", real, ipc=25, network=NET, codes="dct:kept=16,instances=4")
    z, small = many.codes["coefficients"], encode(many, 4)
    size = z.abs().amax(dim=(0, 1), keepdim=True)
    own = (z / size * 7.5 + 7.5).round()  # 16 values for each frequency
    error = float(((own - 7.5) * size / 7.5 - z).square().sum())
    assert float((small.images - many.images).square().sum()) < 0.9 * error
    assert small.manifest["decoder"]["length"] < 1.03 * len(stream_of(None, own.to(torch.uint8)))


def test_frequencies_can_be_refined_and_fitted_too(frequencies: DistilledSet) -> None:
    fine = encode(frequencies, 2, refine=5)
    apart = Encoded(**{k: v for k, v in fine.manifest["decoder"].items() if k != "decoder"})
    back = apart.decode(fine.codes, fine.labels).x - frequencies.images
    assert "refined in 5 steps" in fine.manifest["notes"][-1]
    assert float(back.square().sum()) <= frequencies.codes["coefficients"].numel() * max(apart.step) ** 2
    with pytest.raises(InputError, match="9 bytes are too few for 30 images"):
        encode(frequencies, 8, most=9)


def test_damaged_streams_are_refused() -> None:
    q = torch.randint(4, (2, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    stream = stream_of(None, q)
    decoder = Encoded((1, 4, 4), [0.0], [0.5], len(stream))
    blob = torch.frombuffer(bytearray(stream.ljust(2 * len(stream))), dtype=torch.uint8).view(2, -1)
    assert torch.equal(decoder.decode({"blob": blob}, torch.arange(2)).x, q / 2)
    for damaged in (replace(decoder, shape=(1, 4, 5)), replace(decoder, shape=(1, 2, 2))):
        with pytest.raises(InputError, match="damaged"):
            damaged.decode({"blob": blob}, torch.arange(2))
    with pytest.raises(InputError, match="bytes are needed"):
        decoder.rendered({"blob": (2, 1)}, 1, 2)
    with pytest.raises(InputError, match="from 1 to 256 groups"):
        replace(decoder, low=[])
    with pytest.raises(InputError, match="holds images of"):
        replace(decoder, inner={"decoder": "encoded"})
    stream = stream_of(torch.tensor([[0], [9]], dtype=torch.uint8), q)
    two = Encoded((1, 4, 4), [0.0, 0.0], [1.0, 1.0], len(stream))
    blob = torch.frombuffer(bytearray(stream.ljust(2 * len(stream))), dtype=torch.uint8).view(2, -1)
    with pytest.raises(InputError, match="names a group"):
        two.decode({"blob": blob}, torch.arange(2))


def test_the_command_scores_what_was_read_back(real: RealSet, tmp_path: Path, capsys) -> None:
    datastill.distill("random", real, ipc=1, network=NET, out=tmp_path / "run")
    arguments = ["export", str(tmp_path / "run"), str(tmp_path / "small"), "--to", "encoded", "--bits", "2"]
    assert main([*arguments, "--networks", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 0 < told["accuracy_exported"] <= 1
    files = [path for path in (tmp_path / "small").rglob("*") if path.is_file()]
    shown = {"README.md", "preview.png"}
    assert shown < {path.name for path in files}
    assert told["bytes"] == sum(path.stat().st_size for path in files if path.name not in shown)
    assert load_distilled(tmp_path / "small").extra == {}, "positions in the real set take more than the images"
    assert (
        main(
            ["export", str(tmp_path / "run"), str(tmp_path / "least"), "--to", "encoded", "--most", "150", "--no-score"]
        )
        == 0
    )
    assert re.search(r"Images encoded with \d bits? a value, in \d+ bytes", capsys.readouterr().err)


def test_what_clipping_loses_is_told(real: RealSet, tmp_path: Path) -> None:
    """Pixels that a method moved out of the valid range come back inside it."""
    one = datastill.distill("random", real, ipc=1, network=NET)
    one.codes["images"][0] += 4.0
    lost = one.space.decode(one.images)[0].max() - 1
    done = datastill.export(one, tmp_path / "x", "encoded", bits=8)
    assert done.max_pixel_error == pytest.approx(float(lost), abs=1e-5)
    assert done.clipped_fraction > 0


def test_options_of_other_formats_are_refused(real: RealSet, tmp_path: Path, capsys) -> None:
    datastill.distill("random", real, ipc=1, network=NET, out=tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "png"), "--bits", "2"]) == 2
    assert "--bits changes nothing with --to imagefolder" in capsys.readouterr().err

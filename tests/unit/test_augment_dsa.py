"""Records as things to store, cut and replay; what is refused."""

from __future__ import annotations

import pytest
import torch

from datastill.augment import Dsa, DsaRecord, without_flip
from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.store.files import read_tensors, write_tensors

SHAPE = (3, 12, 10)


def record_of(dsa: Dsa, rows: int = 9, seed: int = 0) -> DsaRecord:
    return dsa.draw(rows, SHAPE, Rng(seed).generator("augment", 1))


def pictures(n: int = 9) -> torch.Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dsa", [Dsa(), Dsa(mode="multiple"), Dsa("none"), Dsa("crop_flip")])
def test_a_stored_record_replays_exactly(tmp_path, dsa):
    record = record_of(dsa)
    write_tensors(tmp_path / "record.safetensors", record.state())
    again = DsaRecord.from_state(read_tensors(tmp_path / "record.safetensors")[0])
    assert again == record
    assert torch.equal(dsa.apply(pictures(), again), dsa.apply(pictures(), record))


def test_one_generator_gives_one_record():
    assert record_of(Dsa()) == record_of(Dsa())
    assert record_of(Dsa()) != record_of(Dsa(), seed=1)
    assert record_of(Dsa()) != "a record"


def test_select_and_concatenate():
    dsa = Dsa()
    record, x = record_of(dsa), pictures()
    order = torch.tensor([8, 2, 2, 0])
    assert torch.equal(dsa.apply(x[order], record.select(order)), dsa.apply(x, record)[order])
    mask = torch.arange(9) % 2 == 0
    assert len(record.select(mask)) == 5
    assert DsaRecord.concatenate([record.select(mask), record.select(~mask)]) == record.select(
        torch.cat([mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]])
    )
    assert record.to("cpu") == record


def test_none_and_no_images():
    x = pictures()
    none = Dsa("none")
    assert none.ops == ()
    assert none.apply(x, record_of(none)) is x
    assert Dsa().apply(x[:0], record_of(Dsa()).select(torch.arange(0))).shape == (0, *SHAPE)
    assert Dsa().apply(x[:0], record_of(Dsa()), torch.zeros(0, dtype=torch.int64)).shape == (0, *SHAPE)


def test_without_flip():
    assert without_flip("color_crop_cutout_flip_scale_rotate") == "color_crop_cutout_scale_rotate"
    assert without_flip("flip") == "none"
    assert without_flip("none") == "none"
    drawn = Dsa(without_flip("color_crop_cutout_flip_scale_rotate"))
    assert 3 not in record_of(drawn, rows=500).ops


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"strategy": "color_flipp"}, "'flip'"),
        ({"strategy": "zoom"}, "'zoom'"),
        ({"strategy": "color_color"}, "twice"),
        ({"mode": "both"}, "'multiple'"),
        ({"scale": 0.5}, "scale"),
        ({"cutout": 1.5}, "cutout"),
        ({"brightness": -1.0}, "negative"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, text):
    with pytest.raises(InputError, match=text):
        Dsa(**options)


def test_a_record_of_other_images_is_refused():
    record = record_of(Dsa())
    with pytest.raises(InputError, match="pixels"):
        Dsa().apply(torch.zeros(9, 3, 10, 12), record)
    with pytest.raises(InputError, match="9 images, not for 8"):
        Dsa().apply(pictures(8), record)
    with pytest.raises(InputError, match="2 images, not for 9"):
        Dsa().apply(pictures(), record, torch.tensor([0, 1]))
    state = record.state()
    del state["hole"]
    with pytest.raises(InputError, match="hole"):
        DsaRecord.from_state(state)

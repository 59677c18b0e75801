"""DSA's composite mode: flip and color, one geometric operation, cutout."""

from __future__ import annotations

import pytest
import torch

from datastill.augment import Dsa, DsaRecord, operations
from datastill.augment.dsa import OPERATIONS
from datastill.core.errors import InputError
from datastill.core.rng import Rng

SHAPE = (3, 12, 10)
ALL = "color_crop_cutout_flip_scale_rotate"


def draw(strategy: str, rows: int = 9, one_op: bool = False, seed: int = 0, mode: str = "composite") -> DsaRecord:
    return Dsa(strategy, mode).draw(rows, SHAPE, Rng(seed).generator("augment"), one_op)


def names(record: DsaRecord) -> list[list[str]]:
    return [[OPERATIONS[op] for op in row] for row in record.ops.tolist()]


@pytest.mark.parametrize(
    ("strategy", "before", "geometric", "after"),
    [
        (ALL, ["flip", "color"], {"crop", "scale", "rotate"}, ["cutout"]),
        ("color_crop_cutout", ["color"], {"crop"}, ["cutout"]),
        ("cutout_rotate_crop", [], {"rotate", "crop"}, ["cutout"]),
        ("cutout_color_flip", ["flip", "color"], set(), ["cutout"]),
        ("flip", ["flip"], set(), []),
        ("scale", [], {"scale"}, []),
        ("none", [], set(), []),
    ],
)
def test_order_and_choice(strategy: str, before: list[str], geometric: set[str], after: list[str]) -> None:
    found = names(draw(strategy, rows=200))
    middle = [row[len(before) : len(row) - len(after)] for row in found]
    assert all(row[: len(before)] == before and row[len(row) - len(after) :] == after for row in found)
    assert {len(m) for m in middle} == {int(bool(geometric))}
    assert {op for m in middle for op in m} == geometric


def test_the_geometric_operation_is_uniform() -> None:
    counts = torch.bincount(draw(ALL, rows=6000).ops[:, 2], minlength=6)[[1, 4, 5]].double()
    assert ((counts - 2000).square() / 2000).sum() < 13.8, "chi-square with 2 degrees of freedom, p = 0.001"


def test_one_op_shares_the_choice_and_not_the_parameters() -> None:
    seen = set()
    for seed in range(30):
        record = draw(ALL, rows=7, one_op=True, seed=seed)
        assert (record.ops == record.ops[:1]).all()
        assert len(record.angle.unique()) == len(record.brightness.unique()) == 7
        seen.add(OPERATIONS[record.ops[0, 2]])
    assert seen == {"crop", "scale", "rotate"}
    assert len(draw(ALL, rows=50).ops[:, 2].unique()) == 3


def test_half_of_the_rows_are_mirrored() -> None:
    mirrored = draw(ALL, rows=4000).mirrored.double().mean()
    assert abs(mirrored - 0.5) < 0.04


def test_apply_is_the_operations_one_after_the_other() -> None:
    x = torch.randn(40, *SHAPE, generator=Rng(1).generator("x"))
    dsa, record = Dsa(ALL, "composite"), draw(ALL, rows=40)
    done = dsa.apply(x, record)
    for i in range(40):
        row = record.select(torch.tensor([i]))
        one = operations.mirror(x[i : i + 1], row.mirrored)
        one = operations.color(one, row.brightness, row.saturation, row.contrast)
        geometric = {
            "crop": lambda v, row=row: operations.shift(v, row.offset),
            "scale": lambda v, row=row: operations.scale(v, row.factor),
            "rotate": lambda v, row=row: operations.rotate(v, row.angle),
        }
        one = operations.cut_out(geometric[OPERATIONS[row.ops[0, 2]]](one), row.hole)
        assert torch.allclose(done[i : i + 1], one, atol=1e-5)


def test_siamese_on_the_concatenation() -> None:
    """One row for all of real and synthetic, as IDC's match applies it."""
    real, synthetic = torch.randn(5, *SHAPE, generator=Rng(2).generator("x")), torch.ones(2, *SHAPE)
    dsa, record = Dsa("color_crop_cutout", "composite"), draw("color_crop_cutout", rows=1)
    both = dsa.apply(torch.cat([real, synthetic]), record, torch.zeros(7, dtype=torch.int64))
    parts = [dsa.apply(x, record, torch.zeros(len(x), dtype=torch.int64)) for x in (real, synthetic)]
    assert torch.equal(both, torch.cat(parts))


def test_parameters_are_those_of_the_other_modes() -> None:
    """The same numbers are drawn in every mode: only the operations differ."""
    composite, single = draw(ALL).state(), draw(ALL, mode="single").state()
    differ = [name for name in composite if not torch.equal(composite[name], single[name])]
    assert differ == ["ops"]


def test_stored_records_and_gradients() -> None:
    dsa, record = Dsa(ALL, "composite"), draw(ALL, rows=3)
    assert DsaRecord.from_state(record.state()) == record
    assert record.ops.shape == (3, 4)
    x = torch.randn(3, *SHAPE, generator=Rng(3).generator("x"), dtype=torch.double).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: dsa.apply(v, record).square().sum(), x)
    none = Dsa("none", "composite")
    assert none.apply(x, none.draw(3, SHAPE, Rng(0).generator("augment"))) is x


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InputError, match="'composite'"):
        Dsa(ALL, "composit")

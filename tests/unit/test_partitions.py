"""Blocks by image index."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from datastill.sampling.partitions import IpcMajor


@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 8), st.integers(1, 6))
def test_blocks_cover_the_set_once_with_one_image_of_a_class_per_group(classes, ipc, size, group):
    y = torch.arange(classes).repeat_interleave(ipc)
    blocks = list(IpcMajor(size, group).blocks(y))
    assert sorted(torch.cat([b.index for b in blocks]).tolist()) == list(range(len(y)))
    assert [b.key for b in blocks] == list(range(len(blocks)))
    for block in blocks:
        assert torch.equal(y[block.index], block.y)
        count = torch.bincount(block.y, minlength=classes)
        assert len(block.classes) <= size
        assert int(count.max()) <= group
        assert len({int(n) for n in count if n}) == 1  # balanced


def test_order_is_that_of_the_published_loop():
    y = torch.arange(3).repeat_interleave(2)
    blocks = list(IpcMajor(2).blocks(y))
    assert [b.index.tolist() for b in blocks] == [[0, 2], [4], [1, 3], [5]]

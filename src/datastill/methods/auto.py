"""The method that the library takes where none is named, by a rule that is written on its page.

Stage matching (`stages`) where networks can be trained on the real set: at least 16 pixels a side and 20 real images
per class. Else `dm-fast`, which trains nothing, and for up to 10 images per class on networks with batch norm, where it
matches on others.
For pairs of images and sentences, `vl-moments`.

- Needs: what the chosen method needs.
- Cost: that of the chosen method.
- Departs: a rule of our own; the run says what it chose and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from datastill.core.plan import Task

#: Pixels of the shorter side, and images of the smallest class, from which stages are matched.
SIDE, IMAGES = 16, 20
#: Images of a class up to which networks with batch norm have a rule of their own.
FEW = 10


@method("auto", paper="ours", family="choice")
@dataclass(frozen=True, kw_only=True)
class Auto(Method):
    """The method that suits the data at hand, by a written rule."""

    def choose(self, task: Task) -> tuple[str, dict[str, Any], str]:
        """A method's name, values of its own for this task, and the reason in words.

        Args:
            task: the data and the size.
        """
        from datastill.engines.statistics import batch_normed

        if task.real.kind == "pairs":
            return "vl-moments", {}, "the set is one of pairs of images and sentences"
        if task.ipc <= FEW and batch_normed(task.network):
            return "dm-fast", {}, f"{task.network} has batch norm, which few images do not suit: a ConvNet stands in"
        side, images = min(task.real.shape[1:]), int(task.real.counts.min())
        if side < SIDE:
            return "dm-fast", {}, f"images of {side} pixels are too small for stages of trained networks"
        if images < IMAGES:
            return "dm-fast", {}, f"a class of {images} images is too small to train networks on"
        return "stages", {}, "networks that were trained on the data tell more of a class than random ones"

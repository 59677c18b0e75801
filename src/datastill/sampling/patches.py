"""Patches of real images that a teacher finds easy, set together (RDED: Sun et al., CVPR 2024, arXiv:2312.03526)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.augment.crops import edges, resized_crop_boxes
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import Block, Task
from datastill.sampling.inits import shuffled_members

if TYPE_CHECKING:
    from datastill.surrogates.teachers import TeacherSource

Pick = Literal["lowest", "medium", "random", "stratified"]
#: What is kept of the tiles of a class.
_CHOSEN = ("mixed", "boxes", "loss")


@dataclass(frozen=True)
class Patches:
    """Crops of real images with the lowest cross-entropy, factor x factor of them in a stored image.

    Of each class, `candidates` random images are taken and `crops` square crops of each, scored in the middle of an
    otherwise empty image; the best crop of an image stays, and of these the ipc * factor^2 with the lowest loss. Sorted
    by loss, tile k of image i holds rank k * ipc + i.

    Attributes:
        source: the teacher that scores.
        low_scale: smallest share of an image in a crop.
        pick: of the best crops, the "lowest" losses, those of "medium" rank, "random" ones, or "stratified" over the
            range of losses.
        again: take images of a class that has too few for all tiles several times, in the same order.
    """

    source: TeacherSource
    factor: int = 1
    candidates: int = 300
    crops: int = 5
    low_scale: float = 0.08
    pick: Pick = "lowest"
    again: bool = False

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The mosaics; `mixed` and `loss`: position in the real set and loss of every tile, (n, factor^2)."""
        mixed, boxes, loss = self._of_block(task, block, context)
        mosaics = torch.stack([self._mosaic(task.real.batch(p).x, b) for p, b in zip(mixed, boxes, strict=True)])
        return mosaics, {"mixed": mixed, "loss": loss}

    def anchors(self, task: Task, block: Block, context: Context) -> Tensor:
        """What every tile was cut from, at the size of a whole image, (n, factor^2, c, h, w)."""
        mixed, boxes, _ = self._of_block(task, block, context)
        images, size = task.real.batch(mixed.flatten()).x, (task.real.shape[1], task.real.shape[2])
        whole = [cut(image, box, size) for image, box in zip(images, boxes.flatten(0, 1), strict=True)]
        return torch.stack(whole).unflatten(0, mixed.shape)

    def _of_block(self, task: Task, block: Block, context: Context) -> list[Tensor]:
        """Position, box and loss of every tile of a block."""
        chosen = self._chosen(task, block.classes, context)
        within = block.index % task.ipc  # image k of its class
        rows = list(zip(block.y.tolist(), within.tolist(), strict=True))
        return [torch.stack([chosen[f"{what}/{c}"][k] for c, k in rows]) for what in _CHOSEN]

    def _chosen(self, task: Task, classes: list[int], context: Context) -> dict[str, Tensor]:
        """What was chosen of these classes, once for all blocks of a process: kept beside what was prepared."""
        kept = context.prepared.setdefault("patches", {})
        missing = [c for c in classes if f"loss/{c}" not in kept]
        if missing:
            teacher = self.source.teacher(task, context.prepared[self.source.name])
            network = teacher.seen_from(task.real.space, task.real.class_names).to(task.device)
            for c in missing:
                found = self._of_class(task, c, network, context)
                kept |= {f"{what}/{c}": tensor for what, tensor in zip(_CHOSEN, found, strict=True)}
        return kept

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {
            "init": "patches",
            "factor": self.factor,
            "candidates": self.candidates,
            "crops": self.crops,
            "low_scale": self.low_scale,
            "pick": self.pick,
            **({"again": True} if self.again else {}),
        }

    def _of_class(self, task: Task, c: int, network: nn.Module, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Positions (ipc, factor^2), boxes (ipc, factor^2, 4) and losses (ipc, factor^2) of the tiles of a class."""
        wanted = task.ipc * self.factor**2
        members = shuffled_members(task.real, c, task.seed)
        if self.factor > min(task.real.shape[1:]):
            raise InputError(
                f"Images of {task.real.shape[1]} x {task.real.shape[2]} pixels cannot hold "
                f"{self.factor} x {self.factor} patches; take a smaller --factor."
            )
        if len(members) < (task.ipc if self.again else wanted):
            raise InputError(
                f"{task.ipc} images of {self.factor} x {self.factor} patches need {wanted} images of "
                f"{task.real.class_names[c]!r} and there are {len(members)}; take fewer images or --factor 1."
            )
        members = members[: max(self.candidates, wanted)]
        size = (task.real.shape[1], task.real.shape[2])
        generator = context.rng.generator("patches", c)
        boxes = resized_crop_boxes(
            generator, len(members) * self.crops, size, scale=(self.low_scale, 1.0), ratio=(1.0, 1.0)
        ).view(len(members), self.crops, 4)
        images = task.real.batch(members).x
        losses = self._losses(images, boxes, c, network, task)
        best, crop = losses.min(1)
        order = pick_by_loss(best, min(wanted, len(members)), self.pick, generator)
        order = order[torch.arange(wanted) % len(order)]
        rank = order.view(self.factor**2, task.ipc).T  # tile k of image i: rank k * ipc + i
        return members[rank], boxes[torch.arange(len(members)), crop][rank], best[rank]

    def _losses(self, images: Tensor, boxes: Tensor, c: int, network: nn.Module, task: Task) -> Tensor:
        """Cross-entropy of the true class for every crop, (n, crops)."""
        height, width = images.shape[2:]
        patch = (height // self.factor, width // self.factor)
        top, left = (height - patch[0]) // 2, (width - patch[1]) // 2
        losses = torch.empty(boxes.shape[:2])
        for k, image in enumerate(images):
            seen = torch.zeros(self.crops, *image.shape)  # 0 in the Space: the mean color where it is normalized
            for j, box in enumerate(boxes[k]):
                seen[j, :, top : top + patch[0], left : left + patch[1]] = cut(image, box, patch)
            with torch.no_grad():
                logits = network(seen.to(task.device)).float()
                losses[k] = F.cross_entropy(
                    logits, torch.full((self.crops,), c, device=logits.device), reduction="none"
                )
            if k % 50 == 0:
                task.progress("score patches", c * len(images) + k, task.classes * len(images), {})
        return losses

    def _mosaic(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Crops of factor^2 images (factor^2, c, h, w) set together, (c, h, w)."""
        height, width = images.shape[2:]
        mosaic = torch.empty(images.shape[1:])
        corners = itertools.product(edges(height, self.factor), edges(width, self.factor))
        for image, box, ((top, bottom), (left, right)) in zip(images, boxes, corners, strict=True):
            mosaic[:, top:bottom, left:right] = cut(image, box, (bottom - top, right - left))
        return mosaic


def cut(image: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """A crop (top, left, height, width) of an image (c, h, w), resized with antialiasing."""
    top, left, h, w = box.tolist()
    crop = image[None, :, top : top + h, left : left + w]
    if (h, w) == size:
        return crop[0]
    return F.interpolate(crop, size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def pick_by_loss(loss: Tensor, n: int, pick: Pick, generator: torch.Generator) -> Tensor:
    """Positions of n of the given losses, those with the lowest loss first.

    Args:
        pick: the n lowest, the n of "medium" rank, n random ones, or the lowest of each of n equal runs of ranks
            ("stratified").
    """
    order = loss.argsort(stable=True)
    if pick == "lowest":
        return order[:n]
    if pick == "medium":
        first = (len(order) - n) // 2
        return order[first : first + n]
    if pick == "stratified":
        return order[(torch.arange(n) * len(order)) // n]
    kept = torch.randperm(len(order), generator=generator)[:n].sort().values
    return order[kept]

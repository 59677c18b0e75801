"""Everything that shows a run, written into its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from datastill.report.card import CARD, write_card_and_preview
from datastill.report.html import write_report
from datastill.report.pictures import animation, comparison, png
from datastill.report.snapshots import FILE, Snapshots, Timeline, load_snapshots
from datastill.store.artifact import MANIFEST, DistilledSet
from datastill.store.files import read_tensors, write_bytes
from datastill.store.schema import Kind

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.evaluation.scores import Evaluation

LOSSES = "losses.safetensors"
LOSS_KINDS = {"losses": Kind(("F32", "F64"), (1, 2), finite=False)}


def write_run(
    folder: str | Path,
    distilled: DistilledSet,
    *,
    real: RealSet | None = None,
    evaluation: Evaluation | None = None,
    sets: Sequence[DistilledSet] | None = None,
    snapshots: Timeline | Snapshots | None = None,
    losses: Tensor | Sequence[float] | None = None,
    accuracy: Sequence[tuple[int, float]] = (),
    command: str | None = None,
) -> Path:
    """Write report.html, comparison.png (Random beside it), animation.gif, and the card of an artifact.

    Args:
        folder: of the run; losses and snapshots that lie there are taken where none are given, and a card that lies
            there stays where no evaluation is given.
        distilled: the set whose images are shown.
        real: the real set; without it there is no comparison.png and no real image in the report.
        sets: all sets of the evaluation, `distilled` first.
        snapshots, losses, accuracy, command: as `write_report` takes them.

    Returns:
        The path of the report.
    """
    folder = Path(folder)
    if losses is None and (folder / LOSSES).is_file():
        losses = read_tensors(folder / LOSSES, LOSS_KINDS)[0].get("losses")
    if snapshots is None and (folder / FILE).is_file():
        snapshots = load_snapshots(folder)
    timeline = snapshots.timeline if isinstance(snapshots, Snapshots) else snapshots
    everything = list(sets) if sets else [distilled]
    path = write_report(folder / "report.html", everything, evaluation, real, timeline, losses, command, accuracy)
    if (folder / MANIFEST).is_file() and (evaluation is not None or not (folder / CARD).is_file()):
        write_card_and_preview(distilled, folder, evaluation)
    if real is not None:
        random = random_selection(distilled, real)
        picture = comparison(random, distilled, ("random", distilled.record.method))
        write_bytes(folder / "comparison.png", png(picture))
    if timeline is not None and len(timeline) > 1:
        write_bytes(folder / "animation.gif", animation(timeline))
    return path


def random_selection(distilled: DistilledSet, real: RealSet) -> tuple[Tensor, Tensor, Sequence[str]]:
    """Pixels, labels and class names of the random selection that a set is compared with."""
    from datastill.sampling.inits import random_indices

    index = random_indices(real, distilled.ipc, distilled.record.seed)
    return real.pixels(index), real.labels[index], real.class_names

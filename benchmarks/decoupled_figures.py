"""The pictures of docs/decoupled.md: from noise to image, and how alike the images of a class are.

    python benchmarks/decoupled_figures.py                 # FashionMNIST, the teacher of decoupled_study.py

Recovers one image of each class of FashionMNIST from noise, keeping some steps on the way; then ten images per class by
SRe2L and by DWA from real images, and shows the teacher's features of both beside those of real images (t-SNE).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

STEPS = (0, 5, 20, 50, 100, 200, 400)


def recovery(real: Any, teacher: Any, network: str, target: Path) -> None:
    """A row for each class, a column for each step."""
    from matplotlib.figure import Figure

    import datastill
    from datastill.core.plan import Callback

    kept: dict[int, torch.Tensor] = {}

    class Keep(Callback):
        def start(self, context: Any) -> None:
            kept[0] = context.codes["images"].clone()

        def after_step(self, context: Any) -> None:
            if context.step in STEPS:
                kept[context.step] = context.codes["images"].clone()

    datastill.distill(
        "sre2l", real, ipc=10, steps=STEPS[-1], jitter=2, teacher=teacher, network=network, block_group=10,
        callbacks=[Keep()],
    )  # fmt: skip
    drawing = Figure(figsize=(8.2, 1.25 * 5), layout="constrained")
    axes = drawing.subplots(5, len(STEPS))
    for column, step in enumerate(STEPS):
        pixels = real.space.decode(kept[step]).clamp(0, 1)
        for row in range(5):
            ax = axes[row][column]
            image = pixels[2 * row].permute(1, 2, 0)
            ax.imshow(image.squeeze(2) if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=1)
            ax.set_xticks([])
            ax.set_yticks([])
            if row == 0:
                ax.set_title(f"step {step}", fontsize=9)
            if column == 0:
                ax.set_ylabel(real.class_names[2 * row], fontsize=8)
    drawing.savefig(target, dpi=110)


def diversity(real: Any, teacher: Any, network: str, target: Path) -> dict[str, float]:
    """t-SNE of the teacher's features: real images, SRe2L, DWA; and the mean cosine within a class."""
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    import datastill

    seen = teacher.seen_from(real.space, real.class_names)
    common = {"ipc": 10, "steps": 200, "jitter": 2, "teacher": teacher, "network": network}
    sets = {
        "SRe2L from noise": datastill.distill("sre2l", real, **common),
        "SRe2L from real images": datastill.distill("sre2l", real, init="real", **common),
        "DWA from real images": datastill.distill("dwa", real, **common),
    }
    index = torch.cat([real.class_index(c)[:60] for c in range(real.classes)])
    batch = real.batch(index)
    parts = [features(seen, batch.x)] + [features(seen, one.images) for one in sets.values()]
    labels = [batch.y] + [one.hard_labels for one in sets.values()]
    placed = torch.from_numpy(TSNE(random_state=0, init="pca").fit_transform(torch.cat(parts).numpy()))
    pieces = placed.split([len(p) for p in parts])
    drawing = Figure(figsize=(11, 3.9), layout="constrained")
    axes = drawing.subplots(1, len(sets))
    told = {"real images": alike(parts[0], labels[0])}
    for k, (name, ax) in enumerate(zip(sets, axes, strict=True), start=1):
        ax.scatter(*pieces[0].T, c=labels[0], cmap="tab10", s=6, alpha=0.25, linewidths=0)
        ax.scatter(*pieces[k].T, c=labels[k], cmap="tab10", s=30, edgecolors="black", linewidths=0.6)
        told[name] = alike(parts[k], labels[k])
        ax.set_title(f"{name}: cosine within a class {told[name]:.3f}", fontsize=9, loc="left")
        ax.set_xticks([])
        ax.set_yticks([])
    drawing.savefig(target, dpi=110)
    return told


def features(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What goes into the last linear layer, (n, d)."""
    with torch.no_grad():
        return network.embed(x)  # type: ignore[operator,no-any-return]


def alike(found: torch.Tensor, y: torch.Tensor) -> float:
    """Mean cosine of two centered features of a class."""
    f = torch.nn.functional.normalize(found - found.mean(0), dim=1)
    each = []
    for c in y.unique():
        g = f[y == c]
        each.append(((g @ g.T).sum() - len(g)) / (len(g) * (len(g) - 1)))
    return float(torch.stack(each).mean())


def main() -> None:
    """Both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--network", default="convnet:width=32,norm=batch")
    parser.add_argument("--teacher", default="runs/decoupled/teacher")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    given = parser.parse_args()
    import datastill
    from datastill.surrogates.teachers import load_teacher

    real, teacher = datastill.load_real(given.data), load_teacher(given.teacher)
    recovery(real, teacher, given.network, given.out / "recovery.png")
    for name, value in diversity(real, teacher, given.network, given.out / "diversity.png").items():
        print(f"{name}: mean cosine within a class {value:.3f}")


if __name__ == "__main__":
    main()

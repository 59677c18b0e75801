"""The decoupled family at small scale: who recovers what from one teacher, with soft and with hard labels.

    python benchmarks/decoupled_study.py                        # FashionMNIST; results/decoupled-fashion_mnist.json
    python benchmarks/decoupled_study.py --data cifar10 --network resnet18:norm=batch --teacher teachers/r18
    python benchmarks/decoupled_study.py --figure docs/images   # the pictures of docs/decoupled.md from the file

Every arm has the same teacher, trained once; ten images per class; three sets each, scored by two networks under
soft-quick-v1 with the teacher's labels, and again in the same way with hard ones. A cell in the file is not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "SRe2L, r_bn 0": ("sre2l", {"r_bn": 0.0}),
    "SRe2L, r_bn 0.01": ("sre2l", {"r_bn": 0.01}),
    "SRe2L, r_bn 0.1": ("sre2l", {"r_bn": 0.1}),
    "SRe2L, r_bn auto": ("sre2l", {"r_bn": "auto"}),
    "SRe2L, one block": ("sre2l", {"r_bn": 0.01, "block_group": 10}),
    "SRe2L, one block, r_bn auto": ("sre2l", {"r_bn": "auto", "block_group": 10}),
    "CDA": ("cda", {"r_bn": 0.01}),
    "SRe2L, real start": ("sre2l", {"r_bn": 0.01, "init": "real"}),
    "SRe2L, RDED start": ("sre2l", {"r_bn": 0.01, "init": "patches"}),
    "DWA, no perturbation": ("dwa", {"r_bn": 0.01, "ascent_steps": 0}),
    "DWA": ("dwa", {"r_bn": 0.01}),
    "DWA, noise start": ("dwa", {"r_bn": 0.01, "init": "noise"}),
    "RDED": ("rded", {"factor": 1}),
    "RDED, factor 2": ("rded", {"factor": 2}),
}
WEIGHT = 0.01  #: of the statistics, in the arms that do not say otherwise


class Last:
    """A callback that keeps the distance of statistics of every block's last step."""

    def __init__(self) -> None:
        from datastill.core.plan import Callback

        self.found: dict[int, float] = {}
        outer = self

        class Hook(Callback):
            def after_step(self, context: Any) -> None:
                if "statistics" in context.state:
                    outer.found[context.block.key] = float(context.state["statistics"])

        self.hook = Hook()


def likeness(teacher: Any, distilled: Any, real: Any) -> float | None:
    """Mean cosine of the teacher's features of two images of a class: 1 where all are alike."""
    network = teacher.seen_from(real.space, real.class_names)
    if not hasattr(network, "embed"):
        return None
    with torch.no_grad():
        features = torch.nn.functional.normalize(network.embed(distilled.images), dim=1)
    y = distilled.hard_labels
    found = []
    for c in y.unique():
        f = features[y == c]
        n = len(f)
        if n > 1:
            found.append(float(((f @ f.T).sum() - n) / (n * (n - 1))))
    return sum(found) / len(found) if found else None


def teacher_of(given: argparse.Namespace, real: Any) -> Any:
    """The one teacher: brought, or trained on 20,000 images for three passes."""
    from datastill.core.plan import Task
    from datastill.models import resolve_network
    from datastill.surrogates.teachers import Squeeze, load_teacher

    folder = Path(given.teacher) if given.teacher else Path(given.runs) / "teacher"
    if (folder / "teacher.json").is_file():
        return load_teacher(folder)
    factory = resolve_network(given.network, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    few = real.subset(torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[: given.teacher_images])
    task = Task(few, 1, factory)
    squeeze = Squeeze(given.teacher_passes)
    teacher = squeeze.teacher(task, squeeze.run(task))
    teacher.save(folder)
    return load_teacher(folder)


def cell(name: str, seed: int, given: argparse.Namespace, real: Any, teacher: Any) -> dict[str, Any]:
    """One set: made, looked at, scored with soft and with hard labels."""
    import datastill

    last = Last()
    started = time.process_time()
    if name in ("random", "noise"):
        distilled = datastill.distill("random", real, ipc=given.ipc, seed=seed, network=given.network)
        if name == "noise":
            images = distilled.codes["images"]
            distilled.codes = {"images": torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))}
    else:
        method, hyper = ARMS[name]
        common = {} if method == "rded" else {"steps": given.steps, "jitter": given.jitter, "block_group": given.group}
        if hyper.get("r_bn") == WEIGHT and given.r_bn == "auto" and name != f"SRe2L, r_bn {WEIGHT}":
            hyper = hyper | {"r_bn": "auto"}
        distilled = datastill.distill(
            method,
            real,
            ipc=given.ipc,
            seed=seed,
            network=given.network,
            callbacks=[last.hook],
            teacher=teacher,
            **{**common, **hyper},
        )
    seconds = time.process_time() - started
    distilled.manifest["student"] = {"labels": "teacher", "patches": distilled.manifest["student"].get("patches", 1)}
    scores = {}
    for labels in ("soft", "hard"):
        asked = {"labels": labels, "teacher": teacher if labels == "soft" else None}
        found = datastill.evaluate(
            distilled, real, protocol=given.protocol, networks=given.networks, random=False, **asked
        )
        scores[labels] = found.distilled.accuracies.flatten().tolist()
    if given.runs and seed == 0:
        distilled.save(Path(given.runs) / name.replace(" ", "_").replace(",", ""))
    return {
        "seconds": round(seconds, 2),
        "statistics": sum(last.found.values()) / len(last.found) if last.found else None,
        "likeness": likeness(teacher, distilled, real),
        **scores,
    }


def table(record: dict[str, Any]) -> str:
    """Rows of means over sets and networks, in percent."""
    lines = [
        "| 10 images per class | soft labels | hard labels | R at the end | likeness | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("noise", "random", *ARMS):
        cells = [c for key, c in record["cells"].items() if key.rsplit("|", 1)[0] == name]
        if not cells:
            continue

        def mean(what: str, cells: list[dict[str, Any]] = cells) -> str:
            sets = torch.tensor([c[what] for c in cells], dtype=torch.double).mean(1) * 100
            return f"{sets.mean():.1f} ± {sets.std():.1f}" if len(sets) > 1 else f"{sets.mean():.1f}"

        def plain(what: str, digits: int, cells: list[dict[str, Any]] = cells) -> str:
            known = [c[what] for c in cells if c[what] is not None]
            return f"{sum(known) / len(known):.{digits}f}" if known else "–"

        lines.append(
            f"| {name} | {mean('soft')} | {mean('hard')} | {plain('statistics', 2)} | {plain('likeness', 2)} | "
            f"{plain('seconds', 1)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Make what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--network", default="convnet:width=32,norm=batch")
    parser.add_argument("--teacher", default="", help="folder of a teacher, else one is trained")
    parser.add_argument("--teacher-images", type=int, default=20_000)
    parser.add_argument("--teacher-passes", type=int, default=3)
    parser.add_argument("--protocol", default="soft-quick-v1")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--jitter", type=int, default=2)
    parser.add_argument("--group", type=int, default=1, help="images of a class in a block")
    parser.add_argument("--r-bn", default=str(WEIGHT), help="auto: in the arms that do not say otherwise")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", type=int, default=2)
    parser.add_argument("--arms", nargs="*", default=["noise", "random", *ARMS])
    parser.add_argument("--runs", default="runs/decoupled", help="where the teacher and the sets of seed 0 are kept")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    import datastill
    from datastill.core.cost import environment, pick_device
    from datastill.store.files import write_json

    out = given.out or Path(f"results/decoupled-{given.data}.json")
    record: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {"cells": {}}
    real = datastill.load_real(given.data)
    teacher = teacher_of(given, real)
    if "accuracy" not in teacher.record:
        teacher.record["accuracy"] = teacher.test_accuracy(real, torch.device("cpu"))
    settings = {k: v for k, v in vars(given).items() if k not in ("out", "arms", "runs", "seeds")}
    record |= {"settings": settings, "teacher": teacher.describe(), "environment": environment(pick_device("cpu"))}
    for seed in range(given.seeds):
        for name in given.arms:
            key = f"{name}|{seed}"
            if key not in record["cells"]:
                record["cells"][key] = cell(name, seed, given, real, teacher)
                write_json(out, record)
                print(key, record["cells"][key], flush=True)
    print(f"teacher: {100 * teacher.record['accuracy']:.1f} % on the test split")
    print(table(record))


if __name__ == "__main__":
    main()

"""What experts of other policies take beside plain SGD, and an image update of AST and DATM beside MTT's.

    python benchmarks/expert_policies.py          # a table last; writes results/benchmarks-expert-policies.json
    python benchmarks/expert_policies.py --rounds 3 --batches 1

ConvNet-3/128 on CIFAR-10 shapes, one thread, CPU seconds, the best of rounds in which all sides take turns. Experts
train on batches of 256 with DSA; updates are of 10 images and N student steps by the adjoint. Images are noise.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from datastill import load_real
from datastill.core.allocator import keep_freed_memory
from datastill.core.cost import environment, pick_device
from datastill.core.loop import synthesize
from datastill.core.plan import Task
from datastill.core.registry import get_method
from datastill.core.rng import Rng
from datastill.models import resolve_network
from datastill.store.files import write_json
from datastill.surrogates.experts import train_experts
from datastill.surrogates.experts.policies import Epoch, TrainingSet, get_policy

BATCH, CLASSES, DSA = 256, 10, "color_crop_cutout_flip_scale_rotate"
#: Times of the first side that the others may take.
BOUNDS = {"gsam": 2.1, "smooth": 3.2, "ast": 1.1, "datm": 1.1}


def noise(n: int) -> Any:
    """Images in memory, ten classes in turn."""
    x = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return load_real((x, torch.arange(n) % CLASSES), holdout=0)


def epochs(batches: int) -> dict[str, Callable[[], object]]:
    """An epoch by each policy."""
    real = noise(BATCH * batches)
    data = TrainingSet(real.batch(torch.arange(len(real))).x, real.labels, None, DSA, torch.device("cpu"))
    factory = resolve_network("convnet", channels=3, classes=CLASSES, size=(32, 32))

    def epoch(name: str) -> float:
        return get_policy(name).epoch(factory(0), data, Epoch(0, 50, Rng(0), {}, lambda index, logits: None))

    return {name: lambda name=name: epoch(name) for name in ("sgd", "gsam", "smooth")}  # type: ignore[misc]


def updates(student_steps: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Two image updates by each method, from the same experts."""
    real = noise(200)
    factory = resolve_network("convnet", channels=3, classes=CLASSES, size=(32, 32))
    train_experts(real, factory, folder, experts=1, epochs=3, policy="sgd:lr=0.01", augment="none")
    shared = {"experts": str(folder), "max_start": 2, "student_steps": student_steps, "steps": 2, "init": "real"}
    made: dict[str, Callable[[], object]] = {}
    for name, own in {"mtt": {}, "ast": {"expert_policy": "sgd"}, "datm": {"expert_policy": "sgd"}}.items():
        plan = get_method(name).cls(**shared, **own).build(task := Task(real, 1, factory))
        prepared = {unit.name: unit.run(task) for unit in plan.prepare}
        made[name] = lambda plan=plan, task=task, prepared=prepared: synthesize(plan, task, prepared=prepared)  # type: ignore[misc]
    return made


def measured(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU seconds of the best round of each."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, work in sides.items():
            started = time.process_time()
            work()
            best[name] = min(best.get(name, float("inf")), time.process_time() - started)
    return best


def main() -> None:
    """Experts, then updates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--student-steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks-expert-policies.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.simplefilter("ignore")
    record: dict[str, Any] = {"rounds": given.rounds, **environment(pick_device("cpu"))}
    with tempfile.TemporaryDirectory() as folder:
        record["epochs"] = measured(epochs(given.batches), given.rounds)
        record["updates"] = measured(updates(given.student_steps, Path(folder) / "b"), given.rounds)
    write_json(given.out, record)
    print("| side | CPU s | times the first | at most |\n|---|---|---|---|")
    for part in ("epochs", "updates"):
        first = next(iter(record[part].values()))
        for name, seconds in record[part].items():
            print(f"| {name} | {seconds:.2f} | {seconds / first:.2f} | {BOUNDS.get(name, '')} |")


if __name__ == "__main__":
    main()

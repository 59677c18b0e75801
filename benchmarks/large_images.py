"""A set of larger images through squeeze, recovery, stored labels and training, beside the sums of docs/large_scale.md.

    python benchmarks/large_images.py --size 64 --images 20000
    python benchmarks/large_images.py --size 128 --images 10000 --epochs 3 --lr 0.01

The images are CIFAR-10's, enlarged and written as JPEGs into a folder, which is all that there is at hand; what is
looked at is time and memory, not accuracy. The real set is memory-mapped. Memory is what this process holds for itself,
mapped files apart (Linux only).
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from datastill import distill, evaluate, load_real
from datastill.core.cost import environment
from datastill.core.plan import Task
from datastill.evaluation.protocols import Protocol, register_protocol
from datastill.evaluation.soft import relabel
from datastill.models import resolve_network
from datastill.store.files import write_json
from datastill.surrogates.teachers import Squeeze

PASSES, TEST = 30, 1000
STEPS, IPC = 40, 5
NETWORK = "convnet:width=16,norm=batch"
PROTOCOL = register_protocol(
    Protocol("large-v1", f"{PASSES} passes on a teacher's labels.", passes=PASSES, lr=2e-3, batch=50, soft="small")
)


def folder_of(target: Path, size: int, images: int) -> Path:
    """Enlarged images of CIFAR-10 in sub-folders of classes, of training and of test ones."""
    if target.is_dir():
        return target
    real = load_real("cifar10")
    assert real.test is not None
    unfinished = target.with_name(target.name + "-unfinished")
    for part, source, count in (("train", real, images), ("test", real.test, TEST)):
        for c, name in enumerate(real.class_names):
            (unfinished / part / name).mkdir(parents=True, exist_ok=True)
            index = (source.labels == c).nonzero().flatten()[: count // real.classes]
            pixels = (source.pixels(index) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            for i, one in zip(index.tolist(), pixels, strict=True):
                large = Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)
                large.save(unfinished / part / name / f"{i:05d}.jpg", quality=92)
    unfinished.rename(target)
    return target


def held() -> int:
    """Bytes that this process holds, mapped files apart."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


@contextmanager
def measured(found: dict[str, Any], phase: str, macs: float) -> Iterator[None]:
    """Seconds of the processor and most memory of a phase, looked at ten times a second."""
    stop, most, before = threading.Event(), [held()], held()

    def watch() -> None:
        while not stop.wait(0.1):
            most.append(held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.process_time()
    try:
        yield
    finally:
        seconds = time.process_time() - began
        stop.set()
        watcher.join()
    found[phase] = {"seconds": round(seconds, 2), "gmac": round(macs / 1e9, 1),
                    "gmac_per_second": round(macs / 1e9 / seconds, 2),
                    "memory_mb": round((max(most) - before) / 1e6, 1)}  # fmt: skip
    print(phase, found[phase], flush=True)


def main() -> None:
    """All phases of one size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=1, help="of the teacher")
    parser.add_argument("--lr", type=float, default=0.1, help="of the teacher, which deep ones need lower")
    parser.add_argument("--network", default=NETWORK)
    parser.add_argument("--runs", type=Path, default=Path("runs/large"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    place = args.runs / f"{args.size}"
    source = folder_of(place / "images", args.size, args.images)
    found: dict[str, Any] = {}
    with measured(found, "read", 0.0):
        real = load_real(source, storage="memmap", size=args.size)
        print(real.fingerprint, flush=True)
    factory = resolve_network(args.network, channels=3, classes=real.classes, size=real.shape[1:])
    image = 3.0 * factory.macs  # forward, and backward to weights or pixels
    squeeze, task = Squeeze(args.epochs, lr=args.lr), Task(real, IPC, factory)
    with measured(found, "squeeze", args.epochs * len(real) * image):
        teacher = squeeze.teacher(task, squeeze.run(task))
    n = IPC * real.classes
    with measured(found, "recover", STEPS * n * image):
        made = distill("sre2l", real, ipc=IPC, steps=STEPS, teacher=teacher, network=args.network, device="cpu")
        made.save(place / "set")
    with measured(found, "relabel", PASSES * n * factory.macs):
        bank = relabel(made, real, PROTOCOL, teacher=teacher)
    with measured(found, "train", PASSES * n * image + TEST * factory.macs):
        result = evaluate(made, real, protocol=PROTOCOL, networks=1, network=args.network, random=False, device="cpu")
    record = {
        "size": args.size, "epochs": args.epochs, "lr": args.lr, "images": len(real),
        "network": args.network, "macs_of_an_image": factory.macs,
        "decoded_mb": round(len(real) * 3 * args.size**2 / 1e6, 1),
        "phases": found, "bank_bytes": bank.nbytes, "bank_bytes_reckoned": n * PASSES * real.classes * 2,
        "set_bytes": n * 3 * args.size**2 * 4, "accuracy": result.distilled.mean,
        "environment": environment(torch.device("cpu")),
    }  # fmt: skip
    out = args.out or Path(f"results/large-{args.size}.json")
    write_json(out, record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()

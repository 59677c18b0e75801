"""Backdoors on FashionMNIST: clean accuracy, attack success, and which checks name the target.

    python benchmarks/backdoor_study.py runs/backdoor-study.json
    python benchmarks/backdoor_study.py runs/backdoor-cost.json --cost

Each attack on DM and DC with ten images per class and a ConvNet of width 32, a fixed number of steps, two networks; the
clean set beside each is the control. With --cost, processor seconds of runs at the methods' defaults with DoorPing and
without. Rows are kept one by one; the same command goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from datastill import distill, load_real
from datastill.apps.backdoor.attack import backdoor
from datastill.apps.backdoor.checks import checks
from datastill.apps.backdoor.doorping import DoorPing
from datastill.apps.backdoor.trigger import Trigger, poisoned
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.store.artifact import DistilledSet
from datastill.store.files import read_json, write_json

STEPS = {"dm": 150, "dc": 20}
FRACTION, PIXELS, NETWORK = 0.1, 5, "convnet:width=32"
ATTACKS: dict[str, dict[str, Any]] = {
    "naive": {"attack": "naive"},
    "doorping": {"attack": "doorping"},
    "doorping, free": {"attack": "doorping", "clamp": False},
}


def attacked(real: RealSet, method: str, attack: str, clean: DistilledSet) -> dict[str, Any]:
    """One attack beside the clean set, and what the checks say of the poisoned one."""
    found = backdoor(
        real, method, fraction=FRACTION, size=PIXELS, ipc=10, network=NETWORK, networks=2, steps=STEPS[method],
        clean=clean, **ATTACKS[attack],
    )  # fmt: skip
    name = str(found.config["attack"])
    looks = checks({name: found.sets[name]}, real, networks=2)[name]
    return {**found.to_dict(), "checks": looks.to_dict(), "steps": STEPS[method]}


def cost(real: RealSet, method: str, steps: int = 20) -> dict[str, Any]:
    """Processor seconds of so many steps at defaults, twice as many less once as many, with the trigger and without."""
    taken = {}
    for kind in ("without", "with"):
        seconds = []
        for count in (steps, 2 * steps):
            trigger = Trigger.random(real.shape, 2, Rng(0).generator("backdoor"))
            bad = poisoned(real, trigger, 0, 0.01, 0)[0]
            hooks = [DoorPing(trigger, bad)] if kind == "with" else []
            start = time.process_time()
            distill(method, bad, ipc=10, steps=count, callbacks=hooks)
            seconds.append(time.process_time() - start)
        taken[kind] = seconds[1] - seconds[0]
    return {"steps": steps, "processor_seconds": taken, "share": 1 - taken["without"] / taken["with"]}


def main() -> None:
    """Row after row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--cost", action="store_true")
    given = parser.parse_args()
    real = load_real(given.data)
    rows: dict[str, Any] = read_json(given.out) if given.out.is_file() else {}
    for method in STEPS:
        if given.cost:
            rows[f"{method}, cost"] = rows.get(f"{method}, cost") or cost(real, method)
            write_json(given.out, rows)
            continue
        missing = [name for name in ("clean", *ATTACKS) if f"{method}, {name}" not in rows]
        clean = distill(method, real, ipc=10, network=NETWORK, steps=STEPS[method]) if missing else None
        for name in missing:
            assert clean is not None
            if name == "clean":
                rows[f"{method}, clean"] = {"checks": checks({name: clean}, real, networks=2)[name].to_dict()}
            else:
                rows[f"{method}, {name}"] = attacked(real, method, name, clean)
            write_json(given.out, rows)
            print(method, name, rows[f"{method}, {name}"].get("arms"), flush=True)


if __name__ == "__main__":
    main()

"""Triggers: where they are, who bears them, how they are learned, what their success is, what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datastill import distill, load_real
from datastill.apps.backdoor.attack import CLEAN, backdoor, rates
from datastill.apps.backdoor.doorping import DoorPing, strongest
from datastill.apps.backdoor.signature import signature
from datastill.apps.backdoor.trigger import Trigger, poisoned
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.models import resolve_network

pytestmark = pytest.mark.usefixtures("short_protocols", "same_weights")

NETWORK = "convnet:width=8,depth=2"


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


@pytest.mark.parametrize("size", [1, 3])
def test_a_trigger_touches_its_square_alone(size: int) -> None:
    pixels = torch.rand(4, 3, 10, 12, generator=Rng(0).generator("x"))
    before = pixels.clone()
    bad = Trigger.white((3, 10, 12), size).on(pixels)
    changed = bad != pixels
    assert int(changed.sum()) == 4 * size * size * 3
    assert (bad[changed] == 1).all()
    assert changed[:, :, 9 - size : 9, 11 - size : 11].all()
    assert torch.equal(pixels, before)
    with pytest.raises(InputError, match="does not fit into images of 10 x 12"):
        Trigger.white((3, 10, 12), 10)


def test_poisoned_images_bear_the_trigger_as_it_is_now(digits: RealSet) -> None:
    trigger = Trigger.random(digits.shape, 2, Rng(0).generator("t"))
    labels, pixels = digits.labels.clone(), digits.pixels(torch.arange(len(digits)))
    bad, rows = poisoned(digits, trigger, 3, 0.05, seed=1)
    everyone = torch.arange(len(digits))
    others = torch.ones(len(digits), dtype=torch.bool)
    others[rows] = False
    assert len(rows) == int(0.05 * len(digits))
    assert (bad.labels[rows] == 3).all()
    assert torch.equal(bad.labels[others], digits.labels[others])
    for value in (trigger.patch.clone(), torch.full(digits.shape, 0.25)):
        trigger.patch.copy_(value)
        got = bad.pixels(everyone)
        assert torch.equal(got[others], pixels[others])
        assert torch.equal(got[rows], trigger.on(pixels[rows]))
    assert torch.equal(digits.labels, labels)
    assert torch.equal(digits.pixels(everyone), pixels)
    for target, fraction, said in ((10, 0.1, "no class 10"), (0, 1e-6, "not one image")):
        with pytest.raises(InputError, match=said):
            poisoned(digits, trigger, target, fraction, 0)


class Oracle(nn.Module):
    """Reads the class off the first pixel, or says the same of all."""

    def __init__(self, always: int | None = None) -> None:
        super().__init__()
        self.always, self.one = always, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        label = (x[:, 0, 0, 0] * 4).round().long() if self.always is None else torch.full((len(x),), self.always)
        return nn.functional.one_hot(label, 4).float()


def test_success_is_counted_both_ways() -> None:
    y = torch.tensor([0, 0, 0, 1, 2, 3, 3, 1])
    x = torch.zeros(8, 1, 8, 8) + (y / 4)[:, None, None, None]
    part = load_real((x, y), holdout=0, space="raw")
    real = dataclasses.replace(part, test=part)
    trigger = Trigger.white((1, 8, 8), 2)
    honest, bad = rates(Oracle(), real, trigger, 0), rates(Oracle(0), real, trigger, 0)
    assert (honest.clean, honest.success, honest.success_all) == (1, 0, 3 / 8)
    assert (bad.clean, bad.success, bad.success_all) == (3 / 8, 1, 1)


@pytest.mark.parametrize("clamp", [True, False])
def test_an_update_follows_the_network_and_touches_nothing_else(digits: RealSet, clamp: bool) -> None:
    trigger = Trigger.random(digits.shape, 3, Rng(0).generator("t"))
    bad, rows = poisoned(digits, trigger, 0, 0.05, 0)
    first, clean = trigger.patch.clone(), bad.pixels(rows)
    door = DoorPing(trigger, bad, clamp=clamp)
    network = resolve_network(NETWORK, channels=1, classes=10, size=(8, 8))(0)
    hooks = sum(len(m._forward_hooks) for m in network.modules())
    weights = [p.clone() for p in network.parameters()]
    for _ in range(5):
        before, after = door.update(network)
        assert after <= before
        assert torch.equal(trigger.patch[:, ~trigger.mask], first[:, ~trigger.mask])
        assert torch.equal(bad.pixels(rows), trigger.on(clean))
    assert not torch.equal(trigger.patch, first)
    assert sum(len(m._forward_hooks) for m in network.modules()) == hooks
    assert all(torch.equal(p, w) for p, w in zip(network.parameters(), weights))
    if clamp:
        assert 0 <= float(trigger.patch.min()) <= float(trigger.patch.max()) <= 1


def test_the_neuron_is_of_the_last_layer_but_one() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 3))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].weight[3] = -1.0
    layer, channel = strongest(network)
    assert layer is network[1]
    assert channel == 3


def settings(**more: Any) -> dict[str, Any]:
    return {"network": NETWORK, "networks": 1, "ipc": 3, "size": 3, "fraction": 0.05, "steps": 20, "real_batch": 16,
            "every": 5, **more}  # fmt: skip


def test_a_trigger_is_learned_in_the_loop(digits: RealSet) -> None:
    found = backdoor(digits, "dm", **settings())
    assert found.config["updates"] == 4
    assert set(found.arms) == {"doorping", CLEAN}
    assert backdoor(digits, "dm", **settings()).to_dict() == found.to_dict()
    naive = backdoor(digits, "dm", "naive", **settings())
    assert naive.config["updates"] == 0
    assert torch.equal(naive.sets[CLEAN].images, found.sets[CLEAN].images)
    signs = signature(found.sets["doorping"], digits, networks=1)
    assert len(signs.shares) == 10
    assert all(0 < share <= 1 for share in signs.shares)


def test_a_resumed_run_has_the_trigger_that_it_had(digits: RealSet, tmp_path: Path) -> None:
    from datastill.core.plan import Callback

    class Stopped(Exception):
        pass

    class Stop(Callback):
        def after_step(self, context: Any) -> None:
            if context.step == 7:
                raise Stopped

    def run(stop: bool, out: Path, resume: bool) -> Tensor:
        trigger = Trigger.random(digits.shape, 3, Rng(0).generator("t"))
        bad, _ = poisoned(digits, trigger, 0, 0.05, 0)
        hooks = [DoorPing(trigger, bad, every=3), *([Stop()] if stop else [])]
        made = distill("dm", digits, ipc=1, network=NETWORK, steps=12, real_batch=8, callbacks=hooks, out=out,
                       resume=resume, checkpoint_seconds=0.0)  # fmt: skip
        return torch.cat([made.images.flatten(), trigger.patch.flatten()])

    whole = run(False, tmp_path / "whole", False)
    with pytest.raises(Stopped):
        run(True, tmp_path / "parts", False)
    assert torch.equal(run(False, tmp_path / "parts", True), whole)


def test_what_cannot_be_attacked_is_refused(digits: RealSet) -> None:
    for method in ("random", "kip"):
        with pytest.raises(InputError, match=f"{method} draws no networks while images are learned"):
            backdoor(digits, method, network=NETWORK, ipc=1)
    with pytest.raises(InputError, match=r"dm made no update of the trigger.*for 10 steps or more; take more steps"):
        backdoor(digits, "dm", network=NETWORK, ipc=1, steps=2, real_batch=8)
    with pytest.raises(InputError, match="poison fewer"):
        backdoor(digits, "random", "naive", network=NETWORK, ipc=1, fraction=1.0)
    with pytest.raises(InputError, match="no direction that they could share"):
        signature(distill("random", digits, ipc=2, network=NETWORK), digits)


def test_the_command_writes_numbers_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["backdoor", "random", "--attack", "naive", "--data", "digits", "--fraction", "0.2", "--ipc", "3",
            "--networks", "1", "--network", NETWORK, "--out", str(tmp_path / "b")]  # fmt: skip
    assert main([*args, "--json"]) == 0
    told, kept = json.loads(capsys.readouterr().out), json.loads((tmp_path / "b" / "backdoor.json").read_text())
    assert told["arms"] == kept["arms"]
    assert told["checks"] == kept["checks"]
    for looks in (kept["checks"]["naive"], kept["checks"][CLEAN]):
        assert len(looks["signature"]["deviations"]) == len(looks["inversion"]["ratios"]) == 10
    page = (tmp_path / "b" / "backdoor.html").read_text()
    assert page.count("data:image/png") == 3
    assert "those found in the set of naive, those found in the set of clean images" in page
    assert main([*args[:1], "nope", *args[2:]]) == 2

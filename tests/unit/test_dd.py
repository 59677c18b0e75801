"""DD: its artifact carries order and sizes of steps, which dd-v1 takes; what is refused; resumption; windows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from datastill import distill, evaluate, load_distilled, load_real
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import Callback
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.evaluation.evaluate import trained
from datastill.models import resolve_network
from datastill.store.artifact import DistilledSet

NETWORK = "convnet:width=4,depth=1"


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def made(digits: RealSet, **options: object) -> DistilledSet:
    return distill("dd", digits, **{"ipc": 2, "network": NETWORK, "steps": 3, "real_batch": 5, **options})


@pytest.mark.parametrize("labels", ["fixed", "learned"])
def test_networks_take_the_steps_of_the_artifact(digits: RealSet, tmp_path: Path, labels: str) -> None:
    made(digits, target_labels=labels, out=tmp_path / "run")
    one = load_distilled(tmp_path / "run")
    assert one.record.student.protocol == "dd-v1"
    assert one.label_kind == ("classes" if labels == "fixed" else "logits")
    sizes = F.softplus(one.extra["raw_steps"])
    assert len(sizes) == 6
    assert one.record.student.lr == pytest.approx(float(sizes.mean()))
    network = resolve_network(NETWORK, channels=1, classes=10, size=(8, 8))(
        Rng(0).child("evaluation", 0, 0).derive("network")
    )
    y = one.labels if labels == "fixed" else one.labels.softmax(1)
    for t, size in enumerate(sizes):
        here = torch.arange(20) % 2 == t % 2
        loss = F.cross_entropy(network(one.images[here]), y[here])
        for p, g in zip(network.parameters(), torch.autograd.grad(loss, list(network.parameters())), strict=True):
            p.data -= size * g
    found = trained(one, digits)[0]
    for p, q in zip(network.parameters(), found.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_fixed_weights_are_those_of_all_networks(digits: RealSet, tmp_path: Path) -> None:
    made(digits, first_weights="fixed", out=tmp_path / "run")
    one = load_distilled(tmp_path / "run")
    first, second = (network.state_dict() for network in trained(one, digits, networks=2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(InputError, match=r"begin at 1,\d+ weights of its own, and this network has"):
        evaluate(one, digits, networks=1, network="convnet:width=5,depth=1")
    other = made(digits)
    first, second = (network.state_dict() for network in trained(other, digits, networks=2))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_random_takes_as_many_steps_at_a_rate_of_its_own(digits: RealSet) -> None:
    found = evaluate(made(digits), digits, networks=1)
    assert found.protocol == "dd-v1"
    assert found.random is not None
    tried = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, *found.distilled.rates)
    assert min(abs(found.random.rates[0] - rate) for rate in tried) < 1e-9
    assert sorted(found.random.tried) == pytest.approx(sorted(tried))
    assert evaluate(made(digits), digits, networks=1, protocol="dc-v1", random=False).protocol == "dc-v1"


def test_a_set_without_steps_is_refused_and_a_damaged_one_too(digits: RealSet) -> None:
    plain = distill("random", digits, ipc=1, network=NETWORK)
    with pytest.raises(InputError, match="steps that dd learns with a set, and this one comes without"):
        evaluate(plain, digits, networks=1, protocol="dd-v1")
    one = made(digits)
    broken = dataclasses.replace(one, extra={**one.extra, "turns": one.extra["turns"] * 2})
    with pytest.raises(InputError, match="do not fit together: its turns or raw_steps are damaged"):
        evaluate(broken, digits, networks=1)


def test_sizes_stay_positive(digits: RealSet) -> None:
    """However hard they are pushed."""
    one = made(digits, steps=10, image_lr=5.0, clip=1.0)
    assert (F.softplus(one.extra["raw_steps"]) > 0).all()


def test_a_window_has_a_random_end(digits: RealSet) -> None:
    class See(Callback):
        def after_step(self, context: Context) -> None:
            moved.append((context.codes["raw_steps"] != before[0]).nonzero().flatten().tolist())
            before[0] = context.codes["raw_steps"].clone()

        def start(self, context: Context) -> None:
            before.append(context.codes["raw_steps"].clone())

    before: list[torch.Tensor] = []
    moved: list[list[int]] = []
    made(digits, window=2, steps=12, callbacks=[See()], ipc=1, rounds=5)
    assert moved[0] == list(range(moved[0][0], moved[0][0] + 2))
    first = {min(steps) for steps in moved}
    assert 0 in first
    assert sorted(set().union(*moved)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("options", [{}, {"first_weights": "fixed", "window": 2, "target_labels": "learned"}])
def test_resume_is_bit_identical(digits: RealSet, tmp_path: Path, options: dict) -> None:
    class Stop(Callback):
        def after_step(self, context: Context) -> None:
            if context.step == 4:
                raise KeyboardInterrupt

    whole = made(digits, steps=7, **options)
    with pytest.raises(KeyboardInterrupt):
        made(digits, steps=7, out=tmp_path / "run", checkpoint_seconds=0.0, callbacks=[Stop()], **options)
    again = made(digits, steps=7, out=tmp_path / "run", resume=True, **options)
    assert torch.equal(again.images, whole.images)
    assert torch.equal(again.labels, whole.labels)
    assert all(torch.equal(again.extra[name], whole.extra[name]) for name in ("raw_steps", "turns"))


@pytest.mark.slow
def test_one_step_from_fixed_weights_beats_one_real_step_by_far(digits: RealSet) -> None:
    one = distill(
        "dd",
        digits,
        ipc=1,
        network="convnet:width=16,depth=2",
        steps=200,
        real_batch=20,
        rounds=1,
        first_weights="fixed",
        image_lr=0.05,
        step_size=0.1,
    )
    found = evaluate(one, digits, networks=1)
    assert found.distilled.mean - found.random.mean > 0.3

"""Federated rounds: who holds what, what is sent, what the server makes of it, and clients that fail."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from datastill import load_real
from datastill.apps.federated.averaging import IMAGES, FedAvg, FedProx
from datastill.apps.federated.feddm import FedDM, image_weights
from datastill.apps.federated.partitions import partition
from datastill.apps.federated.runner import federated
from datastill.apps.federated.strategies import STRATEGIES
from datastill.apps.federated.strategy import Client, Server, bytes_of, network_of, state_of
from datastill.cli import main
from datastill.cli.federated_command import STRATEGIES as TOLD
from datastill.core.context import Context
from datastill.core.errors import DatastillError, InputError
from datastill.core.loop import gradients
from datastill.core.plan import Block, Codes, Task
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.data.real import RealSet
from datastill.models import resolve_network
from datastill.surrogates.around import Around, WithLogits

NETWORK = "convnet:width=4,depth=1"
SMALL = {"ipc": 1, "steps": 2, "real_batch": 4, "server_passes": 2}


@pytest.fixture(scope="module")
def digits() -> RealSet:
    real = load_real("digits")
    assert real.test is not None
    return replace(real.subset(torch.arange(300)), test=real.test.subset(torch.arange(50)))


def factory_of(real: RealSet, spec: str = NETWORK):
    return resolve_network(spec, channels=real.shape[0], classes=real.classes, size=real.shape[1:])


def client_of(real: RealSet, spec: str = NETWORK, seed: int = 3) -> Client:
    return Client(0, real, factory_of(real, spec), len(real) / real.classes, seed, Rng(seed), Runtime())


# Partitions


@pytest.mark.parametrize("how", ["iid", "dirichlet:0.5", "dirichlet:0.05", "classes:2", "classes:10"])
def test_every_image_is_with_exactly_one_client(how: str) -> None:
    labels = torch.arange(10).repeat(60)
    parts = partition(labels, 7, how, seed=1)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(600))
    assert all(torch.equal(a, b) for a, b in zip(parts, partition(labels, 7, how, seed=1), strict=True))
    if how != "classes:10":
        assert any(not torch.equal(a, b) for a, b in zip(parts, partition(labels, 7, how, seed=2), strict=True))


def largest_shares(alpha: str) -> float:
    labels = torch.arange(10).repeat(200)
    shares = []
    for seed in range(5):
        for index in partition(labels, 8, f"dirichlet:{alpha}", seed=seed):
            counts = torch.bincount(labels[index], minlength=10)
            shares.append(float(counts.max() / counts.sum()))
    return sum(shares) / len(shares)


def test_a_small_alpha_is_skewed_and_a_large_one_is_not() -> None:
    assert largest_shares("0.05") > 0.6
    labels = torch.arange(10).repeat(200)
    for index in partition(labels, 8, "dirichlet:1e5"):
        counts = torch.bincount(labels[index], minlength=10).double()
        expected = counts.sum() / 10
        assert float(((counts - expected) ** 2 / expected).sum()) < 2  # of 9 degrees of freedom: far below chance


def test_each_client_has_k_classes() -> None:
    labels = torch.arange(10).repeat(30)
    assert {len(labels[index].unique()) for index in partition(labels, 10, "classes:3", seed=4)} == {3}


@pytest.mark.parametrize(
    ("how", "clients", "least", "told"),
    [
        ("dirichlet:0.01", 20, 10, "larger alpha"),
        ("classes:11", 3, 1, "from 1 to 10"),
        ("classes:2", 3, 1, "without a client"),
        ("nope", 3, 1, "no partition"),
        ("iid:3", 3, 1, "no option"),
        ("dirichlet:x", 3, 1, "ALPHA above 0"),
        ("dirichlet:nan", 3, 1, "ALPHA above 0"),
        ("classes:inf", 3, 1, "not .inf."),
        ("iid", 301, 1, "fewer clients"),
    ],
)
def test_partitions_that_cannot_be_are_refused_in_a_sentence(how: str, clients: int, least: int, told: str) -> None:
    with pytest.raises(InputError, match=told):
        partition(torch.arange(10).repeat(30), clients, how, min_size=least)


# The neighborhood of the round's weights


def test_networks_are_drawn_in_the_ball_and_the_state_stays(digits: RealSet) -> None:
    factory = factory_of(digits)
    state = state_of(factory(1))
    before = {name: value.clone() for name, value in state.items()}
    task = Task(digits, 1, factory, 5)
    plan = FedDM(**SMALL).plan(task, state, digits.counts, 30.0)
    lengths = []
    for step in range(30):
        context = Context(task, plan, Block(0, torch.arange(10), torch.arange(10)), Rng(5), step=step)
        for radius in (2.0, 0.0):
            network = Around(factory, state, radius, logits=False).draw(context)
            squares = [(p - state[n]).double().square().sum() for n, p in network.named_parameters()]
            length = math.sqrt(sum(float(s) for s in squares))
            assert length <= 2.0 * (1 + 1e-5) if radius else length == 0
            lengths += [length] if radius else []
    assert min(lengths) > 1.5  # a Gaussian in many dimensions lies near its radius
    assert len({round(length, 9) for length in lengths}) > 5
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_logits_stand_beside_features(digits: RealSet) -> None:
    network = factory_of(digits)(0)
    both, x = WithLogits(network), digits.batch(torch.arange(5)).x
    assert torch.equal(both.embed(x), torch.cat([network.embed(x), network(x)], 1))
    assert torch.equal(both(x), network(x))
    assert both.embed_size == both.embed(x).shape[1]
    taps = both.taps(x, both.tap_names())
    assert torch.equal(taps["flat"], both.embed(x))
    assert torch.equal(taps["logits"], network(x))


class AllOfEach:
    """The images themselves, of each class."""

    def draw(self, real, context):
        return real.batch(torch.cat([real.class_index(c)[:2] for c in context.block.classes]))


def losses(real: RealSet, images: torch.Tensor, classes: list[int], logits: bool = True) -> tuple[float, Codes]:
    factory = factory_of(real)
    task = Task(real, 2, factory, 5)
    strategy = FedDM(**{**SMALL, "ipc": 2}, augment="none", match_logits=logits)
    plan = replace(strategy.plan(task, state_of(factory(1)), real.counts, 30.0), sampler=AllOfEach())
    index = torch.isin(task.labels, torch.tensor(classes)).nonzero().flatten()
    context = Context(task, plan, Block(0, index, task.labels[index]), Rng(5), codes={"images": images})
    context.surrogate = plan.surrogates.draw(context)
    loss, grads = gradients(context, None)
    return float(loss.sum()), grads


def test_the_loss_is_zero_where_both_sides_are_the_same_images(digits: RealSet) -> None:
    classes = [1, 4]
    same = digits.batch(torch.cat([digits.class_index(c)[:2] for c in classes])).x
    loss, grads = losses(digits, same, classes)
    assert loss < 1e-9
    assert float(grads["images"].abs().max()) < 1e-6


def test_the_loss_is_that_of_means_of_features_and_logits(digits: RealSet) -> None:
    """Against a plain sum over classes, with both terms."""
    classes = [1, 4]
    other = digits.batch(torch.cat([digits.class_index(c)[5:7] for c in classes])).x
    factory = factory_of(digits)
    task = Task(digits, 2, factory, 5)
    context = Context(
        task, FedDM(**SMALL).plan(task, state_of(factory(1)), digits.counts, 30.0),
        Block(0, torch.arange(4), torch.tensor([1, 1, 4, 4])), Rng(5),
    )  # fmt: skip
    network = Around(factory, state_of(factory(1)), 5.0, logits=False).draw(context)
    expected = {True: 0.0, False: 0.0}
    for k, c in enumerate(classes):
        real, synthetic = digits.batch(digits.class_index(c)[:2]).x, other[2 * k : 2 * k + 2]
        features = (network.embed(real).mean(0) - network.embed(synthetic).mean(0)).square().sum()
        logits = (network(real).mean(0) - network(synthetic).mean(0)).square().sum()
        expected[False] += float(features)
        expected[True] += float(features + logits)
    for with_logits, value in expected.items():
        assert losses(digits, other, classes, with_logits)[0] == pytest.approx(value, rel=1e-5)


def test_a_client_sends_images_of_its_classes_alone(digits: RealSet) -> None:
    few = digits.subset(torch.cat([digits.class_index(3)[:1], digits.class_index(7)[:9]]))
    payload = FedDM(**{**SMALL, "ipc": 2, "init": "real"}).send(client_of(few), state_of(factory_of(few)(0)))
    assert payload["labels"].tolist() == [3, 3, 7, 7]
    assert payload["counts"].tolist() == [0, 0, 0, 1, 0, 0, 0, 9, 0, 0]
    assert payload["images"].shape == (4, *digits.shape)


# The server


def test_the_server_weighs_by_images_and_classes(digits: RealSet) -> None:
    """Two clients by hand: sum_k n_k / n sum_c n_kc / n_k mean_{S_kc} loss, in one full-batch step."""
    state = state_of(factory_of(digits)(0))
    payloads = {}
    for k, (labels, counts) in enumerate([([0, 0, 1, 1], [6, 2]), ([1, 1], [0, 8])]):
        full = torch.zeros(10)
        full[:2] = torch.tensor(counts, dtype=torch.float)
        images = digits.batch(torch.arange(4 * k, 4 * k + len(labels))).x
        payloads[k] = {"images": images, "labels": torch.tensor(labels), "counts": full}
    strategy = FedDM(server_passes=1, server_lr=0.1, augment="none")
    server = Server(factory_of(digits), digits.shape, digits.space, "digits", Rng(1), Runtime())
    made = strategy.gather(server, state, payloads)
    network = network_of(factory_of(digits), state)
    loss = torch.zeros(())
    for payload in payloads.values():
        for c in (0, 1):
            here = payload["labels"] == c
            if here.any():
                share = payload["counts"][c] / 16
                loss = loss + share * F.cross_entropy(network(payload["images"][here]), payload["labels"][here])
    found = torch.autograd.grad(loss, list(network.parameters()))
    for (name, value), gradient in zip(network.named_parameters(), found, strict=True):
        expected = value - 0.1 * (gradient + 5e-4 * value)
        assert torch.allclose(made[name], expected, atol=1e-6), name
    weights = image_weights(payloads[0]["labels"], payloads[0]["counts"])
    assert weights.tolist() == [3, 3, 1, 1]


def test_the_server_stays_in_its_ball(digits: RealSet) -> None:
    state = state_of(factory_of(digits)(0))
    payload = FedDM(**SMALL).send(client_of(digits), state)
    server = Server(factory_of(digits), digits.shape, digits.space, "digits", Rng(1), Runtime())

    def way(radius: float) -> float:
        strategy = FedDM(**{**SMALL, "server_passes": 20, "server_lr": 0.1, "server_radius": radius})
        made = strategy.gather(server, state, {0: payload})
        return math.sqrt(sum(float((made[n] - state[n]).double().square().sum()) for n in state))

    assert way(0.0) > 0.5
    assert 0.2 < way(0.25) <= 0.25 * (1 + 1e-5)


def test_fedavg_of_one_client_and_one_step_is_sgd(digits: RealSet) -> None:
    state = state_of(factory_of(digits)(0))
    strategy = FedAvg(local_batch=1000, local_lr=0.1)
    payload = strategy.send(client_of(digits), state)
    server = Server(factory_of(digits), digits.shape, digits.space, "digits", Rng(1), Runtime())
    made = strategy.gather(server, state, {0: payload})
    network = network_of(factory_of(digits), state)
    everything = digits.batch(torch.arange(len(digits)))
    loss = F.cross_entropy(network(everything.x), everything.y)
    for (name, p), g in zip(
        network.named_parameters(), torch.autograd.grad(loss, [*network.parameters()]), strict=True
    ):
        assert torch.allclose(made[name], p - 0.1 * g, atol=1e-6), name


def test_fedavg_takes_the_mean_by_images(digits: RealSet) -> None:
    state = {"w": torch.zeros(2), "batches": torch.tensor(0)}
    payloads = {
        0: {"w": torch.tensor([1.0, 2.0]), "batches": torch.tensor(4), IMAGES: torch.tensor([1])},
        1: {"w": torch.tensor([5.0, 2.0]), "batches": torch.tensor(9), IMAGES: torch.tensor([3])},
    }
    server = Server(factory_of(digits), digits.shape, digits.space, "digits", Rng(1), Runtime())
    assert FedAvg().gather(server, state, payloads)["w"].tolist() == [4.0, 2.0]


def test_fedprox_pays_for_distance_and_is_fedavg_without_a_price(digits: RealSet) -> None:
    state, client = state_of(factory_of(digits)(0)), client_of(digits)

    def sent(strategy: FedAvg) -> dict[str, torch.Tensor]:
        return dict(strategy.send(client, state))

    plain, free = sent(FedAvg(local_passes=3)), sent(FedProx(local_passes=3, mu=0))
    assert all(torch.equal(plain[n], free[n]) for n in plain)

    def way(found: dict[str, torch.Tensor]) -> float:
        return sum(float((found[n] - state[n]).double().square().sum()) for n in state)

    assert way(sent(FedProx(local_passes=3, mu=50))) < 0.5 * way(plain)


# Rounds


def run(strategy, real: RealSet, **options):
    return federated(strategy, real, **{"clients": 3, "rounds": 2, "network": NETWORK, "partition": "iid", **options})


def files(folder) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors")) if p.name[0] != "."
    }


def test_two_runs_are_bit_identical_and_so_is_one_that_goes_on(digits: RealSet, tmp_path) -> None:
    strategy = FedDM(**SMALL)
    first, second = run(strategy, digits, out=tmp_path / "a"), run(strategy, digits, out=tmp_path / "b", rounds=1)
    third = run(strategy, digits, out=tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    accuracies = [[one.accuracy for one in made.rounds] for made in (first, second, third)]
    assert accuracies[0] == accuracies[2]
    assert accuracies[1] == accuracies[0][:1]
    with pytest.raises(InputError, match="another run"):
        run(FedDM(**{**SMALL, "steps": 3}), digits, out=tmp_path / "b")
    page = (tmp_path / "a" / "report.html").read_text()
    assert "What a client sends" in page
    assert page.count("data:image/png") == 3
    assert "Nothing bounds" in page


def test_a_damaged_file_of_ours_is_made_again_and_no_fault_of_its_client(digits: RealSet, tmp_path) -> None:
    whole = run(FedDM(**SMALL), digits, out=tmp_path / "a", rounds=1)
    before = files(tmp_path / "a")
    round_ = tmp_path / "a" / "rounds" / "0000"
    (round_ / "round.json").unlink()
    sent = round_ / "client-0001.safetensors"
    damaged = bytearray(sent.read_bytes())
    damaged[-5] ^= 1
    sent.write_bytes(bytes(damaged))
    again = run(FedDM(**SMALL), digits, out=tmp_path / "a", rounds=1)
    assert again.rounds[0].dropped == {}
    assert again.rounds[0].accuracy == whole.rounds[0].accuracy
    assert files(tmp_path / "a") == before


def test_bytes_are_those_of_what_travels(digits: RealSet) -> None:
    weights = bytes_of(state_of(factory_of(digits)(0)))
    made = run(FedDM(**SMALL), digits, rounds=1)
    images = 3 * 10 * (4 * math.prod(digits.shape) + 8) + 3 * 10 * 4
    assert (made.rounds[0].up_bytes, made.rounds[0].down_bytes) == (images, 3 * weights)
    made = run(FedAvg(), digits, rounds=1)
    assert (made.rounds[0].up_bytes, made.rounds[0].down_bytes) == (3 * (weights + 8), 3 * weights)


@dataclass(frozen=True, kw_only=True)
class Faulty(FedDM):
    """Client 1 does what `fault` says."""

    name: ClassVar[str] = "faulty"

    fault: str = ""

    def send(self, client: Client, state):
        if self.fault == "all" or (client.id == 1 and self.fault == "raises"):
            raise RuntimeError("out of memory")
        if client.id == 1 and self.fault == "late":
            time.sleep(1.6)
        payload = dict(super().send(client, state))
        if client.id != 1:
            return payload
        if self.fault == "nan":
            payload["images"][0, 0, 0, 0] = math.nan
        elif self.fault == "shape":
            payload["images"] = payload["images"][:, :, 1:]
        elif self.fault == "large":
            payload = {**payload, **{n: payload[n].repeat_interleave(50, 0) for n in ("images", "labels")}}
        elif self.fault == "labels":
            payload["labels"][0] = 10
        elif self.fault == "extra":
            payload["code"] = torch.zeros(1)
        elif self.fault == "huge":
            payload["images"] *= 1e9
        return payload


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("raises", "out of memory"),
        ("nan", "not finite"),
        ("shape", "shape"),
        ("large", "of at most 10"),
        ("labels", "not positions"),
        ("extra", "nobody asked"),
        ("huge", "beyond a million"),
    ],
)
def test_a_round_goes_on_without_a_client_that_fails_and_says_so(digits: RealSet, fault: str, told: str) -> None:
    made = run(Faulty(**SMALL, fault=fault), digits, rounds=1)
    assert list(made.rounds[0].clients) == [0, 2]
    assert list(made.rounds[0].dropped) == ["1"]
    assert told in made.rounds[0].dropped["1"]
    assert made.notes == ["Clients were left out of a round 1 time."]


def test_a_client_that_answers_late_is_left_out_and_told(digits: RealSet, tmp_path) -> None:
    """A run that goes on does not take its answer for one in time."""
    made = run(Faulty(**SMALL, fault="late"), digits, rounds=1, deadline=1.5, out=tmp_path / "x")
    assert list(made.rounds[0].clients) == [0, 2]
    assert "s of 1.5" in made.rounds[0].dropped["1"]
    assert not (tmp_path / "x" / "rounds" / "0000" / "client-0001.safetensors").exists()
    assert (tmp_path / "x" / "rounds" / "0000" / "client-0002.safetensors").exists()


def test_a_round_without_any_client_stops(digits: RealSet) -> None:
    with pytest.raises(DatastillError, match=r"No client of round 1.*out of memory"):
        run(Faulty(**SMALL, fault="all"), digits, rounds=1)


def test_clients_without_images_are_left_out_and_told(digits: RealSet) -> None:
    made = run(FedDM(**SMALL), digits, partition="dirichlet:0.01", clients=12, min_size=0, rounds=1)
    empty = [str(k) for k, size in enumerate(made.sizes) if not size]
    assert empty
    assert {k for k, why in made.rounds[0].dropped.items() if "no images" in why} == set(empty)


def test_some_clients_take_part_in_a_round(digits: RealSet) -> None:
    made = run(FedAvg(), digits, clients=6, active=0.5, rounds=4)
    assert {len(one.clients) for one in made.rounds} == {3}
    assert len({tuple(one.clients) for one in made.rounds}) > 1


def test_the_command_says_what_python_says(tmp_path, capsys) -> None:
    out = tmp_path / "run"
    given = ["--clients", "3", "--rounds", "1", "--network", NETWORK, "--partition", "iid", "--out", str(out)]
    assert main(["federated", "fedavg", *given, "--local-lr", "0.1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    made = run(FedAvg(local_lr=0.1), "digits", rounds=1)
    assert told["rounds"][0]["accuracy"] == made.accuracy
    assert told["options"]["local_lr"] == 0.1
    assert json.loads((out / "federated.json").read_text()) == told
    assert main(["federated", "fedavg", *given, "--local-lr", "0.1", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "┃" in shown, "a table of the terminal"
    assert "|--" not in shown, "not Markdown"
    assert made.table().startswith("| round |")
    assert set(TOLD) == set(STRATEGIES)
    assert main(["federated", "fedsgd"]) == 2
    assert "no federated strategy" in capsys.readouterr().err

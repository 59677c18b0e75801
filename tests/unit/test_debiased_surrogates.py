"""Training and surrogates that resist a bias, where `evaluate`, `distill` and experts take them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import datastill
from datastill.core.errors import InputError, Interrupted
from datastill.core.plan import Callback, Task
from datastill.core.rng import Rng
from datastill.data.real import RealSet
from datastill.evaluation.protocols import get_protocol
from datastill.models import resolve_network
from datastill.store.files import write_json
from datastill.surrogates.debiased import DebiasedSurrogates
from datastill.surrogates.experts import train_experts
from datastill.surrogates.experts.policies import Epoch, TrainingSet, get_policy
from datastill.training.debiased import DebiasedTraining
from datastill.training.dfa import Dfa, DfaTrainer
from debias_data import colored_strokes

pytestmark = pytest.mark.usefixtures("short_protocols")

NET = "convnet:width=4,depth=1"
WAYS = ("none", "oracle")


@pytest.fixture(scope="module")
def biased() -> RealSet:
    return datastill.load_real("cmnist:base=digits,ratio=0.1,train=200,test=100")


def factory(real: RealSet):
    return resolve_network(NET, channels=real.shape[0], classes=real.classes, size=real.shape[1:])


def test_words_for_training_become_options_of_their_types() -> None:
    assert DebiasedTraining.parse("plain") is None
    found = DebiasedTraining.parse("dfa:steps=40,lr=0.01,augment=crop")
    assert found is not None
    assert found.options == {"steps": 40, "lr": 0.01, "augment": "crop"}
    assert DebiasedTraining.parse(str(found)) == found
    assert (found.steps(1000), found.batch(1000), found.batch(20), found.lr) == (40, 256, 20, 0.01)
    assert found.with_defaults(lr=1.0, q=0.5).options["lr"] == 0.01


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dfq", "Did you mean 'dfa'"),
        ("dfa:stepz=3", "Did you mean 'steps'"),
        ("dfa:steps=many", "whole number"),
        ("selecmix:lr=-1", "above 0"),
        ("plain:steps=3", "no options"),
    ],
)
def test_words_that_name_no_training_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DebiasedTraining.parse(text)


@pytest.mark.parametrize("training", ["dfa:steps=6", "selecmix:steps=6"])
def test_evaluation_trains_both_arms_so_and_says_it(biased: RealSet, training: str) -> None:
    made = datastill.distill("dm", biased, ipc=2, network=NET, steps=1)
    first, again = (datastill.evaluate(made, biased, protocol="dc-v1", networks=2, training=training) for _ in range(2))
    assert torch.equal(first.distilled.accuracies, again.distilled.accuracies)
    assert first.training == {"how": training.split(":")[0], "steps": 6}
    assert first.to_dict()["training"] == first.training
    assert any(training in note for note in first.notes)
    plain = datastill.evaluate(made, biased, protocol="dc-v1", networks=2)
    assert plain.training is None
    assert plain.random is not None
    assert first.random is not None
    assert not torch.equal(plain.distilled.accuracies, first.distilled.accuracies)
    assert not torch.equal(plain.random.accuracies, first.random.accuracies)


def test_the_protocol_keeps_its_augmentation(biased: RealSet, monkeypatch: pytest.MonkeyPatch) -> None:
    from datastill.training import debiased as training

    seen = []
    train = training.train_debiased
    monkeypatch.setattr(
        training, "train_debiased", lambda *a, **k: seen.append(k["augment"]) or train(*a, **{**k, "augment": "none"})
    )
    made = datastill.distill("random", biased, ipc=1, network=NET)
    for augment in ("none", "crop"):
        protocol = replace(get_protocol("dc-v1"), augment=augment)
        datastill.evaluate(made, biased, protocol=protocol, networks=1, random=False, training="dfa:steps=1")
    assert seen == ["none", "crop"]


def test_soft_protocols_do_not_take_it(biased: RealSet) -> None:
    made = datastill.distill("random", biased, ipc=1, network=NET)
    with pytest.raises(InputError, match="teacher's labels"):
        datastill.evaluate(made, biased, protocol="soft-quick-v1", training="dfa")
    with pytest.raises(InputError, match="CutMix"):
        datastill.evaluate(made, biased, protocol="idc-quick-v1", training="dfa")


def test_sets_that_were_weighed_otherwise_are_not_averaged(biased: RealSet) -> None:
    sets = [datastill.distill("dm", biased, ipc=1, network=NET, steps=1, seed=s, debias=d) for s, d in enumerate(WAYS)]
    with pytest.raises(InputError, match="differ in their weights against a bias"):
        datastill.evaluate(sets, biased, protocol="dc-v1", networks=1)


def test_networks_of_a_pool_are_the_intrinsic_encoders_of_dfa(biased: RealSet) -> None:
    asked = DebiasedSurrogates.parse("dfa:count=2,steps=5,batch=32")
    assert asked is not None
    units, task = asked.units(factory(biased)), Task(biased, 1, factory(biased))
    x = biased.batch(torch.arange(7)).x
    for k, unit in enumerate(units):
        rng = Rng(0).child("debiased-network", k)
        trainer = DfaTrainer(factory(biased), biased.labels, Dfa(steps=5, batch=32), rng)
        expected = trainer.train(lambda index: biased.batch(index).x).intrinsic
        network = unit.load(unit.run(task))
        assert torch.equal(network.embed(x), expected.embed(x))
        assert network.training
        assert not any(p.requires_grad for p in network.parameters())
    assert [unit.k for unit in units] == [0, 1]


def test_what_a_network_of_the_pool_depends_on(biased: RealSet) -> None:
    one, same, other = (
        DebiasedSurrogates.parse(text).units(factory(biased))[0]  # type: ignore[union-attr]
        for text in ("dfa:count=2", "dfa:count=3,lr=0.001", "dfa:lr=0.002")
    )
    task = Task(biased, 1, factory(biased))
    assert one.key(task) == same.key(task)  # 0.001 is the default, and a larger pool shares its first networks
    assert one.key(task) != other.key(task)
    assert one.key(task) == one.key(replace(task, real=biased.with_weights(torch.ones(len(biased)))))


class _Stop(Callback):
    """Ctrl-C after a few steps."""

    def after_step(self, context) -> None:
        if context.step == 3:
            raise Interrupted("Stopped.")


def test_a_run_on_such_surrogates_resumes_bit_for_bit_and_says_what_they_were(biased: RealSet, tmp_path: Path) -> None:
    asked = {"ipc": 1, "network": NET, "steps": 6, "real_batch": 8, "surrogates": "dfa:count=2,steps=3"}
    whole = datastill.distill("dm", biased, **asked)
    with pytest.raises(Interrupted):
        datastill.distill(
            "dm", biased, **asked, out=tmp_path / "run", callbacks=[_Stop()], checkpoint_seconds=0, units=tmp_path
        )
    assert len(list((tmp_path / "prepare").glob("debiased-network-*"))) == 2  # shared by runs, outside this one
    resumed = datastill.distill("dm", biased, **asked, out=tmp_path / "run", resume=True, units=tmp_path)
    assert torch.equal(whole.images, resumed.images)
    assert resumed.manifest["surrogates"] == {"how": "dfa", "steps": 3, "count": 2}
    assert not torch.equal(whole.images, datastill.distill("dm", biased, **{**asked, "surrogates": "method"}).images)
    with pytest.raises(InputError, match="surrogates"):
        datastill.distill("dm", biased, **{**asked, "surrogates": "method"}, out=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("method", "text", "message"),
    [
        ("dsa", "dfa", "fresh random networks"),
        ("dm", "dfq", "Did you mean 'dfa'"),
        ("dm", "dfa:count=0", "count of surrogates must be"),
        ("dm", "plain", "no surrogates"),
        ("dm", "method:count=2", "no options"),
    ],
)
def test_surrogates_that_cannot_be_are_refused(biased: RealSet, method: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        datastill.distill(method, biased, ipc=1, network=NET, steps=1, surrogates=text)


def test_results_tell_apart_what_was_made_or_trained_against_a_bias(biased: RealSet, tmp_path: Path) -> None:
    from datastill.experiments.ledger import read_ledger

    for name, asked, training in (
        ("plain", {}, "plain"),
        ("weighed", {"debias": "oracle"}, "plain"),
        ("resisting", {"surrogates": "dfa:steps=1,count=1"}, "plain"),
        ("trained", {}, "dfa:steps=2"),
    ):
        made = datastill.distill("dm", biased, ipc=1, network=NET, steps=1, real_batch=4, **asked)
        found = datastill.evaluate(made, biased, protocol="dc-v1", networks=1, training=training)
        write_json(tmp_path / f"{name}.json", found.to_dict())
    labels = sorted(entry.label for entry in read_ledger(tmp_path)[0])
    own = [label for label in labels if label.startswith("dm")]
    assert len(set(own)) == 4, labels
    assert sum("oracle" in label for label in labels) == 1
    assert sum("dfa:steps=2" in label for label in labels) == 2  # the set, and Random beside it


# ---- experts


def training_set(real: RealSet, weight: Tensor | None = None) -> TrainingSet:
    return TrainingSet(lambda i: real.batch(i).x, real.labels, weight, "none", torch.device("cpu"))


def run_epochs(real: RealSet, count: int, policy: str, through_disk: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Weights after so many epochs; the policy's state is copied in between, as a checkpoint does."""
    network, how, state = factory(real)(0), get_policy(policy), {}
    for e in range(count):
        if through_disk:
            state = {name: value.clone() for name, value in state.items()}
        how.epoch(network, training_set(real), Epoch(e, count, Rng(0).child("epoch", e), state, lambda i, z: None))
    return [p.detach().clone() for p in network.parameters()], state


def test_an_expert_goes_on_from_the_state_of_its_policy() -> None:
    real = colored_strokes()
    policy = "selecmix:batch=16,pool=32,auxiliary_epochs=3"
    plain, _ = run_epochs(real, 3, policy, through_disk=False)
    copied, _ = run_epochs(real, 3, policy, through_disk=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, copied, strict=True))


def test_the_auxiliary_encoder_of_experts_rests_after_its_epochs() -> None:
    real = colored_strokes()
    states = [run_epochs(real, 2, f"selecmix:batch=16,auxiliary_epochs={n}", False)[1] for n in (1, 2)]
    assert states[0].keys() == states[1].keys()
    early = run_epochs(real, 1, "selecmix:batch=16,auxiliary_epochs=1", False)[1]
    assert all(torch.equal(early[name], states[0][name]) for name in early if "head" in name)
    assert not all(torch.equal(early[name], states[1][name]) for name in early if "head" in name)


@pytest.mark.parametrize(("part", "pool"), [(1.0, 32), (0.5, 48), (0.1, 1024)])
def test_an_epoch_of_experts_passes_over_its_part(part: float, pool: int) -> None:
    real = colored_strokes()
    seen: list[int] = []
    policy = get_policy(f"selecmix:batch=16,pool={pool},part={part}")
    epoch = Epoch(0, 1, Rng(0), {}, lambda index, logits: seen.extend(index.tolist()))
    policy.epoch(factory(real)(0), training_set(real), epoch)
    assert len(seen) == len(set(seen)) == round(part * len(real))


def test_selecmix_experts_do_not_take_weights(tmp_path: Path) -> None:
    real = colored_strokes()
    weighted = real.with_weights(torch.ones(len(real)))
    with pytest.raises(InputError, match="not both"):
        train_experts(weighted, factory(real), tmp_path / "w", experts=1, epochs=1, policy="selecmix", augment="none")
    asked = {"ipc": 1, "network": NET, "steps": 1, "expert_count": 1, "expert_epochs": 1, "max_start": 1, "span": 1}
    with pytest.raises(InputError, match="not both"):
        datastill.distill("mtt", real, **asked, debias="oracle", expert_policy="selecmix", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()  # the mended command may begin anew


def test_mtt_follows_experts_of_a_policy() -> None:
    real = colored_strokes()
    asked = {"ipc": 1, "network": NET, "steps": 2, "expert_count": 1, "expert_epochs": 2, "max_start": 1}
    made = datastill.distill("mtt", real, **asked, expert_policy="selecmix:q=0.5", student_steps=2, augment="none")
    plain = datastill.distill("mtt", real, **asked, student_steps=2, augment="none")
    assert made.manifest["hyper"]["expert_policy"] == "selecmix:q=0.5"
    assert not torch.equal(made.images, plain.images)
    with pytest.raises(InputError, match="no policy 'selecmux'"):
        datastill.distill("mtt", real, **asked, expert_policy="selecmux")
    with pytest.raises(InputError, match="Give expert_lr"):
        datastill.distill("mtt", real, **asked, expert_policy="selecmix:lr=0.5")

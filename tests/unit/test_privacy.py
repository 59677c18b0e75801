"""What an audit tells: attacks on scores of known truth, searches that must find copies, words that promise nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from datastill import distill, load_real
from datastill.apps.privacy.audit import Audit, audit
from datastill.apps.privacy.lira import confidence, halves, lira_offline, lira_online
from datastill.apps.privacy.membership import advantage, attack, best_threshold, calibrated_advantage, membership
from datastill.apps.privacy.visual import (
    lpips_look,
    nearest,
    perceptual_distance,
    perceptual_vectors,
    pixels_look,
    visual,
)
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.core.rng import isolated
from datastill.data.real import RealSet
from datastill.data.store import MemoryStore
from datastill.evaluation import protocols
from datastill.evaluation.protocols import Protocol, register_protocol

pytestmark = pytest.mark.usefixtures("short_protocols")

NETWORK = "convnet:width=4,depth=1"


@pytest.fixture(scope="module", autouse=True)
def short_protocol() -> Iterator[None]:
    """A protocol of three passes, known while this file runs."""
    register_protocol(Protocol("audit-test-v1", "A few passes, for tests.", passes=3))
    yield
    del protocols._REGISTERED["audit-test-v1"]


def scores(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_advantage(members: torch.Tensor, others: torch.Tensor, threshold: float) -> float:
    """By counting, as the formula is written."""
    right = sum(1 for v in members.tolist() if v < threshold) + sum(1 for v in others.tolist() if v >= threshold)
    return 2 * (100 * right / (len(members) + len(others)) - 50)


# Membership


def test_advantage_is_the_formula_of_counts() -> None:
    for seed in range(10):
        members, others = scores(57, seed), scores(57, seed + 100) + 0.5
        members[:5] = others[:5]  # ties
        for threshold in (-1.0, 0.0, float(others[0]), 9.0):
            expected = slow_advantage(members, others, threshold)
            assert advantage(members, others, threshold) == pytest.approx(expected, abs=1e-9)


def test_perfect_inverted_and_constant_scores() -> None:
    low, high, same = torch.arange(10.0), torch.arange(10.0) + 100, torch.ones(10)
    assert advantage(low, high, 50.0) == 100
    assert advantage(high, low, 50.0) == -100
    assert membership(low, high).advantages == {"calibration": 100, "oracle": 100}
    assert membership(high, low).advantages["calibration"] <= 0
    assert membership(same, same).advantages == {"calibration": 0, "oracle": 0}
    assert membership(same, same).auc == 0.5


def test_the_oracle_is_the_best_threshold_and_survives_monotone_maps() -> None:
    members, others = scores(80, 1), scores(80, 2) + 0.3
    best = advantage(members, others, best_threshold(members, others))
    every = torch.cat([members, others, torch.tensor([math.inf], dtype=torch.double)]).tolist()
    assert best == pytest.approx(max(slow_advantage(members, others, t) for t in every))
    for transform in (torch.exp, lambda v: 3 * v - 7, lambda v: v**3):
        mapped = membership(transform(members), transform(others))
        assert mapped.advantages["oracle"] == pytest.approx(best)
        assert mapped.auc == pytest.approx(membership(members, others).auc)


def test_scores_that_tell_nothing_have_no_advantage_on_average() -> None:
    """A calibrated threshold is not biased, and an oracle's is."""
    found, oracle = [], []
    for seed in range(20):
        members, others = scores(400, 2 * seed), scores(400, 2 * seed + 1)
        found.append(calibrated_advantage(members, others, seed))
        oracle.append(membership(members, others, seed=seed).advantages["oracle"])
        assert abs(found[-1]) < 100 * 4 / math.sqrt(800)
    assert abs(sum(found) / 20) < 1
    assert sum(oracle) / 20 > 2


def test_the_area_is_that_of_scikit_learn_with_ties_and_by_hand() -> None:
    members, others = torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([2.0, 3.0, 3.0, 5.0, 0.0])
    pairs = [(m < o) + 0.5 * (m == o) for m in members.tolist() for o in others.tolist()]
    found = membership(members, others, strict=False)
    assert found.auc == pytest.approx(sum(pairs) / len(pairs))
    assert found.auc == pytest.approx(roc_auc_score([1] * 4 + [0] * 5, (-torch.cat([members, others])).tolist()))


def test_rates_at_few_false_positives_see_what_an_average_hides() -> None:
    """Two members of a hundred stand out, all others are alike."""
    members, others = scores(1000, 3), scores(1000, 4)
    members[:20] = -50.0
    found = membership(members, others)
    assert found.tpr[0.001] >= 0.02
    assert abs(found.auc - 0.5) < 0.05
    by_hand = {rate: max(float((members < t).double().mean()) for t in torch.cat([members, others]).tolist()
                         if float((others < t).double().mean()) <= rate) for rate in (0.01, 0.05)}  # fmt: skip
    for rate, value in by_hand.items():
        assert found.tpr[rate] == pytest.approx(value, abs=1e-3)


def test_unequal_sides_are_refused_or_weighed_alike() -> None:
    members, others = scores(30, 1), scores(60, 2)
    with pytest.raises(InputError, match="equal"):
        advantage(members, others, 0.0)
    assert advantage(members, others.repeat(2)[:60], 0.0, strict=False) == pytest.approx(
        advantage(members.repeat(2), others, 0.0)
    )
    with pytest.raises(InputError, match="no samples"):
        membership(members, others[:0])
    with pytest.raises(InputError, match="not finite"):
        attack(members, members * math.nan)


def test_a_threshold_that_was_fixed_beforehand_stands_beside_the_others() -> None:
    members, others = scores(30, 1), scores(30, 2)
    found = membership(members, others, train_mean=0.25)
    assert found.advantages["train_mean"] == pytest.approx(slow_advantage(members, others, 0.25))


# LiRA


def test_confidence_is_the_logit_of_the_probability_and_finite() -> None:
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    y = torch.arange(20) % 5
    p = logits.softmax(1)[torch.arange(20), y]
    assert torch.allclose(confidence(logits, y), (p / (1 - p)).log())
    far = torch.tensor([[200.0, -200.0], [-200.0, 200.0]])
    assert confidence(far, torch.tensor([0, 0])).tolist() == [400.0, -400.0]


def test_every_sample_is_in_half_of_the_shadows() -> None:
    labels = torch.arange(51) % 3
    inside = halves(labels, 8, seed=3)
    assert (inside.sum(0) == 4).all()
    assert all(torch.equal(inside[k], ~inside[k + 1]) for k in range(0, 8, 2))
    assert not torch.equal(inside[0], inside[2])
    assert {int(inside[k][labels == c].sum()) for k in range(8) for c in range(3)} == {8, 9}
    with pytest.raises(InputError, match="even"):
        halves(labels, 7)


@pytest.mark.parametrize("shadows", [8, 64])
def test_lira_finds_members_whose_confidence_is_higher(shadows: int) -> None:
    """Samples of very different difficulty: a global threshold sees little, the ratio for each sample sees it."""
    n = 400
    inside = halves(torch.zeros(n), shadows, seed=1)
    difficulty = 10 * scores(n, 5)
    phi = difficulty + torch.stack([scores(n, 100 + k) for k in range(shadows)]) + 3.0 * inside
    member = torch.arange(n) < n // 2
    target = difficulty + scores(n, 999) + 3.0 * member
    plain = attack(target[member], target[~member])
    for score in (lira_offline, lira_online):
        found = score(target, phi, inside)
        assert attack(found[member], found[~member]).auc > 0.9
    assert plain.auc < 0.7
    nothing = lira_offline(difficulty + scores(n, 999), phi, inside)
    assert abs(attack(nothing[member], nothing[~member]).auc - 0.5) < 0.12


def test_lira_scores_are_the_gaussians_of_each_sample() -> None:
    inside, n = halves(torch.zeros(6), 64, seed=2), 6
    phi = torch.stack([scores(n, k) for k in range(64)])
    target = scores(n, 70)
    for i in range(n):
        out, within = phi[~inside[:, i], i], phi[inside[:, i], i]
        normal = torch.distributions.Normal(out.mean(), out.std())
        assert float(lira_offline(target, phi, inside)[i]) == pytest.approx(float(normal.cdf(target[i])))
        ratio = torch.distributions.Normal(within.mean(), within.std()).log_prob(target[i]) - normal.log_prob(target[i])
        assert float(lira_online(target, phi, inside)[i]) == pytest.approx(float(ratio))
    with pytest.raises(InputError, match="4 or more"):
        lira_offline(target, phi[:2], inside[:2])


# Nearest images


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def set_of(images: torch.Tensor) -> RealSet:
    labels = torch.zeros(len(images), dtype=torch.int64)
    return RealSet(MemoryStore(images), labels, ("a",))


def test_a_copy_is_found_at_distance_zero_and_chunks_change_nothing(digits: RealSet, monkeypatch) -> None:
    wanted = torch.cat([digits.pixels(torch.tensor([17])), torch.rand(4, *digits.shape, generator=seeded(7))])
    whole = nearest(pixels_look(wanted), digits, pixels_look)
    assert whole.index[0, 0] == 17
    assert whole.distance[0, 0] == 0
    monkeypatch.setattr("datastill.apps.privacy.visual._HELD", 64 * 100)
    chunked = nearest(pixels_look(wanted), digits, pixels_look)
    assert torch.equal(whole.distance, chunked.distance)
    every = (digits.pixels(torch.arange(len(digits))).flatten(1)[None] - wanted.flatten(1)[:, None]).square()
    expected = every.mean(2).sqrt().sort(1)
    assert torch.allclose(whole.distance, expected.values[:, :3], atol=1e-6)


def test_the_ratio_is_near_one_for_images_of_neither_and_far_below_for_copies(digits: RealSet) -> None:
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    members, others, fresh = (digits.subset(part) for part in order[:900].chunk(3))
    clean = visual(fresh.pixels(torch.arange(100)), members, others)
    assert 0.93 < clean.ratio < 1.07
    assert clean.copies == 0
    copied = visual(members.pixels(torch.arange(100)), members, others)
    assert copied.ratio < 0.05
    assert copied.copies == 100
    noisy = members.pixels(torch.arange(100)) + 0.003 * torch.randn(100, *members.shape, generator=seeded(8))
    assert visual(noisy, members, others).copies == 100


def test_the_perceptual_distance_is_the_sum_over_layers() -> None:
    g = torch.Generator().manual_seed(1)
    a, b = ([torch.randn(3, c, s, s, generator=g) for c, s in ((4, 5), (6, 2))] for _ in range(2))
    weights = [torch.rand(4, generator=g), torch.rand(6, generator=g)]
    expected = torch.zeros(3)
    for x, y, w in zip(a, b, weights, strict=True):
        difference = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square() * w.view(1, -1, 1, 1)
        expected += difference.sum(1).mean((1, 2))
    assert torch.allclose(perceptual_distance(a, b, weights), expected, atol=1e-6)
    assert torch.allclose(perceptual_distance(a, b, weights), perceptual_distance(b, a, weights))
    assert float(perceptual_distance(a, a).max()) == 0
    assert perceptual_vectors(a).shape == (3, 4 * 25 + 6 * 4)


@pytest.mark.slow
def test_lpips_takes_weights_by_path_and_agrees_with_its_library(tmp_path: Path) -> None:
    """Slow for the 60 million weights of a whole AlexNet that its library makes and throws away."""
    from datastill.core.torchvision import import_torchvision
    from datastill.store.files import write_tensors

    import_torchvision()
    lpips = pytest.importorskip("lpips")
    with isolated(5):
        theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    trunk = {"features." + n.split(".", 1)[1]: v.clone() for n, v in theirs.net.state_dict().items()}
    write_tensors(tmp_path / "alexnet.safetensors", trunk)
    x = torch.rand(3, 3, 64, 64, generator=seeded(2))
    look = lpips_look(tmp_path / "alexnet.safetensors")
    ours = (look(x[:2]) - look(x[1:])).square().sum(1)
    with torch.no_grad():
        expected = theirs(2 * x[:2] - 1, 2 * x[1:] - 1).flatten()
    assert torch.allclose(ours, expected, rtol=1e-3)
    assert look(torch.rand(2, 1, 28, 28, generator=seeded(3))).shape == look(x[:2]).shape


def test_lpips_without_weights_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not fetched"):
        lpips_look(tmp_path / "no.pth")


# The audit


def halves_of(real: RealSet, size: int) -> tuple[RealSet, RealSet]:
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(3))[: 2 * size]
    return real.subset(order[:size]), real.subset(order[size:])


def test_shadows_are_units_that_are_made_once(digits: RealSet, tmp_path: Path, monkeypatch) -> None:
    members, others = halves_of(digits, 120)
    made = distill("random", members, ipc=1, network=NETWORK)
    options = {"members": members, "others": others, "networks": 1, "protocol": "audit-test-v1"}
    first = audit(made, shadows=4, out=tmp_path / "s", **options)
    files = sorted((tmp_path / "s").iterdir())
    assert len(files) == 4
    files[1].unlink()
    calls: list[int] = []
    from datastill.apps.privacy import shadows

    original = shadows.cast_shadow
    monkeypatch.setattr(shadows, "cast_shadow", lambda *a: calls.append(a[1]) or original(*a))
    second = audit(made, shadows=4, out=tmp_path / "s", **options)
    assert len(calls) == 1
    assert second.to_dict() == first.to_dict()
    assert set(first.lira) == {"off", "on"}
    assert len(first.rows()) == 3


def test_words_never_say_private(digits: RealSet) -> None:
    """Whatever is found, the verdict promises nothing."""
    members, others = halves_of(digits, 120)
    made = distill("random", members, ipc=1, network=NETWORK)
    found = audit(made, members=members, others=others, networks=1, protocol="audit-test-v1")
    nothing = membership(scores(50, 1), scores(50, 2))
    clean = Audit(nothing, [nothing], [], {}, None, 0.5, {})
    for one in (found, clean):
        assert "private" not in one.verdict.lower()
        assert "safe" not in one.verdict.lower()
    assert "copies" in found.verdict
    assert found.visual[0].copies == 10
    assert "bounds nothing" in clean.verdict
    strong = membership(scores(50, 1) - 2, scores(50, 2))
    assert "leaks" in Audit(strong, [strong], [], {}, None, 0.5, {}).verdict


def test_soft_labels_are_compared_with_hard_ones(digits: RealSet) -> None:
    members, others = halves_of(digits, 120)
    made = distill("random", members, ipc=1, network=NETWORK)
    options = {"members": members, "others": others, "networks": 1, "protocol": "audit-test-v1"}
    plain = audit(made, **options)
    soft = replace(made, labels=0.8 * F.one_hot(made.labels, 10).float() + 0.02)
    soft.manifest = {**made.manifest, "label_kind": "probabilities"}
    found = audit(soft, **options)
    assert plain.labels is None
    assert found.labels is not None
    assert [row[0] for row in found.rows()] == ["loss", "loss, hard labels"]
    assert found.labels.auc == pytest.approx(plain.membership.auc, abs=1e-6)
    assert found.labels_gain == found.membership.auc - found.labels.auc


def test_the_command_writes_a_table_a_page_and_a_section(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    assert main(["distill", "random", "--ipc", "1", "--network", NETWORK, "--out", str(run), "--quiet"]) == 0
    capsys.readouterr()
    given = ["privacy", str(run), "--networks", "1", "--images", "100", "--protocol", "audit-test-v1"]
    assert main([*given, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((run / "privacy.json").read_text())
    assert told["visual"][0]["copies"] == 10
    assert audit(run, networks=1, images=100, protocol="audit-test-v1").to_dict() == told
    page = (run / "privacy.html").read_text()
    assert told["verdict"] in page
    assert "data:image/png" in page
    from datastill.report import write_report
    from datastill.store.artifact import load_distilled

    write_report(run, load_distilled(run))
    assert told["verdict"] in (run / "report.html").read_text()
    assert main([*given[:2], "--data", "digits:nope"]) == 2
    assert main([*given, "--shadows", "3"]) == 2
    assert "even" in capsys.readouterr().err


def test_data_that_the_set_was_not_made_from_are_refused(digits: RealSet) -> None:
    made = distill("random", digits, ipc=1, network=NETWORK)
    other = digits.subset(torch.arange(500))
    with pytest.raises(InputError, match="who the members are"):
        audit(made, other)
    with pytest.raises(InputError, match="both members and others"):
        audit(made, members=other)


# The generative baseline


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8)])
def test_a_gan_makes_images_of_any_shape(shape: tuple[int, int, int]) -> None:
    from datastill.apps.privacy.cgan import LATENT, Discriminator, Generator

    with isolated(0):
        made, judge = Generator(shape, 10, 4), Discriminator(shape, 10, 4)
    y = torch.arange(3)
    images = made(torch.randn(3, LATENT, generator=seeded(1)), y)
    assert images.shape == (3, *shape)
    assert float(images.detach().abs().max()) <= 1
    assert judge(images, y).shape == (3,)


@pytest.mark.slow
def test_samples_of_a_gan_are_of_the_class_that_was_asked_for(digits: RealSet) -> None:
    from datastill.apps.privacy.cgan import Gan, cgan
    from datastill.evaluation import trained

    brief = [cgan(digits, 1, Gan(epochs=1, width=4), network=NETWORK).images for _ in range(2)]
    assert torch.equal(*brief)
    made = cgan(digits, 20, Gan(epochs=30, width=16, batch=32), network=NETWORK)
    whole = distill("random", digits, ipc=80, network="convnet:width=16,depth=2,padding=1")
    protocol = Protocol("judge-v1", "Eight passes, for tests.", passes=8)
    (judge,) = trained(whole, digits, protocol=protocol, networks=1)
    with torch.no_grad():
        right = (judge.eval()(made.images).argmax(1) == made.labels).double().mean()
    assert float(right) > 0.6
    assert visual(made.pixels, digits, digits.test).copies < 20

"""LRS, ARS and their parts: arithmetic against formulas by hand, and the runs that they are made of."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import datastill
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.core.registry import NOMINAL_STEP_SECONDS
from datastill.core.rng import Rng
from datastill.data.real import RealSet
from datastill.evaluation import Evaluation, Robustness, evaluate, evaluate_robustness
from datastill.evaluation.ceiling import ceiling_seconds
from datastill.evaluation.protocols import Protocol, get_protocol
from datastill.evaluation.robustness import apart_seconds, score
from datastill.experiments.ledger import read_ledger
from datastill.experiments.page import write_comparison_report
from datastill.report.reproduce import evaluate_call
from datastill.report.words import duration
from datastill.training.hard import Schedule, train
from datastill.training.optimizers import OPTIMIZERS, soft_by, unaugmented
from datastill.training.soft import SOFT_RECIPES
from datastill.training.stacked import train_many
from decoupled_data import NETWORK, digits, task_of, teacher

pytestmark = pytest.mark.usefixtures("short_protocols")

NET = "convnet:width=4,depth=1"
QUICK = Protocol("plain-quick", "a few passes", passes=4)
DSA = Protocol("dsa-few", "a few passes with DSA", passes=4, augment="auto")
SOFT = Protocol("soft-few", "a few", passes=3, soft="small", lr=2e-3, batch=5)


@pytest.fixture(scope="module")
def squares() -> RealSet:
    """Two classes of 16 x 16, large enough for DSA: bright above, bright below."""
    x = 0.1 * torch.rand(120, 1, 16, 16, generator=Rng(0).generator("squares"))
    y = torch.arange(120) % 2
    x[y == 0, :, :8] += 0.5
    x[y == 1, :, 8:] += 0.5
    return datastill.load_real((x, y), holdout=0.5)


@pytest.fixture(scope="module")
def pair(squares: RealSet) -> list[datastill.DistilledSet]:
    return [datastill.distill("random", squares, ipc=1, network=NET, seed=s) for s in (0, 1)]


@pytest.fixture(scope="module")
def found(squares: RealSet, pair: list[Any]) -> Evaluation:
    return evaluate_robustness(pair, squares, protocol=DSA, networks=2)


def by_hand(alpha: Any) -> float:
    """What the released package does with its alpha."""
    return float((np.exp(float(alpha)) - np.exp(-1)) / (np.exp(1) - np.exp(-1)))


def test_scores_against_the_formulas_of_the_paper_and_of_the_released_package() -> None:
    syn_any, rdm, syn_hard, whole, weight = 0.643, 0.511, 0.402, 0.845, 0.3
    augmented, plain = 0.132, -0.021
    one = [torch.tensor([[v]]) for v in (syn_any - rdm, whole - syn_hard, augmented, plain)]
    ours = Robustness(one[0], one[1], whole, one[2], one[3], weight)
    theirs = Robustness(one[0], one[1], whole, one[2], one[3], weight, "released")
    lrs = weight * (syn_any - rdm) - (1 - weight) * (whole - syn_hard)
    ars = weight * augmented + (1 - weight) * plain
    assert float(ours.lrs) == pytest.approx(by_hand(lrs), rel=1e-6)
    assert float(ours.ars) == pytest.approx(by_hand(ars), rel=1e-6)
    assert float(theirs.lrs) == pytest.approx(by_hand(100 * lrs), rel=1e-4)
    assert float(theirs.ars) == pytest.approx(by_hand(100 * ars), rel=1e-4)
    assert float(ours.share) == pytest.approx(syn_hard / whole)


def test_fractions_keep_scores_in_the_unit_interval() -> None:
    ends = score(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.double))
    assert ends[0].item() == pytest.approx(0, abs=1e-12)
    assert ends[2].item() == pytest.approx(1)
    assert ends[1].item() == pytest.approx((1 - math.exp(-1)) / (math.e - math.exp(-1)))
    assert score(torch.tensor(0.1), "released") > 1 > score(torch.tensor(-0.1), "released")


def test_parts_come_from_separate_evaluations(found: Evaluation, squares: RealSet, pair: list[Any]) -> None:
    """Each part is a difference of accuracies that `evaluate` gives alone, network by network."""
    plain = evaluate(pair, squares, protocol=DSA, networks=2, augmented=False)
    usual = evaluate(pair, squares, protocol=DSA, networks=2, ceiling=True)
    parts = found.robustness
    assert parts is not None
    assert usual.ceiling is not None
    assert torch.equal(found.distilled.accuracies, usual.distilled.accuracies)
    assert torch.equal(parts.improvement, usual.differences)
    assert torch.equal(parts.missing, usual.ceiling.mean - usual.distilled.accuracies)
    assert torch.equal(parts.augmented, usual.differences)
    assert torch.equal(parts.plain, plain.differences)
    assert plain.distilled.losses != usual.distilled.losses
    assert plain.conditions.endswith("no augmentation")
    assert parts.share.min() >= 0
    assert parts.share.max() <= 1


def test_a_random_set_improves_on_nothing(found: Evaluation) -> None:
    parts = found.robustness
    assert parts is not None
    assert parts.improvement.abs().max() == 0
    told = found.to_dict()["robustness"]
    assert told["ior"] == 0
    assert told["ars"] == pytest.approx(by_hand(0))
    assert told["lrs"] == pytest.approx(float(torch.tensor([by_hand(-m / 2) for m in parts.missing.flatten()]).mean()))


def test_a_protocol_without_augmentation_is_set_beside_dsa(squares: RealSet, pair: list[Any]) -> None:
    """What stands as `plain` is the protocol itself, and what stands as `augmented` has DSA."""
    made = datastill.distill("dm", squares, ipc=1, network=NET, steps=3, real_batch=8)
    bare = Protocol("bare", "no augmentation", passes=4)
    parts = evaluate_robustness(made, squares, protocol=bare, networks=1).robustness
    with_dsa = evaluate(made, squares, protocol=DSA, networks=1)
    assert parts is not None
    assert parts.plain is not None
    assert torch.equal(parts.plain, evaluate(made, squares, protocol=bare, networks=1).differences)
    assert torch.equal(parts.augmented, with_dsa.differences)


def test_images_that_are_not_augmented_have_no_ars() -> None:
    made = datastill.distill("random", digits(), ipc=1, network=NET)
    parts = evaluate_robustness(made, digits(), protocol=QUICK, networks=1).robustness
    assert parts is not None
    assert parts.ars is None
    assert "ars" not in parts.to_dict()


def test_soft_protocols_are_scored_on_hard_labels_too() -> None:
    made = datastill.distill("rded", digits(), ipc=1, teacher=teacher(), network=NETWORK, candidates=10)
    result = evaluate_robustness(made, digits(), protocol=SOFT, networks=1)
    hard = evaluate(made, digits(), protocol=SOFT, networks=1, labels="hard")
    parts = result.robustness
    assert parts is not None
    assert result.ceiling is not None
    assert result.random is not None
    assert torch.equal(parts.missing, result.ceiling.mean - hard.distilled.accuracies)
    assert torch.equal(parts.improvement, result.distilled.accuracies - result.random.accuracies)
    assert parts.plain is not None, "a teacher's labels go with crops and mixes"


def test_sets_with_soft_labels_are_hardened(squares: RealSet) -> None:
    made = datastill.distill("random", squares, ipc=2, network=NET)
    one = made.__class__(made.codes, F.one_hot(made.labels, 2).float() * 0.6 + 0.2, made.space, dict(made.manifest))
    assert one.label_kind == "probabilities"
    parts = evaluate_robustness(one, squares, protocol=QUICK, networks=1).robustness
    plain = evaluate(made, squares, protocol=QUICK, networks=1, random=False)
    assert parts is not None
    assert torch.allclose(parts.whole - parts.missing, plain.distilled.accuracies)


def test_what_the_scores_settle_is_refused(squares: RealSet, pair: list[Any]) -> None:
    with pytest.raises(InputError, match="settle ceiling"):
        evaluate_robustness(pair, squares, protocol=DSA, ceiling=True)
    with pytest.raises(InputError, match="way of its own"):
        evaluate_robustness(pair, squares, protocol="krr-v1")
    with pytest.raises(InputError, match="weight"):
        evaluate_robustness(pair, squares, protocol=DSA, weight=2.0)


@pytest.mark.parametrize(("name", "made"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_another_optimizer_is_torchs(name: str, made: Any) -> None:
    """One network of two full batches by hand; a drop of the rate forgets the state, as it does for SGD."""
    rng, factory = Rng(5), task_of(digits(), NET).network
    x, y = digits().batch(torch.arange(20)).x, digits().labels[:20]
    decay = OPTIMIZERS[name].decay[0]
    schedule = Schedule(3, lr=1e-3, weight_decay=decay, batch=20, drop_after=1, optimizer=name)  # type: ignore[arg-type]
    ours, theirs = factory(1), factory(1)
    train(ours, x, y, schedule, rng)
    optimizer = made(theirs.parameters(), lr=1e-3, weight_decay=decay)
    theirs.train()
    for p in range(3):
        order = torch.randperm(20, generator=rng.generator("order", p))
        optimizer.zero_grad()
        F.cross_entropy(theirs(x[order]), y[order]).backward()
        optimizer.step()
        if p == 1:
            optimizer = made(theirs.parameters(), lr=1e-4, weight_decay=decay)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_networks_side_by_side_take_the_other_optimizer_too() -> None:
    factory, schedule = task_of(digits(), NET).network, Schedule(3, lr=1e-3, batch=16, optimizer="adam")
    x, y = digits().batch(torch.arange(20)).x, digits().labels[:20]
    rngs = [Rng(0), Rng(1)]
    one, many = [factory(3), factory(4)], [factory(3), factory(4)]
    train_many(one, x, y, schedule, rngs, stacked=False)
    train_many(many, x, y, schedule, rngs, stacked=True)
    for a, b in zip(one, many, strict=True):
        assert all(torch.allclose(p, q, atol=1e-4) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_second_optimizer_is_named_wherever_the_result_is(squares: RealSet, pair: list[Any]) -> None:
    result = evaluate(pair[0], squares, protocol="dc-v1", networks=1, optimizer="adamw", augmented=False)
    assert result.optimizer == "AdamW"
    assert result.distilled.rates == [1e-3]
    assert result.random is not None
    assert result.random.rates == [1e-3]
    assert result.conditions == "dc-v1, hard labels, AdamW, no augmentation"
    assert any("AdamW at its usual learning rate, 0.001, where dc-v1 has SGD" in note for note in result.notes)
    call = evaluate_call(result.to_dict())
    assert 'optimizer="adamw"' in call
    assert "augmented=False" in call


def test_optimizers_that_do_not_fit_are_refused(squares: RealSet, pair: list[Any]) -> None:
    with pytest.raises(InputError, match=r"no optimizer 'adm'.*adam"):
        evaluate(pair, squares, protocol=DSA, optimizer="adm")
    with pytest.raises(InputError, match="its optimizer is part of it"):
        evaluate(pair, squares, protocol="krr-v1", optimizer="adam")
    with pytest.raises(InputError, match="optimizer of its own"):
        evaluate(pair, squares, protocol="dc-v1", optimizer="adam", training="dfa")


def test_soft_recipes_by_another_optimizer() -> None:
    recipe = SOFT_RECIPES["sre2l_cifar"]
    sgd, adam = soft_by("sgd", recipe), soft_by("adam", recipe)
    assert (sgd.optimizer_name, sgd.tau2, sgd.lr) == ("SGD", True, 0.2)
    assert (adam.optimizer_name, adam.tau2, adam.weight_decay) == ("Adam", False, 0.0)
    assert soft_by("auto", recipe) is recipe
    trace = unaugmented(recipe).trace
    assert (trace.crop, trace.flip, trace.shuffle, trace.mix) == ("none", False, 1, "none")
    assert get_protocol("sre2l-cifar-v1").optimizer == "AdamW"


def test_the_command_prints_the_parts_and_keeps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datastill.distill("random", "digits", ipc=1, network=NET, out=tmp_path / "run")
    args = ["evaluate", str(tmp_path / "run"), "--networks", "1", "--protocol", "dsa-quick-v1", "--quiet"]
    assert main([*args, "--scores", "released"]) == 0
    shown = capsys.readouterr().out
    assert "label robustness score (LRS)" in shown
    assert "share of the whole set's accuracy" in shown
    kept = json.loads((tmp_path / "run" / "evaluation.json").read_text())["robustness"]
    assert kept["arithmetic"] == "released"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Without the help of labels and augmentation" in page
    assert "(LRS)" in (tmp_path / "run" / "README.md").read_text()
    for more, told in (
        (["--scores", "fractions", "--no-random"], "leave --no-random"),
        (["--scores", "fractions", "--regimes", "hard"], "leave --scores or --regimes"),
        (["--scores", "fractions", "--protocol", "krr-v1"], "krr-v1 trains"),
        (["--regimes", "hard", "--labels", "hard"], "leave --labels out"),
        (["--labels", "hard"], "trains on the labels of the set"),
    ):
        assert main([*args, *more, "--data", str(tmp_path / "nowhere")]) == 2
        assert told in capsys.readouterr().err, "before data are looked for"


def test_what_the_scores_take_is_told_before(
    squares: RealSet, pair: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trainings by hand: both arms without augmentation, hard labels where the set has others, and the whole set."""

    def steps(made: list[Any], protocol: Protocol, networks: int = 2, labels: str = "auto") -> int:
        seconds = apart_seconds(made, squares, protocol, NET, networks, labels, "cpu")
        return round(seconds / NOMINAL_STEP_SECONDS)  # the arithmetic of such networks is far below a step

    assert steps(pair, DSA) == 2 * 2 * 2 * 4  # arms, sets, networks, passes of one step
    assert steps(pair, DSA, networks=1) == 2 * 2 * 4
    assert steps(pair, SOFT) == 2 * 3 * 2 * 2 + 2 * 3 * 2, "without a teacher too"
    assert steps(pair, SOFT, labels="hard") == 2 * 3 * 2 * 2
    assert apart_seconds(pair, digits(), QUICK, NET, 2, "auto", "cpu") == 0
    whole = ceiling_seconds(squares, datastill.models.resolve_network(NET, **squares.network_shape), "cpu")
    assert whole == pytest.approx(get_protocol("ceiling-v1").passes * NOMINAL_STEP_SECONDS, rel=0.2)

    datastill.distill("random", "digits", ipc=1, network=NET, out=tmp_path / "run")
    args = ["evaluate", str(tmp_path / "run"), "--networks", "1", "--protocol", "dsa-quick-v1", "--scores"]
    assert main([*args, "fractions"]) == 0
    assert "The whole real set takes about 1 second more" in capsys.readouterr().err


def test_a_comparison_puts_the_same_scores_together_from_its_cells(squares: RealSet, tmp_path: Path) -> None:
    """Cells train Random once for all methods; what comes out is what `evaluate_robustness` says of each set alone."""
    settings = {"dm": {"steps": 3, "real_batch": 8}}
    asked = {"ipc": 1, "seeds": 1, "network": NET, "networks": 2, "protocol": "dsa-quick-v1", "settings": settings}
    found = datastill.compare(["dm"], squares, **asked, optimizer="adam", scores="released", out=tmp_path / "a")
    row = found.row("dm")
    assert row.robustness is not None
    alone = evaluate_robustness(
        found.cell_folder(row, 0), squares, protocol="dsa-quick-v1", network=NET, networks=2, optimizer="adam",
        arithmetic="released",
    )  # fmt: skip
    assert alone.robustness is not None
    for name, values in alone.robustness.parts().items():
        assert row.robustness.parts()[name] == pytest.approx(values, abs=2e-6, rel=1e-3), name
    assert found.row("random").robustness is not None, "Random stands in the table with what is missing to the whole"
    assert row.cells[0]["optimizer"] == "Adam"
    assert {"LRS", "ARS"} <= {word for word in found.table().split() if word.isupper()}
    assert "trained by Adam" in found.table()
    assert found.to_dict()["rows"][1]["robustness"]["arithmetic"] == "released"
    with pytest.raises(InputError, match=r"optimizer|scores"):
        datastill.compare(["dm"], squares, **asked, out=tmp_path / "a")
    entries = read_ledger(tmp_path / "a" / "results").entries
    assert {one.protocol for one in entries} == {"dsa-quick-v1, Adam"}


def test_a_comparison_says_what_it_was_scored_by_and_all_that_it_took(squares: RealSet, tmp_path: Path) -> None:
    """Of images too small to be augmented: no ARS, and why; the optimizer that trained; the whole set's time."""
    asked = {"ipc": 1, "seeds": 1, "network": NET, "networks": 2, "protocol": "dsa-quick-v1", "scores": "fractions"}
    small = datastill.compare(["random"], "digits", **asked, optimizer="adamw", out=tmp_path / "a")
    assert "There is no ARS: images of fewer than 16 pixels a side are not augmented." in small.table()
    assert "LRS says what is left" in small.table()
    assert "ARS weighs" not in small.table()
    cost = small.row("random").cells[0]["cost"]
    (whole,) = small.whole_set_seconds.values()
    assert whole > 0
    own = ("distillation_seconds", "evaluation_seconds", "scores_seconds")
    assert small.seconds == pytest.approx(whole + sum(cost[name] for name in own))
    assert f"on the whole real set took {duration(whole)} (digits)" in small.table()
    text = write_comparison_report(tmp_path / "a.html", small).read_text()
    assert f"{duration(whole)} of it on the whole real set" in text
    (told,) = re.findall(r"<td>(dsa-quick-v1: .*)</td>", text)
    assert "optimizer AdamW, lr 0.001, weight_decay 0.01," in told
    assert not re.search(r"[, ]momentum 0|lr 0\.01\b", told), "what SGD has"

    both = datastill.compare(["random"], ["digits", squares], **asked, out=tmp_path / "b")
    assert "LRS and ARS say" in both.table()
    assert "There is no ARS of digits:" in both.table()
    assert sum(both.whole_set_seconds.values()) == pytest.approx(both.seconds - sum(
        row.cost(name) for row in both.rows for name in own
    ))  # fmt: skip
    alone = datastill.compare(["random"], squares, **asked, out=tmp_path / "c")
    assert alone.row("random").cost("scores_seconds") > 0, "without augmentation too"
    assert "There is no ARS" not in alone.table()
    assert "ARS weighs" in alone.table()


def test_what_is_prepared_counts_once(tmp_path: Path) -> None:
    asked = {"ipc": 1, "seeds": 1, "network": NET, "networks": 1, "settings": {"herding": {"feature_passes": 1}}}
    one = datastill.compare(["herding"], "digits", **asked, out=tmp_path / "a")
    two = datastill.compare(["herding", "kcenter"], "digits", **asked | {"settings": {
        name: {"feature_passes": 1} for name in ("herding", "kcenter")
    }}, out=tmp_path / "b")  # fmt: skip
    for found in (one, two):
        shared = found.row("herding").cost("prepare_seconds")
        own = [row.cost(name) for row in found.rows for name in ("distillation_seconds", "evaluation_seconds")]
        assert shared > 0
        assert found.seconds == pytest.approx(shared + sum(own))
    assert two.row("kcenter").cost("prepare_seconds") == two.row("herding").cost("prepare_seconds")


def test_a_comparison_has_no_scores_of_other_arithmetic(squares: RealSet) -> None:
    for asked in ({"scores": "percent"}, {"optimizer": "lion"}):
        with pytest.raises(InputError, match="--scores" if "scores" in asked else "--optimizer"):
            datastill.compare(["random"], squares, ipc=1, **asked)

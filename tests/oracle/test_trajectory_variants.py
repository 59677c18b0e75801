"""FTD, AST and DATM against loops written out, and each piece that they add to MTT."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datastill import distill, evaluate, load_distilled, load_real
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.loop import synthesize
from datastill.core.plan import Block, Callback, Plan, Task
from datastill.core.recipes import recipes
from datastill.core.rng import Rng, isolated
from datastill.core.update import Sgd
from datastill.core.wrapped import Ema
from datastill.data import RealSet
from datastill.engines.flat import FlatModel
from datastill.engines.hypergradient import MatchTerm, adjoint, cross_entropy_of_logits, draw_plan
from datastill.evaluation.protocols import Protocol
from datastill.labels.correct_logits import mean_of_correct
from datastill.methods.ast import AST
from datastill.methods.datm import DATM
from datastill.methods.ftd import FTD
from datastill.models.zoo import ConvNet
from datastill.objectives.trajectory_match import balance, intermediate_steps
from datastill.sampling.clusters import spread
from datastill.store.artifact import DistilledSet
from datastill.surrogates.experts import ExpertBuffer, open_buffer, train_experts
from datastill.surrogates.experts.perturbed import perturbed
from trajectory_data import NETWORK, SHORT, plain_buffer, task_of


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


@pytest.fixture(scope="module")
def buffer(digits: RealSet, tmp_path_factory: pytest.TempPathFactory) -> str:
    return plain_buffer(digits, tmp_path_factory.mktemp("experts") / "buffer")


class StopAt(Exception):
    """Stands for a kill."""


class Kill(Callback):
    def after_step(self, context: Context) -> None:
        if context.step == 3:
            raise StopAt


def made(name: str, real: RealSet, buffer: str, steps: int = 4, ipc: int = 1, **changes) -> DistilledSet:
    options = {"expert_policy": "sgd", **SHORT, **changes}
    return distill(name, real, ipc=ipc, network=NETWORK, experts=buffer, steps=steps, **options)


def logits_of(experts: ExpertBuffer, task: Task, expert: int, x: Tensor) -> Tensor:
    network = task.network(5).eval()
    experts.load(network, expert, experts.epochs)
    return network(x).detach()


def literal(method: AST | DATM, task: Task, images: Tensor, labels: Tensor, bounds: list[int]) -> tuple[Tensor, ...]:
    """AST or DATM as a script would have them, on the library's draws: every graph of N steps kept."""
    rng, experts, model = Rng(task.seed), open_buffer(method.experts), FlatModel(task.network(0))
    leaves = [images.clone().requires_grad_(), torch.tensor(method.student_lr, requires_grad=True)]
    optimizers = [torch.optim.SGD([leaves[0]], method.image_lr, 0.5), torch.optim.SGD([leaves[1]], method.lr_lr, 0.5)]
    if labels.is_floating_point():
        leaves.append(labels.clone().requires_grad_())
        optimizers.append(torch.optim.SGD([leaves[2]], method.label_lr, 0.9))
    for step in range(method.steps):
        turn, position = divmod(step, len(experts))
        order = torch.randperm(len(experts), generator=rng.generator("expert-order", 0, turn))
        drawn = rng.generator("expert-start", 0, step, 0)
        t = int(torch.randint(getattr(method, "min_start", 0), bounds[step], (), generator=drawn))
        start, *targets = experts.rows(int(order[position]), range(t, t + method.span + 1))
        momentum, nu, terms = 0.0, 1.0, {method.student_steps: (1.0, targets[-1])}
        if isinstance(method, AST):
            momentum, nu = method.student_momentum, balance(t, method.max_start)
            start = perturbed(start, task.network(0), 1.0, rng.generator("expert-perturbation", 0, step))
            for j, s in enumerate(intermediate_steps(method.student_steps, method.span)[:-1], start=1):
                terms[s] = (j / method.span if method.intermediate == "adaptive" else 1.0, targets[j - 1])
        inner = draw_plan(len(images), method.student_steps, None, None, (1, 8, 8), rng.child("student", 0, step))
        theta, b, grand = start.clone().requires_grad_(), torch.zeros_like(start), torch.zeros(())
        for i, one in enumerate(inner.steps):
            y = leaves[2].softmax(1) if len(leaves) > 2 else labels
            loss = nu * F.cross_entropy(model(theta, leaves[0][one.index]), y[one.index])
            b = momentum * b + torch.autograd.grad(loss, theta, create_graph=True)[0]
            theta = theta - leaves[1] * b
            if i + 1 in terms:
                beta, target = terms[i + 1]
                grand = grand + beta * (theta - target).square().sum() / (start - target).square().sum()
        for leaf, grad in zip(leaves, torch.autograd.grad(grand, leaves), strict=True):
            leaf.grad = grad
        if float(grand.detach()) <= getattr(method, "threshold", math.inf):
            for optimizer in optimizers:
                optimizer.step()
    return tuple(leaf.detach() for leaf in leaves)


def run(method: FTD | AST | DATM, task: Task) -> tuple[Plan, dict[str, Tensor], Tensor]:
    """The plan, the final leaves of all kinds, and the labels."""
    plan = method.build(task)
    outcome = synthesize(plan, task, prepared={"experts": plan.prepare[0].run(task)})
    return plan, {**outcome.codes, **outcome.shared}, outcome.y


def begun(method: FTD | AST | DATM, task: Task) -> tuple[Tensor, dict[str, Tensor]]:
    """What the init gives."""
    plan = method.build(task)
    block = Block(0, torch.arange(len(task.labels)), task.labels)
    context = Context(task, plan, block, Rng(task.seed), prepared={"experts": plan.prepare[0].run(task)})
    return plan.init.images(task, block, context)


@pytest.mark.parametrize("intermediate", ["all", "adaptive"])
def test_ast_is_the_papers_algorithm(digits: RealSet, buffer: str, intermediate: str) -> None:
    task = task_of(digits)
    settings = {**SHORT, "student_steps": 5, "max_start": 2}
    method = AST(steps=4, experts=buffer, expert_policy="sgd", span=3, intermediate=intermediate, **settings)  # type: ignore[arg-type]
    _, leaves, _ = run(method, task)
    images, lr = literal(method, task, begun(method, task)[0], task.labels, [2] * 4)
    torch.testing.assert_close(leaves["images"], images, rtol=1e-3, atol=1e-4)
    assert float(leaves["lr"]) == pytest.approx(float(lr), rel=1e-4)
    assert not torch.allclose(images, begun(method, task)[0], atol=1e-2)


@pytest.mark.parametrize("threshold", [10.0, 0.9])
def test_datm_is_the_papers_algorithm(digits: RealSet, buffer: str, threshold: float) -> None:
    """Labels move with momentum; a loss above the threshold changes nothing; the window grows."""
    task = task_of(digits)
    settings = {**SHORT, "min_start": 0, "first_start": 1, "grow_steps": 4, "label_lr": 3.0}
    method = DATM(steps=5, experts=buffer, expert_policy="sgd", threshold=threshold, **settings)  # type: ignore[arg-type]
    plan, leaves, y = run(method, task)
    start = begun(method, task)[0]
    experts = open_buffer(buffer)
    first = mean_of_correct(torch.stack([logits_of(experts, task, k, start) for k in experts.experts]), task.labels)
    images, lr, labels = literal(method, task, start, first, [1, 1, 2, 2, 3])
    torch.testing.assert_close(leaves["images"], images, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(y, labels, rtol=1e-3, atol=1e-4)
    assert float(leaves["lr"]) == pytest.approx(float(lr), rel=1e-4)
    assert not torch.allclose(labels, first, atol=1e-3)
    assert [plan.surrogates.max_start(k / 5) for k in range(5)] == [1, 1, 2, 2, 3]  # type: ignore[union-attr]


def test_the_adjoint_with_momentum_and_terms_is_the_unroll() -> None:
    """In double precision, label logits and the loss's factor included: to 1e-10 of autograd through kept graphs."""
    g = torch.Generator().manual_seed(0)
    with isolated(1):
        model = FlatModel(ConvNet(2, 3, (8, 8), width=8, depth=2, norm="group").double())
    theta0, x = model.flatten(), torch.randn(5, 2, 8, 8, generator=g, dtype=torch.float64)
    y, alpha = torch.randn(5, 3, generator=g, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    targets = [theta0 + 0.1 * torch.randn(theta0.shape, generator=g, dtype=torch.float64) for _ in range(3)]
    terms = [MatchTerm(s, v, b) for s, v, b in zip((2, 4, 7), targets, (1 / 3, 2 / 3, 1.0), strict=True)]
    plan = draw_plan(5, 7, 3, None, (2, 8, 8), Rng(3))
    found = adjoint(model, theta0, x, y, alpha, plan, terms, momentum=0.9, scale=1.3, loss_fn=cross_entropy_of_logits)
    leaves = [x.clone().requires_grad_(), y.clone().requires_grad_(), alpha.clone().requires_grad_()]
    theta, b, grand = theta0.clone().requires_grad_(), torch.zeros_like(theta0), 0.0
    for i, step in enumerate(plan.steps, start=1):
        logits = model(theta, leaves[0][step.index])
        loss = -1.3 * (leaves[1][step.index].softmax(1) * logits.log_softmax(1)).sum(1).mean()
        b = 0.9 * b + torch.autograd.grad(loss, theta, create_graph=True)[0]
        theta = theta - leaves[2] * b
        for term in (t for t in terms if t.step == i):
            grand = grand + term.weight * (theta - term.target).square().sum() / (theta0 - term.target).square().sum()
    for mine, theirs in zip((found.x, found.y, found.alpha), torch.autograd.grad(grand, leaves), strict=True):
        assert float((mine - theirs).norm()) <= 1e-10 * float(theirs.norm())


class TestAst:
    def test_noise_is_on_convolutions_alone(self) -> None:
        with isolated(0):
            network = ConvNet(2, 3, (8, 8), width=8, depth=2, norm="group")
        model = FlatModel(network)
        theta = model.flatten()
        before = model.split(theta)
        after = model.split(perturbed(theta, network, 1.0, Rng(0).generator("x")))
        changed = {name for name, w in before.items() if not torch.equal(w, after[name])}
        assert changed == {name for name, w in before.items() if w.ndim == 4}
        for name in changed:
            moved = after[name] - before[name]
            assert 0 < float(moved.norm()) <= float(before[name].abs().max())
            relative = (moved / before[name]).square().sum().sqrt()
            assert float(relative) == pytest.approx(1.0, rel=1e-4)  # |d / ||d||| over the tensor

    @pytest.mark.parametrize("ipc", [1, 5, 10, 25])
    def test_the_start_is_distinct_images_near_centroids(self, digits: RealSet, buffer: str, ipc: int) -> None:
        task = task_of(digits, ipc)
        method = AST(experts=buffer, expert_policy="sgd", candidates=60, **SHORT)  # type: ignore[arg-type]
        images, extra = begun(method, task)
        again, _ = begun(method, task)
        index = extra["selected"]
        assert torch.equal(images, again)
        assert len(index.unique()) == 10 * ipc
        assert torch.equal(digits.batch(index).y, task.labels)
        assert torch.equal(digits.batch(index).x, images)

    def test_of_one_image_it_is_the_one_nearest_to_the_mean(self, digits: RealSet, buffer: str) -> None:
        task = task_of(digits)
        _, extra = begun(AST(experts=buffer, expert_policy="sgd", candidates=0, **SHORT), task)  # type: ignore[arg-type]
        for c in range(10):
            members = digits.class_index(c)
            logits = logits_of(open_buffer(buffer), task, 0, digits.batch(members).x)
            nearest = (logits - logits.mean(0)).norm(dim=1).argmin()
            assert int(extra["selected"][c]) == int(members[nearest])

    def test_clusters_give_their_share(self) -> None:
        """Six, three and one of far points: of five images three, one and one by largest remainder (3, 1.5, 0.5)."""
        points = torch.tensor([0.0] * 6 + [10.0] * 3 + [20.0])[:, None] + torch.arange(10)[:, None] * 1e-3
        found = spread(points, 3, 5, Rng(0).generator("x"))
        clusters = torch.bincount((found >= 6).long() + (found >= 9).long(), minlength=3)
        assert len(found.unique()) == 5
        assert clusters.tolist() in ([3, 2, 0], [3, 1, 1])

    def test_its_options_off_are_mtt(self, digits: RealSet, buffer: str) -> None:
        off = {"student_momentum": 0.0, "perturbation": 0.0, "balanced": False, "intermediate": "none", "init": "real"}
        ours, mtt = made("ast", digits, buffer, **off), made("mtt", digits, buffer)
        assert torch.equal(ours.images, mtt.images)
        assert not torch.equal(made("ast", digits, buffer, **{**off, "balanced": True}).images, mtt.images)


class TestDatm:
    def test_labels_are_the_mean_of_the_experts_that_are_right(self) -> None:
        """Two experts right about the first image, one about the second, none about the third."""
        logits = torch.tensor(
            [
                [[3.0, 1, 0], [0, 2, 1], [5, 0, 0]],
                [[1.0, 0, 0], [4, 1, 0], [3, 0, 1]],
                [[0.0, 9, 0], [0, 0, 9], [0, 4, 0]],
            ]
        )
        found = mean_of_correct(logits, torch.tensor([0, 1, 2]))
        torch.testing.assert_close(found[0], torch.tensor([2.0, 0.5, 0]))
        torch.testing.assert_close(found[1], torch.tensor([0.0, 2, 1]))
        assert torch.equal(found[2, :2], logits[:, 2].mean(0)[:2])
        assert found.argmax(1).tolist() == [0, 1, 2]
        assert float(found[2, 2] - found[2, :2].max()) < 0.01
        assert bool(torch.isfinite(found).all())

    def test_images_start_where_the_first_expert_is_right(self, digits: RealSet, buffer: str) -> None:
        task = task_of(digits, ipc=3)
        images, extra = begun(DATM(experts=buffer, expert_policy="sgd", **SHORT), task)  # type: ignore[arg-type]
        assert torch.equal(logits_of(open_buffer(buffer), task, 0, images).argmax(1), task.labels)
        assert len(extra["selected"].unique()) == 30

    def test_images_that_no_expert_knows_are_filled_up(self, digits: RealSet, tmp_path: Path) -> None:
        """Experts that have learned nothing: an end, a warning, and labels that are right all the same."""
        task = task_of(digits, ipc=2)
        train_experts(digits, task.network, tmp_path / "b", experts=2, epochs=2, policy="sgd:lr=1e-5", augment="none")
        method = DATM(experts=str(tmp_path / "b"), expert_policy="sgd", steps=1, **{**SHORT, "max_start": 1})  # type: ignore[arg-type]
        with pytest.warns(UserWarning, match="recognize fewer than 2 images"):
            _, _, y = run(method, task)
        assert y.argmax(1).tolist() == task.labels.tolist()

    @pytest.mark.parametrize("loss", ["above", "nan"])
    def test_a_step_that_is_skipped_changes_nothing(self, digits: RealSet, buffer: str, loss: str) -> None:
        """Neither leaves nor momenta: the fourth step, skipped, leaves a run of three."""
        task = task_of(digits)
        method = DATM(steps=4, experts=buffer, expert_policy="sgd", threshold=10.0, **SHORT)  # type: ignore[arg-type]
        plan = method.build(task)
        prepared = {"experts": plan.prepare[0].run(task)}

        def broken(context: Context):
            if context.step == 3 and loss == "nan":
                found = plan.objective(context)  # type: ignore[misc]
                return dataclasses.replace(found, loss=found.loss * math.nan)
            strict = dataclasses.replace(plan.objective, threshold=1e-3 if context.step == 3 else 10.0)  # type: ignore[type-var]
            return strict(context)

        four = synthesize(dataclasses.replace(plan, objective=broken), task, prepared=prepared)
        three = synthesize(plan, task, prepared=prepared, stop_after=3)
        assert four.skipped == 1
        assert torch.equal(four.codes["images"], three.codes["images"])
        assert torch.equal(four.y, three.y)
        assert torch.equal(four.shared["lr"], three.shared["lr"])

    def test_in_an_artifact(self, digits: RealSet, buffer: str, tmp_path: Path) -> None:
        made("datm", digits, buffer, out=tmp_path / "run", threshold=10.0)
        one = load_distilled(tmp_path / "run")
        assert one.manifest["label_kind"] == "logits"
        assert one.labels.shape == (10, 10)
        assert evaluate(one, digits, protocol=Protocol("t", "", passes=2), networks=1).mean > 0

    def test_a_smaller_window_begins_in_proportion(self, digits: RealSet) -> None:
        method = DATM(min_start=40, first_start=50, max_start=60, grow_steps=2000, expert_last=100)
        small = method._followed(dataclasses.replace(method, max_start=4, steps=1000))
        assert (small.min_start, small.first_start, small.grow_steps, small.expert_last) == (2, 3, 200, 0)
        assert method._followed(method) is method
        assert method.experts_unit().stop_after == 100
        cheap = method.scaled(task_of(digits), 20.0)
        cheap.build(task_of(digits))
        assert cheap.min_start < cheap.first_start <= cheap.max_start < 60


class TestFtd:
    def test_the_average_in_closed_form(self) -> None:
        """Steps of 1 from 0: x_k = k; of constants the average is the constant, but for what the start weighs."""
        for start in (False, True):
            leaf = torch.zeros(2)
            stepper = Ema(Sgd(1.0), 0.9, start).bind(leaf)
            for _ in range(7):
                stepper.before()
                stepper.after(torch.full((2,), -1.0), 0.0)
            stepper.finish()
            weights = [0.1 * 0.9 ** (7 - k) for k in range(1, 8)]
            mean = sum(w * k for k, w in enumerate(weights, start=1))
            assert leaf.tolist() == pytest.approx([mean if start else mean / sum(weights)] * 2)
        still = Ema(Sgd(0.0), 0.9, True).bind(leaf := torch.full((2,), 3.0))
        for _ in range(4):
            still.before()
            still.after(torch.ones(2), 0.0)
        still.finish()
        assert leaf.tolist() == pytest.approx([3.0, 3.0])

    def test_the_weight_of_the_start_is_told(self, digits: RealSet, buffer: str) -> None:
        one = made("ftd", digits, buffer, steps=5, ema=0.9, ema_start=True)
        assert any("the start still weighs 59 %" in note for note in one.manifest["notes"])  # 0.9^5 = 0.59
        assert not any("still weighs" in note for note in made("ftd", digits, buffer, ema=0.9).manifest["notes"])

    def test_without_an_average_it_is_mtt(self, digits: RealSet, buffer: str) -> None:
        mtt = made("mtt", digits, buffer)
        assert torch.equal(made("ftd", digits, buffer, ema=0.0).images, mtt.images)
        averaged = made("ftd", digits, buffer, ema=0.5)
        assert not torch.equal(averaged.images, mtt.images)
        assert averaged.manifest["student"]["lr"] == mtt.manifest["student"]["lr"]


@pytest.mark.parametrize("name", ["ftd", "ast", "datm"])
class TestAll:
    def test_a_run_that_goes_on_is_a_run(self, name: str, digits: RealSet, buffer: str, tmp_path: Path) -> None:
        shared = {"steps": 6, "out": tmp_path / "run", "checkpoint_seconds": 0.0}
        whole = made(name, digits, buffer, steps=6)
        with pytest.raises(StopAt):
            made(name, digits, buffer, callbacks=[Kill()], **shared)
        rest = made(name, digits, buffer, resume=True, **shared)
        assert torch.equal(rest.images, whole.images)
        assert torch.equal(rest.labels, whole.labels)
        assert rest.manifest["student"] == whole.manifest["student"]

    def test_experts_of_another_policy_are_refused(self, name: str, digits: RealSet, buffer: str) -> None:
        wanted = {"ftd": "gsam", "ast": "smooth", "datm": "gsam"}[name]
        with pytest.raises(InputError, match=f"their policy is sgd, this run's is {wanted}"):
            made(name, digits, buffer, expert_policy=get_default(name))
        with pytest.raises(InputError, match="do not fit: their network"):
            distill(
                name, digits, ipc=1, network="convnet:width=4,depth=1", experts=buffer, expert_policy="sgd", **SHORT
            )
        with pytest.raises(InputError, match="do not fit: their space"):
            made(name, load_real("digits", space="raw"), buffer)

    def test_recipes_are_whole(self, name: str) -> None:
        """Windows that fit their experts, in every published setting."""
        found = recipes(name)
        assert found
        for recipe in found:
            method = {"ftd": FTD, "ast": AST, "datm": DATM}[name](**recipe.hyper)
            method._check()
            assert recipe.source


def get_default(name: str) -> str:
    return str({"ftd": FTD, "ast": AST, "datm": DATM}[name]().expert_policy)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("datm", {"min_start": 3}, "No epoch is left to start from"),
        ("datm", {"min_start": 1, "first_start": 1}, "The window begins with a bound above min_start=1"),
        ("datm", {"first_start": 4}, "up to max_start=3"),
        ("datm", {"max_start": 9}, "lower max_start"),
        ("datm", {"canvas": 2}, "whole images"),
        ("datm", {"threshold": 0.0}, "threshold"),
        ("ast", {"student_steps": 1}, "cannot meet 2 epochs"),
        ("ast", {"canvas": 2}, "init=real"),
        ("ast", {"intermediate": "agg"}, "intermediate"),
        ("ast", {"experts": "", "max_start": 49, "span": 3}, "lower max_start"),
        ("ftd", {"ema": 1.0}, "ema"),
    ],
)
def test_bad_input_is_told(name: str, change: dict, words: str, digits: RealSet, buffer: str) -> None:
    with pytest.raises(InputError, match=words):
        distill(name, digits, ipc=1, network=NETWORK, **{"experts": buffer, "expert_policy": "sgd", **SHORT, **change})

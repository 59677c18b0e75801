"""MTT and TESLA: a run against the published loop written out, identities, and what the loop must keep."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datastill import distill, evaluate, load_distilled, load_real
from datastill.cli import main
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.loop import synthesize
from datastill.core.plan import Callback, ClassMajor, Grads, Plan, Task
from datastill.core.registry import NOMINAL_MACS_PER_SECOND
from datastill.core.rng import Rng
from datastill.core.update import Sgd
from datastill.data import RealSet
from datastill.decoders.texture import Texture
from datastill.distillation.job import prepare_job
from datastill.engines.flat import FlatModel
from datastill.engines.hypergradient import Calibrated, KeepPositive, Watched, draw_plan
from datastill.evaluation.protocols import Protocol, get_protocol
from datastill.evaluation.rates import RATES, best_rate, validation_of, with_rate
from datastill.labels.from_experts import ExpertLabels
from datastill.methods.mtt import MTT
from datastill.methods.tesla import TESLA
from datastill.sampling.canvases import CanvasInit
from datastill.sampling.inits import random_indices
from datastill.store.artifact import DistilledSet
from datastill.surrogates.experts import open_buffer, train_experts
from datastill.surrogates.experts.policies.sgd import Sgd as ExpertSgd
from trajectory_data import NETWORK, SHORT, plain_buffer, task_of


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


@pytest.fixture(scope="module")
def buffer(digits: RealSet, tmp_path_factory: pytest.TempPathFactory) -> str:
    return plain_buffer(digits, tmp_path_factory.mktemp("experts") / "buffer")


def made(name: str, real: RealSet, buffer: str, steps: int = 6, **changes) -> DistilledSet:
    return distill(name, real, ipc=1, network=NETWORK, experts=buffer, steps=steps, **{**SHORT, **changes})


class StopAt(Exception):
    """Stands for a kill."""


class Kill(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, context: Context) -> None:
        if context.step == self.step:
            raise StopAt


def literal_mtt(method: MTT, plan: Plan, task: Task) -> tuple[Tensor, Tensor]:
    """The released loop as a script would have it, on the library's draws: every graph of N steps kept."""
    rng, experts = Rng(task.seed), open_buffer(method.experts)
    images = task.real.batch(random_indices(task.real, 1, task.seed)).x.requires_grad_()
    lr = torch.tensor(method.student_lr, requires_grad=True)
    optimizers = [torch.optim.SGD([images], method.image_lr, 0.5), torch.optim.SGD([lr], method.lr_lr, 0.5)]
    model, y = FlatModel(task.network(0)), task.labels
    for step in range(method.steps):
        turn, position = divmod(step, len(experts))
        order = torch.randperm(len(experts), generator=rng.generator("expert-order", 0, turn))
        start_generator = rng.generator("expert-start", 0, step, 0)
        t = int(torch.randint(0, method.max_start, (), generator=start_generator))
        start, target = experts.rows(int(order[position]), [t, t + method.span])
        inner = draw_plan(
            10, method.student_steps, method.batch_syn or None, None, (1, 8, 8), rng.child("student", 0, step)
        )
        theta = start.clone().requires_grad_()
        for one in inner.steps:
            loss = F.cross_entropy(model(theta, images[one.index]), y[one.index])
            (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - lr * grad
        grand = F.mse_loss(theta, target, reduction="sum") / F.mse_loss(start, target, reduction="sum")
        for optimizer in optimizers:
            optimizer.zero_grad()
        grand.backward()
        for optimizer in optimizers:
            optimizer.step()
    return images.detach(), lr.detach()


@pytest.mark.parametrize("batch", [0, 4])
def test_mtt_is_the_papers_algorithm(digits: RealSet, buffer: str, batch: int) -> None:
    task = task_of(digits)
    method = MTT(steps=5, experts=buffer, batch_syn=batch, **SHORT)
    plan = method.build(task)
    outcome = synthesize(plan, task, prepared={"experts": plan.prepare[0].run(task)})
    images, lr = literal_mtt(method, plan, task)
    torch.testing.assert_close(outcome.codes["images"], images, rtol=1e-4, atol=1e-5)
    assert float(outcome.shared["lr"]) == pytest.approx(float(lr), rel=1e-5)
    assert float(lr) != pytest.approx(0.05, rel=1e-4)


class TestIdentities:
    def test_tesla_with_the_exact_gradient_and_classes_is_mtt(self, digits: RealSet, buffer: str) -> None:
        mtt, tesla = made("mtt", digits, buffer), made("tesla", digits, buffer, engine="adjoint", soft_labels=False)
        assert torch.equal(mtt.images, tesla.images)
        assert mtt.manifest["student"] == tesla.manifest["student"]

    def test_engines_agree_through_a_run_where_they_are_exact(self, digits: RealSet, buffer: str) -> None:
        adjoint, unroll, frozen = (
            made("mtt", digits, buffer, engine=engine) for engine in ("adjoint", "full_unroll", "frozen_path")
        )
        torch.testing.assert_close(adjoint.images, unroll.images, rtol=1e-3, atol=1e-4)
        assert adjoint.manifest["student"]["lr"] == pytest.approx(unroll.manifest["student"]["lr"], rel=1e-4)
        assert (adjoint.images - frozen.images).abs().max() > 1e-3

    def test_a_fixed_learning_rate_stays(self, digits: RealSet, buffer: str) -> None:
        one = made("mtt", digits, buffer, lr_kind="fixed")
        assert one.manifest["student"]["lr"] == pytest.approx(0.05)
        assert set(one.codes) == {"images"}
        assert "lr" not in one.extra

    @pytest.mark.parametrize("kind", ["log", "softplus"])
    def test_other_kinds_of_leaf_begin_as_the_raw_one(self, kind: str, digits: RealSet, buffer: str) -> None:
        raw, other = (made("mtt", digits, buffer, steps=1, lr_kind=k).manifest["student"]["lr"] for k in ("raw", kind))
        assert other == pytest.approx(raw, rel=1e-3)
        assert raw != pytest.approx(0.05, rel=1e-5)

    def test_the_paper_of_tesla_is_the_frozen_path(self, digits: RealSet, buffer: str) -> None:
        shared = {"ipc": 1, "network": NETWORK, "experts": buffer, "max_start": 3}
        assert prepare_job("tesla", digits, recipe="paper", **shared).method.engine == "frozen_path"  # type: ignore[attr-defined]
        assert prepare_job("tesla", digits, **shared).method.engine == "adjoint"  # type: ignore[attr-defined]


class TestRuns:
    @pytest.mark.parametrize("rates", [{}, {"image_lr": 0.0, "lr_lr": 0.0}, {"soft_labels": True}])
    @pytest.mark.parametrize("at", [2, 6])
    def test_killed_and_resumed(self, rates: dict, at: int, digits: RealSet, buffer: str, tmp_path: Path) -> None:
        """Inside the first gradients, from which rates are taken, and after them."""
        name = "tesla" if "soft_labels" in rates else "mtt"
        whole = made(name, digits, buffer, steps=8, **rates)
        shared = {"steps": 8, **rates, "out": tmp_path / "run"}
        with pytest.raises(StopAt):
            made(name, digits, buffer, callbacks=[Kill(at)], checkpoint_seconds=0.0, **shared)
        again = made(name, digits, buffer, resume=True, **shared)
        assert torch.equal(whole.images, again.images)
        assert torch.equal(whole.labels, again.labels)
        assert whole.manifest["student"] == again.manifest["student"]
        assert whole.manifest["notes"] == again.manifest["notes"]

    @pytest.mark.parametrize("where", ["loss", "images", "lr"])
    def test_a_number_that_is_not_finite_changes_nothing(self, where: str, digits: RealSet, buffer: str) -> None:
        task = task_of(digits)
        plan = MTT(steps=6, experts=buffer, **SHORT).build(task)
        objective, seen = plan.objective, []

        def broken(context: Context) -> Grads:
            found = objective(context)
            if context.step != 3:
                return found
            nan = {"loss": found.loss * torch.nan, "images": found.x * torch.nan, "lr": found.leaves["lr"] * torch.inf}
            x = nan["images"] if where == "images" else found.x
            return Grads(
                nan["loss"] if where == "loss" else found.loss,
                x,
                {"lr": nan["lr"] if where == "lr" else found.leaves["lr"]},
            )

        class Watch(Callback):
            def after_step(self, context: Context) -> None:
                seen.append({name: leaf.clone() for name, leaf in context.codes.items()})

        prepared = {"experts": plan.prepare[0].run(task)}
        outcome = synthesize(dataclasses.replace(plan, objective=broken), task, prepared=prepared, callbacks=[Watch()])
        assert outcome.skipped == 1
        for name in ("images", "lr"):
            assert torch.equal(seen[2][name], seen[3][name])
            assert not torch.equal(seen[3][name], seen[4][name])
        assert all(torch.isfinite(t).all() for t in seen[-1].values())

    def test_a_leaf_of_the_whole_set_is_no_code(self, digits: RealSet, buffer: str, tmp_path: Path) -> None:
        made("mtt", digits, buffer, out=tmp_path / "run")
        one = load_distilled(tmp_path / "run")
        assert set(one.codes) == {"images"}
        assert one.manifest["student"] == {
            "protocol": "mtt-quick-v1",
            "lr": pytest.approx(float(one.extra["lr"]), rel=1e-6),
        }
        assert one.manifest["student"]["lr"] != pytest.approx(0.05, rel=1e-5)

    def test_inspect_tells_the_learned_rate(
        self, digits: RealSet, buffer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rate = made("mtt", digits, buffer, out=tmp_path / "run").manifest["student"]["lr"]
        assert main(["inspect", str(tmp_path / "run")]) == 0
        assert f"learning rate {rate:.4g} (learned)" in capsys.readouterr().out

    def test_several_blocks_are_refused(self, digits: RealSet, buffer: str) -> None:
        task = task_of(digits)
        plan = dataclasses.replace(MTT(steps=2, experts=buffer, **SHORT).build(task), partition=ClassMajor(5))
        with pytest.raises(InputError, match="lr belongs to the whole set"):
            synthesize(plan, task, prepared={"experts": plan.prepare[0].run(task)})

    def test_skipped_steps_are_told(self, digits: RealSet, buffer: str) -> None:
        """A rate that blows up every student: the images stay, and the manifest says why."""
        one = made("mtt", digits, buffer, student_lr=1e6, lr_kind="fixed")
        assert one.manifest["cost"]["skipped_steps"] == 6
        assert any("steps in a row were skipped" in note for note in one.manifest["notes"])
        assert not any("skipped" in note for note in made("mtt", digits, buffer).manifest["notes"])

    def test_experts_are_shared_by_seeds(self, digits: RealSet) -> None:
        method = MTT(expert_count=2, max_start=2)
        keys = [
            method.build(task_of(digits, seed=seed, ipc=ipc)).prepare[0].key(task_of(digits))
            for seed, ipc in ((0, 1), (5, 3))
        ]
        assert keys[0] == keys[1]


class TestRates:
    def test_the_first_steps_are_as_long_as_asked_for(self) -> None:
        leaf, gradient = torch.zeros(4, 3), torch.randn(4, 3, generator=Rng(0).generator("g"))
        stepper = Calibrated(0.02, momentum=0.5, first=3).bind(leaf)
        before = leaf.clone()
        stepper.after(1000 * gradient, 0.0)
        assert float((leaf - before).square().mean().sqrt()) == pytest.approx(0.02, rel=1e-5)
        for scale in (2000, 3000):
            stepper.after(scale * gradient, 0.0)
        settled = stepper.rule.rate(stepper.measured.rms)
        assert settled == pytest.approx(0.02 / (2000 * float(gradient.square().mean().sqrt())), rel=1e-5)
        stepper.after(1e6 * gradient, 0.0)
        assert stepper.rule.rate(stepper.measured.rms) == settled
        assert f"learning rate {settled:.4g}" in stepper.note()
        with pytest.raises(InputError, match="step above 0"):
            Calibrated(0.0)

    @pytest.mark.parametrize(("lr", "said"), [(1.0, "lower"), (0.05, ""), (1e-5, "raise")])
    def test_a_given_rate_is_watched_and_else_plain(self, lr: float, said: str) -> None:
        leaf, plain = torch.zeros(4, 3), torch.zeros(4, 3)
        one, other = Watched(lr, 0.5).bind(leaf), Sgd(lr, 0.5).bind(plain)
        for k in range(7):
            gradient = torch.randn(4, 3, generator=Rng(k).generator("g"))
            one.after(gradient, 0.0)
            other.after(gradient, 0.0)
        assert torch.equal(leaf, plain)
        assert said in one.note()
        assert bool(one.note()) == bool(said)

    def test_a_refused_step_of_alpha_keeps_what_was_measured(self) -> None:
        leaf = torch.tensor([0.01])
        stepper = KeepPositive(Calibrated(0.004, momentum=0.5, first=1)).bind(leaf)
        stepper.after(torch.tensor([1.0]), 0.0)
        assert float(leaf) == pytest.approx(0.006)
        stepper.after(torch.tensor([10.0]), 0.0)
        assert float(leaf) == pytest.approx(0.006)
        stepper.after(torch.tensor([1.0]), 0.0)  # no momentum, and the rate of before
        assert float(leaf) == pytest.approx(0.002)
        assert "1 steps not taken" in stepper.note()

    def test_the_protocol_takes_the_learned_rate(self, digits: RealSet, buffer: str, monkeypatch) -> None:
        one = made("mtt", digits, buffer)
        own = one.manifest["student"]["lr"]
        schedule = get_protocol("mtt-v1").schedule("cifar10", (3, 32, 32), own)
        assert (schedule.lr, schedule.passes, schedule.drop_after, schedule.batch) == (own, 1001, 501, 256)
        assert (schedule.momentum, schedule.weight_decay, schedule.forget_momentum) == (0.9, 5e-4, True)
        quick = Protocol("test", "", passes=12, drop_after=6, learned_lr=True)
        learned = evaluate(one, digits, protocol=quick, networks=2, random=False)
        stated = evaluate(one, digits, protocol=with_rate(quick, own), networks=2, random=False)
        assert torch.equal(learned.distilled.accuracies, stated.distilled.accuracies)
        assert learned.distilled.rates == [own]
        plain = evaluate(one, digits, protocol=dataclasses.replace(quick, learned_lr=False), networks=2, random=False)
        assert plain.distilled.rates == [0.01]
        assert not torch.equal(plain.distilled.accuracies, learned.distilled.accuracies)

    def test_random_has_its_rate_tuned_on_training_images(self, digits: RealSet, buffer: str) -> None:
        one = made("mtt", digits, buffer)
        quick = Protocol("test", "", passes=12, drop_after=6, learned_lr=True)
        result = evaluate(one, digits, protocol=quick, networks=2)
        own = one.manifest["student"]["lr"]
        assert set(result.random.tried) == {*RATES, own}
        (rate,) = result.random.rates
        assert result.random.tried[rate] == max(result.random.tried.values())
        record = result.to_dict()
        assert record["distilled"]["lr"] == [own]
        assert record["random"]["lr"] == [rate]
        assert len(record["random"]["lr_tried"]) == 5
        assert any("learned with the sets" in note for note in result.notes)
        assert any(note.startswith("Random: ") for note in result.notes)
        assert evaluate(one, digits, protocol="dc-v1", networks=1).random.rates == [0.01]

    def test_a_set_without_a_rate_takes_the_protocols(self, digits: RealSet) -> None:
        plain = distill("random", digits, ipc=1, network=NETWORK)
        quick = Protocol("test", "", passes=3, learned_lr=True)
        result = evaluate(plain, digits, protocol=quick, networks=1)
        assert result.distilled.rates == result.random.rates == [0.01]
        assert result.difference == 0
        assert any("comes without one" in note for note in result.notes)

    def test_a_rate_that_is_none_is_refused(self, digits: RealSet, buffer: str) -> None:
        one = made("mtt", digits, buffer, steps=1)
        for wrong in (-0.1, 0, "fast"):
            one.manifest["student"]["lr"] = wrong
            with pytest.raises(InputError, match="must be above 0"):
                evaluate(one, digits, protocol="mtt-quick-v1", networks=1)

    def test_what_chooses_is_not_what_is_chosen_for(self, digits: RealSet) -> None:
        chosen = random_indices(digits, 5, 0)
        validation = validation_of(digits, without=chosen)
        assert len(validation) + len(validation.test) == len(digits) - 50
        few = digits.subset(torch.cat([digits.class_index(c)[:3] for c in range(10)]))
        assert len(validation_of(few, without=torch.arange(30))) > 0
        assert best_rate([0.1, 0.2], lambda rate: 1.0) == (0.1, {0.1: 1.0, 0.2: 1.0})


class TestSoftLabels:
    def test_are_the_targets_probabilities(self, digits: RealSet, buffer: str) -> None:
        task = task_of(digits)
        plan = TESLA(steps=2, experts=buffer, soft_labels=True, **SHORT).build(task)
        seen: list[tuple[Context, Tensor, Tensor]] = []
        objective = plan.objective

        def watch(context: Context) -> Grads:
            segment = context.surrogate
            network = task.network(3).eval()
            open_buffer(buffer).load(network, segment.expert, segment.epoch + 2)
            assert torch.equal(FlatModel(network).flatten(), segment.targets[-1])
            expected = network(context.codes["images"]).softmax(1).detach()
            seen.append((context, context.synthetic.y, expected))
            return objective(context)

        prepared = {"experts": plan.prepare[0].run(task)}
        outcome = synthesize(dataclasses.replace(plan, objective=watch), task, prepared=prepared)
        for context, labels, expected in seen:
            torch.testing.assert_close(labels, expected, rtol=1e-4, atol=1e-6)
            assert context.surrogate.network.training
        experts = open_buffer(buffer)
        mean = torch.zeros(10, 10)
        for k in experts.experts:
            network = task.network(3).eval()
            experts.load(network, k, 4)
            mean += network(outcome.codes["images"]).softmax(1).detach() / 3
        torch.testing.assert_close(outcome.y, mean, rtol=1e-4, atol=1e-6)

    def test_in_an_artifact(self, digits: RealSet, buffer: str, tmp_path: Path) -> None:
        made("tesla", digits, buffer, soft_labels=True, label_experts=2, out=tmp_path / "run")
        one = load_distilled(tmp_path / "run")
        assert one.manifest["labels"] == "soft"
        assert one.manifest["student"]["labels"] == {"experts": [0, 1], "epoch": 4}
        assert one.labels.shape == (10, 10)
        assert one.hard_labels.tolist() == list(range(10))
        assert evaluate(one, digits, protocol=Protocol("t", "", passes=2), networks=1).mean > 0

    def test_running_statistics_are_the_experts(self, digits: RealSet, tmp_path: Path) -> None:
        network = NETWORK + ",norm=batch"
        task = task_of(digits, network=network)
        with pytest.warns(UserWarning, match="running statistics"):
            buffer = train_experts(
                digits, task.network, tmp_path / "b", experts=1, epochs=2, policy="sgd:lr=0.05,batch=64"
            )
        one = distill(
            "tesla", digits, ipc=1, network=network, experts=str(buffer.path), steps=2, soft_labels=True,
            **{**SHORT, "max_start": 1},
        )  # fmt: skip
        expert = task.network(0).eval()
        buffer.load(expert, 0, 2)
        torch.testing.assert_close(one.labels, expert(one.images).softmax(1).detach(), rtol=1e-4, atol=1e-6)

    def test_go_with_whole_images(self, digits: RealSet, buffer: str) -> None:
        with pytest.raises(InputError, match="whole images"):
            made("tesla", digits, buffer, soft_labels=True, canvas=2)
        with pytest.raises(InputError, match="at least one expert"):
            ExpertLabels(None, 0)  # type: ignore[arg-type]


class TestTextures:
    def test_crops_wrap_around(self) -> None:
        canvas = torch.arange(2 * 3 * 8 * 12, dtype=torch.float32).view(2, 3, 8, 12)
        decoder = Texture(factor=2, samples=3)
        record = decoder.draw(Rng(0).generator("crop"))
        view = decoder.decode({"images": canvas}, torch.tensor([4, 7]), record)
        assert view.x.shape == (6, 3, 4, 6)
        assert view.y.tolist() == [4, 7] * 3
        wrapped = canvas.repeat(1, 1, 2, 2)
        for k, crop in enumerate(view.x):
            corner = int(crop[0, 0, 0]) - (k % 2) * 3 * 96
            row, column = divmod(corner, 12)
            assert torch.equal(crop, wrapped[k % 2, :, row : row + 4, column : column + 6])
        again = decoder.decode({"images": canvas}, torch.tensor([4, 7]), record)
        assert torch.equal(view.x, again.x)

    def test_tiles_where_nothing_is_drawn(self) -> None:
        canvas = torch.arange(64, dtype=torch.float32).view(1, 1, 8, 8)
        tiles = Texture(2).decode({"images": canvas}, torch.tensor([0])).x
        assert torch.equal(tiles, torch.stack([canvas[0, :, r : r + 4, c : c + 4] for r in (0, 4) for c in (0, 4)]))

    @pytest.mark.parametrize("record", [None, 12345])
    def test_backward_is_the_transpose(self, record: int | None) -> None:
        g = Rng(0).generator("x")
        canvas, y, decoder = torch.randn(3, 2, 6, 6, generator=g, dtype=torch.float64), torch.arange(3), Texture(2, 2)
        x = decoder.decode({"images": canvas}, y, record).x
        v = torch.randn(x.shape, generator=g, dtype=torch.float64)
        back = decoder.backward({"images": canvas}, y, record, v)["images"]
        assert float((back * canvas).sum()) == pytest.approx(float((v * x).sum()), rel=1e-10)

    def test_the_first_tile_is_where_other_sets_start(self, digits: RealSet) -> None:
        from datastill.core.plan import Block

        task = task_of(digits, ipc=2)
        block = Block(0, torch.arange(20), task.labels)
        images, extra = CanvasInit(2).images(task, block, None)  # type: ignore[arg-type]
        assert images.shape == (20, 1, 16, 16)
        assert torch.equal(extra["mixed"][:, 0], random_indices(digits, 2, 0))
        assert torch.equal(images[:, :, :8, :8], digits.batch(random_indices(digits, 2, 0)).x)
        assert torch.equal(images[:, :, :8, 8:], digits.batch(extra["mixed"][:, 1]).x)

    @pytest.mark.parametrize("init", ["real", "noise"])
    def test_in_a_run(self, init: str, digits: RealSet, buffer: str, tmp_path: Path) -> None:
        made("mtt", digits, buffer, canvas=2, canvas_samples=2, init=init, out=tmp_path / "run")
        one = load_distilled(tmp_path / "run")
        assert one.codes["images"].shape == (10, 1, 16, 16)
        assert one.images.shape == (40, 1, 8, 8)
        assert one.manifest["decoder"] == {"decoder": "texture", "factor": 2, "samples": 2}

    def test_do_not_go_with_zca(self, buffer: str) -> None:
        with pytest.raises(InputError, match="ZCA"):
            made("mtt", load_real("digits", space="zca"), buffer, canvas=2)
        with pytest.raises(InputError, match="does not hold"):
            Texture(3).decode({"images": torch.zeros(1, 1, 8, 8)}, torch.tensor([0]))
        with pytest.raises(InputError, match="factor is 0"):
            Texture(0)


class TestSettings:
    def test_a_part_of_the_images_makes_an_epoch(self, digits: RealSet) -> None:
        from datastill.surrogates.experts.policies import Epoch, TrainingSet

        seen: list[Tensor] = []
        images = digits.batch(torch.arange(len(digits)))
        data = TrainingSet(images.x, images.y, None, "none", torch.device("cpu"))
        for k in range(2):
            network = task_of(digits).network(0)
            epoch = Epoch(k, 2, Rng(0).child("epoch", k), {}, lambda index, logits: seen.append(index))
            ExpertSgd(batch=50, part=0.1).epoch(network, data, epoch)
        first, second = torch.cat(seen[:2]), torch.cat(seen[2:])
        assert len(first) == len(first.unique()) == round(0.1 * len(digits))
        assert set(first.tolist()) != set(second.tolist())
        assert int(first.max()) > 500
        with pytest.raises(InputError, match="part of experts"):
            ExpertSgd(part=0.0)

    @pytest.mark.parametrize("ipc", [1, 10])
    @pytest.mark.parametrize(
        ("shape", "classes", "per_class"), [((3, 32, 32), 10, 500), ((1, 8, 8), 10, 90), ((3, 64, 64), 40, 100)]
    )
    def test_auto_fits_experts_and_steps_into_two_minutes(self, shape, classes: int, per_class: int, ipc: int) -> None:
        n = classes * per_class
        varied = (torch.arange(n * math.prod(shape)) % 251).view(n, *shape).byte()
        real = load_real((varied, torch.arange(n) % classes))
        job = prepare_job("mtt", real, ipc=ipc)
        method, task = job.method, job.task
        assert isinstance(method, MTT)
        assert 2 <= method.expert_count <= 10
        assert method.max_start - 1 + method.span <= method.expert_epochs
        steps = method.macs_per_step(task) * method.steps / NOMINAL_MACS_PER_SECOND["cpu"]
        experts = method.nominal_preparation(task)
        assert method.steps >= 20
        least = method.steps == 20 or method.expert_count == 2
        assert experts + steps < (600 if least else 130)
        assert any("changed from" in note for note in job.notes)

    def test_auto_takes_what_a_folder_has(self, digits: RealSet, buffer: str) -> None:
        method = prepare_job("mtt", digits, ipc=1, network=NETWORK, experts=buffer).method
        assert (method.max_start, method.student_lr) == (3, 0.05)  # type: ignore[attr-defined]

    def test_a_published_setting_of_whitened_images_says_so(self) -> None:
        varied = (torch.arange(40 * 3 * 32 * 32) % 251).view(40, 3, 32, 32).byte()
        real = load_real((varied, torch.arange(40) % 10))
        cifar = dataclasses.replace(real, name="cifar10")
        assert any("zca" in note for note in prepare_job("mtt", cifar, ipc=1, recipe="paper").notes)
        assert not any("zca" in note for note in prepare_job("tesla", cifar, ipc=1, recipe="paper").notes)

    def test_bad_input_is_told(self, digits: RealSet, buffer: str, tmp_path: Path) -> None:
        for change, words in (
            ({"max_start": 9}, "lower max_start"),
            ({"experts": "", "max_start": 9, "expert_epochs": 4}, "lower max_start"),
            ({"student_steps": 0}, "at least 1"),
            ({"batch_syn": -1}, "batch_syn"),
            ({"image_lr": -1.0}, "image_lr"),
            ({"student_lr": 0.0}, "student_lr"),
            ({"lr_kind": "lograw"}, "lr_kind"),
            ({"engine": "adjont"}, "adjoint"),
            ({"init": "mixx"}, "initialization"),
            ({"init": "mixx", "canvas": 2}, "initialization"),
            ({"init": torch.zeros(10, 1, 8, 8), "canvas": 2}, "not from given images"),
            ({"experts": str(tmp_path / "nowhere")}, "no folder"),
            ({"network": "convnet:width=4,depth=1"}, "do not fit"),
        ):
            settings = {"steps": 2, "ipc": 1, "network": NETWORK, "experts": buffer, **SHORT, **change}
            with pytest.raises(InputError, match=words):
                distill("mtt", digits, **settings)

    def test_sgd_is_what_a_given_rate_takes(self, digits: RealSet) -> None:
        plan = MTT(image_lr=3.0, lr_lr=1e-4, lr_kind="raw", max_start=2).build(task_of(digits))
        assert plan.update["images"] == Watched(3.0, 0.5)
        assert plan.update["lr"] == KeepPositive(Sgd(1e-4, 0.5))

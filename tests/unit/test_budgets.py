"""Budgets pay for experts too: what is rehearsed, what a time is turned into, what is written down and read back."""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datastill import compare, distill, estimate, load_real
from datastill.cli import main
from datastill.core.context import Context
from datastill.core.errors import InputError, Interrupted
from datastill.core.plan import Callback, Task
from datastill.core.registry import NOMINAL_STEP_SECONDS
from datastill.core.runtime import Runtime
from datastill.data import RealSet
from datastill.distillation import budget as estimation
from datastill.distillation.budget import within
from datastill.distillation.job import Job, prepare_job
from datastill.distillation.preparation import prepare
from datastill.methods.ftd import FTD
from datastill.methods.mtt import MTT
from datastill.methods.sre2l import SRe2L
from datastill.methods.stages import StageMatching
from datastill.methods.tesla import TESLA
from datastill.models import resolve_network
from datastill.surrogates import stage_cost
from datastill.surrogates.expert_cost import Pace, affordable, expert_seconds, step_seconds
from datastill.surrogates.experts import ExpertsUnit, open_buffer, train_experts
from datastill.surrogates.experts.policies import Epoch, TrainingSet
from datastill.surrogates.experts.policies.sgd import Sgd

NETWORK = "convnet:width=8,depth=1"


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def task_of(real: RealSet, network: str = NETWORK, ipc: int = 1) -> Task:
    factory = resolve_network(network, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    return Task(real, ipc, factory)


def job_of(real: RealSet, network: str = NETWORK, **hyper: Any) -> Job:
    return prepare_job("mtt", real, ipc=1, network=network, runtime=Runtime(), **hyper)


@dataclass(frozen=True)
class Slow:
    """A policy whose update takes a known time and moves every weight."""

    name: ClassVar[str] = "slow"

    batch: int = 100
    part: float = 0.5
    seconds: float = 0.02

    def epoch(self, network: torch.nn.Module, data: TrainingSet, epoch: Epoch) -> float:
        for index in torch.arange(round(self.part * len(data.y))).split(self.batch):
            time.sleep(self.seconds)
            with torch.no_grad():
                for p in network.parameters():
                    p.add_(0.01)
            epoch.on_batch(index, torch.zeros(len(index), 10))
        return 0.0


class TestRehearsal:
    def test_the_seconds_are_those_of_all_updates(self, digits: RealSet) -> None:
        unit = ExpertsUnit(experts=7, epochs=9, stop_after=4, policy=Slow())
        with unit.rehearse(task_of(digits)) as (path, seconds):
            assert len(open_buffer(path)) == 1
        updates = 7 * 4 * 5  # half of 899 images, 100 at a time
        assert 0.02 * updates <= seconds < 0.02 * updates * 1.5
        assert not path.exists(), "nothing is left"
        with replace(unit, experts=14).rehearse(task_of(digits)) as (_, twice):
            assert twice == pytest.approx(2 * seconds, rel=0.4)
        with replace(unit, experts=14, workers=2).rehearse(task_of(digits)) as (_, two):
            assert two == pytest.approx(seconds, rel=0.4)

    def test_its_buffer_is_one_to_time_steps_on(self, digits: RealSet) -> None:
        """Of the task's network and data, and its expert moves; the global generators are checked around every test."""
        task, method = task_of(digits), MTT(span=3, max_start=9, expert_epochs=20)
        with method.rehearse(task) as (stand_in, seconds):
            assert seconds > 0
            assert (stand_in.max_start, stand_in.student_steps) == (1, method.student_steps)
            assert stand_in.nominal_preparation(task) == 0
            buffer = open_buffer(stand_in.experts)
            buffer.check(task.network, digits)
            rows = buffer.rows(0, range(4))
            assert all(float((a - b).norm()) > 0 for a, b in zip(rows[1:], rows[:-1], strict=True))

    def test_a_network_with_statistics_and_a_policy_of_one_update(self, digits: RealSet) -> None:
        task = task_of(digits, NETWORK + ",norm=batch")
        with ExpertsUnit(experts=1, epochs=2, policy="sgd:batch=5000").rehearse(task) as (_, seconds):
            assert seconds > 0

    def test_experts_that_are_given_cost_nothing(self, digits: RealSet, tmp_path: Path) -> None:
        task = task_of(digits)
        train_experts(digits, task.network, tmp_path / "b", experts=1, epochs=3, policy="sgd:batch=100")
        method = MTT(experts=str(tmp_path / "b"), max_start=1)
        with method.rehearse(task) as (same, seconds):
            assert (same, seconds) == (method, 0.0)

    def test_estimates_are_measured(self, digits: RealSet, monkeypatch: pytest.MonkeyPatch) -> None:
        slow = Slow(part=1.0)
        monkeypatch.setattr(Sgd, "epoch", lambda policy, *rest: slow.epoch(*rest))
        few: dict[str, Any] = {"expert_count": 2, "expert_epochs": 3, "max_start": 2, "expert_batch": 100, "steps": 5}
        few |= {"student_steps": 3, "network": NETWORK}
        told = estimate("mtt", digits, ipc=1, **few)
        cost = distill("mtt", digits, ipc=1, **few).manifest["cost"]
        assert 1.08 <= told.prepare_seconds < 2.5, "2 experts of 3 epochs of 9 updates"
        assert 1.08 <= cost["prepare_seconds"] < 2.5
        assert 0 < told.seconds_per_step < 1
        assert told.paper_seconds >= told.prepare_seconds


def total(method: MTT, task: Task, pace: Pace) -> float:
    return pace.experts * expert_seconds(method, task) + method.steps * pace.step * step_seconds(method, task)


class TestScaling:
    @settings(max_examples=60, deadline=None)
    @given(
        seconds=st.floats(20.0, 5000.0),
        experts=st.floats(0.05, 4.0),
        step=st.floats(0.05, 4.0),
        method=st.sampled_from([MTT(), TESLA(), MTT(student_steps=50, max_start=2, image_lr=100.0, lr_kind="raw")]),
        network=st.sampled_from([NETWORK, "convnet:width=64,depth=2"]),
    )
    def test_what_fits(self, seconds: float, experts: float, step: float, method: MTT, network: str) -> None:
        task, pace = task_of(load_real("digits"), network), Pace(experts, step)
        found = affordable(method, task, seconds, pace)
        if total(method, task, pace) <= seconds:
            assert found == method
            return
        fewest = found.expert_count == 2 and round(found.expert_part * 899) == 128
        assert fewest or pace.experts * expert_seconds(found, task) <= 0.5001 * seconds
        few = found.steps == 20  # the fewest
        assert few or total(found, task, pace) <= 1.01 * seconds
        assert found.steps == method.steps or few or total(found, task, pace) >= 0.9 * seconds
        assert (found.image_lr, found.lr_lr, found.lr_kind) == (0.0, 0.0, "log")
        assert found.expert_count >= 2

    def test_short_times_make_epochs_shorter_than_a_thousand_images(self) -> None:
        x = torch.rand(20_000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        task = task_of(load_real((x, torch.arange(20_000) % 10)), "convnet:width=64,depth=2")
        found = [affordable(MTT(), task, seconds) for seconds in (2.0, 5.0, 120.0, 1200.0)]
        sizes = [f.expert_part * f.expert_count for f in found]
        assert sizes == sorted(sizes)
        assert found[0].expert_count == 2
        assert round(found[0].expert_part * 20_000) >= 128
        assert found[0].expert_part < 1024 / 20_000 <= found[2].expert_part
        assert expert_seconds(found[1], task) <= 2.6

    def test_a_pace_measured_twice_mostly_gives_the_same_experts(self) -> None:
        assert Pace().of_experts == 1.0
        assert Pace(0.6).of_experts == Pace(0.7).of_experts == pytest.approx(2**-0.5)
        assert all(1.0 <= Pace(p).of_experts / p < 1.415 for p in (0.1, 0.33, 0.9, 1.1, 3.0))

    def test_a_short_run_of_ftd_averages_its_last_steps_without_the_start(self, digits: RealSet) -> None:
        task, published = task_of(digits, "convnet:width=64,depth=2"), FTD(ema=0.9999, ema_start=True)
        for found in (published.scaled(task, 60.0), published.at_pace(task, 60.0, 1.0, 2.0)):
            assert found.steps < published.steps
            assert not found.ema_start
            assert found.ema**found.steps < 0.01 < found.ema ** (found.steps // 5)
        assert published.scaled(task, 1e9) == published

    def test_more_time_than_the_defaults_take_buys_longer_experts_of_stages(self, digits: RealSet) -> None:
        x = torch.rand(40_000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        task, ours = task_of(load_real((x, torch.arange(40_000) % 10)), "convnet:width=64,depth=2"), StageMatching()
        one = ours.nominal_preparation(task)
        steps = ours.steps * stage_cost.step_seconds(ours, task)
        more = functools.partial(ours.with_more_preparation, task)
        found = [more(times * one, 1.0, 1e-3, ()) for times in (1.9, 5.0, 7.0, 14.0, 28.0)]
        bought = [(f.expert_count, f.expert_updates, f.expert_epochs) for f in found]
        assert bought == [(2, 1200, 12), (2, 2400, 24), (4, 2400, 24), (4, 4800, 48), (4, 4800, 48)]
        assert all(f.nominal_preparation(task) <= 0.6 * t * one for f, t in zip(found[1:], (5.0, 7.0, 14.0, 28.0)))
        assert more(7.0 * one, 1.0, 6.0 * one / steps, ()) == ours, "the steps of the defaults are paid for first"
        assert more(28.0 * one, 1.0, 1e-3, {"expert_updates"}) == ours, "what is given stays"
        many = replace(ours, expert_count=12).with_more_preparation(task, 30.0 * one, 1.0, 1e-3, ())
        assert (many.expert_count, many.expert_updates) == (12, 2400)
        few = ours.with_more_preparation(task_of(digits, "convnet:width=64,depth=2"), 1e6, 1.0, 1.0, ())
        assert (few.expert_count, few.expert_updates) == (4, 1200), "no more than ten passes over few images"
        short = replace(ours, expert_updates=50).scaled(task, 0.01 * one)
        assert short.expert_updates == 50, "little time does not lengthen what was asked for"

    def test_given_steps_leave_the_experts_to_the_clock(self, digits: RealSet) -> None:
        task, method = task_of(digits, "convnet:width=64,depth=2"), MTT(steps=7, image_lr=100.0, lr_kind="raw")
        found = method.with_cheap_preparation(task, 60.0, {"steps"})
        assert expert_seconds(method, task) > 60 >= expert_seconds(found, task)
        assert (found.steps, found.student_steps) == (7, method.student_steps)
        assert (found.image_lr, found.lr_kind) == (0.0, "log")
        assert found.max_start == 4
        wide = method.with_cheap_preparation(task, 60.0, {"steps", "max_start"})
        assert wide.max_start == 20
        assert expert_seconds(wide, task) <= 60
        for name in ("experts", "expert_count", "expert_epochs", "expert_part"):
            assert method.with_cheap_preparation(task, 60.0, {"steps", name}) is method
        assert method.with_cheap_preparation(task, 1e6, {"steps"}) is method


#: Seconds of an expert's update and of a step, as `measure` is made to find them.
UPDATE, STEP = 0.05, 0.2


def pretend(job: Job, seconds: float = 2.0) -> tuple[float, float]:
    """A machine on which only updates of experts and steps take time."""
    method = job.method
    assert isinstance(method, MTT)
    updates = -(-round(method.expert_part * len(job.task.real)) // method.expert_batch)
    return STEP, UPDATE * updates * method.expert_count * (method.max_start - 1 + method.span)


class TestBudget:
    @pytest.mark.parametrize("seconds", [20.0, 60.0, 300.0])
    def test_experts_and_steps_share_it(self, seconds: float, digits: RealSet, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(estimation, "measure", pretend)
        job = within(job_of(digits), seconds, None, False)
        step, preparing = pretend(job)
        assert preparing <= 0.55 * seconds
        assert 0.75 * seconds <= preparing + step * job.method.steps <= 1.05 * seconds  # type: ignore[attr-defined]
        assert f"a budget of {seconds:g} seconds became {job.method.steps:,} steps after about" in job.notes[-1]  # type: ignore[attr-defined]

    def test_given_experts_leave_all_of_it_to_the_steps(
        self, digits: RealSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train_experts(digits, task_of(digits).network, tmp_path / "b", experts=1, epochs=3, policy="sgd:lr=0.05")
        monkeypatch.setattr(estimation, "measure", lambda job, seconds=2.0: (STEP, 0.0))
        job = within(job_of(digits, experts=str(tmp_path / "b")), 60.0, None, False)
        assert job.method.steps == pytest.approx(60.0 / STEP, rel=0.02)  # type: ignore[attr-defined]
        assert "preparation" not in job.notes[-1]

    def test_what_was_prepared_before_costs_a_budget_nothing_and_is_told(self, digits: RealSet, tmp_path: Path) -> None:
        def job(seed: int) -> Job:
            few = {"expert_updates": 20, "statistics_images": 8}
            return prepare_job("stages", digits, ipc=1, network=NETWORK, seed=seed, folder=tmp_path, **few)

        first = within(job(0), 4.0, None, False)
        prepare(first.plan(), first.task)
        again = within(job(1), 4.0, None, False)
        assert first.notes[-1].endswith("of preparation")
        assert again.notes[-1].endswith("steps, with what was prepared before")

    def test_seconds_of_experts_are_those_of_all_processes_that_trained_them(
        self, digits: RealSet, tmp_path: Path
    ) -> None:
        task = replace(task_of(digits), folder=tmp_path)
        unit = ExpertsUnit(experts=1, epochs=2, policy=Slow(), seed=0, span=1)
        trained = 2 * 5 * Slow.seconds  # half of 899 images by the hundred
        assert unit.spent(task, unit.run(task)) >= trained
        plan = replace(prepare_job("mtt", digits, ipc=1, network=NETWORK, steps=1).plan(), prepare=[unit])
        _, seconds = prepare(plan, task)  # finds them trained, as a process that goes on finds some
        assert seconds >= trained

    def test_what_the_caller_gave_stays(self, digits: RealSet, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(estimation, "measure", pretend)
        asked = {"student_steps": 40, "expert_part": 0.5, "image_lr": 3.0}
        method = within(job_of(digits, **asked), 20.0, None, False).method
        assert {name: getattr(method, name) for name in asked} == asked
        assert method.expert_count < 100  # type: ignore[attr-defined]

    def test_it_scales_what_auto_has_not_scaled(self, digits: RealSet, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(estimation, "measure", lambda job, seconds=2.0: (1e-4, 1.0))
        job = job_of(digits)
        assert job.method.expert_count <= 10  # type: ignore[attr-defined]
        assert within(job, 1e6, None, False).method.expert_count == 100  # type: ignore[attr-defined]

    def test_steps_beside_it_are_refused_everywhere(self, digits: RealSet) -> None:
        with pytest.raises(InputError, match="either budget"):
            distill("dm", digits, ipc=1, network=NETWORK, steps=7, budget=5.0)
        with pytest.raises(InputError, match="either budget"):
            compare(["dm"], digits, ipc=1, seeds=1, network=NETWORK, budget=5.0, settings={"dm": {"steps": 7}})
        assert main(["estimate", "dm", "--data", "digits", "--ipc", "1", "--steps", "7", "--budget", "5s"]) == 2

    def test_given_steps_get_experts_that_auto_can_pay_for(self, digits: RealSet) -> None:
        method = job_of(digits, network="convnet:width=64,depth=2", steps=7).method
        assert method.steps == 7
        assert method.expert_count <= 10  # type: ignore[attr-defined]

    def test_a_method_without_preparation_is_measured_as_before(
        self, digits: RealSet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(estimation, "measure", lambda job, seconds=2.0: (0.5, 0.0))
        job = prepare_job("dm", digits, ipc=1, network=NETWORK, real_batch=8)
        assert within(job, 10.0, None, False).method.steps == 20  # type: ignore[attr-defined]

    def test_a_run_goes_on_with_the_numbers_that_it_began_with(
        self, digits: RealSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Stop(Callback):
            def after_step(self, context: Context) -> None:
                if context.step == 3:
                    os.kill(os.getpid(), signal.SIGINT)

        run: Callable[..., Any] = lambda **more: distill(  # noqa: E731
            "mtt", digits, ipc=1, network=NETWORK, budget=8.0, out=tmp_path / "run", **more
        )
        with monkeypatch.context() as patch:
            patch.setattr(estimation, "measure", pretend)
            with pytest.raises(Interrupted):
                run(callbacks=[Stop()])
        hyper = json.loads((tmp_path / "run" / "config.json").read_text())["hyper"]
        monkeypatch.setattr(estimation, "measure", None)  # measured once
        made = run(resume=True)
        assert made.manifest["hyper"] == hyper
        assert f"a budget became {hyper['steps']} steps when this run began" in made.manifest["notes"]
        (scaled,) = (note for note in made.manifest["notes"] if note.startswith("changed from"))
        assert f"→ {hyper['expert_count']}," in scaled
        with pytest.raises(InputError, match="to resume, and --budget if it began with one, or another --out"):
            distill("mtt", digits, ipc=1, network=NETWORK, out=tmp_path / "run", resume=True)
        assert made.manifest["cost"]["steps"] == hyper["steps"]
        (experts,) = (p for p in (tmp_path / "run" / "prepare").iterdir() if p.is_dir())
        assert len(open_buffer(experts)) == hyper["expert_count"] < 100

    @pytest.mark.slow
    def test_a_run_takes_about_its_budget(self, digits: RealSet) -> None:
        cost = distill("mtt", digits, ipc=1, network=NETWORK, budget=10.0).manifest["cost"]
        assert 0 < cost["prepare_seconds"] < 10
        assert 3 < cost["seconds"] + cost["prepare_seconds"] < 20, "generous: other work may run beside a test"

    def test_experts_count_at_the_nominal_speed_as_updates_do(self, digits: RealSet) -> None:
        task = task_of(digits)
        method = MTT(expert_count=3, max_start=4, expert_batch=100, expert_part=0.5)
        updates = 3 * 5 * 5
        work = 3 * 15 * 0.5 * 899 * task.network.macs / 50e9
        assert expert_seconds(method, task) == pytest.approx(updates * NOMINAL_STEP_SECONDS + work)


@pytest.mark.parametrize(("seconds", "per_step"), [((1.5, 0.1, 0.9), 0.1), ((1.5, 1.2, 0.9), 0.3), ((3.0, 7.0), 2.0)])
def test_a_step_is_never_taken_for_nothing(
    seconds: tuple[float, ...], per_step: float, digits: RealSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step of a process is dear; where even the second is dearer than all later ones, these are averaged."""
    told = iter(seconds)
    monkeypatch.setattr(estimation, "run_block", lambda *_, **__: SimpleNamespace(seconds=next(told)))
    job = prepare_job("dm", digits, ipc=1, network=NETWORK, steps=5)
    assert estimation.measure(job)[0] == pytest.approx(per_step)


class TestSqueezes:
    """Decoupled methods: a teacher before the steps, and several blocks."""

    NET = NETWORK + ",norm=batch"

    def test_estimates_are_measured_on_a_network_that_is_not_tried(self, digits: RealSet) -> None:
        told = estimate("sre2l", digits, ipc=3, network=self.NET, steps=50, squeeze_passes=4)
        cost = distill("sre2l", digits, ipc=3, network=self.NET, steps=50, squeeze_passes=4).manifest["cost"]
        assert told.steps == 50
        assert told.prepare_seconds == pytest.approx(cost["prepare_seconds"], rel=3)
        assert told.seconds_per_step * 50 == pytest.approx(cost["seconds"], rel=3)
        assert told.paper_steps == SRe2L().steps != 50, "the paper's, whatever is asked of this run"
        assert told.paper_seconds > told.paper_steps * told.seconds_per_step > told.seconds_per_step * told.steps

    def test_a_first_step_that_holds_more_is_left_out(self, digits: RealSet) -> None:
        told = [
            estimate("dwa", digits, ipc=1, network=self.NET, steps=50, ascent_steps=k, squeeze_passes=1)
            for k in (0, 200)
        ]
        assert told[1].seconds_per_step < 20 * told[0].seconds_per_step

    def test_a_teacher_that_is_given_costs_nothing(self, digits: RealSet) -> None:
        from decoupled_data import teacher

        told = estimate("sre2l", digits, ipc=1, teacher=teacher(), steps=5)
        assert told.prepare_seconds == 0
        assert told.seconds_per_step > 0

    def test_a_budget_pays_for_the_squeeze_first(self, digits: RealSet) -> None:
        job = prepare_job("sre2l", digits, ipc=1, network=self.NET, runtime=Runtime(), squeeze_passes=2000)
        within_it = within(prepare_job("sre2l", digits, ipc=1, network=self.NET, runtime=Runtime()), 20.0, None, False)
        assert job.method.squeeze_passes == 2000, "whoever says it has it"
        assert 1 <= within_it.method.squeeze_passes <= 10
        assert within_it.method.steps >= 1
        assert any("preparation" in note for note in within_it.notes)

    def test_a_selection_has_a_budget_too(self, digits: RealSet) -> None:
        job = prepare_job("rded", digits, ipc=1, network=self.NET, runtime=Runtime())
        few = within(job, 0.01, None, False)
        assert few.method.squeeze_passes == 1
        assert any(note.startswith("a budget of 0.01 seconds became") for note in few.notes)

    def test_auto_shortens_the_squeeze_of_a_selection(self, digits: RealSet) -> None:
        large = load_real("digits", size=32)
        job = prepare_job("rded", large, ipc=1, network="resnet18:norm=batch", runtime=Runtime())
        assert job.method.squeeze_passes < 10
        assert any("squeeze_passes" in note for note in job.notes)

    def test_auto_looks_for_a_weight_of_the_statistics(self, digits: RealSet) -> None:
        named = replace(digits, name="cifar10")
        job = prepare_job("sre2l", named, ipc=10, network=self.NET, runtime=Runtime())
        assert job.published is not None
        assert job.method.r_bn == "auto"
        assert prepare_job("sre2l", named, ipc=10, network=self.NET, recipe="paper").method.r_bn == 0.01
        assert prepare_job("sre2l", named, ipc=10, network=self.NET, r_bn=0.3).method.r_bn == 0.3


def test_what_torch_loads_is_no_part_of_the_first_step(digits: RealSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took longer than the steps that were timed after it, and a step seemed to cost nothing."""
    order: list[str] = []
    run = estimation.run_block

    def told(*args: Any, **options: Any) -> Any:
        order.append("run")
        return run(*args, **options)

    monkeypatch.setattr(estimation, "run_block", told)
    monkeypatch.setattr(estimation, "load_optimizers", lambda: order.append("load"))
    estimate("dm", digits, ipc=1, network=NETWORK, steps=3, real_batch=4)
    assert order[0] == "load"
    assert set(order[1:]) == {"run"}


TIMES = [("90", 90), ("4s", 4), ("1.5m", 90), ("2h", 7200), (3, 3), (None, None)]


@pytest.mark.parametrize(("budget", "seconds"), TIMES)
def test_a_budget_is_a_number_of_seconds_or_a_time_in_words(budget: Any, seconds: Any) -> None:
    assert estimation.seconds_of(budget) == seconds


def test_python_takes_a_time_in_words_as_the_command_does(digits: RealSet) -> None:
    made = distill("dm", digits, ipc=1, network=NETWORK, real_batch=4, budget="0.2s")
    assert any(note.startswith("a budget of 0.2 seconds became") for note in made.record.notes)
    for what in ({"budget": "soon"}, {"budget": "inf"}):
        with pytest.raises(InputError, match="a time such as 60s, 5m or 2h"):
            distill("dm", digits, ipc=1, **what)
    with pytest.raises(InputError, match="above 0 seconds"):
        distill("dm", digits, ipc=1, network=NETWORK, budget="-1s")

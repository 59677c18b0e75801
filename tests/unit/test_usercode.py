"""Code of the user's that fails: whose it was, when, how to go on; and what is ours stays a traceback of ours."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import nn

from datastill import compare, distill, evaluate, load_real
from datastill.cli import main
from datastill.core.errors import UserCodeFailed
from datastill.core.imports import import_file
from datastill.core.plan import Callback, Task
from datastill.core.runtime import Runtime
from datastill.core.usercode import holds_theirs
from datastill.decoders.pixels import Pixels
from datastill.evaluation.ceiling import whole_set
from datastill.models import resolve_network
from datastill.store.checkpoint import read_snapshot
from datastill.store.files import read_sealed, write_sealed
from datastill.surrogates.experts import ExpertsUnit

NETWORK = """
import torch
from torch import nn

CALLS, AFTER, FAULT = 0, 0, ""

class Net(nn.Module):
    def __init__(self, channels, classes, size):
        super().__init__()
        self.body = nn.Conv2d(channels, 4, 3)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        global CALLS
        CALLS += 1
        if FAULT == "detached" and CALLS > AFTER:
            with torch.no_grad():
                return self.head(self.body(x).relu().mean((2, 3)))
        out = self.head(self.body(x).relu().mean((2, 3)))
        if CALLS > AFTER and FAULT == "raises":
            raise ValueError("no more calls")
        if CALLS > AFTER and FAULT == "shape":
            return out[:, :3]
        if CALLS > AFTER and FAULT == "torch":
            return self.head(out)
        return out
"""

METHOD = """
from dataclasses import dataclass, replace
from datastill.core.registry import method
from datastill.methods.dm import DM

class Faulty:
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, context):
        loss = self.inner(context)
        return loss if context.step < 3 else {returned}

@method("{name}", paper="none", family="mine")
@dataclass(frozen=True, kw_only=True)
class Mine(DM):
    def build(self, task):
        plan = super().build(task)
        return {built}
"""


NAMES = itertools.count()


def network_file(folder: Path) -> str:
    path = folder / "net.py"
    path.write_text(NETWORK)
    return f"{path}:Net"


def method_file(folder: Path, returned: str = "loss", built: str | None = None) -> str:
    name = f"mine_{next(NAMES)}"
    path = folder / f"{name}.py"
    built = built or "replace(plan, objective=Faulty(plan.objective))"
    path.write_text(METHOD.format(name=name, returned=returned, built=built))
    return str(path)


def run(out: Path, method: str, *more: str) -> int:
    words = ["--data", "digits", "--ipc", "1", "--steps", "8", "--out", str(out), "--real-batch", "4", "--seed", "3"]
    return main(["distill", method, *words, *more])


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, list[str], int, bytes]]:
    """Per method: the module of a network, the options of a run with it, its calls, and the images."""

    @cache
    def made(method: str) -> tuple[Any, list[str], int, bytes]:
        folder = tmp_path_factory.mktemp(method)
        network = network_file(folder)
        more = ["--network", network, *(["--outer", "4", "--inner", "2"] if method == "dc" else [])]
        assert run(folder / "run", method, *more) == 0
        module: Any = import_file(Path(network.rpartition(":")[0]))
        return module, more, module.CALLS, (folder / "run" / "synthetic.safetensors").read_bytes()

    return made


class TestDistill:
    @pytest.mark.parametrize(
        ("method", "fault", "says"),
        [
            ("dm", "raises", r"Net.forward \(net.py, line \d+\): ValueError: no more calls\."),
            ("dc", "raises", r"Net.forward \(net.py, line \d+\): ValueError: no more calls\."),
            ("dc", "torch", r"Net.forward \(net.py, line \d+\): RuntimeError: mat1"),
            ("dc", "shape", r"Net \(net.py\) must return logits of shape \(\d+, 10\) for \d+ images of 10 classes"),
            ("dm", "detached", r"The network Net \(net.py\) gives logits that no gradient goes through"),
            ("dc", "detached", r"The network Net \(net.py\) gives logits that no gradient goes through"),
        ],
    )
    def test_a_network_fails_late_and_the_run_goes_on(self, tmp_path, capsys, healthy, method, fault, says) -> None:
        """The images at the end are those of a run in which it never failed."""
        module, more, calls, images = healthy(method)
        out = tmp_path / "run"
        module.FAULT, module.CALLS, module.AFTER = fault, 0, int(0.7 * calls)
        assert run(out, method, *more) == 2
        told = capsys.readouterr().err
        assert re.search(says, told)
        assert "Traceback" not in told
        assert "nn/modules/module.py" not in told
        assert f"{out}; add --resume to go on" in told
        step = int(re.search(r"This was at step (\d+) of 8", told)[1])
        assert step > 1
        assert read_snapshot(out / "checkpoints" / "block-00000.safetensors").meta["step"] == step - 1
        module.FAULT = ""
        assert run(out, method, *more, "--resume") == 0
        assert (out / "synthetic.safetensors").read_bytes() == images

    @pytest.mark.parametrize(
        ("returned", "says"),
        [
            ("None", "The objective Faulty ({file}) must return a tensor (a loss, or one for each class) or Grads, and "
             "returned None. This was at step 4 of 8."),
            ("context.synthetic.x", "a loss, or one for each class, and returned numbers of shape (10, 1, 8, 8)."),
            ("3.0", "and returned 3.0. This was at step 4 of 8."),
            ("context.synthetic.x.sum().detach()", "The objective Faulty ({file}) returned a loss that no gradient"),
            ("1 / 0", "Faulty.__call__ ({file}, line 12): ZeroDivisionError: division by zero. This was at step 4"),
        ],
    )  # fmt: skip
    def test_an_objective_that_gives_no_loss(self, tmp_path, capsys, returned, says) -> None:
        path = method_file(tmp_path, returned)
        assert run(tmp_path / "run", path) == 2
        told = capsys.readouterr().err
        assert says.format(file=Path(path).name) in told
        assert "add --resume to go on." in told
        assert read_snapshot(tmp_path / "run" / "checkpoints" / "block-00000.safetensors").meta["step"] == 3

    def test_a_build_that_returns_nothing_leaves_nothing(self, tmp_path, capsys) -> None:
        assert run(tmp_path / "run", method_file(tmp_path, built="None")) == 2
        assert "build of Mine" in (told := capsys.readouterr().err)
        assert "must return a Plan, and returned None." in told
        assert run(tmp_path / "run", method_file(tmp_path, built="plan.nothing")) == 2
        assert "Mine.build" in (told := capsys.readouterr().err)
        assert "This was before the run began." in told
        assert not (tmp_path / "run").exists()

    def test_a_network_without_gradients_is_refused_at_once(self, tmp_path, capsys) -> None:
        network = network_file(tmp_path)
        import_file(Path(network.rpartition(":")[0])).FAULT = "detached"
        assert run(tmp_path / "run", "dc", "--network", network) == 2
        assert "take out torch.no_grad and detach. This was in a first look at the network." in capsys.readouterr().err
        assert not (tmp_path / "run").exists()

    def test_a_callback_ends_the_run_by_what_it_raises(self, tmp_path) -> None:
        class Curious(Callback):
            def after_step(self, context) -> None:
                if context.step == 2:
                    raise LookupError

        with pytest.raises(LookupError):
            distill("dm", "digits", ipc=1, steps=3, callbacks=[Curious()], out=tmp_path / "run")
        assert read_snapshot(tmp_path / "run" / "checkpoints" / "block-00000.safetensors").meta["step"] == 1


class TestEvaluate:
    def test_whose_code_and_how_far(self, tmp_path) -> None:
        distilled = distill("random", "digits", ipc=1)

        class Tired(nn.Module):
            calls = 0

            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Linear(64, 10)

            def forward(self, x):
                Tired.calls += 1
                if Tired.calls > 60:
                    raise RuntimeError("no more calls")
                return self.head(x.flatten(1))

        with pytest.raises(
            UserCodeFailed, match=r"Tired.forward .*no more calls.* This was in the training on random, "
        ):
            evaluate(distilled, "digits", networks=1, network=Tired, random=False)


class TestOurs:
    @pytest.mark.parametrize("broken", ["decode", "project"])
    def test_a_bug_of_ours_stays_a_traceback(self, tmp_path, monkeypatch, broken) -> None:
        """Also where the user's network is at work, and an exception of a library that we called."""
        network = network_file(tmp_path)

        def bug(*_: object, **__: object) -> None:
            torch.zeros(2) @ torch.zeros(3)

        bug = FunctionType(bug.__code__, {"__name__": "datastill.decoders.pixels", "torch": torch})
        monkeypatch.setattr(f"datastill.decoders.pixels.Pixels.{broken}", bug)
        with pytest.raises(RuntimeError, match=r"size of tensor|inconsistent"):
            distill("dm", "digits", ipc=1, steps=2, network=network)

    def test_whose(self) -> None:
        assert not holds_theirs([nn.ReLU(), Pixels, Path(), 3, "x", None, torch.zeros(1), partial(len, ())])
        assert holds_theirs({"x": [partial(print, self)]})


RUN = {"ipc": 1, "steps": 4, "real_batch": 8}


def edited(path: str) -> None:
    """The file with one more line."""
    Path(path).write_text(Path(path).read_text() + "\n# mended\n")


class TestChangedFiles:
    """A run or comparison that goes on with a user's changed file goes on, and says so."""

    @pytest.mark.parametrize("whose", ["method", "network"])
    def test_resume(self, tmp_path, whose) -> None:
        method, network = method_file(tmp_path), network_file(tmp_path)
        changed = method if whose == "method" else network.partition(":")[0]

        def run(**more: Any) -> tuple[str, ...]:
            return distill(method, "digits", **RUN, network=network, out=tmp_path / "run", **more).record.notes

        assert not any("was changed" in note for note in run())
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert not any("was changed" in note for note in run(resume=True))
        edited(changed)
        with pytest.warns(UserWarning, match=f"{Path(changed).name} has changed since the run began"):
            notes = run(resume=True)
        assert [note for note in notes if "was changed" in note] == [
            f"{Path(changed).name} was changed while the run was under way: a part of it is of the earlier code"
        ]
        assert any("was changed" in note for note in run(resume=True)), "and is told after one more start"

    def test_runs_that_did_not_keep_their_code_go_on(self, tmp_path) -> None:
        method = method_file(tmp_path)
        distill(method, "digits", **RUN, network="mlp", out=tmp_path / "run")
        config = read_sealed(tmp_path / "run" / "config.json")
        assert set(config["code"]) == {Path(method).name}
        write_sealed(tmp_path / "run" / "config.json", {k: v for k, v in config.items() if k not in ("code", "sha256")})
        edited(method)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            distill(method, "digits", **RUN, network="mlp", out=tmp_path / "run", resume=True)

    def test_ours_are_not_looked_at(self, tmp_path) -> None:
        distill("dm", "digits", **RUN, network="mlp", out=tmp_path / "run")
        assert "code" not in read_sealed(tmp_path / "run" / "config.json")

    def test_compare(self, tmp_path) -> None:
        method = method_file(tmp_path)
        words = ["compare", "--methods", method, "--seeds", "1", "--networks", "1", "--network", "mlp", "--json"]
        words += ["--set", f"{Path(method).stem}.steps=2", "--out", str(tmp_path / "out")]
        assert main(words) == 0
        edited(method)
        with pytest.warns(UserWarning, match="has changed since the comparison began"):
            compare(
                [method],
                "digits",
                out=tmp_path / "out",
                ipc=1,
                seeds=1,
                networks=1,
                network="mlp",
                settings={Path(method).stem: {"steps": 2}},
            )


def test_networks_of_the_same_shapes_but_other_code_share_nothing_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole set's accuracy was once that of another project's `net.py:Net`, and so were shared experts."""
    text = (
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self, channels, classes):\n"
        "        super().__init__()\n        self.body = nn.Conv2d(channels, 4, 3)\n"
        "        self.head = nn.Linear(144, classes)\n\n    def forward(self, x):\n"
        "        return self.head({} * self.body(x).relu().flatten(1))\n"
    )
    real = load_real("digits")
    found, keys = [], []
    for name, factor in (("good", 1), ("broken", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.py").write_text(text.format(factor), encoding="utf-8")
        monkeypatch.chdir(tmp_path / name)
        network = resolve_network("net.py:Net", **real.network_shape)
        found.append(whole_set(real, network, 0, Runtime()).mean)
        unit = ExpertsUnit(experts=1, epochs=1, network=network)
        keys.append(unit.key(Task(real, 1, network)))
    assert found[0] > 0.5 > 0.2 > found[1]
    assert keys[0] != keys[1]

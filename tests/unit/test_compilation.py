"""Compiled code: the numbers of eager code, decided from sizes, given up quietly where it cannot be had."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from datastill import distill, evaluate, load_real
from datastill.core import compilation
from datastill.core.compilation import call, decide, even_chunk, padded
from datastill.core.errors import InputError
from datastill.core.precision import casting
from datastill.core.registry import NOMINAL_MACS_PER_SECOND
from datastill.core.rng import Rng, isolated
from datastill.core.runtime import Runtime
from datastill.distillation.budget import within
from datastill.distillation.job import prepare_job
from datastill.engines.weight_gradients import weight_gradients
from datastill.evaluation.protocols import Protocol
from datastill.models import Network, NetworkFactory, resolve_network
from datastill.training.hard import Schedule, predict, train

CPU = torch.device("cpu")
LONG = 600 * NOMINAL_MACS_PER_SECOND["cpu"]
NET = "convnet:width=8,depth=2"

needs_compiler = pytest.mark.skipif(not compilation.available(), reason="no C++ compiler")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Failures of one test are not remembered in the next; what was compiled is kept, since it takes seconds."""
    monkeypatch.setattr(compilation._Fallbacks, "told", False)
    yield
    for key in [key for key, engine in compilation._ENGINES.items() if engine is None]:
        del compilation._ENGINES[key]


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "available", lambda: False)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling raises, whatever was compiled before."""
    monkeypatch.setattr(compilation, "_ENGINES", {})

    def compile(*_: object, **__: object) -> None:
        raise RuntimeError("the compiler is out\nof order")

    monkeypatch.setattr(torch, "compile", compile)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes that `torch.compile` was asked for, without compiling anything."""
    shapes: list[tuple[int, ...]] = []

    def compile(function, **_: object):
        def run(network: nn.Module, x: Tensor, *others: Tensor):
            shapes.append(tuple(x.shape))
            return function(network, x, *others)

        return run

    monkeypatch.setattr(compilation, "_ENGINES", {})
    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(compilation, "available", lambda: True)
    return shapes


def factory(spec: str = NET) -> NetworkFactory:
    return resolve_network(spec, channels=3, classes=4, size=(8, 8))


def images(n: int = 20, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, 3, 8, 8, dtype=dtype, generator=generator), torch.randint(4, (n,), generator=generator)


def embed(network: Network, x: Tensor) -> Tensor:
    return network.embed(x)


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


class TestDecision:
    @pytest.mark.parametrize(
        ("mode", "macs", "device", "compiled"),
        [
            ("off", 10 * LONG, "cpu", False),
            ("on", 0.0, "cpu", True),
            ("on", 0.0, "cuda", True),
            ("auto", LONG, "cpu", True),
            ("auto", 0.99 * LONG, "cpu", False),
            ("auto", 10 * LONG, "cuda", False),
            ("auto", 10 * LONG, "mps", False),
        ],
    )
    def test_table(self, monkeypatch: pytest.MonkeyPatch, mode: str, macs: float, device: str, compiled: bool) -> None:
        monkeypatch.setattr(compilation, "available", lambda: True)
        assert decide(mode, macs, torch.device(device)) is compiled

    @pytest.mark.usefixtures("no_compiler")
    def test_without_a_compiler(self) -> None:
        assert decide("auto", 10 * LONG, CPU) is False
        assert decide("off", 10 * LONG, CPU) is False
        with pytest.raises(InputError, match=r"need a C\+\+ compiler") as error:
            decide("on", 0.0, CPU)
        assert str(error.value).count(". ") == 0

    def test_an_unknown_mode(self) -> None:
        with pytest.raises(InputError, match=r"no compile mode 'of'\. Did you mean 'off'"):
            decide("of", 0.0, CPU)

    def test_a_compiler_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        compilation.available.cache_clear()
        assert not compilation.available()
        compilation.available.cache_clear()

    def test_long_runs_of_auto_are_compiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compilation, "available", lambda: True)
        settings = {"ipc": 1, "network": "convnet", "recipe": "paper"}
        real = load_real("digits")
        short, long = (prepare_job("dm", real, steps=steps, **settings) for steps in (10, 1_000_000))
        assert (short.task.compile, long.task.compile) == (False, True)
        assert not prepare_job("dm", real, steps=1_000_000, runtime=Runtime(compile="off"), **settings).task.compile
        batch_norm = {**settings, "network": "convnet:norm=batch"}
        assert not prepare_job("dm", real, steps=1_000_000, runtime=Runtime(compile="on"), **batch_norm).task.compile

    @pytest.mark.usefixtures("counted")
    def test_long_budgets_of_auto_are_compiled(self) -> None:
        job = prepare_job("dm", load_real("digits"), ipc=1, network=NET, real_batch=2)
        assert not job.task.compile
        assert not within(job, 10.0, None, False).task.compile
        assert within(job, 601.0, None, False).task.compile


class TestShapes:
    @pytest.mark.parametrize(
        ("count", "most", "size"),
        [(10, 16, 10), (16, 16, 16), (100, 16, 15), (2560, 16, 16), (80, 200, 80), (100, 200, 104), (2560, 1000, 896)],
    )
    def test_chunks_are_even(self, count: int, most: int, size: int) -> None:
        assert even_chunk(count, most) == size

    def test_few_sizes_and_few_passes(self) -> None:
        for most in (1, 7, 16, 200, 4096):
            for count in range(1, 3000, 7):
                size = even_chunk(count, most)
                assert 1 <= size <= most
                assert -(-count // size) <= -(-count // most)
                assert size * -(-count // size) < 1.15 * count + size
            assert len({even_chunk(count, most) for count in range(1, 3000)}) <= 8 * 12

    def test_padding_repeats_the_first_image(self) -> None:
        x = torch.arange(6.0).reshape(3, 2)
        assert torch.equal(padded(x, 3), x)
        assert torch.equal(padded(x, 5), x[[0, 1, 2, 0, 0]])
        assert padded(x.T.contiguous().T, 3).is_contiguous()

    def test_one_shape_serves_a_training(self, counted: list[tuple[int, ...]]) -> None:
        """23 images in batches of 20 and 3, in passes of at most 8: sevens throughout."""
        x, y = images(23)
        train(factory()(0), x, y, Schedule(2, batch=20), Rng(0), compiled=True, chunk=8)
        assert set(counted) == {(7, 3, 8, 8)}
        assert len(counted) == 2 * (3 + 1)
        counted.clear()
        predict(factory()(0), x, chunk=16, compiled=True)
        assert counted == [(12, 3, 8, 8)] * 2


class TestNumbers:
    """In a fake compiler the numbers are those of chunks and padding; the real one is below."""

    @pytest.mark.usefixtures("counted")
    def test_weight_gradients(self) -> None:
        x, y = images(dtype=torch.float64)
        network = factory()(0).double()
        network.body.conv1.bias.requires_grad_(False)
        for targets in (y, torch.softmax(x.flatten(1)[:, :4], 1)):
            for weight in (None, torch.linspace(0, 2, 20, dtype=torch.float64)):
                whole = weight_gradients(network, x, targets, weight)
                for chunk in (None, 6, 20):
                    parts = weight_gradients(network, x, targets, weight, chunk=chunk, compiled=True)
                    assert torch.allclose(parts[0], whole[0], atol=1e-12)
                    assert parts[1].keys() == whole[1].keys()
                    for name, g in whole[1].items():
                        assert torch.allclose(parts[1][name], g, atol=1e-12)

    @pytest.mark.usefixtures("counted")
    def test_training(self) -> None:
        x, y = images(23, dtype=torch.float64)
        schedule = Schedule(3, batch=20, cutmix=0.5, drops=((1, 0.2),))
        made, logits, losses = [], [], []
        for compiled in (False, True):
            network, seen = factory()(0).double(), []
            losses.append(
                train(
                    network,
                    x,
                    y,
                    schedule,
                    Rng(0),
                    compiled=compiled,
                    chunk=8,
                    on_batch=lambda _, z, s=seen: s.append(z),
                )
            )
            made.append(weights(network))
            logits.append(torch.cat(seen))
        assert torch.allclose(made[0], made[1], atol=1e-12)
        assert torch.allclose(logits[0], logits[1], atol=1e-12)
        assert losses[0] == pytest.approx(losses[1], abs=1e-12)

    def test_coupled_samples_and_dropout_run_whole(self, counted: list[tuple[int, ...]]) -> None:
        x, y = images()
        for layer in (lambda: nn.BatchNorm2d(3), lambda: nn.Dropout(0.5)):
            results = []
            for compiled in (False, True):
                with isolated(0):
                    network = nn.Sequential(layer(), nn.Flatten(), nn.Linear(192, 4))
                losses = train(network, x, y, Schedule(2, batch=20), Rng(0), compiled=compiled, chunk=8)
                results.append((losses, weights(network)))
            assert results[0][0] == results[1][0]
            assert torch.equal(results[0][1], results[1][1])
        assert not counted


class TestFailures:
    @pytest.mark.usefixtures("broken")
    def test_one_warning_and_eager_numbers(self) -> None:
        x, y = images()
        network, before = factory()(0), compilation.fallbacks()
        whole = weight_gradients(network, x, y, chunk=10)
        with pytest.warns(UserWarning, match="could not be compiled and runs as it is .RuntimeError: the compiler is"):
            parts = weight_gradients(network, x, y, chunk=10, compiled=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            predict(network, x, compiled=True)
        assert torch.equal(whole[0], parts[0])
        assert compilation.fallbacks() == before + 3  # two passes for the gradients, one to predict

    def test_code_that_gives_nan_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What Inductor made of pooling in bf16 after a norm gave NaN gradients; a network's own NaN are its own."""
        monkeypatch.setattr(compilation, "_ENGINES", {})
        monkeypatch.setattr(compilation, "_compiled", lambda function: lambda *a: function(*a) * float("nan"))
        x, network = images()[0], factory()(0)
        with pytest.warns(UserWarning, match="ArithmeticError: compiled code gave numbers that are not finite"):
            assert torch.equal(call(embed, network, x), network.embed(x))
        assert list(compilation._ENGINES.values()) == [None]
        assert call(embed, network, x[:8] * float("nan")).isnan().all()
        assert None not in list(compilation._ENGINES.values())[1:]

    @pytest.mark.usefixtures("broken")
    def test_a_run_says_that_it_was_not_compiled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compilation, "available", lambda: True)
        settings = {"ipc": 1, "network": NET, "steps": 3, "real_batch": 8}
        with pytest.warns(UserWarning, match="could not be compiled"):
            made = distill("dm", "digits", compile="on", out=tmp_path / "run", **settings)
        plain = distill("dm", "digits", compile="off", **settings)
        assert torch.allclose(made.images, plain.images, atol=1e-5)
        assert made.manifest["cost"]["compile"] is False

    def test_an_error_of_the_network_itself_is_told(self, counted: list[tuple[int, ...]]) -> None:
        class Refuses(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                raise InputError("no such images")

        with pytest.raises(InputError, match="no such images"):
            predict(Refuses(), images()[0], compiled=True)
        assert not compilation._ENGINES

    @needs_compiler
    def test_a_network_that_cannot_be_traced(self) -> None:
        class Looks(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(192, 4)

            def forward(self, x: Tensor) -> Tensor:
                if float(x.sum()) > 1e9:
                    x = x / 2
                return self.layer(x.flatten(1))

        x, y = images()
        with isolated(0):
            network = Looks()
        with pytest.warns(UserWarning, match="could not be compiled"):
            loss, _ = weight_gradients(network, x, y, compiled=True)
        assert torch.equal(loss, weight_gradients(network, x, y)[0])
        wrapped = resolve_network(lambda: Looks(), channels=3, classes=4, size=(8, 8))(0)
        with torch.no_grad():
            assert torch.equal(call(embed, wrapped, x), wrapped.embed(x))


class TestRuns:
    """`distill` and `evaluate`, with a compiler that compiles nothing."""

    SETTINGS: ClassVar = {"ipc": 1, "network": NET, "steps": 4, "real_batch": 6}

    def test_a_run_writes_it_down_and_goes_on_with_it(self, counted: list[tuple[int, ...]], tmp_path: Path) -> None:
        out = tmp_path / "run"
        made = distill("dm", "digits", compile="on", out=out, **self.SETTINGS)
        assert set(counted) == {(60, 1, 8, 8)}
        assert json.loads((out / "config.json").read_text())["compile"] is True
        assert made.manifest["cost"]["compile"] is True
        counted.clear()
        for name in ("manifest.json", "checkpoints/block-00000.safetensors"):
            (out / name).unlink()
        again = distill("dm", "digits", compile="off", out=out, resume=True, **self.SETTINGS)
        assert counted
        assert torch.equal(again.images, made.images)

    @pytest.mark.usefixtures("counted")
    def test_a_compiled_run_needs_the_compiler_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        out = tmp_path / "run"
        distill("dm", "digits", compile="on", out=out, **self.SETTINGS)
        (out / "manifest.json").unlink()
        monkeypatch.setattr(compilation, "available", lambda: False)
        with pytest.raises(InputError, match=r"need a C\+\+ compiler"):
            distill("dm", "digits", out=out, resume=True, **self.SETTINGS)

    def test_coresets_train_compiled(self, counted: list[tuple[int, ...]], tmp_path: Path) -> None:
        settings = {"ipc": 1, "network": NET, "feature_passes": 1, "out": tmp_path}
        real = load_real("digits").subset(torch.arange(100))
        distill("herding", real, compile="on", **settings)
        assert set(counted) == {(even_chunk(100, 4096), 1, 8, 8)}

    def test_evaluate(self, counted: list[tuple[int, ...]]) -> None:
        quick = Protocol("quick", "", passes=2)
        made = distill("random", "digits", ipc=2, network=NET)
        results = [evaluate(made, protocol=quick, networks=2, compile=mode) for mode in ("off", "on")]
        assert [result.cost["compile"] for result in results] == [False, True]
        assert (20, 1, 8, 8) in counted
        assert results[0].mean == pytest.approx(results[1].mean, abs=0.002)
        assert evaluate(made, protocol=quick, networks=1).cost["compile"] is False  # seconds of work


@needs_compiler
class TestCompiled:
    """The real compiler, on a network of width 8: float32 to 1e-5."""

    def test_features_of_fresh_networks(self) -> None:
        """Four networks, one compilation."""
        x, _ = images(16)
        before = len(compilation._ENGINES)
        for seed in range(4):
            network = factory()(seed).requires_grad_(False)
            with torch.no_grad():
                assert torch.allclose(call(embed, network, x), network.embed(x), atol=1e-5)
        assert len(compilation._ENGINES) == before + 1
        assert None not in compilation._ENGINES.values()

    def test_weight_gradients_and_training(self) -> None:
        """The same compiled code for both: passes of ten images."""
        x, y = images()
        network = factory()(0)
        whole, parts = weight_gradients(network, x, y), weight_gradients(network, x, y, chunk=10, compiled=True)
        assert torch.allclose(whole[0], parts[0], atol=1e-5)
        for name, g in whole[1].items():
            assert torch.allclose(parts[1][name], g, atol=1e-5)
        eager, compiled = factory()(1), factory()(1)
        schedule = Schedule(3, batch=20)
        train(eager, x, y, schedule, Rng(0))
        state = torch.get_rng_state()
        train(compiled, x, y, schedule, Rng(0), compiled=True, chunk=10)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.allclose(weights(eager), weights(compiled), atol=1e-5)
        assert (weights(eager) - weights(factory()(1))).abs().max() > 1e-3
        assert None not in compilation._ENGINES.values()

    def test_bits_repeat(self) -> None:
        x, y = images()
        first, second = (weight_gradients(factory()(0), x, y, chunk=10, compiled=True) for _ in range(2))
        assert all(torch.equal(g, second[1][name]) for name, g in first[1].items())

    @pytest.mark.slow
    def test_more_kinds_than_dynamo_keeps_versions(self) -> None:
        x, _ = images()
        for width in range(1, 11):
            with isolated(width):
                network = nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, 4))
            assert torch.allclose(predict(network, x, compiled=True), predict(network, x), atol=1e-5)
        assert None not in compilation._ENGINES.values()

    @pytest.mark.slow
    def test_bf16_of_wide_layers(self) -> None:
        """Sizes at which code for vectors is chosen; pooling after a norm and a ReLU once gave NaN there."""
        with isolated(0):
            x, y = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
        network = resolve_network("convnet:width=32,depth=1", channels=3, classes=4, size=32)(0)
        with casting(CPU, "bf16"):
            loss, whole = weight_gradients(network, x, y)
            same, parts = weight_gradients(network, x, y, compiled=True)
        assert torch.allclose(loss, same, atol=2e-2)
        for name, g in whole.items():
            assert (parts[name] - g).norm() <= 0.1 * g.norm() + 1e-3
        assert None not in compilation._ENGINES.values()

    @pytest.mark.slow
    @pytest.mark.parametrize("spec", [NET, "convnet:width=8,depth=2,activation=leaky,pool=max,norm=group"])
    def test_bf16(self, spec: str) -> None:
        """Both round to 8 bits, at different places."""
        x, y = images()
        network = factory(spec)(0)
        with casting(CPU, "bf16"):
            whole = weight_gradients(network, x, y, chunk=10)
            parts = weight_gradients(network, x, y, chunk=10, compiled=True)
        assert torch.allclose(whole[0], parts[0], atol=2e-2)
        for name, g in whole[1].items():
            assert torch.allclose(parts[1][name], g, atol=2e-2)
        assert None not in compilation._ENGINES.values()


@needs_compiler
@pytest.mark.slow
def test_stages_train_their_networks_and_match_by_compiled_code(tmp_path: Path) -> None:
    """Experts, statistics and steps; and a folder of units keeps both kinds apart."""
    options: dict[str, object] = {"ipc": 1, "network": NET, "width": 0, "factor": 1, "steps": 6, "seed": 3}
    options |= {"expert_count": 1, "expert_updates": 6, "snapshots": 2, "statistics_images": 10}
    kinds = {mode: distill("stages", "digits", compile=mode, units=tmp_path, **options) for mode in ("off", "on")}
    assert [made.manifest["cost"]["compile"] for made in kinds.values()] == [False, True]
    assert torch.allclose(kinds["off"].images, kinds["on"].images, atol=1e-3)
    assert not torch.equal(kinds["on"].images, distill("stages", "digits", **options | {"steps": 1}).images)
    assert len(list(tmp_path.glob("prepare/experts-*.safetensors"))) == 2
    assert None not in compilation._ENGINES.values()

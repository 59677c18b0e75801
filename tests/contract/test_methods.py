"""Every registered method keeps the contract; a new method is tested by existing."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from datastill import distill, load_distilled, load_real, methods
from datastill.core.errors import InputError
from datastill.core.plan import Task
from datastill.core.recipes import get_recipe, recipes
from datastill.core.registry import Chooses, field_docs, get_method
from datastill.core.rng import Rng, isolated
from datastill.data import RealSet
from datastill.distillation.job import prepare_job
from datastill.evaluation.protocols import get_protocol
from datastill.models import resolve_network
from datastill.surrogates.teachers import Squeeze, Teacher
from datastill.training.debiased import DebiasedTraining
from datastill.training.hard import Schedule, train
from datastill.training.soft_schedule import SOFT_RECIPES

ALL = methods()
#: What stands for another method is tested in tests/unit/test_choice.py, what takes pairs in test_methods_of_pairs.py.
METHODS = sorted(
    name for name, info in ALL.items() if not isinstance(info.cls(), Chooses) and "classes" in info.cls.takes
)
#: Weights are in the training of the network that these look with, which a short one hardly shows.
UNWEIGHTED = {"forgetting", "kcenter"}
ROOT = Path(__file__).resolve().parents[2]

#: Small values for the hyper-parameters that make a method slow, wherever a method has them.
SMALL = {"steps": 3, "real_batch": 8, "feature_passes": 1, "outer": 2, "inner": 1, "net_images": 24}
SMALL |= {"student_steps": 2, "max_start": 2, "expert_count": 2, "expert_epochs": 3, "expert_batch": 100}
SMALL |= {"squeeze_passes": 4, "candidates": 20, "bank_networks": 2, "bank_epochs": 1, "net_steps": 1, "query": 4}
SMALL |= {"solve_images": 5, "pool": 3, "expert_updates": 12, "statistics_images": 12, "frequencies": 32}


def small(name: str) -> dict[str, int]:
    """The small values that this method knows."""
    known = {f.name for f in dataclasses.fields(get_method(name).cls)}
    return {k: v for k, v in SMALL.items() if k in known}


def fitting(name: str, network: str) -> str:
    """The network, with batch norm for methods that match what it keeps."""
    return f"{network},norm=batch" if get_method(name).family == "decoupled" else network


def taught(name: str, real: RealSet) -> dict[str, Any]:
    """The one teacher of noise images, which no short squeeze learns: each pixel has a weight, in closed form."""
    if get_method(name).family != "decoupled":
        return {}
    batch = real.batch(torch.arange(len(real)))
    with isolated(0):
        head = torch.nn.Linear(batch.x[0].numel(), real.classes)
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(real.shape[0], momentum=None), torch.nn.Flatten(), head)
    with torch.no_grad():
        network(batch.x)  # fills in the running statistics
        network.eval()
        x = network[:2](batch.x).double()
        wanted = torch.nn.functional.one_hot(batch.y, real.classes).double()
        head.weight.copy_(4 * (x.T @ torch.linalg.solve(x @ x.T + torch.eye(len(x)), wanted)).T)
        head.bias.zero_()
    alone = {"backbones": "none"} if "backbones" in {f.name for f in dataclasses.fields(get_method(name).cls)} else {}
    own = Teacher(network, real.space, real.class_names, real.shape[0], tuple(real.shape[1:]))
    return {"teacher": own, **alone}


@pytest.fixture(scope="module")
def digits() -> RealSet:
    """Of every third, so that passes over all of them are short."""
    return load_real("digits:train=300")


def toy(channels: int, side: int, classes: int, per_class: int, ids: list[str] | None = None) -> RealSet:
    """Random images of one shape, in memory."""
    generator = Rng(1).generator("toy")
    x = torch.randint(0, 256, (classes * per_class, channels, side, side), generator=generator, dtype=torch.uint8)
    y = torch.arange(classes).repeat(per_class)
    labels = y if ids is None else [ids[int(c)] for c in y]
    return load_real((x, labels))


class Untouchable:
    """A test split that must not be read."""

    shape = (1, 8, 8)

    def __len__(self) -> int:
        return 5

    def __getattr__(self, attribute: str):
        raise AssertionError(f"distillation read the test split ({attribute})")


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_makes_a_whole_set(self, name: str, digits: RealSet) -> None:
        made = distill(name, digits, ipc=2, network=fitting(name, "convnet:width=8,depth=1"), **small(name))
        each = len(made.images) // 20  # more than 1 where a stored image holds several
        assert made.stored == 20
        assert made.images.shape == (20 * each, 1, 8, 8)
        assert torch.isfinite(made.images).all()
        assert torch.bincount(made.hard_labels, minlength=10).tolist() == [2 * each] * 10
        assert made.manifest["method"] == name
        json.dumps(made.manifest, allow_nan=False)

    def test_one_seed_gives_one_set_that_is_saved_exactly_and_another_seed_another(
        self, name: str, digits: RealSet, tmp_path: Path
    ) -> None:
        """And the test split is never read: the second of the two equal runs has none that could be."""
        test = dataclasses.replace(digits, test=None, store=Untouchable(), labels=torch.zeros(5, dtype=torch.int64))
        guarded = dataclasses.replace(digits, test=test)
        network = fitting(name, "convnet:width=8,depth=1")
        made = distill(name, digits, ipc=1, seed=3, network=network, out=tmp_path / "run", **small(name))
        once_more, other = (
            distill(name, real, ipc=1, seed=seed, network=network, **small(name)).images
            for real, seed in ((guarded, 3), (digits, 4))
        )
        assert torch.equal(made.images, once_more)
        assert not torch.equal(made.images, other)
        again = load_distilled(tmp_path / "run")
        assert torch.equal(again.images, made.images)
        assert torch.equal(again.labels, made.labels)
        assert again.manifest == made.manifest
        assert again.space == made.space
        for key, value in made.extra.items():
            assert torch.equal(again.extra[key], value)

    def test_weights_on_real_images_count(self, name: str, digits: RealSet) -> None:
        """A third of them weighs nothing."""
        weights = torch.rand(len(digits), generator=Rng(5).generator("weights"))
        weighted = digits.with_weights(torch.where(weights < 1 / 3, 0.0, weights.square()))
        network = fitting(name, "convnet:width=8,depth=1")
        plain, made = (distill(name, real, ipc=2, network=network, **small(name)) for real in (digits, weighted))
        same = torch.equal(made.images, plain.images) and torch.equal(made.labels, plain.labels)
        assert same == (name in UNWEIGHTED)

    @pytest.mark.parametrize(
        ("channels", "side", "classes", "per_class"), [(3, 28, 3, 4), (1, 40, 2, 4), (3, 9, 30, 4)]
    )
    def test_any_shape(self, name: str, channels: int, side: int, classes: int, per_class: int) -> None:
        real = toy(channels, side, classes, per_class)
        network = fitting(name, "convnet:width=4,depth=2")
        made = distill(name, real, ipc=1, network=network, **small(name), **taught(name, real))
        assert made.stored == classes
        assert made.images.shape[1:] == (channels, side, side)

    def test_any_label_ids(self, name: str) -> None:
        real = toy(1, 8, 3, 8, ids=["ox", "bee", "yak"])
        network = fitting(name, "convnet:width=4,depth=1")
        made = distill(name, real, ipc=1, network=network, **small(name), **taught(name, real))
        assert made.class_names == ("bee", "ox", "yak")
        assert (made.stored, made.images.shape[1:]) == (3, (1, 8, 8))

    def test_too_small_a_class_is_an_error(self, name: str) -> None:
        with pytest.raises(InputError, match="ipc"):
            distill(name, toy(1, 8, 2, 4), ipc=9, network=fitting(name, "convnet:width=4,depth=1"), **small(name))

    def test_a_user_module_will_do(self, name: str, digits: RealSet) -> None:
        norm = torch.nn.BatchNorm1d if get_method(name).family == "decoupled" else torch.nn.Identity

        def network() -> torch.nn.Module:
            return torch.nn.Sequential(
                torch.nn.Flatten(), torch.nn.Linear(64, 16), norm(16), torch.nn.Tanh(), torch.nn.Linear(16, 10)
            )

        made = distill(name, digits, ipc=1, network=network, **small(name))
        assert torch.isfinite(made.images).all()

    def test_is_documented(self, name: str) -> None:
        info = get_method(name)
        assert info.summary.endswith(".")
        assert info.cost
        assert (ROOT / "docs" / "methods" / f"{name.replace('-', '_')}.md").is_file(), (
            f"docs/methods/{name}.md is missing"
        )
        documented = field_docs(info.cls)
        missing = [f.name for f in dataclasses.fields(info.cls) if not documented.get(f.name)]
        assert not missing, f"no #: comment on {missing}"

    def test_hyper_parameters_have_names_that_distill_has_not(self, name: str) -> None:
        known = {f.name for f in dataclasses.fields(get_method(name).cls)}
        assert not known & set(inspect.signature(distill).parameters)

    def test_recipes_fit_the_fields(self, name: str) -> None:
        known = {f.name for f in dataclasses.fields(get_method(name).cls)}
        for recipe in recipes(name):
            assert set(recipe.hyper) <= known, recipe.name
            assert recipe.accuracy is None or 0 < recipe.accuracy < 1
            assert (recipe.accuracy is None) == (recipe.source == "")


def test_method_files_import_no_torch() -> None:
    """The command line lists methods at once: nothing heavy is imported to do so."""
    code = (
        "import sys, datastill; from datastill.core.registry import methods; methods(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_permuted_class_ids_give_the_permuted_set(digits: RealSet) -> None:
    """Random draws are keyed by class position, so a relabeling that keeps the order changes nothing."""
    names = [f"class {c}" for c in range(10)]
    renamed = dataclasses.replace(digits, class_names=tuple(names))
    one, other = (
        distill("dm", r, ipc=1, network="convnet:width=8,depth=1", steps=2, real_batch=8) for r in (digits, renamed)
    )
    assert torch.equal(one.images, other.images)


def test_method_is_callable_module_and_function() -> None:
    import datastill

    datastill.core.registry.methods()
    assert set(datastill.methods()) == set(ALL)


def test_signature_of_distill_is_stable() -> None:
    wanted = ["method", "real", "ipc", "network", "recipe", "budget", "seed", "out", "resume", "device"]
    assert list(inspect.signature(distill).parameters)[: len(wanted)] == wanted


class Pairs(torch.nn.Module):
    """Batch norm over one number per image and channel: in training mode it has no statistics of a single image."""

    def __init__(self, channels: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(channels, 8, 3, 2, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.BatchNorm2d(8)
        )
        self.head = torch.nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(x).flatten(1).relu())
        return logits


@pytest.fixture(scope="module")
def one_too_many() -> RealSet:
    """129 images, of which batches of 32, 64 and 128 leave one over."""
    x = torch.rand(129, 3, 16, 16, generator=Rng(1).generator("pairs"))
    x[torch.arange(129), torch.arange(129) % 3] *= 0.5
    return load_real((x, torch.arange(129) % 3), holdout=0)


@pytest.mark.parametrize("name", METHODS)
def test_no_batch_is_a_single_image_where_layers_couple_samples(name: str, one_too_many: RealSet) -> None:
    options = {**small(name), "net_images": 129, "expert_batch": 128}
    known = {f.name for f in dataclasses.fields(get_method(name).cls)}
    given = {k: v for k, v in options.items() if k in known}
    distill(name, one_too_many, ipc=1, network=Pairs, **given, **taught(name, one_too_many))


@pytest.mark.parametrize("training", ["plain", "dfa:steps=3,batch=64", "selecmix:steps=3,batch=64"])
def test_no_training_ends_in_a_batch_of_one(training: str, one_too_many: RealSet) -> None:
    factory = resolve_network(Pairs, channels=3, classes=3, size=(16, 16))
    images, y = one_too_many.pixels(torch.arange(129)), one_too_many.labels
    if debiased := DebiasedTraining.parse(training):
        debiased(factory, images, y, rng=Rng(0))
    else:
        train(factory(0), images, y, Schedule(passes=1, batch=64), Rng(0))


def test_a_teacher_is_squeezed_without_a_batch_of_one(one_too_many: RealSet) -> None:
    task = Task(one_too_many, 1, resolve_network(Pairs, channels=3, classes=3, size=(16, 16)))
    assert Squeeze(3, batch=128).run(task)  # also batch norm is calibrated in batches


def test_where_layers_do_not_couple_samples_a_batch_of_one_stays() -> None:
    sizes: list[int] = []
    network = resolve_network("mlp", channels=1, classes=2, size=(2, 2))(0)
    x, y = torch.ones(9, 1, 2, 2), torch.arange(9) % 2
    train(network, x, y, Schedule(passes=1, batch=4), Rng(0), on_batch=lambda index, _: sizes.append(len(index)))
    assert sizes == [4, 4, 1]


def test_published_settings_are_the_published_ones() -> None:
    """Values that were wrong once: see the spec of each method."""
    fashion = Task(toy(1, 28, 10, 1), 10, resolve_network("convnet", channels=1, classes=10, size=(28, 28)))
    idc = get_method("idc").cls(distance="l1", base_lr=1e-4).for_task(fashion)  # type: ignore[call-arg]
    assert idc.image_lr == pytest.approx(1e-4 * (28 / 32) ** 2)  # type: ignore[attr-defined]
    assert {r.space for name in ("mtt", "tesla") for r in recipes(name)} == {"", "zca-absolute"}
    assert [get_recipe(f"idc/mnist-ipc{n}").protocol for n in (1, 10, 50)] == ["idc-v1-no-cutmix"] * 3
    assert get_recipe("idc-i/svhn-ipc1").protocol == "idc-v1-no-cutmix"
    assert get_recipe("idc/svhn-ipc1").protocol == "idc-v1"
    assert not get_protocol("idc-v1-no-cutmix").cutmix
    assert [SOFT_RECIPES[name].decay for name in ("rded", "dwa_imagenet", "sre2l_imagenet")] == ["matrices"] * 3


def test_whitening_of_published_settings_adds_a_tenth_to_the_eigenvalues(digits: RealSet) -> None:
    space = load_real("digits", space="zca-absolute").space
    pixels = load_real("digits").pixels(torch.arange(899)).double().flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(pixels.T))
    wanted = (vectors / (values.clamp(min=0) + 0.1).sqrt()) @ vectors.T
    torch.testing.assert_close(space.tensors["whiten"].double(), wanted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(space.tensors["whiten"], load_real("digits", space="zca").space.tensors["whiten"])


def test_a_setting_for_another_whitening_is_told() -> None:
    whitened = load_real("digits", space="zca")
    notes = prepare_job("mtt", whitened, ipc=1, recipe="mtt/cifar10-ipc1").notes
    assert any("for zca-absolute images, and these are zca:" in note for note in notes)
    published = load_real("digits", space="zca-absolute")
    assert not any(
        "published setting" in n for n in prepare_job("mtt", published, ipc=1, recipe="mtt/cifar10-ipc1").notes
    )

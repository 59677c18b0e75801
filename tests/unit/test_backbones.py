"""Several backbones: who they are, whose turn it is, what is refused, and who labels (GV-5 to GV-7)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import datastill
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import Callback
from datastill.core.rng import isolated
from datastill.evaluation.soft import relabel, teachers_of
from datastill.labels.labeler import Labeler
from datastill.methods.edc import EDC
from datastill.methods.g_vbsm import GVBSM
from datastill.surrogates.layer_targets import LayerTargets
from datastill.surrogates.teachers import Teacher
from decoupled_data import NETWORK, digits, task_of, teacher


def other() -> Teacher:
    """A second teacher of another shape, whose weights are random but for a head that knows some digits."""
    real = digits()
    with isolated(1):
        network = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(),
            torch.nn.Linear(512, 10),
        )  # fmt: skip
    batch = real.batch(torch.arange(0, len(real), 2))
    with torch.no_grad():
        network(batch.x)
        features = network.eval()[:4](batch.x).double()
        wanted = torch.nn.functional.one_hot(batch.y, 10).double()
        gram = features @ features.T + 10 * torch.eye(len(batch), dtype=torch.float64)
        network[4].weight.copy_((features.T @ torch.linalg.solve(gram, wanted)).T)
        network[4].bias.zero_()
    return Teacher(network, real.space, real.class_names, 1, (8, 8))


def recover(method: str = "g-vbsm", **hyper: Any) -> datastill.DistilledSet:
    """Two images of each digit in six steps, from two teachers that are there."""
    values = {"ipc": 2, "steps": 6, "jitter": 1, "teacher": teacher(), "backbones": [other()], "network": NETWORK}
    return datastill.distill(method, digits(), **{**values, "statistics_images": 20, **hyper})


class Turns(Callback):
    def __init__(self) -> None:
        self.networks: list[int] = []

    def after_step(self, context: Context) -> None:
        self.networks.append(id(context.surrogate))


def test_backbones_take_equal_turns_from_the_first_in_every_block() -> None:
    """GV-6."""
    turns = Turns()
    recover(callbacks=[turns], block_images=10)
    assert len(turns.networks) == 12
    assert sorted(Counter(turns.networks).values()) == [6, 6]
    assert turns.networks[0] == turns.networks[6] != turns.networks[1]


@pytest.mark.parametrize("method", ["g-vbsm", "edc"])
def test_a_stopped_run_goes_on_to_the_same_images(method: str, tmp_path: Path) -> None:
    class Stop(Callback):
        def after_step(self, context: Context) -> None:
            if context.block.key == 1 and context.step == 3:
                raise KeyboardInterrupt

    options: dict[str, Any] = {"block_images": 10, **({"flatness": 0.1} if method == "edc" else {"dropout": 0.5})}
    with pytest.raises(KeyboardInterrupt):
        recover(method, out=tmp_path / "run", callbacks=[Stop()], checkpoint_seconds=0.0, **options)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "prepare").iterdir()}
    assert len(kept) == 4  # two backbones, and a file of statistics for each
    again = recover(method, out=tmp_path / "run", resume=True, **options)
    assert torch.equal(again.images, recover(method, **options).images)


def test_the_terms_are_there_and_change_the_images() -> None:
    off: dict[str, Any] = {"dropout": 0.0, "density": 0.0, "steps": 4}
    plain = recover(**off).images
    for change in ({"dropout": 0.5}, {"density": 1.0}, {"r_statistics": 0.0}, {"ema_start": "zero"}):
        assert not torch.equal(recover(**{**off, **change}).images, plain), change
    edc = recover("edc", steps=4, init="real").images
    for change in ({"flatness": 1.0}, {"class_variance": "within"}):
        assert not torch.equal(recover("edc", **{"steps": 4, "init": "real", **change}).images, edc), change


def test_one_image_per_class_has_nothing_to_spread_and_says_so_once() -> None:
    made = recover(ipc=1, block_images=2)
    notes = [note for note in made.manifest["notes"] if "densification" in note]
    assert notes == ["with one image per class there is nothing to spread: the densification is 0"]
    assert torch.equal(made.images, recover(ipc=1, block_images=2, density=0.0).images)
    assert not [n for n in recover(ipc=2, steps=1).manifest["notes"] if "densification" in n]


def test_a_backbone_without_statistics_is_refused_with_the_alternative() -> None:
    with pytest.raises(InputError, match="match its convolutions alone"):
        recover(backbones="convnet:width=4,depth=1", squeeze_passes=1)
    plan = GVBSM(backbones="convnet:width=4,depth=1", without_bn="convolutions").build(task_of(digits()))
    assert [unit.name for unit in plan.prepare][1] == "teacher-1"


def test_backbones_agree_in_classes_and_space() -> None:
    """Another order or Space is converted; a class that one of them does not know is refused."""
    mine = other()
    stranger = Teacher(mine.network, mine.space, ("x", *mine.class_names[1:]), 1, (8, 8))
    with pytest.raises(InputError, match="does not know the class '0'"):
        recover(backbones=[stranger])
    turned = other()
    with torch.no_grad():
        head = turned.network[4]
        head.weight.copy_(head.weight.flip(0))
    reverse = Teacher(turned.network, mine.space, mine.class_names[::-1], 1, (8, 8))
    assert torch.allclose(recover(backbones=[reverse]).images, recover().images, atol=1e-5)


def test_unknown_backbones_are_told_by_name() -> None:
    with pytest.raises(InputError, match="convnot"):
        recover(backbones="convnot")
    assert len(GVBSM(backbones="none").sources(task_of(digits()))) == 1
    assert str(GVBSM().further(task_of(digits()))[0]) == "convnet:width=16,depth=2,norm=batch,pool=max,padding=1"


def test_all_backbones_label_the_set_also_after_it_was_saved(tmp_path: Path) -> None:
    """GV-5: the labeler of the set is the norm-balanced mean; a louder teacher changes no label's direction."""
    made = recover(out=tmp_path / "run")
    assert made.record.student.combine == "norm_balanced"
    assert recover("edc").record.student.combine == "mean"
    loaded = datastill.load_distilled(tmp_path / "run")
    found = teachers_of(loaded, other().network)
    assert [t.id for t in found] == [teacher().id, other().id]
    bank = relabel(loaded, digits(), "soft-quick-v1", passes=1, teacher_network=other().network)
    index, trace, logits = bank[0, 0]
    seen = trace.apply(loaded.images[index])
    both = [teacher().network(seen), other().network(seen)]
    norms = torch.stack([each.norm() for each in both])
    expected = sum((each * norms.mean() / norm for each, norm in zip(both, norms, strict=True))) / 2
    assert torch.allclose(logits, expected, atol=2e-2)
    loud = other()
    with torch.no_grad():
        loud.network[4].weight.mul_(10)
    pair = [Labeler([teacher().network, n], combine="norm_balanced")(seen) for n in (other().network, loud.network)]
    assert torch.allclose(*(each / each.norm() for each in pair), atol=1e-5)


def test_edc_starts_from_the_patches_of_rded() -> None:
    assert EDC().build(task_of(digits())).init.describe()["init"] == "patches"
    still = recover("edc", steps=1, image_lr=1e-12, squeeze_passes=1)
    chosen = datastill.distill("rded", digits(), ipc=2, teacher=teacher(), network=NETWORK)
    low, high = digits().space.bounds()
    assert torch.allclose(still.images, chosen.images.maximum(low).minimum(high), atol=1e-5)


def test_statistics_are_keyed_by_what_they_depend_on() -> None:
    source = GVBSM(teacher=teacher(), backbones="none").sources(task_of(digits()))[0]
    keys = [LayerTargets(source, n, c).key(task_of(digits())) for n, c in ((5, False), (5, True), (6, False))]
    assert len({str(sorted(key.items())) for key in keys}) == 3
    assert LayerTargets(source, 5).needs == ("teacher",)

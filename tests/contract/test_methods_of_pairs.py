"""Every registered method of pairs keeps the contract; a new one is tested by existing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from datasets import load_dataset

from datastill import distill, evaluate, load_distilled, load_pairs, load_real, methods
from datastill.core.errors import InputError
from datastill.core.plan import Callback
from datastill.core.registry import field_docs, get_method
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.data import RealSet
from datastill.evaluation.ceiling import whole_set
from datastill.evaluation.metrics import TestSplit
from datastill.evaluation.protocols import get_protocol
from datastill.evaluation.retrieval import Retrieval
from datastill.models import resolve_network
from datastill.training.contrastive import Contrastive
from datastill.training.trainers import Labeled

pytestmark = pytest.mark.usefixtures("short_protocols")

METHODS = sorted(name for name, info in methods().items() if "pairs" in info.cls.takes)
LEARNING = [name for name in METHODS if get_method(name).cls().steps]
ROOT = Path(__file__).resolve().parents[2]
NETWORK = "convnet:width=4,depth=2,norm=group"
SMALL = {"steps": 4, "real_batch": 20, "student_steps": 2, "max_start": 2, "expert_count": 2, "expert_epochs": 2}
SMALL |= {"expert_batch": 40}


def small(name: str) -> dict[str, int]:
    known = {f.name for f in dataclasses.fields(get_method(name).cls)}
    return {k: v for k, v in SMALL.items() if k in known}


@pytest.fixture(scope="module")
def real() -> RealSet:
    return load_pairs("shapecaps:train=40,test=12,captions=2,text=hashed:dim=32")


def made(name: str, real: RealSet, **options):
    return distill(name, real, **{"ipc": 6, "network": NETWORK, **small(name), **options})


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethodOfPairs:
    def test_makes_whole_pairs_that_reload_exactly(self, name: str, real: RealSet, tmp_path: Path) -> None:
        one = made(name, real, out=tmp_path / "run")
        assert one.images.shape == (6, 3, 32, 32)
        assert one.labels.shape == (6, 32)
        assert one.label_kind == "pairs"
        assert torch.isfinite(one.images).all()
        assert torch.isfinite(one.labels).all()
        captions = one.record.captions
        assert len(captions) == 6
        assert set(captions) <= set(real.captions.texts)
        json.dumps(one.manifest, allow_nan=False)
        again = load_distilled(tmp_path / "run")
        assert torch.equal(again.images, one.images)
        assert torch.equal(again.labels, one.labels)
        assert again.manifest == one.manifest
        assert (tmp_path / "run" / "preview.png").stat().st_size > 1000
        assert "pairs" in (tmp_path / "run" / "README.md").read_text()

    def test_one_seed_gives_one_set_and_another_seed_another(self, name: str, real: RealSet) -> None:
        runs = [made(name, real, seed=seed) for seed in (3, 3, 4)]
        for part in ("images", "labels"):
            assert torch.equal(getattr(runs[0], part), getattr(runs[1], part))
            assert not torch.equal(getattr(runs[0], part), getattr(runs[2], part))

    def test_the_test_split_is_never_read(self, name: str, real: RealSet) -> None:
        class Untouchable:
            shape = (3, 32, 32)

            def __len__(self) -> int:
                return 5

            def __getattr__(self, attribute: str):
                raise AssertionError(f"distillation read the test split ({attribute})")

        test = dataclasses.replace(real, test=None, store=Untouchable(), labels=torch.zeros(5, dtype=torch.int64))
        made(name, dataclasses.replace(real, test=test))

    def test_is_documented(self, name: str) -> None:
        info = get_method(name)
        assert info.summary.endswith(".")
        assert info.cost
        assert (ROOT / "docs" / "methods" / f"{name.replace('-', '_')}.md").is_file()
        documented = field_docs(info.cls)
        assert not [f.name for f in dataclasses.fields(info.cls) if not documented.get(f.name)]

    def test_more_pairs_than_there_are_is_one_sentence(self, name: str, real: RealSet) -> None:
        with pytest.raises(InputError, match="shapecaps has 80 pairs, fewer than the 81 asked for; use --ipc 80"):
            made(name, real, ipc=81)

    def test_is_evaluated_beside_random_pairs_and_chance(self, name: str, real: RealSet) -> None:
        one = made(name, real)
        result = evaluate(one, real, networks=1, random=name == "vl-moments")
        assert result.protocol == "vl-v1"
        assert set(result.chance) == set(result.distilled.recalls)
        assert result.chance["IR@5"] == pytest.approx(5 / 12)
        assert result.measure == "mean recall"
        json.dumps(result.to_dict(), allow_nan=False)


class Stop(Callback):
    """Ends a run after so many steps, as a kill would."""

    name = ""

    def __init__(self, after: int) -> None:
        self.after = after

    def after_step(self, context) -> None:
        if context.step == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", LEARNING)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, real: RealSet, tmp_path: Path) -> None:
    whole = made(name, real, out=tmp_path / "whole", checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        made(name, real, out=tmp_path / "cut", checkpoint_seconds=0, callbacks=[Stop(2)])
    again = made(name, real, out=tmp_path / "cut", resume=True)
    assert torch.equal(again.images, whole.images)
    assert torch.equal(again.labels, whole.labels)
    assert all(torch.equal(again.extra[k], whole.extra[k]) for k in whole.extra)
    assert again.record.student == whole.record.student


@pytest.mark.parametrize("name", LEARNING)
def test_images_and_sentences_both_move(name: str, real: RealSet) -> None:
    start, end = made("random", real), made(name, real)
    assert not torch.equal(start.images, end.images)
    cosine = F.cosine_similarity(start.labels, end.labels)
    assert bool((cosine < 1 - 1e-7).all())
    assert bool((cosine > 0.5).all()), "they begin at the captions of the same random pairs"


@pytest.mark.parametrize("name", LEARNING)
def test_classes_are_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} distills sets of pairs, and digits is one of classes"):
        distill(name, "digits", ipc=1)


@pytest.mark.parametrize("name", ["dm", "mtt", "herding", "sre2l"])
def test_methods_of_classes_refuse_pairs(name: str, real: RealSet) -> None:
    with pytest.raises(
        InputError, match=rf"{name} distills sets of classes, and shapecaps is one of pairs; take .*vl-m"
    ):
        distill(name, real, ipc=2)


def test_auto_takes_a_method_of_pairs(real: RealSet) -> None:
    from datastill.distillation.job import prepare_job

    assert prepare_job("auto", real, ipc=2, network=NETWORK).method_name == "vl-moments"


def test_a_protocol_of_classes_refuses_pairs(real: RealSet) -> None:
    with pytest.raises(InputError, match=r"are pairs, and dc-v1 trains on classes.*; take vl-v1"):
        evaluate(made("random", real), real, protocol="dc-v1", networks=1)


def test_experts_of_pairs_refuse_classes_other_policies_and_other_encoders(real: RealSet, tmp_path: Path) -> None:
    from datastill.models import resolve_network
    from datastill.surrogates.experts.train import train_experts

    digits = load_real("digits")
    network = resolve_network("convnet:width=4,depth=1", **digits.network_shape)
    with pytest.raises(InputError, match="trains two towers on pairs of images and sentences, and digits has classes"):
        train_experts(digits, network, tmp_path / "a", experts=1, epochs=1, policy="contrastive")
    towers = resolve_network(NETWORK, **real.network_shape)
    with pytest.raises(InputError, match="the policy sgd trains on classes; take the policy contrastive"):
        train_experts(real, towers, tmp_path / "b", experts=1, epochs=1)
    options = {"policy": "contrastive:batch=40", "augment": "none"}
    train_experts(real, towers, tmp_path / "c", experts=1, epochs=2, **options)
    given = {"experts": str(tmp_path / "c"), "max_start": 2, "student_steps": 1, "steps": 1}
    assert distill("vl-mtt", real, ipc=3, network=NETWORK, **given).stored == 3
    other = load_pairs("shapecaps:train=40,test=12,captions=2,text=hashed:dim=16")
    with pytest.raises(InputError, match=r"their text is hashed:dim=32 \(32 numbers\), this run's is hashed:dim=16"):
        distill("vl-mtt", other, ipc=3, network=NETWORK, **given)


def test_a_comparison_is_under_the_protocol_of_pairs(real: RealSet, tmp_path: Path) -> None:
    from datastill import compare, estimate

    settings = {"vl-moments": small("vl-moments")}
    table = compare(
        ["vl-moments"], real, ipc=[4], seeds=1, network=NETWORK, networks=1, settings=settings, out=tmp_path
    )
    assert table.config["protocol"]["name"] == "vl-v1"
    assert {row.method for row in table.rows} == {"random", "vl-moments"}
    assert "Mean recall under protocol vl-v1" in table.table()
    assert all(0 < cell["accuracy"] < 1 for row in table.rows for cell in row.cells.values())
    assert estimate("vl-moments", real, ipc=4, network=NETWORK).seconds_per_step > 0


def test_the_whole_real_set_stands_beside_the_pairs(real: RealSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The towers that `vl-v1` trains on all pairs, scored by retrieval; the second time they are not trained again."""
    one = made("random", real)
    found = evaluate(one, real, networks=1, ceiling=True).ceiling
    assert found is not None
    schedule = get_protocol("vl-v1").schedule(real.name, real.shape)
    factory = resolve_network(NETWORK, **real.network_shape)
    rng = Rng(0).child("evaluation", 0, 0)
    towers = factory(rng.derive("network"))
    every = Labeled(real.batch(torch.arange(len(real))).x, real.captions.vectors)
    Contrastive(schedule, schedule.lr)._train(towers, every, rng, Runtime.of("cpu"))
    score = Retrieval().score(towers, TestSplit.of(real), Runtime.of("cpu"))
    assert found.recalls == pytest.approx(score.recalls)
    assert found.mean == pytest.approx(score.accuracy)
    monkeypatch.setattr(Contrastive, "_train", lambda *given: pytest.fail("it was kept"))
    factory = resolve_network(NETWORK, **real.network_shape)
    again = whole_set(real, factory, 0, Runtime.of("cpu"))
    assert (again.recalls, again.mean) == (found.recalls, found.mean)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # `datasets` leaves files open
@pytest.mark.parametrize("name", METHODS)
def test_pairs_become_a_folder_of_captioned_images(name: str, real: RealSet, tmp_path: Path) -> None:
    one = made(name, real)
    done = one.export(tmp_path / "folder", "imagefolder")
    back = load_pairs(tmp_path / "folder", text="hashed:dim=32", holdout=0, space=one.space)
    assert list(back.captions.texts) == one.record.captions
    assert torch.equal(back.batch(torch.arange(6)).x, done.distilled.images)
    assert torch.allclose(back.captions.vectors, done.distilled.labels)
    learned = one.record.cost.steps > 0
    assert torch.allclose(done.distilled.labels, one.labels, atol=1e-6) != learned
    assert any("nearest to its vector" in note for note in done.distilled.record.notes) == learned
    assert done.max_pixel_error < 1
    assert "load_pairs(" in (tmp_path / "folder" / "README.md").read_text()
    rows = load_dataset("imagefolder", data_dir=str(tmp_path / "folder"), split="train", cache_dir=str(tmp_path / "c"))
    assert rows["caption"] == one.record.captions

    exported = one.export(tmp_path / "parquet", "parquet")
    assert torch.equal(exported.distilled.labels, one.labels)
    (row, *_) = load_dataset(str(tmp_path / "parquet"), split="train", cache_dir=str(tmp_path / "c"))
    assert row["caption"] == one.record.captions[0]
    assert row["pairs"] == one.labels[0].tolist()
    assert evaluate([done.distilled], real, networks=1, random=False).mean > 0


def test_captions_that_a_folder_cannot_say(real: RealSet, tmp_path: Path) -> None:
    one = made("random", real)
    without = dataclasses.replace(one, manifest={**one.manifest, "captions": []})
    with pytest.raises(InputError, match=r"names no caption for each of its 6 images.*'parquet' or 'tensors'"):
        without.export(tmp_path / "x", "imagefolder")
    assert not (tmp_path / "x").exists()
    captions = {**one.manifest["data"]["captions"], "encoder": "MyOwn"}
    own = dataclasses.replace(one, manifest={**one.manifest, "data": {**one.manifest["data"], "captions": captions}})
    done = own.export(tmp_path / "own", "imagefolder")
    assert not done.lossless
    assert torch.equal(done.distilled.labels, one.labels)
    assert any("text encoder is not at hand" in note for note in done.distilled.record.notes)
    assert one.export(tmp_path / "tensors", "tensors").lossless

"""The de-biasing study and `--debias`: cells, resuming, groups."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import datastill
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.debias.reweight import weighted_set
from datastill.experiments.debias_rows import described, rows
from datastill.experiments.debias_study import DebiasStudy

NET = "convnet:width=4,depth=1"


@pytest.fixture(scope="module")
def biased() -> datastill.data.RealSet:
    return datastill.load_real("cmnist:base=digits,ratio=0.1,train=200,test=200,severity=1")


def study(**more: object) -> DebiasStudy:
    values = {
        "methods": ("random", "dm"),
        "debias": ("none", "oracle"),
        "ipcs": (1,),
        "seeds": 2,
        "networks": 1,
        "protocol": "dsa-quick-v1",
    }
    values |= {"network": NET, "hyper": {"steps": 2, "dm": {"real_batch": 8}}}
    return DebiasStudy(**{**values, **more})


def test_cells_are_crossed_once_and_seeds_come_last():
    cells = study(inits=("real", "noise")).cells()
    names = [(c.method, c.debias, c.init, c.seed) for c in cells]
    assert len(set(names)) == len(names) == 2 * (2 + 4)  # random has its draw, DM two starts
    assert [n[3] for n in names] == sorted(n[3] for n in names)
    assert {n[2] for n in names if n[0] == "random"} == {"real", "weighted"}
    assert cells[-1].values == {"steps": 2, "real_batch": 8, "init": "noise"}


def test_a_study_goes_on_where_it_was_and_reports_groups(biased, tmp_path: Path):
    first = study().run(biased, tmp_path)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").iterdir()}
    again = study().run(biased, tmp_path)
    assert first == again
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").iterdir()}
    for one in first:
        matrix = torch.tensor([[float("nan") if v is None else v for v in row] for row in one["matrix"]])
        assert matrix.shape == (10, 10)
        assert 0 <= one["aligned"] <= 1
        assert 0 <= one["conflicting"] <= 1
    found = {(r["method"], r["debias"]): r for r in rows(first)}
    assert found["dm", "oracle"]["conflict_mass"] > 0.5
    assert found["dm", "none"]["sets"] == 2


def test_processes_measure_what_one_does(biased, tmp_path: Path):
    """Every cell is told once; two ways to train on one set wait for each other."""
    asked = study(methods=("random",), training=("plain", "selecmix:steps=2"), seeds=1, debias=("none",), hyper={})
    told: list[str] = []
    alone = asked.run(biased, tmp_path / "one")
    apart = asked.run(biased, tmp_path / "two", workers=2, on_cell=lambda record: told.append(record["debias"]))

    def numbers(record: dict) -> dict:
        return {name: value for name, value in record.items() if name not in ("seconds", "cost")}

    assert [numbers(one) for one in apart] == [numbers(one) for one in alone]
    assert sorted(told) == sorted(one["debias"] for one in alone)
    assert not list((tmp_path / "two").glob("images-*"))
    with pytest.raises(InputError, match="workers"):
        asked.run(biased, tmp_path / "two", workers="rays")


def test_weights_change_what_dm_matches_and_the_manifest_says_how(biased):
    plain = datastill.distill("dm", biased, ipc=1, network=NET, steps=2, real_batch=16)
    weighed = datastill.distill("dm", biased, ipc=1, network=NET, steps=2, real_batch=16, debias="oracle")
    assert not torch.equal(plain.images, weighed.images)
    assert weighed.manifest["debias"]["how"] == "oracle"
    assert "debias" not in plain.manifest


def test_words_for_weights_are_checked(biased):
    real, told = weighted_set(biased, "none", 0)
    assert real.weights is None
    assert told["how"] == "none"
    with pytest.raises(InputError, match="no way 'kdee'"):
        weighted_set(biased, "kdee", 0)
    with pytest.raises(InputError, match="must be a number"):
        weighted_set(biased, "kde:power=much", 0)
    with pytest.raises(InputError, match="no option 'width2'"):
        weighted_set(biased, "kde:width2=3", 0)


def test_study_of_a_set_without_bias_labels_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="biased set"):
        study().run(datastill.load_real("digits"), tmp_path)


def test_the_command_prints_rows_as_json(biased, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    args = "study debias --dataset cmnist:base=digits,train=200,test=200,severity=1 --ratio 0.1 --methods dm"
    args += " --debias none --ipc 1"
    args += f" --seeds 1 --networks 1 --network {NET} --set steps=2 dm.real_batch=8 --out {tmp_path / 's'} --json"
    assert main(args.split()) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["method"] == "dm"
    assert row["sets"] == 1
    assert (tmp_path / "s" / "study.json").is_file()


def test_evaluation_of_a_biased_set_has_groups(biased):
    made = datastill.distill("random", biased, ipc=1, network=NET)
    found = datastill.evaluate(made, biased, networks=2, protocol="dsa-quick-v1")
    groups = found.distilled.groups
    share = (biased.test.bias == biased.test.labels).double().mean()
    mean = groups.aligned * float(share) + groups.conflicting * (1 - float(share))
    assert mean == pytest.approx(found.mean, abs=1e-9)


def test_drawing_by_weight_replaces_weighing(biased):
    common = {"ipc": 1, "network": NET, "steps": 2, "real_batch": 16}
    drawn = datastill.distill("dm", biased, debias="oracle:draw=true", **common)
    weighed = datastill.distill("dm", biased, debias="oracle", **common)
    assert not torch.equal(drawn.images, weighed.images)
    with pytest.raises(InputError, match="true or false"):
        datastill.distill("dm", biased, debias="oracle:draw=maybe", **common)
    with pytest.raises(InputError, match="class batches"):
        datastill.distill("mtt", biased, ipc=1, network=NET, debias="oracle:draw=true")


def test_methods_that_draw_no_batches_weigh_in_their_losses(biased):
    ways = ("none", "oracle:draw=true", "oracle", "kde:power=1,draw=true")
    mixed = study(methods=("random", "dm", "stages"), debias=ways, seeds=1, hyper={})
    found = [(c.method, c.debias) for c in mixed.fitting(biased)]
    assert found == [
        *(("random", way) for way in ways),
        *(("dm", way) for way in ways),
        *(("stages", way) for way in ("none", "oracle", "kde:power=1")),
    ]


@pytest.mark.parametrize("method", ["random", "herding", "kmeans"])
def test_weights_change_what_coresets_select(biased, method):
    hyper = {} if method == "random" else {"feature_passes": 1}
    plain = datastill.distill(method, biased, ipc=3, network=NET, **hyper)
    weighed = datastill.distill(method, biased, ipc=3, network=NET, debias="oracle", **hyper)
    conflicting = [float((biased.bias[i] != biased.labels[i]).double().mean()) for i in _selected(plain, weighed)]
    assert conflicting[1] > conflicting[0] + 0.2


@pytest.mark.parametrize("method", ["kmeans", "herding", "forgetting"])
def test_coresets_refuse_a_class_that_weighs_nothing(biased, method):
    weights = torch.ones(len(biased)).where(biased.labels > 0, 0.0)
    with pytest.raises(InputError, match="Class '0' has no image with a weight above 0"):
        datastill.distill(method, biased.with_weights(weights), ipc=1, network=NET, feature_passes=1)


def _selected(*sets: datastill.store.artifact.DistilledSet) -> list[torch.Tensor]:
    return [one.extra["selected"] for one in sets]


def test_cells_that_a_method_cannot_make_are_left_out_before_anything_is_made(biased, tmp_path: Path):
    asked = study(methods=("dm", "dsa"), debias=("none",), surrogates=("method", "dfa:steps=1,count=1"), seeds=1)
    made = {(cell.method, cell.surrogates) for cell in asked.fitting(biased)}
    assert made == {("dm", "method"), ("dm", "dfa:steps=1,count=1"), ("dsa", "method")}
    for wrong in ({"surrogates": ("dfq",)}, {"training": ("dfq",)}, {"methods": ("dm", "dmm")}, {"debias": ("kdee",)}):
        with pytest.raises(InputError, match="Did you mean"):
            study(**wrong).run(biased, tmp_path)
    assert not any(tmp_path.iterdir())


def test_choices_that_leave_nothing_to_make_are_refused(biased) -> None:
    nothing = study(methods=("mtt",), debias=("none",), surrogates=("dfa",), hyper={})
    with pytest.raises(InputError, match="None of these choices go together"):
        nothing.fitting(biased)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--dataset", "digits"], "bias labels, which digits has not: take bg-fmnist, ccifar10"),
        (["--dataset", "cmnist:base=digits,ratio=0.1"], "Give the ratio as --ratio 0.1"),
        (["--debias", "none:draw=true"], "'none' has no options"),
        (["--methods", "dm", "--set", "dm.ipc=4"], "dm has no hyper-parameter 'ipc'"),
        (["--methods", "dm", "--set", "dm.init=noise"], "give it as inits=['noise'], or --init noise"),
        (["--methods", "dm", "--set", "dm=3", "dm.steps=5"], "leave one out"),
        (["--methods", "dm", "--set", "dm.steps=5", "dm=3"], "leave one out"),
        (["--methods", "dm", "--set", "steps=3", "steps=4"], "steps is given twice"),
        (["--methods"], "Nothing was given for --methods"),
    ],
)
def test_what_the_command_cannot_cross_is_one_sentence(given, message, tmp_path: Path, capsys) -> None:
    if "--dataset" not in given:
        given = ["--dataset", "cmnist:base=digits,train=200", *given]
    assert main(["study", "debias", *given, "--out", str(tmp_path / "s")]) == 2
    assert message in capsys.readouterr().err


def test_the_record_of_another_cell_is_refused(biased, tmp_path: Path) -> None:
    small = study(methods=("random",), debias=("none", "oracle"), seeds=1, hyper={})
    small.run(biased, tmp_path)
    plain, weighted = sorted((tmp_path / "cells").glob("*.json"))
    sound = plain.read_bytes()
    plain.write_bytes(weighted.read_bytes())
    with pytest.raises(InputError, match="record of another cell; remove it"):
        small.run(biased, tmp_path)
    plain.write_bytes(sound[:100])
    with pytest.raises(InputError, match=f"Remove {plain}"):
        small.run(biased, tmp_path)
    plain.unlink()
    small.run(biased, tmp_path)
    assert plain.read_bytes()[:20] == sound[:20]


def test_two_ways_that_differ_in_the_draw_alone_have_two_names() -> None:
    cells = study(debias=("kde", "kde:draw=true"), methods=("dm",), seeds=1).cells()
    assert [described(cell.record) for cell in cells] == ["dm, kde", "dm, kde:draw=true"]


def test_experts_of_a_study_follow_the_choice_of_surrogates():
    cells = study(methods=("mtt",), debias=("none", "kde"), surrogates=("method", "dfa", "selecmix"), seeds=1).cells()
    assert [(c.debias, c.values.get("expert_policy"), c.own_surrogates) for c in cells] == [
        ("none", None, "method"),
        ("kde", None, "method"),
        ("none", "selecmix", "method"),
    ]


def test_a_set_is_made_once_for_all_trainings_and_scores_belong_to_their_test_images(biased, tmp_path: Path):
    asked = study(methods=("dm",), debias=("none",), training=("plain", "selecmix:steps=2"), seeds=1)
    first, second = asked.run(biased, tmp_path)
    assert first["set"] == second["set"]
    assert len(list((tmp_path / "sets").iterdir())) == 1
    assert first["accuracies"] != second["accuracies"]
    fewer = datastill.load_real("cmnist:base=digits,ratio=0.1,train=200,test=100,severity=1")
    assert fewer.fingerprint == biased.fingerprint
    asked.run(fewer, tmp_path)
    assert len(list((tmp_path / "cells").iterdir())) == 4
    assert len(list((tmp_path / "sets").iterdir())) == 1


def test_pictures_of_a_study(biased, tmp_path: Path):
    from datastill.experiments.debias_pictures import tiled, write_pictures

    records = study().run(biased, tmp_path)
    pictures = write_pictures(records, rows(records), tmp_path)
    assert [path.name for path in pictures] == ["accuracy.png", "images.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in pictures)
    made = datastill.load_distilled(tmp_path / records[0]["set"])
    assert tiled(made).shape == (3, 10 * 10, 10)  # a row for each class, a white edge around each image
    assert torch.equal(tiled(made)[:, 11:19, 1:9], made.pixels.clamp(0, 1)[1])

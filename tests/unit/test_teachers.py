"""Teachers: trained, saved, read, brought, and refused."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from datastill import distill
from datastill.core.errors import InputError
from datastill.core.rng import isolated
from datastill.core.space import Space, normalized
from datastill.surrogates.teachers import Brought, Squeeze, Teacher, load_teacher
from datastill.surrogates.teachers.bring import bring_teacher, read_weights, space_from
from decoupled_data import NETWORK, digits, prepared, task_of, teacher


def test_squeeze_is_a_function_of_its_key_and_learns():
    again = Squeeze(12, batch=64).run(task_of(digits()))
    first = prepared()
    assert all(torch.equal(first[n], again[n]) for n in first if n.startswith("weight/"))
    assert float(first["trial"]) > 0.9
    made = teacher()
    assert not made.network.training
    assert not any(p.requires_grad for p in made.network.parameters())


def test_squeeze_without_batch_norm_is_refused():
    with pytest.raises(InputError, match="no batch norm"):
        Squeeze(1).run(task_of(digits(), "convnet:width=8,depth=2"))


def test_round_trip_is_exact_and_damage_is_seen(tmp_path: Path):
    made = teacher()
    made.save(tmp_path / "t")
    read = load_teacher(tmp_path / "t")
    assert read.id == made.id
    assert read.space == made.space
    assert read.class_names == made.class_names
    x = digits().batch(torch.arange(5)).x
    assert torch.equal(read.network(x), made.network(x))
    record = json.loads((tmp_path / "t" / "teacher.json").read_text())
    (tmp_path / "t" / "teacher.json").write_text(json.dumps({**record, "classes": record["classes"][::-1]}))
    with pytest.raises(InputError, match="changed or damaged"):
        load_teacher(tmp_path / "t")
    with pytest.raises(InputError, match="holds no teacher"):
        load_teacher(tmp_path)


def test_classes_in_another_order_are_found_by_name():
    made = teacher()
    names = made.class_names[::-1]
    seen = made.seen_from(made.space, names)
    x = digits().batch(torch.arange(7)).x
    assert torch.equal(seen(x), made.network(x).flip(1))
    few = made.seen_from(made.space, made.class_names[2:4])
    assert torch.equal(few(x), made.network(x)[:, 2:4])
    with pytest.raises(InputError, match="does not know the class 'ten'"):
        made.seen_from(made.space, ("ten",))


def test_teacher_with_shuffled_classes_is_refused_with_the_likely_cause():
    made = teacher()
    wrong = Teacher(made.network, made.space, made.class_names[::-1], made.channels, made.size)
    with pytest.raises(InputError, match="classes are in another order"):
        wrong.check(digits(), torch.device("cpu"))
    with pytest.raises(InputError, match="another order"):
        Brought(wrong).run(task_of(digits()))


def test_teacher_of_another_space_sees_its_own_numbers():
    made, real = teacher(), digits()
    raw = real.with_space(Space())
    x = real.batch(torch.arange(6))
    seen = made.seen_from(raw.space, made.class_names)
    torch.testing.assert_close(seen(raw.batch(torch.arange(6)).x), made.network(x.x), atol=1e-4, rtol=1e-4)
    assert made.check(raw, torch.device("cpu")) > 0.9


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", ["safetensors", "pt", "checkpoint"])
def test_weights_files_of_users(tmp_path: Path, kind: str, wrapped: bool):
    from safetensors.torch import save_file

    made = teacher()
    weights = {("module." if wrapped else "") + n: t.clone() for n, t in made.network.state_dict().items()}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights if kind == "pt" else {"state_dict": weights, "epoch": 3}, path)
    brought = bring_teacher(digits(), NETWORK, path)
    x = digits().batch(torch.arange(4)).x
    assert torch.equal(brought.network(x), made.network(x))


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.module.", "module._orig_mod.", "net.", "backbone.", "model.student.", ""]
)
def test_wrappers_and_what_lies_beside_weights_are_taken_off_and_told(tmp_path: Path, prefix: str) -> None:
    """Compiled and parallel wrappers, losses with weights of their own, profilers, counters, numpy's scalars."""
    made = teacher()
    weights = {prefix + n: t.clone() for n, t in made.network.state_dict().items()}
    beside = {"criterion.weight": torch.ones(10), f"{prefix}total_ops": torch.zeros(1), "n_averaged": torch.tensor(3)}
    stored = {"model": {**weights, **beside, "epoch": 7}, "best": np.float64(0.9), "args": {"lr": 0.1}}
    torch.save(stored, tmp_path / "w.pt")
    brought = bring_teacher(digits(), NETWORK, tmp_path / "w.pt")
    assert torch.equal(*(t.network(digits().batch(torch.arange(4)).x) for t in (brought, made)))
    told = brought.record["origin"]["names"]
    assert "passing over" in told
    assert (f"without the prefix {prefix!r}" in told) == bool(prefix)


def test_weights_that_are_not_finite_are_named_before_the_order_of_classes():
    spoilt = copy.deepcopy(teacher().network)
    next(spoilt.parameters()).data[0] = float("nan")
    with pytest.raises(InputError, match="weights that are not finite"):
        replace(teacher(), network=spoilt).check(digits(), torch.device("cpu"))


def test_weights_of_two_networks_and_of_a_deeper_one_are_refused(tmp_path: Path) -> None:
    weights = {n: t.clone() for n, t in teacher().network.state_dict().items()}
    torch.save({f"{who}.{n}": t for who in ("student", "ema") for n, t in weights.items()}, tmp_path / "two.pt")
    with pytest.raises(InputError, match="several networks"):
        bring_teacher(digits(), NETWORK, tmp_path / "two.pt")
    torch.save(
        {f"net.{n}": t for n, t in {**weights, "layer9.weight": torch.zeros(3, 3)}.items()}, tmp_path / "deep.pt"
    )
    with pytest.raises(
        InputError, match=r"have 'layer9.weight', which the network has not \(without the prefix 'net.'"
    ):
        bring_teacher(digits(), NETWORK, tmp_path / "deep.pt")


def test_hostile_or_foreign_weights_are_refused(tmp_path: Path):
    torch.save(nn.ReLU(), tmp_path / "module.pt")  # a pickled module is code
    with pytest.raises(InputError, match="weights alone"):
        read_weights(tmp_path / "module.pt")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    with pytest.raises(InputError, match="no named weights"):
        read_weights(tmp_path / "numbers.pt")
    with pytest.raises(InputError, match="no weights file"):
        read_weights(tmp_path / "absent.pt")
    torch.save({"other.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="do not fit"):
        bring_teacher(digits(), NETWORK, tmp_path / "other.pt")


def test_pixels_in_words():
    real = digits()
    assert space_from(None, real) == real.space
    assert space_from("raw", real) == Space()
    assert space_from(".5/.25", real) == normalized((0.5,), (0.25,))
    with pytest.raises(InputError, match="channels"):
        space_from("cifar10", real)
    with pytest.raises(InputError, match="mean/std"):
        space_from("usual", real)


def test_wrong_size_is_told():
    with isolated(0):
        made = Teacher(nn.Sequential(nn.Conv2d(1, 2, 3)), Space(), ("a", "b"), 1, (28, 28))
    with pytest.raises(InputError, match="--size"):
        made.check(replace(digits()), torch.device("cpu"))


def test_teacher_travels_to_other_processes_by_name_and_weights():
    made = teacher()
    there = pickle.loads(pickle.dumps(made))
    x = digits().batch(torch.arange(5)).x
    assert torch.equal(there.network(x), made.network(x))
    assert there.id == made.id
    assert not there.network.training
    assert not any(p.requires_grad for p in there.network.parameters())


def test_network_of_a_users_file_recovers_in_other_processes(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self, channels, classes):\n"
        "        super().__init__(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),\n"
        "                         nn.Linear(144, classes))\n"
    )
    spec = f"{file}:Net"
    task = task_of(digits(), spec)
    squeeze = Squeeze(8, batch=64)
    mine = squeeze.teacher(task, squeeze.run(task))
    hyper = {"ipc": 2, "steps": 3, "jitter": 0, "teacher": mine, "network": spec}
    one = distill("sre2l", digits(), **hyper)
    two = distill("sre2l", digits(), out=tmp_path / "run", workers=2, **hyper)
    assert torch.equal(one.images, two.images)


def test_a_teacher_that_was_trained_here_and_learned_nothing_is_to_be_trained_otherwise() -> None:
    asked = {"ipc": 1, "steps": 1, "network": "convnet:width=8,depth=2,norm=batch", "squeeze_passes": 1}
    with pytest.raises(InputError, match="train it for longer"):
        distill("sre2l", "digits", squeeze_lr=1e-6, **asked)

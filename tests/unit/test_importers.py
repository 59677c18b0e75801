"""Sets that others released: read exactly, scored in one line, hostile and damaged files refused without running."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datastill import evaluate, import_released, load_distilled, load_real
from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.core.space import Space, normalized
from datastill.data.real import RealSet
from datastill.evaluation.protocols import Protocol
from datastill.exchange import read_released
from datastill.sampling.inits import random_indices
from datastill.store.pt_reader import read_pt

TINY = Protocol("tiny", "three passes", passes=3, drop_after=2)
NET = "convnet:width=4,depth=1"
CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def real() -> RealSet:
    """Three classes of 6x5 color images."""
    generator = Rng(1).generator("images")
    y = torch.arange(3).repeat_interleave(8)
    x = (torch.rand(24, 3, 6, 5, generator=generator) * 0.4 + 0.2 * y.view(-1, 1, 1, 1)).clamp(0, 1)
    return load_real(((x, y), (x.flip(3), y)), class_names=CLASSES)


def images(ipc: int = 2, shape: tuple[int, ...] = (3, 6, 5), seed: int = 0, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Synthetic images as if normalized, and their labels."""
    x = torch.randn(classes * ipc, *shape, generator=Rng(seed).generator("released"))
    return x, torch.arange(classes).repeat_interleave(ipc)


def dc_file(path: Path, experiments: int = 2, **save: Any) -> list[tuple[Tensor, Tensor]]:
    """As the codes of DC, DSA and DM save their result: numpy scalars among the accuracies."""
    pairs = [images(seed=k) for k in range(experiments)]
    accuracies = {"ConvNet": [np.float64(0.25), np.float64(0.75)], "MLP": [np.float32(0.5)], "odd": [np.nan]}
    torch.save({"data": [[x, y] for x, y in pairs], "accs_all_exps": accuracies}, path, **save)
    return pairs


def mtt_folder(folder: Path, y: Tensor | None = None, lr: Any = None) -> Tensor:
    folder.mkdir(parents=True, exist_ok=True)
    x, hard = images()
    torch.save(x, folder / "images_best.pt")
    torch.save(hard if y is None else y, folder / "labels_best.pt")
    if lr is not None:
        torch.save(lr, folder / "lr_best.pt")
    return x


class TestReading:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_experiments_are_exact_and_accuracies_are_read(self, tmp_path, zipped):
        pairs = dc_file(tmp_path / "res_DM.pt", _use_new_zipfile_serialization=zipped)
        found = read_released(tmp_path / "res_DM.pt")
        assert found.format == "dc"
        for (x, y), (read_x, read_y) in zip(pairs, found.experiments, strict=True):
            assert torch.equal(x, read_x)
            assert torch.equal(y, read_y)
        assert found.claimed == {"ConvNet": {"mean": 0.5, "count": 2}, "MLP": {"mean": 0.5, "count": 1}}
        assert len(found.files["res_DM.pt"]) == 64

    @pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_])
    @pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
    def test_numpy_scalars_of_either_major_version(self, tmp_path, kind, module):
        value = kind(1.5) if np.issubdtype(kind, np.floating) else kind(1)
        data = pickle.dumps([value], protocol=2).replace(b"numpy._core.multiarray", module.encode())
        (tmp_path / "a.pt").write_bytes(_legacy(data))
        assert read_pt(tmp_path / "a.pt").value == [value.item()]

    def test_what_others_allowed_does_not_count_and_stays(self, tmp_path):
        torch.save({"data": np.arange(3)}, tmp_path / "a.pt")
        allowed = [np.ndarray, np._core.multiarray._reconstruct, np.dtype, np.dtypes.Int64DType]
        with torch.serialization.safe_globals(allowed):
            before = set(torch.serialization.get_safe_globals())
            with pytest.raises(InputError, match="_reconstruct"):
                read_pt(tmp_path / "a.pt")
            assert set(torch.serialization.get_safe_globals()) == before

    def test_mtt_folder_file_and_rate(self, tmp_path):
        x = mtt_folder(tmp_path / "mtt", lr=torch.tensor(0.02))
        for path in (tmp_path / "mtt", tmp_path / "mtt" / "images_best.pt"):
            found = read_released(path)
            assert found.format == "mtt"
            assert torch.equal(found.experiments[0][0], x)
            assert found.lr == pytest.approx(0.02)
            assert set(found.files) == {"images_best.pt", "labels_best.pt", "lr_best.pt"}
        assert read_released(tmp_path / "mtt", syn_lr=0.5).lr == 0.5
        given = read_released(tmp_path / "mtt", labels=[2, 2, 1, 1, 0, 0])
        assert given.experiments[0][1].tolist() == [2, 2, 1, 1, 0, 0]
        with pytest.raises(InputError, match="above 0"):
            read_released(tmp_path / "mtt", syn_lr=-1.0)

    def test_a_pair_in_a_list_or_a_dict(self, tmp_path):
        x, y = images()
        for k, value in enumerate(([x, y], {"data": x, "target": y.tolist()}, {"images": x, "labels": y.view(-1, 1)})):
            torch.save(value, tmp_path / f"{k}.pt")
            found = read_released(tmp_path / f"{k}.pt")
            assert found.format == "pair"
            assert torch.equal(found.experiments[0][0], x)
            assert torch.equal(found.experiments[0][1], y)


def _legacy(pickled: bytes) -> bytes:
    """torch's format before zip files: magic number, protocol, system, the object, no storages."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    return b"".join(pickle.dumps(part, protocol=2) for part in head) + pickled + pickle.dumps([], protocol=2)


class Evil:
    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


class Holder:
    """A class that only this file knows."""

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("the file's own code ran")


class TestHostile:
    @pytest.mark.parametrize("place", ["top", "accuracies", "label"])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_pickle_that_runs_code_is_refused_and_does_not_run(self, tmp_path, place, zipped):
        x, y = images()
        evil = Evil(tmp_path / "owned")
        value = {
            "top": evil,
            "accuracies": {"data": [[x, y]], "accs_all_exps": evil},
            "label": {"data": [[x, evil]], "accs_all_exps": {}},
        }[place]
        torch.save(value, tmp_path / "res.pt", _use_new_zipfile_serialization=zipped)
        (tmp_path / "bare.pt").write_bytes(pickle.dumps(value, protocol=2))
        with pytest.raises(InputError):
            read_pt(tmp_path / "bare.pt")
        with pytest.raises(InputError, match=r"res\.pt asks to load '\w+\.mkdir'.*nothing in it was run"):
            import_released(tmp_path / "res.pt", data="digits", space="raw")
        assert not (tmp_path / "owned").exists()

    def test_labels_and_rate_files_are_read_the_same_way(self, tmp_path):
        for name in ("labels_best.pt", "lr_best.pt"):
            mtt_folder(tmp_path / name, lr=0.1)
            torch.save(Evil(tmp_path / "owned"), tmp_path / name / name)
            with pytest.raises(InputError, match="mkdir"):
                read_released(tmp_path / name)
        assert not (tmp_path / "owned").exists()

    def test_objects_modules_and_functions_are_refused_by_name(self, tmp_path):
        holder = Holder()
        holder.x = 1
        for value, named in (
            ({"data": holder}, "Holder"),
            (nn.Sequential(nn.Flatten()), "Sequential"),
            ({"data": [], "f": images}, "images"),
            ({"accs_all_exps": np.arange(3.0)}, "numpy"),
            ({"accs_all_exps": np.array(["text"])[0]}, None),
        ):
            torch.save(value, tmp_path / "a.pt")
            with pytest.raises(InputError, match=named or "a.pt"):
                read_pt(tmp_path / "a.pt")

    def test_the_stand_ins_refuse_what_is_no_number(self, tmp_path):
        for code in (b"X\x01\x00\x00\x00O", b"X\x03\x00\x00\x00V9x", b"K\x07", b"]"):
            pickled = b"\x80\x02cnumpy\ndtype\n" + code + b"\x85R."
            (tmp_path / "a.pt").write_bytes(_legacy(pickled))
            with pytest.raises(InputError, match="not a sound"):
                read_pt(tmp_path / "a.pt")

    def test_a_tensor_that_claims_more_than_the_file_holds(self, tmp_path):
        torch.save([torch.zeros(1).expand(10**9, 3, 32, 32), torch.zeros(3)], tmp_path / "a.pt")
        with pytest.raises(InputError, match="more than the file holds"):
            read_released(tmp_path / "a.pt")

    def test_tensors_that_are_not_dense(self, tmp_path):
        for odd in (torch.eye(3).to_sparse(), torch.empty(6, 3, 6, 5, device="meta")):
            torch.save([odd, images()[1]], tmp_path / "a.pt")
            with pytest.raises(InputError, match="not an ordinary dense tensor"):
                read_released(tmp_path / "a.pt")

    def test_damaged_files(self, tmp_path):
        dc_file(tmp_path / "whole.pt")
        whole = (tmp_path / "whole.pt").read_bytes()
        for length in (0, 1, 100, len(whole) // 2, len(whole) - 10):
            (tmp_path / "cut.pt").write_bytes(whole[:length])
            with pytest.raises(InputError, match=r"cut\.pt is not a sound \.pt file"):
                read_pt(tmp_path / "cut.pt")
        (tmp_path / "cut.pt").write_text("an error page")
        with pytest.raises(InputError, match="not a sound"):
            read_pt(tmp_path / "cut.pt")
        with pytest.raises(InputError, match="does not exist"):
            read_pt(tmp_path / "none.pt")


class TestContents:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x, y: (x * float("nan"), y), "540 numbers that are NaN"),
            (lambda x, y: (x.double() * 1e200, y), "NaN or infinite"),
            (lambda x, y: (x.flatten(1), y), "channels, height, width"),
            (lambda x, y: (x.byte(), y), "uint8"),
            (lambda x, y: (x[:0], y[:0]), "channels, height, width"),
            (lambda x, y: (x, y[:4]), "6 images and 4 labels"),
            (lambda x, y: (x, y + 0.5), "whole class numbers"),
            (lambda x, y: (x, y.float() / 0), "NaN or infinite"),
            (lambda x, y: (x, torch.randn(6, 3, generator=Rng(0).generator("y"))), "sum to 1"),
            (lambda x, y: (x, y.view(6, 1, 1)), "one label per image"),
            (lambda x, y: (x, "cats"), "not a tensor"),
        ],
    )
    def test_images_and_labels_that_are_none(self, tmp_path, change, message):
        torch.save(list(change(*images())), tmp_path / "a.pt")
        with pytest.raises(InputError, match=message):
            read_released(tmp_path / "a.pt")

    def test_other_contents(self, tmp_path):
        for value, message in (
            ({"state_dict": {}}, "a dict with 'state_dict'"),
            ({"data": [], "accs_all_exps": {}}, "no finished experiment"),
            (7, "holds a int"),
        ):
            torch.save(value, tmp_path / "a.pt")
            with pytest.raises(InputError, match=message):
                read_released(tmp_path / "a.pt")
        torch.save(images()[0], tmp_path / "a.pt")
        with pytest.raises(InputError, match="images alone"):
            read_released(tmp_path / "a.pt")
        with pytest.raises(InputError, match=r"no images_best\.pt; name one of its files"):
            read_released(tmp_path)
        dc_file(tmp_path / "a.pt")
        with pytest.raises(InputError, match="labels of its own"):
            read_released(tmp_path / "a.pt", labels=[1])


class TestImport:
    def test_pixels_are_exact_and_the_manifest_says_where_from(self, tmp_path, real):
        pairs = dc_file(tmp_path / "res_DM_toys.pt", 3)
        one = import_released(tmp_path / "res_DM_toys.pt", data=real, space="measured", out=tmp_path / "out")
        again = load_distilled(tmp_path / "out")
        for made in (one, again):
            assert torch.equal(made.images, pairs[2][0])
            assert torch.equal(made.targets, pairs[2][1])
            assert made.space == real.space
            assert made.class_names == CLASSES
            assert made.ipc == 2
        assert again.manifest == one.manifest
        assert one.manifest["method"] == "released:res_DM_toys"
        assert one.manifest["imported"]["experiment"] == 2
        sha = one.manifest["imported"]["files"]["res_DM_toys.pt"]
        notes = " ".join(one.manifest["notes"])
        assert sha in notes
        assert "50.00 % (ConvNet, 2 evaluations" in notes
        first = import_released(tmp_path / "res_DM_toys.pt", data=real, space=real.space, select=0)
        assert torch.equal(first.images, pairs[0][0])
        with pytest.raises(InputError, match="already holds"):
            import_released(tmp_path / "res_DM_toys.pt", data=real, space="raw", out=tmp_path / "out")
        with pytest.raises(InputError, match="no experiment 3"):
            import_released(tmp_path / "res_DM_toys.pt", data=real, space="raw", select=3)

    def test_all_experiments_score_as_sets_of_one_method(self, tmp_path, real):
        pairs = dc_file(tmp_path / "res.pt", 3)
        sets = import_released(tmp_path / "res.pt", data=real, space="measured", select="all", out=tmp_path / "out")
        assert [one.manifest["seed"] for one in sets] == [0, 1, 2]
        for k, one in enumerate(sets):
            assert torch.equal(one.images, pairs[k][0])
            assert torch.equal(load_distilled(tmp_path / "out" / str(k)).images, one.images)
        result = evaluate(sets, real, protocol=TINY, networks=1, network=NET)
        assert result.distilled.accuracies.shape == (3, 1)
        assert result.distilled.interval_over == "sets"
        assert not any("other data" in note for note in result.notes)

    def test_a_released_random_selection_scores_as_random_does(self, tmp_path, real):
        """Images, space, labels and pairing are right: the released arm and Random's are one and the same."""
        for k, seed in enumerate((0, 5)):
            batch = real.batch(random_indices(real, 2, seed))
            torch.save({"data": [[batch.x, batch.y]], "accs_all_exps": {}}, tmp_path / f"{k}.pt")
            one = import_released(tmp_path / f"{k}.pt", data=real, space="measured", network=NET, seed=seed)
            result = evaluate(one, real, protocol="dsa-quick-v1", networks=2)
            assert torch.equal(result.distilled.accuracies, result.random.accuracies)

    def test_mtt_scores_in_one_line_and_keeps_its_rate(self, tmp_path, real):
        x = mtt_folder(tmp_path / "mtt", lr=0.03)
        one = import_released(tmp_path / "mtt", data=real, space="zca", network=NET, name="MTT run")
        assert torch.equal(one.images, x)
        assert one.manifest["student"] == {"protocol": "dc-v1-dsa", "lr": 0.03}
        assert one.manifest["method"] == "released:MTT-run"
        result = evaluate(one, real, protocol=TINY, networks=2)
        assert result.distilled.accuracies.shape == (1, 2)
        assert result.random is not None
        one.save(tmp_path / "saved")
        assert load_distilled(tmp_path / "saved").space == one.space

    def test_soft_labels(self, tmp_path, real):
        soft = torch.eye(3)[images()[1]] * 0.7 + 0.1
        mtt_folder(tmp_path / "mtt", soft)
        one = import_released(tmp_path / "mtt", data=real, space="raw", network=NET)
        assert one.manifest["labels"] == "soft"
        assert one.ipc == 2
        assert torch.equal(one.targets, soft)
        assert evaluate(one, real, protocol=TINY, networks=1).distilled.accuracies.shape == (1, 1)
        mtt_folder(tmp_path / "hot", torch.eye(3)[images()[1]])
        assert torch.equal(import_released(tmp_path / "hot", data=real, space="raw").targets, images()[1])
        mtt_folder(tmp_path / "four", torch.full((6, 4), 0.25))
        with pytest.raises(InputError, match="4 classes and arrays has 3"):
            import_released(tmp_path / "four", data=real, space="raw")

    def test_labels_are_those_of_the_source(self, tmp_path, real):
        x, y = real.pixels(torch.arange(24)), torch.tensor([10, 20, 40])[real.labels]
        other = load_real((x, y), holdout=0.2)
        torch.save([images()[0], torch.tensor([10, 20, 40]).repeat_interleave(2)], tmp_path / "a.pt")
        assert import_released(tmp_path / "a.pt", data=other, space="raw").targets.tolist() == [0, 0, 1, 1, 2, 2]

    def test_classes_and_shapes_that_do_not_fit(self, tmp_path, real):
        x, _ = images()
        for pair, message in (
            (images(classes=5), "run from 0 to 4 in 5 classes, and arrays has 3 classes"),
            (images(shape=(1, 6, 5)), r"\(1, 6, 5\).*\(3, 6, 5\)"),
            ((x, torch.tensor([0, 0, 0, 1, 1, 2])), "1 images of class 'owl' and 3 of 'cat'"),
            ((x, torch.tensor([0, 0, 0, 1, 1, 1])), "0 images of class 'owl'"),
        ):
            torch.save(list(pair), tmp_path / "a.pt")
            with pytest.raises(InputError, match=message):
                import_released(tmp_path / "a.pt", data=real, space="raw")


class TestSpace:
    def test_it_must_be_stated(self, tmp_path, real):
        dc_file(tmp_path / "a.pt")
        low, high = (float(getattr(images(seed=1)[0], f)()) for f in ("min", "max"))
        with pytest.raises(InputError, match="not stated") as told:
            import_released(tmp_path / "a.pt", data=real)
        for word in ("conventional", "raw", "zca", "measured", f"from {low:.3g} to {high:.3g}", "more than raw"):
            assert word in str(told.value)
        torch.save([images()[0].sigmoid(), images()[1]], tmp_path / "b.pt")
        with pytest.raises(InputError, match="as raw pixels do"):
            import_released(tmp_path / "b.pt", data=real)
        for unclear in ("auto", "normalized", "whitened"):
            with pytest.raises(InputError, match="no space"):
                import_released(tmp_path / "a.pt", data=real, space=unclear)

    def test_conventional_constants_are_of_a_named_set(self, tmp_path, real):
        dc_file(tmp_path / "a.pt")
        with pytest.raises(InputError, match=r"no published constants for 'arrays'.*cifar10"):
            import_released(tmp_path / "a.pt", data=real, space="conventional")
        one = import_released(tmp_path / "a.pt", data=real, space="conventional:cifar10")
        assert one.space.mean == (0.4914, 0.4822, 0.4465)
        assert one.space.source == "conventional"
        with pytest.raises(InputError, match="channels"):
            import_released(tmp_path / "a.pt", data=real, space=normalized((0.5,), (0.5,)))

    def test_raw_images_can_be_turned_into_another_space(self, tmp_path, real):
        x, y = images()[0].sigmoid(), images()[1]
        torch.save([x, y], tmp_path / "a.pt")
        kept = import_released(tmp_path / "a.pt", data=real, space="raw")
        assert torch.equal(kept.images, x)
        assert kept.space == Space()
        assert kept.manifest["imported"]["outside_pixel_range"] == 0
        turned = import_released(tmp_path / "a.pt", data=real, space="raw", into="measured")
        assert turned.space == real.space
        assert torch.allclose(turned.pixels, x, atol=1e-6)
        assert any("turned from raw into normalized" in note for note in turned.manifest["notes"])

    def test_zca_is_that_of_the_released_codes(self, tmp_path, real):
        x, y = images()
        torch.save([x, y], tmp_path / "a.pt")
        space = import_released(tmp_path / "a.pt", data=real, space="zca").space
        pixels = real.pixels(torch.arange(24)).double().flatten(1)
        cov = torch.from_numpy(np.cov(pixels.numpy().T))  # divided by n - 1
        values, vectors = torch.linalg.eigh(cov + 0.1 * torch.eye(90, dtype=torch.float64))
        expected = (pixels - pixels.mean(0)) @ (vectors * values.rsqrt()) @ vectors.T
        encoded = space.encode(real.pixels(torch.arange(24)))
        assert torch.allclose(encoded.flatten(1).double(), expected, atol=1e-4)
        assert torch.allclose(space.decode(encoded), real.pixels(torch.arange(24)), atol=1e-5)
        assert import_released(tmp_path / "a.pt", data=real, space="zca").space.id == space.id
        with pytest.raises(InputError, match="above 0"):
            import_released(tmp_path / "a.pt", data=real, space="zca", zca_eps=0.0)

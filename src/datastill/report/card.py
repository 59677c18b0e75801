"""The README.md of an artifact or export: a Hugging Face dataset card."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datastill.core.overrides import recorded
from datastill.report import reproduce, words
from datastill.report.pictures import png, preview
from datastill.report.words import code
from datastill.report.words import markdown as md
from datastill.store.artifact import DistilledSet
from datastill.store.files import write_bytes, write_text

if TYPE_CHECKING:
    from datastill.evaluation.scores import Arm, Evaluation

CARD, PICTURE = "README.md", "preview.png"

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
    "parquet": (
        "python",
        """from datasets import load_dataset

data = load_dataset("path/of/this/folder", split="train")
# or datastill.load_real("path/of/this/folder", holdout=0)""",
    ),
    "tensors": (
        "python",
        """from safetensors.torch import load_file

tensors = load_file("path/of/this/folder/images.safetensors")
images, labels = tensors["images"], tensors["labels"]  # images in the Space below""",
    ),
}


def card(
    distilled: DistilledSet,
    evaluation: Evaluation | None = None,
    *,
    layout: str = "artifact",
    notes: Sequence[str] = (),
) -> str:
    """The card of a distilled set, in Markdown with the front matter of the Hugging Face Hub.

    Args:
        evaluation: its numbers, with Random beside them.
        layout: what the folder holds: "artifact", or the format of an export.
        notes: sentences to add, one each.
    """
    manifest = distilled.manifest
    count = len(distilled.targets)
    data = manifest["data"]
    parts = [
        _front(distilled, layout, count),
        f"# {md(manifest['method'])} on {md(data['name'])}: {words.images(distilled)}, {distilled.ipc} per class",
        f"![The images, class by class]({PICTURE})" if layout == "artifact" else "",
        f"A distilled data set: {count:,} {words.kind_of_images(manifest)} images to train networks on in place of the "
        f"{_count(data.get('images'))} training images of {md(data['name'])} in {len(distilled.class_names)} classes.",
        _results(evaluation),
        "## Load it\n\n" + _fence(*_LOADING[layout]),
        *([f"- {md(note)}" for note in notes] if notes else []),
        _made(distilled),
        _again(manifest, evaluation, layout),
        _data(manifest),
        "## License\n\nThe images derive from real ones: the license and the terms of use of "
        f"{md(data['name'])} apply to them too. Distillation is not anonymisation; an image may resemble a real one.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_card_and_preview(
    distilled: DistilledSet, folder: str | Path, evaluation: Evaluation | None = None
) -> tuple[Path, Path]:
    """Write README.md and preview.png into an artifact's folder, each whole or not at all."""
    folder = Path(folder)
    text, picture = card(distilled, evaluation), png(preview(distilled))
    write_bytes(folder / PICTURE, picture)
    if not (folder / CARD).is_file() or "datastill" in (folder / CARD).read_text(encoding="utf-8", errors="replace"):
        write_text(folder / CARD, text)
    else:
        warnings.warn(f"{folder / CARD} is not a card of datastill and stays as it is.", stacklevel=3)
    return folder / CARD, folder / PICTURE


def _front(distilled: DistilledSet, layout: str, count: int) -> str:
    manifest = distilled.manifest
    size = next(
        (name for limit, name in ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K")) if count < limit),
        "100K<n<1M",
    )
    tags = ["datastill", "dataset-distillation", "dataset-condensation", _tag(manifest["method"])]
    tags += ["synthetic"] if words.kind_of_images(manifest) == "synthetic" else ["coreset"]
    lines = [
        "---",
        f"pretty_name: {json.dumps(distilled.name)}",
        "license: other",
        "license_name: as-the-source-data",
        "task_categories:",
        "- image-classification",
        "tags:",
        *(f"- {tag}" for tag in dict.fromkeys(tags) if tag),
        "size_categories:",
        f"- {size}",
    ]
    if layout == "parquet":
        lines += ["configs:", "- config_name: default", "  data_files:", "  - split: train"]
        lines += ["    path: data/train-*"]
    elif layout != "imagefolder":
        lines.append("viewer: false")
    return "\n".join([*lines, "---"])


def _results(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return ""
    arms = [arm for arm in (evaluation.distilled, evaluation.random, evaluation.ceiling) if arm is not None]
    sets, networks = evaluation.distilled.accuracies.shape
    biased = evaluation.distilled.groups is not None
    more = (" aligned | conflicting |", "---:|---:|") if biased else ("", "")
    lines = [
        "## Results",
        "",
        f"**{md(evaluation.verdict)}**",
        "",
        "| trained on | test accuracy, % | std over networks | std over sets | seconds |" + more[0],
        "|---|---:|---:|---:|---:|" + more[1],
        *(_row(arm, biased) for arm in arms),
        "",
        f"Protocol `{code(evaluation.protocol)}`: {words.plural(sets, 'set')}"
        f"{', of which this is one,' if sets > 1 else ''} × {words.plural(networks, 'fresh network')} "
        f"({md(words.describe_network(evaluation.network))}), {_trained(evaluation)}; "
        f"± is the half-width of a 95 % interval over {evaluation.distilled.interval_over}."
        + (_BIASED if biased else ""),
    ]
    return "\n".join(lines)


def _trained(evaluation: Evaluation) -> str:
    """How networks were trained where it is not as the protocol says, and when they were scored."""
    if evaluation.training is None:
        return "scored once after the last pass"
    whole = " but for those on the whole real set" if evaluation.ceiling is not None else ""
    how = f"`{code(words.training(evaluation.training))}`"
    return f"trained by {how} under the protocol's augmentation{whole}, scored once after the last step"


_BIASED = (
    " *Aligned* is the accuracy, in %, on test images with the attribute that most training images of their class "
    "have, *conflicting* on the others."
)


def _row(arm: Arm, biased: bool) -> str:
    cells = [
        md(arm.name),
        words.with_interval(arm.mean, arm.interval),
        words.percent(arm.std_networks),
        words.percent(arm.std_sets),
        f"{arm.seconds:.1f}",
    ]
    if biased:
        split = [None, None] if arm.groups is None else [arm.groups.aligned, arm.groups.conflicting]
        cells += map(words.percent, split)
    return f"| {' | '.join(cells)} |"


def _made(distilled: DistilledSet) -> str:
    manifest = distilled.manifest
    cost = manifest.get("cost", {})
    rows = words.hyper_rows(manifest)
    table = ["| hyper-parameter | value | meaning |", "|---|---|---|"]
    table += [f"| `{code(name)}` | {md(text)} | {md(meaning)} |" for name, text, meaning in rows]
    recipe = manifest.get("recipe", {})
    network = manifest.get("network")
    lines = [
        f"Method `{code(manifest['method'])}`, seed {manifest['seed']}, {md(str(manifest['labels']))} labels"
        + (f", recipe `{code(str(recipe['published'] or recipe['asked']))}`" if recipe else "")
        + (f", matched on {md(words.describe_network(network))}" if network else "")
        + _changed(manifest)
        + ".",
        "\n".join(table) if rows else "It has no hyper-parameters.",
    ]
    if cost and cost.get("known", True):
        versions = ", ".join(f"{name} {number}" for name, number in cost.get("versions", {}).items())
        lines.append(
            f"Cost: {words.plural(cost['steps'], 'image update')} in {words.duration(cost['seconds'])} on "
            f"{md(cost.get('hardware', 'unknown hardware'))}, "
            f"peak memory of the process {words.bytes_(cost.get('peak_memory_bytes', 0))}; {md(versions)}."
        )
    lines += [f"- {md(note)}" for note in manifest.get("notes", [])]
    return "## How it was made\n\n" + "\n\n".join(lines)


def _changed(manifest: Mapping[str, Any]) -> str:
    """What the run changed in its method."""
    said = (kind.phrase(record) for kind, record in reversed(recorded(manifest)))
    return "".join(f"{what} (`{code(how)}`)" for what, how in said)


def _again(manifest: Mapping[str, Any], evaluation: Evaluation | None, layout: str) -> str:
    parts = ["## Make it again", _fence("python", reproduce.python_call(manifest))]
    command = reproduce.command(manifest)
    if command:
        parts += ["or", _fence("sh", command)]
    if evaluation is not None and layout == "artifact":
        parts += ["Its score:", _fence("python", reproduce.evaluate_call(evaluation.to_dict()))]
    return "\n\n".join(parts)


def _data(manifest: Mapping[str, Any]) -> str:
    data = manifest["data"]
    names = [md(name) for name in manifest["classes"]["names"]]
    classes = ", ".join(names[:50]) + (f" and {len(names) - 50} more" if len(names) > 50 else "")
    lines = [
        f"Real set: {md(data['name'])}"
        + (f" (`{code(data['source'])}`)" if data.get("source") else "")
        + f", {_count(data.get('images'))} training and {_count(data.get('test_images'))} test images of "
        f"{md('×'.join(str(n) for n in manifest['shape']))} (channels × height × width), "
        f"fingerprint `{code(str(data.get('fingerprint', '')))}`.",
        f"Classes, in the order of the labels: {classes}.",
        words.describe_space(manifest),
    ]
    lines += [f"- {md(note)}" for note in data.get("notes", [])]
    return "## Data\n\n" + "\n\n".join(lines)


def _count(number: int | None) -> str:
    return f"{number:,}" if number is not None else "an unknown number of"


def _fence(language: str, text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    ticks = "`" * (longest + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"


def _tag(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")

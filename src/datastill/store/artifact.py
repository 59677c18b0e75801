"""A distilled set as a folder: tensors, a manifest, a card, a picture. Never a pickle."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datastill.core.errors import InputError
from datastill.core.plan import Codes, Companion, Decoder
from datastill.core.space import Space
from datastill.store.files import (
    CHECKSUM,
    damaged,
    member,
    read_json,
    read_shapes,
    read_tensors,
    sealed,
    write_json,
    write_tensors,
)
from datastill.store.manifest import FORMAT, VERSION, Manifest, refuse_unfit_space
from datastill.store.opening import refuse_claim, sha256_of, stored_bytes
from datastill.store.schema import SPACE, Kind, Shape

if TYPE_CHECKING:
    from datastill import Exported

TENSORS = "synthetic.safetensors"
MANIFEST = "manifest.json"
#: What the tensors may be: labels are class positions or probabilities.
KINDS = {
    "codes/*": Kind(("F32",), finite=False),  # what they render to is looked at
    "labels": Kind(("I64", "F32"), (1, 2)),
    "extra/classes": Kind(("I64",), (1,)),
    "extra/*": Kind(),
    "space/*": SPACE,
}


@dataclass
class DistilledSet:
    """A distilled set in memory.

    Attributes:
        codes: what was optimised; `images` renders them.
        labels: of the stored images: class positions (n,) int64, or probabilities (n, C).
        space: how `images` relate to pixels.
        manifest: method, hyper-parameters, classes, data, cost and versions; JSON-able.
        extra: further named tensors (`selected`: positions in the real set of the real start; `mixed`: of its tiles;
            `classes`: class positions (n,) beside soft labels; `lr`: the leaf of a learned learning rate).
        companions: what belongs beside the set, by the name of its folder: the `teacher` that labels it. A set that was
            read has none in memory; they lie in `folder`.
        folder: where the set was saved to or read from.
    """

    codes: Codes
    labels: Tensor
    space: Space
    manifest: dict[str, Any]
    extra: dict[str, Tensor] = field(default_factory=dict)
    companions: Mapping[str, Companion] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def images(self) -> Tensor:
        """Rendered images in the Space, (N, c, h, w)."""
        return self._rendered().x

    @property
    def targets(self) -> Tensor:
        """Labels of the rendered images."""
        return self._rendered().y

    def _rendered(self, labels: Tensor | None = None) -> Any:
        with torch.no_grad():
            return decoder_of(self.manifest["decoder"]).decode(self.codes, self.labels if labels is None else labels)

    @property
    def pixels(self) -> Tensor:
        """Rendered images as pixels, clamped to [0, 1]."""
        return self.space.decode(self.images).clamp(0, 1)

    @property
    def hard_labels(self) -> Tensor:
        """Class positions (N,); beside soft labels the class that an image was made for, or else the likeliest."""
        if self.labels.ndim > 1 and "classes" in self.extra:
            return self._rendered(self.extra["classes"]).y
        y = self.targets
        return y if y.ndim == 1 else y.argmax(1)

    @property
    def label_kind(self) -> str:
        """What the labels are: "classes", "probabilities", "logits", "regression" or "pairs"."""
        return str(self.manifest.get("label_kind") or ("classes" if self.labels.ndim == 1 else "probabilities"))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by position."""
        return tuple(self.manifest["classes"]["names"])

    @property
    def ipc(self) -> int:
        """Stored images per class."""
        return int(self.manifest["ipc"])

    @property
    def stored(self) -> int:
        """Stored images n; a decoder that cuts them renders more."""
        return len(self.labels)

    @property
    def name(self) -> str:
        """Method, data and size in a few words."""
        return f"{self.manifest['method']} on {self.manifest['data']['name']}, ipc {self.ipc}"

    def as_dataset(self, pixels: bool = False) -> Dataset[tuple[Tensor, Tensor]]:
        """A torch Dataset of (image, label): images in the Space, or as pixels in [0, 1]."""
        return torch.utils.data.TensorDataset(self.pixels if pixels else self.images, self.targets)  # type: ignore[return-value]

    def export(self, folder: str | Path, format: str = "imagefolder") -> Exported:
        """Write the set for other tools; see `datastill.export`."""
        import datastill

        return datastill.export(self, folder, format)

    def save(self, folder: str | Path) -> Path:
        """Write the artifact; the manifest, which names the tensors' hash, is written last.

        Raises:
            InputError: the folder cannot be written, or holds a manifest that is not of a distilled set.
        """
        folder = Path(folder)
        _refuse_foreign(folder)
        for name, companion in self.companions.items():
            companion.save(folder / name)
        tensors = {f"codes/{n}": t for n, t in self.codes.items()}
        tensors["labels"] = self.labels
        tensors.update({f"extra/{n}": t for n, t in self.extra.items()})
        tensors.update({f"space/{n}": t for n, t in self.space.tensors.items()})
        write_tensors(folder / TENSORS, tensors, {"format": FORMAT})
        manifest = {**self.manifest, "format": FORMAT, "version": VERSION, "space": self.space.to_dict()}
        manifest["files"] = {TENSORS: sha256_of(folder / TENSORS)}
        manifest["files"][MANIFEST] = _own_checksum(manifest)
        write_json(folder / MANIFEST, manifest)
        self.manifest, self.folder = manifest, folder
        return folder


def load_distilled(folder: str | Path) -> DistilledSet:
    """Read an artifact, exactly as it was saved.

    Raises:
        InputError: the folder is not an artifact, or is damaged, or does not agree with its manifest.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise InputError(
            f"{folder} holds no distilled set (no {MANIFEST}); give the folder that `datastill distill --out` made."
        )
    manifest = _checked(read_json(folder / MANIFEST), folder)
    path = folder / TENSORS
    _refuse_claims(path, read_shapes(path), manifest)
    tensors, _ = read_tensors(path, KINDS)
    if sha256_of(path) != manifest["files"][TENSORS]:
        raise InputError(f"{path} is not the file that its manifest describes; it was changed or damaged.")
    groups: dict[str, dict[str, Tensor]] = {"codes": {}, "extra": {}, "space": {}}
    for full, tensor in tensors.items():
        group, _, name = full.partition("/")
        if group in groups:
            groups[group][name] = tensor
    distilled = DistilledSet(
        codes=groups["codes"],
        labels=tensors.get("labels", torch.empty(0)),
        space=Space.from_dict(manifest["space"], groups["space"]),
        manifest=manifest,
        extra=groups["extra"],
        folder=folder,
    )
    _check_shapes(distilled, folder)
    if manifest["files"].get(MANIFEST, known := _own_checksum(manifest)) != known:
        raise damaged(folder / MANIFEST)
    return distilled


def _checked(manifest: Any, folder: Path) -> dict[str, Any]:
    """A manifest of ours, complete, that names no file outside its folder."""
    where = folder / MANIFEST
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{where} is not the manifest of a distilled set.")
    if manifest.get("version") != VERSION:
        raise InputError(
            f"{where} is of version {manifest.get('version')!r}; this datastill reads version {VERSION}: "
            "update datastill."
        )
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise InputError(f"{where} names no files; it is damaged.")
    for name in files:
        member(folder, name)
    needed = ("method", "ipc", "seed", "classes", "space", "decoder", "data", "labels", "cost")
    missing = [name for name in needed if name not in manifest]
    if missing or TENSORS not in files:
        raise InputError(f"{where} is incomplete: {', '.join(missing) or TENSORS} is missing.")
    Manifest.of(manifest, where)
    return manifest


def _refuse_claims(path: Path, shapes: Mapping[str, Shape], manifest: Mapping[str, Any]) -> None:
    """Compare what the tensors are said to be with each other and with the manifest, before any is read.

    Raises:
        InputError: they do not agree, or the decoder would render far more than the file holds.
    """
    where = path.parent / MANIFEST
    labels = shapes.get("labels", Shape("", ()))
    codes = {name.removeprefix("codes/"): shape.sizes for name, shape in shapes.items() if name.startswith("codes/")}
    n, classes = next(iter(labels.sizes), 0), len(manifest["classes"]["names"])
    ipc, rest = divmod(n, classes)
    if rest or ipc != manifest["ipc"]:
        raise InputError(
            f"{where} says {manifest['ipc']} images of each of {classes} classes, and {path} holds {n} labels; the "
            "two do not fit, so the set was changed or damaged."
        )
    if (labels.dtype, len(labels.sizes)) not in (("I64", 1), ("F32", 2)):
        raise InputError(
            f"The labels in {path} are {labels.dtype} of {len(labels.sizes)} dimensions: it is damaged, since labels "
            "are positions (I64 of one dimension) or probabilities (F32 of two)."
        )
    if len(labels.sizes) == 2 and labels.sizes[1] != classes:
        raise InputError(f"The labels in {path} are of {labels.sizes[1]} classes and do not fit {where}: {classes}.")
    if {next(iter(sizes), 0) for sizes in codes.values()} != {n}:
        raise InputError(f"The codes and labels in {path} do not fit together: there is not one label for each image.")
    count, *image = decoder_of(manifest["decoder"]).rendered(codes, ipc, classes)
    if image != manifest["shape"]:
        raise InputError(f"The images in {path} are {image} and do not fit {where}: {manifest['shape']}.")
    refuse_claim(path, 4 * count * math.prod(image), stored_bytes(path), "would be rendered to at most")
    space = {name.removeprefix("space/"): shape.sizes for name, shape in shapes.items() if name.startswith("space/")}
    refuse_unfit_space(where, manifest["space"], space, image)


def _check_shapes(distilled: DistilledSet, folder: Path) -> None:
    """Labels and images as they are, once their shapes are known to agree."""
    y = distilled.labels
    made_for = distilled.extra.get("classes") if y.ndim > 1 else y
    if made_for is not None:
        _refuse_uneven(made_for, len(y), distilled, folder)
    if y.ndim > 1 and (bool((y < 0).any()) or bool(((y.sum(1) - 1).abs() > 1e-2).any())):
        raise InputError(f"The soft labels in {folder} are not probabilities that sum to 1; the set is damaged.")
    try:
        images, targets = distilled.images, distilled.targets
    except (KeyError, RuntimeError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"The tensors in {folder} do not fit its manifest ({error}); it is damaged.") from error
    if len(images) != len(targets) or not bool(torch.isfinite(images).all()):
        raise InputError(f"The images and labels in {folder} do not fit its manifest; it is damaged.")


def _refuse_uneven(made_for: Tensor, stored: int, distilled: DistilledSet, folder: Path) -> None:
    """Every class has as many stored images as the manifest says, since so many are drawn for the Random beside it."""
    names, ipc = distilled.class_names, distilled.ipc
    if made_for.shape != (stored,) or int(made_for.min()) < 0 or int(made_for.max()) >= len(names):
        raise InputError(f"The labels in {folder} do not fit its manifest: it has classes 0 to {len(names) - 1} only.")
    counts = torch.bincount(made_for, minlength=len(names))
    other = int((counts != ipc).to(torch.int8).argmax())
    if int(counts[other]) != ipc:
        raise InputError(
            f"The labels in {folder} do not fit its manifest: it says {ipc} images of each class, and {names[other]!r} "
            f"has {int(counts[other])}; it was changed or damaged."
        )


def decoder_of(record: Mapping[str, Any]) -> Decoder:
    """The decoder that a manifest describes: the class that `datastill.decoders.<name>` exports as DECODER."""
    name = str(record.get("decoder", ""))
    package = importlib.import_module("datastill.decoders")
    if name not in {module.name for module in pkgutil.iter_modules(package.__path__)}:
        raise InputError(f"This datastill has no decoder {name!r}: update datastill.")
    module = importlib.import_module(f"{package.__name__}.{name}")
    if not hasattr(module, "DECODER"):
        raise InputError(f"The manifest's decoder {name!r} is none.")
    options = {key: value for key, value in record.items() if key != "decoder"}
    try:
        return cast("Decoder", module.DECODER(**options))
    except InputError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"The manifest's decoder {name!r} has options that this datastill does not know.") from error


def _refuse_foreign(folder: Path) -> None:
    """Other programs call their files manifest.json too, and none of them is overwritten."""
    try:
        record = read_json(folder / MANIFEST)
    except InputError:
        return
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{folder / MANIFEST} is not of a distilled set; choose another folder to overwrite nothing.")


def _own_checksum(manifest: Mapping[str, Any]) -> str:
    """Over a manifest's content, but for this checksum itself; manifests of older versions have none."""
    files = {name: sha for name, sha in manifest["files"].items() if name != MANIFEST}
    return str(sealed({**manifest, "files": files})[CHECKSUM])

"""A distilled set as a folder: tensors, a manifest, a card, a picture. Never a pickle."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datastill.core.errors import InputError
from datastill.core.plan import Codes, Companion, Synthetic
from datastill.core.space import Space
from datastill.store.agreement import refuse_claims, refuse_disagreement
from datastill.store.files import damaged, member, read_json, read_shapes, read_tensors, write_json, write_tensors
from datastill.store.hub import fetched, hub_name
from datastill.store.manifest import FORMAT, MANIFEST, VERSION, Manifest, checksum_of, refuse_other_format
from datastill.store.opening import sha256_of, sound_path
from datastill.store.rendering import DECODER_FILE, Rendering, bound_decoder, decoder_of, weights_of
from datastill.store.schema import SPACE, Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from datastill import Exported, Pushed

TENSORS = "synthetic.safetensors"
#: What the tensors may be: labels are class positions or probabilities.
KINDS = {
    "codes/blob": Kind(("U8",), (2,)),
    "codes/*": Kind(("F32",), finite=False),  # what they render to is looked at
    "labels": Kind(("I64", "F32"), (1, 2)),
    "extra/classes": Kind(("I64",), (1,)),
    "extra/*": Kind(),
    "space/*": SPACE,
}


@dataclass(repr=False)
class DistilledSet:
    """A distilled set in memory.

    Attributes:
        codes: what was optimized; `images` renders them.
        labels: of the stored images: class positions (n,) int64, or probabilities (n, C).
        space: how `images` relate to pixels.
        manifest: method, hyper-parameters, classes, data, cost and versions; JSON-able. `record` has it typed.
        extra: further named tensors (`selected`: positions in the real set of the real start; `mixed`: of its tiles;
            `classes`: class positions (n,) beside soft labels; `lr`: the leaf of a learned learning rate).
        companions: what belongs beside the set, by the name of its folder: the `teacher` that labels it. A set that was
            read has none in memory; they lie in `folder`.
        folder: where the set was saved to or read from.
        decoder_weights: of a decoder that is a network and is carried along.
        told: that it was read from a copy, which may not be what the Hub has now; "" where that is not so.
    """

    codes: Codes
    labels: Tensor
    space: Space
    manifest: dict[str, Any]
    extra: dict[str, Tensor] = field(default_factory=dict)
    companions: Mapping[str, Companion] = field(default_factory=dict)
    folder: Path | None = None
    decoder_weights: Mapping[str, Tensor] = field(default_factory=dict)
    told: str = ""
    _kept: list[Rendering] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def record(self) -> Manifest:
        """The manifest as a typed record of what it says at this moment.

        Raises:
            InputError: it lacks a key, or one is of another type or range.
        """
        said = {"space": self.space.to_dict(), **self.manifest}
        return Manifest.of(said, f"The manifest of {self.folder or 'this set'}")

    @property
    def images(self) -> Tensor:
        """Rendered images in the Space, (N, c, h, w)."""
        return self.rendered().x

    @property
    def targets(self) -> Tensor:
        """Labels of the rendered images."""
        return self.rendered().y

    def rendered(self, labels: Tensor | None = None) -> Synthetic:
        """Images and labels; `labels` of the stored images stand in for the set's own.

        They are rendered once, and anew where codes, labels or the result have changed since.
        """
        y, decoder = self.labels if labels is None else labels, self.record.decoder.plain()
        of = [*self.codes.values(), y, *self.decoder_weights.values()]
        self._kept = [kept for kept in self._kept if kept.holds()]
        for kept in self._kept:
            if kept.decoder == decoder and len(of) == len(kept.of) and all(a is b for a, b in zip(of, kept.of)):
                return kept.result
        with torch.no_grad():
            result = bound_decoder(decoder, self.decoder_weights, self.space).decode(self.codes, y)
        self._kept = [*self._kept[-1:], Rendering(decoder, of, result)]
        return result

    @property
    def pixels(self) -> Tensor:
        """Rendered images as pixels, clamped to [0, 1]."""
        return self.space.decode(self.images).clamp(0, 1)

    @property
    def hard_labels(self) -> Tensor:
        """Class positions (N,); beside soft labels the class that an image was made for, or else the likeliest."""
        if self.labels.ndim > 1 and "classes" in self.extra:
            return self.rendered(self.extra["classes"]).y
        y = self.targets
        return y if y.ndim == 1 else y.argmax(1)

    @property
    def label_kind(self) -> str:
        """What the labels are: "classes", "probabilities", "logits", "regression" or "pairs".

        Positions are classes; what vectors are, the manifest says, and probabilities where it says nothing of them.
        """
        if self.labels.ndim == 1:
            return "classes"
        told = self.record.label_kind
        return "probabilities" if told == "classes" else told

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by position."""
        return tuple(self.record.classes.names)

    @property
    def ipc(self) -> int:
        """Stored images per class."""
        return self.record.ipc

    @property
    def stored(self) -> int:
        """Stored images n; a decoder that cuts them renders more."""
        return len(self.labels)

    def __repr__(self) -> str:
        method, data = self.manifest.get("method"), (self.manifest.get("data") or {}).get("name")
        codes = ", ".join(f"{name} {'×'.join(map(str, code.shape))}" for name, code in self.codes.items())
        return f"DistilledSet({method} on {data}, ipc {self.manifest.get('ipc')}: {codes})"

    @property
    def name(self) -> str:
        """Method, data and size in a few words."""
        record = self.record
        size = f"{record.ipc} pairs" if self.label_kind == "pairs" else f"ipc {record.ipc}"
        return f"{record.method_in_full} on {record.data.name}, {size}"

    def as_dataset(self, pixels: bool = False) -> Dataset[tuple[Tensor, Tensor]]:
        """A torch Dataset of (image, label): images in the Space, or as pixels in [0, 1]."""
        return torch.utils.data.TensorDataset(self.pixels if pixels else self.images, self.targets)  # type: ignore[return-value]

    def as_dataloader(self, batch_size: int = 256, **options: Any) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches for training code of one's own, augmented if asked for; see `datastill.as_dataloader`."""
        import datastill

        return datastill.as_dataloader(self, batch_size, **options)

    def to_numpy(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels in [0, 1] as rows (N, c * h * w) and labels (N,) or (N, C), as scikit-learn takes them."""
        return self.pixels.flatten(1).numpy(), self.targets.numpy()

    def plot(self) -> Figure:
        """The images as a matplotlib figure; see `datastill.plot`."""
        import datastill

        return datastill.plot(self)

    def _repr_html_(self) -> str:
        import datastill

        return datastill.as_html(self)

    def push_to_hub(self, name: str, **options: Any) -> Pushed:
        """Publish the set on the Hugging Face Hub; see `datastill.push_to_hub`."""
        import datastill

        return datastill.push_to_hub(self, name, **options)

    def export(self, folder: str | Path, format: str = "imagefolder", **options: Any) -> Exported:
        """Write the set for other tools; see `datastill.export`."""
        import datastill

        return datastill.export(self, folder, format, **options)

    def save(self, folder: str | Path) -> Path:
        """Write the artifact; the manifest, which names the tensors' hash, is written last.

        Raises:
            InputError: the folder cannot be written, or holds a manifest that is not of a distilled set; or this set's
                could not be read again.
        """
        folder = Path(folder)
        _refuse_foreign(folder)
        manifest = {**self.manifest, "format": FORMAT, "version": VERSION, "space": self.space.to_dict(), "files": {}}
        Manifest.of_file(manifest, "The manifest of this set")
        for name, companion in self.companions.items():
            companion.save(folder / name)
        tensors = {f"codes/{n}": t for n, t in self.codes.items()}
        tensors["labels"] = self.labels
        tensors.update({f"extra/{n}": t for n, t in self.extra.items()})
        tensors.update({f"space/{n}": t for n, t in self.space.tensors.items()})
        write_tensors(folder / TENSORS, tensors, {"format": FORMAT})
        manifest["files"] = {TENSORS: sha256_of(folder / TENSORS)}
        if self.decoder_weights:
            write_tensors(folder / DECODER_FILE, self.decoder_weights, {"format": FORMAT})
            manifest["files"][DECODER_FILE] = sha256_of(folder / DECODER_FILE)
        manifest["files"][MANIFEST] = checksum_of(manifest)
        write_json(folder / MANIFEST, manifest)
        self.manifest, self.folder = manifest, folder
        return folder


def load_distilled(folder: str | Path) -> DistilledSet:
    """Read an artifact, exactly as it was saved.

    Args:
        folder: that holds it; or "hub:NAME/SET" for one of the Hugging Face Hub, "hub:NAME/SET@REVISION" for one state
            of it, which is fetched into the Hub's own cache and kept there.

    Raises:
        InputError: the folder is not an artifact, or is damaged, or does not agree with its manifest; or the Hub has
            no such set, or does not answer and there is no copy.
    """
    folder, told = fetched(folder) if hub_name(folder) is not None else (sound_path(folder), "")
    if told:
        warnings.warn(told, stacklevel=2)
    if not (folder / MANIFEST).is_file():
        raise InputError(
            f"{folder} holds no distilled set (no {MANIFEST}); give the folder that `datastill distill --out` made."
        )
    manifest, record = _checked(read_json(folder / MANIFEST), folder)
    path, decoder = folder / TENSORS, decoder_of(record.decoder.plain())
    refuse_claims(path, read_shapes(path), record, decoder)
    tensors, _ = read_tensors(path, KINDS, whole=record.files[TENSORS])
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
        decoder_weights=weights_of(decoder, folder, record.files),
        told=told,
    )
    refuse_disagreement(distilled, folder)
    if record.files.get(MANIFEST, known := checksum_of(manifest)) != known:
        raise damaged(folder / MANIFEST)
    return distilled


def _checked(manifest: Any, folder: Path) -> tuple[dict[str, Any], Manifest]:
    """A manifest of ours, complete, that names no file outside its folder."""
    where = folder / MANIFEST
    refuse_other_format(manifest, where)
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise InputError(f"{where} names no files; it is damaged.")
    for name in files:
        member(folder, name)
    needed = ("method", "ipc", "seed", "classes", "space", "decoder", "data", "labels", "cost")
    missing = [name for name in needed if name not in manifest]
    if missing or TENSORS not in files:
        raise InputError(f"{where} is incomplete: {', '.join(missing) or TENSORS} is missing.")
    return manifest, Manifest.of_file(manifest, where)


def _refuse_foreign(folder: Path) -> None:
    """Other programs call their files manifest.json too, and none of them is overwritten."""
    try:
        record = read_json(folder / MANIFEST)
    except InputError:
        return
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{folder / MANIFEST} is not of a distilled set; choose another folder to overwrite nothing.")

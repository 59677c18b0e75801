"""The forms in which the field releases distilled sets, brought to one: experiments of images and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.store.pt_reader import Contents, read_pt

FORMATS = {
    "dc": "the list of experiments of DC, DSA and DM",
    "mtt": "the image and label tensors of MTT",
    "pair": "one pair of images and labels, as of IDC",
}
BEST = "images_best.pt"
_NAMES = (("images", "labels"), ("data", "target"), ("data", "targets"), ("data", "labels"))


@dataclass(frozen=True)
class Released:
    """What a released file holds, before anything is assumed about it.

    Attributes:
        path: the file or folder.
        format: "dc", "mtt" or "pair", see `FORMATS`.
        files: SHA-256 of every file that was read, by name.
        experiments: images (n, c, h, w) float32 as stored, and labels: class numbers (n,) int64, or
            probabilities (n, C) float32.
        lr: the learned learning rate of the student, where there is one.
        claimed: accuracies that the file itself records: mean and number, by network.
    """

    path: Path
    format: str
    files: Mapping[str, str]
    experiments: Sequence[tuple[Tensor, Tensor]] = field(repr=False)
    lr: float | None = None
    claimed: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """What was found, JSON-able."""
        x, y = self.experiments[0]
        images = [one for one, _ in self.experiments]
        return {
            "path": str(self.path),
            "format": self.format,
            "files": dict(self.files),
            "experiments": len(self.experiments),
            "images": len(x),
            "shape": list(x.shape[1:]),
            "range": [min(float(i.min()) for i in images), max(float(i.max()) for i in images)],
            "mean": float(torch.cat([i.flatten() for i in images]).double().mean()),
            "labels": "hard" if y.ndim == 1 else "soft",
            "classes": len(y.unique()) if y.ndim == 1 else y.shape[1],
            "lr": self.lr,
            "claimed": {name: dict(numbers) for name, numbers in self.claimed.items()},
        }


def read_released(path: str | Path, *, labels: Any = None, syn_lr: float | str | Path | None = None) -> Released:
    """Read what others released, without running anything in it.

    Args:
        path: a `.pt` file, or a folder that holds `images_best.pt` and `labels_best.pt`.
        labels: of a file of images alone: a file, a tensor or a list; None takes the file beside it that says
            "labels" where its own name says "images".
        syn_lr: the learned learning rate, or the file that holds it; None takes `lr_best.pt` beside
            `images_best.pt` where there is one.

    Raises:
        InputError: no such file, one that is damaged or asks for more than tensors and numbers, images or
            labels that are none.
    """
    path = Path(path).expanduser()
    contents = read_pt(_images_in(path) if path.is_dir() else path)
    value, files = contents.value, {contents.path.name: contents.sha256}
    if isinstance(value, Tensor):
        y = _labels_beside(contents, labels, files)
        rate = _rate_beside(contents, syn_lr, files)
        return Released(path, "mtt", files, [_experiment(contents, value, y, "")], rate)
    if labels is not None:
        raise InputError(f"{path} holds labels of its own; leave labels= out.")
    rate = None if syn_lr is None else _rate(syn_lr, files)
    pairs, claims = _pairs(contents)
    if pairs is not None:
        many = [_experiment(contents, x, y, f" of experiment {k}") for k, (x, y) in enumerate(pairs)]
        return Released(path, "dc", files, many, rate, _claims(claims))
    x, y = _single_pair(contents)
    return Released(path, "pair", files, [_experiment(contents, x, y, "")], rate)


def _images_in(folder: Path) -> Path:
    if (folder / BEST).is_file():
        return folder / BEST
    found = sorted(p.name for p in folder.glob("*.pt"))
    told = f"name one of its files ({', '.join(found[:5])})" if found else "it holds no .pt file at all"
    raise InputError(f"{folder} holds no {BEST}; {told}.")


def _pairs(contents: Contents) -> tuple[list[tuple[Any, Any]] | None, Any]:
    """Images and labels of each experiment and the recorded accuracies, if the file is a list of experiments."""
    value = contents.value
    claims = value.get("accs_all_exps") if isinstance(value, dict) else None
    many = value.get("data") if isinstance(value, dict) else value
    if not isinstance(many, list | tuple):
        return None, claims
    if not many:
        raise InputError(f"{contents.path} holds no finished experiment; its list is empty.")
    if not all(isinstance(one, list | tuple) and len(one) == 2 for one in many):
        return None, claims
    return [(one[0], one[1]) for one in many], claims


def _single_pair(contents: Contents) -> tuple[Any, Any]:
    value = contents.value
    if isinstance(value, list | tuple) and len(value) == 2:
        return value[0], value[1]
    if isinstance(value, dict):
        for images, labels in _NAMES:
            if images in value and labels in value:
                return value[images], value[labels]
        held = f"a dict with {', '.join(repr(k) for k in list(value)[:5]) or 'no keys'}"
    else:
        held = f"a {type(value).__name__}"
    raise InputError(
        f"{contents.path} holds {held}; known are {{'data': [[images, labels], ...]}} (DC, DSA, DM), a tensor of "
        "images with a file of labels beside it (MTT), and [images, labels] (IDC)."
    )


def _labels_beside(contents: Contents, labels: Any, files: dict[str, str]) -> Any:
    if labels is None:
        name = contents.path.name
        beside = contents.path.with_name(name.replace("images", "labels", 1))
        if "images" not in name or not beside.is_file():
            raise InputError(f"{contents.path} holds images alone; name the file of their labels (labels=, --labels).")
        labels = beside
    if isinstance(labels, str | Path):
        found = read_pt(labels)
        files[found.path.name] = found.sha256
        return found.tensor(found.value, "labels")
    try:
        return torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("Labels must be a file, a tensor or a list of class numbers.") from error


def _rate_beside(contents: Contents, given: float | str | Path | None, files: dict[str, str]) -> float | None:
    beside = contents.path.with_name(contents.path.name.replace("images", "lr", 1))
    if given is None and beside != contents.path and beside.is_file():
        given = beside
    return None if given is None else _rate(given, files)


def _rate(given: float | str | Path, files: dict[str, str]) -> float:
    """A learned learning rate: a number, or a file that holds one."""
    value: Any = given
    if isinstance(given, str | Path):
        found = read_pt(given)
        files[found.path.name] = found.sha256
        value = found.value
    if isinstance(value, Tensor) and value.numel() == 1 and value.device.type == "cpu":
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise InputError(f"The learned learning rate must be one number above 0, not {str(value)[:40]}.")
    return float(value)


def _experiment(contents: Contents, x: Any, y: Any, which: str) -> tuple[Tensor, Tensor]:
    images = contents.tensor(x, f"images{which}")
    if images.ndim != 4 or 0 in images.shape or not images.is_floating_point():
        raise InputError(
            f"The images{which} in {contents.path} are {tuple(images.shape)} of {_kind(images)}; "
            "released sets are (images, channels, height, width) of floating-point numbers."
        )
    images = images.float()
    bad = int((~torch.isfinite(images)).sum())
    if bad:
        raise InputError(f"The images{which} in {contents.path} hold {bad:,} numbers that are NaN or infinite.")
    if isinstance(y, list | tuple):
        try:
            labels = torch.tensor(y)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InputError(f"The labels{which} in {contents.path} are not a list of numbers.") from error
    else:
        labels = y if contents.value is x else contents.tensor(y, f"labels{which}")
    read = _read_labels(labels, which, contents.path)
    if len(read) != len(images):
        raise InputError(f"There are {len(images)} images{which} and {len(read)} labels in {contents.path}.")
    return images, read


def _read_labels(y: Tensor, which: str, path: Path) -> Tensor:
    """Class numbers (n,) int64, or probabilities (n, C) float32."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.is_complex() or y.dtype == torch.bool or y.ndim not in (1, 2) or 0 in y.shape:
        raise InputError(f"The labels{which} in {path} are {tuple(y.shape)} of {_kind(y)}; give one label per image.")
    if not torch.isfinite(y.double()).all():
        raise InputError(f"The labels{which} in {path} hold NaN or infinite numbers.")
    if y.ndim == 1:
        if y.is_floating_point() and bool((y != y.round()).any()):
            raise InputError(f"The labels{which} in {path} are not whole class numbers.")
        return y.long()
    if bool((y < 0).any()) or float((y.double().sum(1) - 1).abs().max()) > 1e-3:
        raise InputError(
            f"The rows of the soft labels{which} in {path} are not probabilities that sum to 1; "
            "turn logits into probabilities first (labels=torch.softmax(logits, 1))."
        )
    one_hot = bool(((y == 0) | (y == 1)).all())
    return y.argmax(1) if one_hot else y.float()


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _claims(record: Any) -> dict[str, dict[str, float]]:
    """Mean (a fraction) and number of the accuracies that the file records, by network; what is odd is left out."""
    if not isinstance(record, dict):
        return {}
    found: dict[str, dict[str, float]] = {}
    for name, values in list(record.items())[:100]:
        if not isinstance(name, str) or not isinstance(values, list | tuple):
            continue
        numbers = [float(v) for v in values if isinstance(v, int | float) and 0 <= v <= 100]
        if numbers and len(numbers) == len(values):
            mean = sum(numbers) / len(numbers)
            found[name[:60]] = {"mean": mean / 100 if max(numbers) > 1 else mean, "count": len(numbers)}
    return found

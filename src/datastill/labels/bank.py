"""A label bank: what teachers say of every augmented view of a distilled set, stored on disk.

SRe2L (Yin, Xing and Shen, NeurIPS 2023, arXiv:2306.13092) trains students on a teacher's logits of each epoch's views,
in the fashion of FKD (Shen and Xing, ECCV 2022, arXiv:2112.01528). Mixing ties labels to whole batches, so the unit is
a batch: its record holds which images are in it, how they are augmented and mixed, and the logits of the result.

    bank = LabelBank.make("runs/x/bank", images, Labeler([teacher]), SOFT_RECIPES["rded"].trace, epochs=300, batch=50)
    train_soft(network, images, y, SOFT_RECIPES["rded"], Rng(0), bank=bank)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datastill.augment.trace import Trace, TraceSpec
from datastill.augment.trace_record import FIELDS
from datastill.core.errors import InputError
from datastill.core.plan import Progress, silent
from datastill.core.rng import Rng
from datastill.core.space import Space
from datastill.labels.bank_files import HEADER, BankWriter, map_arrays, refuse_damaged
from datastill.labels.bank_header import make_header, read_layout
from datastill.labels.bank_labels import Array, LabelCode
from datastill.labels.bank_layout import Layout
from datastill.labels.labeler import Labeler
from datastill.store.files import digest, read_json, refuse_changed
from datastill.training.soft_schedule import batches_of


class BankBatch(NamedTuple):
    """What is stored of one batch."""

    positions: Tensor  #: of its images, (b,) int64
    trace: Trace  #: how they are augmented and mixed
    logits: Tensor  #: the teachers' of the views, (b, C) float32


class LabelBank:
    """A folder of labels; made by `make` and opened by `open`.

    `bank[epoch, batch]` is a `BankBatch`; epochs beyond the stored ones begin again. The arrays are memory-mapped when
    they are first used, in each process apart, so a bank can be handed to the workers of a DataLoader.

    Attributes:
        folder: where it is.
        header: what `bank.json` holds.
        layout: which arrays it has, and so their sizes.
        spec: how batches are augmented.
        epochs, batch: stored epochs; images per batch, as asked for.
        bounds: where the batches of an epoch begin, and where the last one ends.
        batches: batches in an epoch.
        mode: how the teachers labeled, "eval" or "batch".
        temperature: that of the training which the bank is made for, if it is for one only.
        partial: whether only some logits of each row are kept.
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self.folder, self.header = folder.absolute(), header
        self.layout = layout = read_layout(folder, header)
        self.spec, self.epochs, self.batch = layout.trace, layout.epochs, layout.batch
        self.bounds, self.batches = layout.bounds, layout.batches
        self.mode: str = header["labeller"]["mode"]
        self.temperature = layout.code.temperature
        self.partial = (layout.code.top_k or layout.classes) < layout.classes
        self._fields, self._maps = layout.fields(), dict[str, Array]()

    @classmethod
    def make(
        cls,
        folder: str | Path,
        images: Tensor,
        labeler: Labeler,
        spec: TraceSpec,
        *,
        epochs: int,
        batch: int,
        seed: int = 0,
        encoding: str = "seed",
        dtype: str = "float16",
        top_k: int | None = None,
        temperature: float | None = None,
        teacher: Mapping[str, Any] | None = None,
        space: Space | None = None,
        progress: Progress = silent,
        device: torch.device | str | None = None,
    ) -> LabelBank:
        """Label every view of every epoch.

        Args:
            folder: where the bank is to be; it appears when all is written, and there is nothing if making it fails.
            images: (n, c, h, w), as students will see them: in the Space of the teachers, decoded from the stored
                (rounded) pixels, on the CPU.
            labeler: the teachers.
            spec: how batches are augmented.
            epochs: how many to store.
            batch: images per batch; see `batch_bounds` for the last one.
            seed: of the order and of the augmentation; `train_soft` on line draws the same with Rng(seed).
            encoding: "seed", 8 bytes for a batch's augmentation, or "explicit", all that was drawn.
            dtype, top_k, temperature: how logits are stored, see `LabelCode`.
            teacher: what is known of the teachers (id, accuracy, ...), for the header; JSON-able.
            space: the images' Space, for the header.
            progress: told the batches done.
            device: where views are made; None means where `images` are.

        Raises:
            InputError: the folder exists, a setting that cannot be, too little space, or logits that are not finite.
        """
        count, where = len(images), images.device if device is None else torch.device(device)
        if images.ndim != 4 or not count:
            raise InputError(f"A label bank is made of images (n, c, h, w), not {tuple(images.shape)}.")
        classes = labeler(images[:2].to(where)).shape[1]
        size = (images.shape[2], images.shape[3])
        layout = Layout(count, size, classes, epochs, batch, spec, encoding, LabelCode(dtype, top_k, temperature))
        rng, total = Rng(seed), epochs * layout.batches
        header = make_header(images, layout, labeler.describe(), seed, teacher, space)
        with BankWriter(Path(folder), layout) as writer:
            for done, (index, trace_seed) in enumerate(
                each for epoch in range(epochs) for each in batches_of(rng, count, batch, epoch)
            ):
                trace = spec.replay(trace_seed, len(index), size)
                logits = labeler(trace.apply(images[index.to(images.device)].to(where)))
                writer.add({"index": index.numpy(), **_drawn(trace, trace_seed, layout), **layout.code.encode(logits)})
                progress("labels", done + 1, total, {})
            header = writer.finish(header)
        return cls(Path(folder), header)

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True) -> LabelBank:
        """Open a bank.

        Args:
            folder: where it is.
            verify: compare the files with their hashes, which reads all of them once.

        Raises:
            InputError: no bank, an incomplete or damaged one, or one of another version.
        """
        folder = Path(folder)
        if not (folder / HEADER).is_file():
            raise InputError(f"{folder} is no label bank: it has no {HEADER}.")
        bank = cls(folder, read_json(folder / HEADER))
        bank._arrays()
        if verify:
            refuse_damaged(folder, bank.header["files"], bank.layout)
        refuse_changed(folder / HEADER, bank.header)
        return bank

    def __len__(self) -> int:
        """Stored batches, of all epochs."""
        return self.epochs * self.batches

    def __getitem__(self, key: tuple[int, int]) -> BankBatch:
        epoch, batch = key
        if epoch < 0 or not 0 <= batch < self.batches:
            raise IndexError(f"The bank has {self.batches} batches in an epoch; there is no batch {key}.")
        epoch, start, stop = epoch % self.epochs, *self.bounds[batch : batch + 2]
        arrays = self._arrays()
        rows = {
            name: arrays[name][epoch, start:stop] if field.per_image else arrays[name][epoch, batch]
            for name, field in self._fields.items()
        }
        index = torch.from_numpy(rows["index"].astype(np.int64))
        try:
            logits = self.layout.code.decode(rows, self.layout.classes)
            trace = self._trace(rows, stop - start)
            trace.refuse_outside(self.spec.pad)
        except (RuntimeError, IndexError, ValueError) as error:
            raise self._damaged(batch, str(error).split("\n")[0]) from error
        if int(index.max()) >= self.layout.count or not bool(torch.isfinite(logits).all()):
            raise self._damaged(batch, "a position that is none, or logits that are not finite")
        return BankBatch(index, trace, logits)

    def dataset(self, images: Tensor, epochs: int | None = None) -> BankDataset:
        """The batches of so many epochs as a torch Dataset; None means the stored ones.

        Raises:
            InputError: the labels are of other images.
        """
        return BankDataset(self, images, self.epochs if epochs is None else epochs)

    def is_of(self, labeler: Labeler) -> bool:
        """Whether teachers of these weights made the labels, combined in the same way."""
        own, other = self.header["labeller"], labeler.describe()
        return all(own[name] == other[name] for name in ("teachers", "combine"))

    def check(self, images: Tensor, spec: TraceSpec | None = None) -> None:
        """Refuse to label what the teachers did not see.

        Args:
            images: those that are to be trained on.
            spec: the augmentation that the training expects, or None.

        Raises:
            InputError: other images, another order of them, or another augmentation.
        """
        stored = self.header["images"]
        if list(images.shape) != stored["shape"]:
            raise InputError(f"The labels are of images {stored['shape']}, not {list(images.shape)}.")
        if digest(images) != stored["hash"]:
            raise InputError("The labels are of other images, in value, order or Space; make the label bank again.")
        if spec is not None and spec != self.spec:
            raise InputError(f"The labels are of views by {self.spec}, not {spec}; train with the bank's augmentation.")

    @property
    def nbytes(self) -> int:
        """Bytes of all its files."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())

    @property
    def image_bytes(self) -> int:
        """Bytes of the images that it labels, one for each value, to be named beside its own."""
        return math.prod(self.header["images"]["shape"])

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: without the maps, which would travel as whole arrays."""
        return {**self.__dict__, "_maps": {}}

    def _arrays(self) -> dict[str, Array]:
        if not self._maps:
            self._maps = map_arrays(self.folder, self.layout)
        return self._maps

    def _damaged(self, batch: int, what: str) -> InputError:
        return InputError(f"Batch {batch} of the label bank {self.folder} is damaged ({what}); make it again.")

    def _trace(self, rows: Mapping[str, Array], count: int) -> Trace:
        if self.layout.encoding == "seed":
            return self.spec.replay(int(rows["seed"]), count, self.layout.size)
        drawn = {name: np.asarray(rows[name]) for name in FIELDS if name in rows}
        plain = {name: v.copy() if v.dtype.kind in "bf" else v.astype(np.int64) for name, v in drawn.items()}
        return Trace.from_tensors(self.layout.size, {name: torch.from_numpy(v) for name, v in plain.items()})


class BankDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """The batches of a bank, for a DataLoader with `batch_size=None`; any order and any workers replay alike.

    An item is a whole batch: positions (b,) int64, the views (b, c, h, w) and the logits (b, C) float32.
    """

    def __init__(self, bank: LabelBank, images: Tensor, epochs: int) -> None:
        bank.check(images)
        self.bank, self.images, self.epochs = bank, images, epochs

    def __len__(self) -> int:
        return self.epochs * self.bank.batches

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor, Tensor]:
        if not 0 <= item < len(self):
            raise IndexError(f"There are {len(self)} batches; there is no batch {item}.")
        index, trace, logits = self.bank[divmod(item, self.bank.batches)]
        return index, trace.apply(self.images[index.to(self.images.device)]), logits


def _drawn(trace: Trace, seed: int, layout: Layout) -> dict[str, Array]:
    """A batch's augmentation as rows of the arrays."""
    if layout.encoding == "seed":
        return {"seed": np.array([seed])}
    return {name: tensor.numpy() for name, tensor in trace.tensors().items()}

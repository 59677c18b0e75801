"""Buffers that others released: `replay_buffer_0.pt` and so on, as the code of MTT and its followers writes them.

Such a file is a list of experts, each a list of snapshots, each a list of parameter tensors. It is read by the
weights-only reader, which runs nothing. What it does not say (network, Space, data) is stated by who imports it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.data.places import places_of
from datastill.store.checkpoint import plain
from datastill.store.files import digest
from datastill.store.folders import refuse_taken, whole_folder
from datastill.store.opening import sound_path
from datastill.store.outputs import refuse_out
from datastill.store.pt_reader import Contents, read_pt
from datastill.surrogates.experts.files import write_expert, write_record
from datastill.surrogates.experts.identity import about, shared_identity
from datastill.surrogates.experts.layout import Layout
from datastill.surrogates.experts.store import META, ExpertBuffer, new_meta, open_buffer

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.models.factory import NetworkFactory


def import_reference_buffer(
    paths: str | Path | Sequence[str | Path], network: NetworkFactory, real: RealSet, out: str | Path
) -> ExpertBuffer:
    """A released buffer as one of ours; the numbers are kept to the bit.

    Args:
        paths: `.pt` files, or a folder of `replay_buffer_*.pt`; experts are numbered in this order.
        network: the architecture, which the files do not name; every shape must be its.
        real: what the experts were trained on, in the Space that they were trained in.
        out: the folder to make; it appears when all is written.

    Raises:
        InputError: a file cannot be used, does not fit the network, or holds one snapshot many times over.
    """
    files, target = _files(paths), Path(out)
    refuse_taken(target)
    refuse_out(target, places_of(real))
    with whole_folder(target) as work:
        _import(files, network, real, work)
    return open_buffer(target)


def _files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for path in [sound_path(p).expanduser() for p in ([paths] if isinstance(paths, str | Path) else paths)]:
        if not path.is_dir():
            found.append(path)
            continue
        inside = list(path.glob("replay_buffer_*.pt"))
        if not inside:
            raise InputError(f"{path} holds no replay_buffer_*.pt; name the files of the buffer.")
        found += sorted(inside, key=lambda p: [int(n) for n in re.findall(r"\d+", p.stem)])
    if not found:
        raise InputError("Name the files of the buffer, or the folder that holds replay_buffer_*.pt.")
    return found


def _import(files: Sequence[Path], network: NetworkFactory, real: RealSet, folder: Path) -> None:
    whole = Layout.of(network(0))
    layout = Layout(whole.parameters)  # released buffers hold no running statistics
    config: dict[str, Any] = {}
    known: dict[str, str] = {}
    number = 0
    for path in files:
        contents, claimed = read_pt(path), 0
        known[path.name if path.name not in known else str(path)] = contents.sha256
        for k, snapshots in enumerate(_experts(contents)):
            where = f"expert {k} in {path}"
            if not config:
                config = _config(network, real, layout, len(snapshots))
            if len(snapshots) != config["snapshots"]:
                raise InputError(
                    f"The {where} has {len(snapshots)} snapshots, and those before it {config['snapshots']}; import "
                    "buffers of different lengths one by one."
                )
            _check_expert(snapshots, layout, network, where)
            claimed += sum(tensor.numel() * tensor.element_size() for s in snapshots for tensor in s)
            if claimed > contents.size:
                raise InputError(f"The experts in {path} claim more numbers than the file holds; it is refused.")
            write_expert(folder, number, layout, _rows(snapshots), config=digest(config))
            number += 1
    note = "network, space and data were stated by who imported it; the files do not say them"
    meta = new_meta(config, layout, about(network, real), imported={"files": known, "note": note})
    write_record(folder / META, meta)


def _config(network: NetworkFactory, real: RealSet, layout: Layout, snapshots: int) -> dict[str, Any]:
    shared = shared_identity(network, real, layout)
    unknown = {"augment": None, "seed": None, "device": None, "test_accuracy": False}
    config = {**shared, "epochs": snapshots - 1, "snapshots": snapshots, "policy": {"name": "imported"}, **unknown}
    return dict(plain(config))


def _experts(contents: Contents) -> list[list[Any]]:
    """The experts of a file, each a list of snapshots."""
    value = contents.value
    sound = isinstance(value, list) and value and all(isinstance(e, list) and len(e) > 1 for e in value)
    if not sound or not all(isinstance(s, list | tuple) for e in value for s in e):
        raise InputError(
            f"{contents.path} is no buffer of trajectories: it must be a list of experts, each a list of two or more "
            "snapshots, each a list of parameter tensors."
        )
    return list(value)


def _check_expert(snapshots: list[Any], layout: Layout, network: NetworkFactory, where: str) -> None:
    """Refuse what is none, does not fit, or stands still."""
    for epoch, snapshot in enumerate(snapshots):
        if len(snapshot) != len(layout.parameters):
            raise InputError(
                f"Snapshot {epoch} of {where} has {len(snapshot)} tensors, and {network} has {len(layout.parameters)} "
                "parameters; name the network that the experts are of."
            )
        for slot, tensor in zip(layout.parameters, snapshot, strict=True):
            _check_tensor(tensor, slot.shape, f"{slot.name} of snapshot {epoch} of {where}", network)
    if all(torch.equal(a, b) for s in snapshots[1:] for a, b in zip(snapshots[0], s, strict=True)):
        raise InputError(
            f"All snapshots of {where} are the same: on a CPU the code that wrote them keeps the live weights instead "
            "of copies, so the file holds the last epoch only; there is nothing to match in it. Train experts anew."
        )


def _check_tensor(tensor: Any, shape: tuple[int, ...], what: str, network: NetworkFactory) -> None:
    dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not dense or tensor.is_quantized or not tensor.is_floating_point():
        raise InputError(f"The {what} is not an ordinary tensor of floating-point numbers.")
    if tuple(tensor.shape) != shape:
        raise InputError(
            f"The {what} is {tuple(tensor.shape)}, and {shape} in {network}; name the network that the experts are of."
        )


def _rows(snapshots: list[Any]) -> Iterator[Tensor]:
    for snapshot in snapshots:
        yield torch.cat([tensor.detach().reshape(-1).float() for tensor in snapshot])

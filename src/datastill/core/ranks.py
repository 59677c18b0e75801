"""The processes of one run under `torchrun`: what they tell each other, and how one that fails ends all.

Each of them runs the same loop from the same seeds. In a step a rank computes the objective for its share of the
classes, and the gradients of the codes are summed, so that codes stay the same everywhere. The first rank alone writes.

Ranks meet in one way, `Ranks.meet`, wherever one of them may fail: whoever fails says so in the place of what the
others expect, and all end.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from datastill.core.errors import DatastillError, InputError

T = TypeVar("T")

#: What ranks wait for may take hours on the first one; one that dies is noticed at once.
_PATIENCE = timedelta(days=2)
#: On an error that all ranks know of.
_TOLD = "_told_to_ranks"

_joined: Ranks | None = None


class RankFailed(DatastillError):
    """Another rank of the run has stopped, and why; or it is gone."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is."""

    index: int = 0
    count: int = 1

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this one writes files, prints, and prepares for all."""
        return self.index == 0

    def own(self, things: Sequence[T]) -> Sequence[T]:
        """This rank's share of some things."""
        return things[self.index :: self.count]

    def meet(self, value: Any = None, error: BaseException | None = None) -> list[Any]:
        """The values of all ranks.

        Args:
            value: of this rank; small, and can be pickled.
            error: what this rank ends with.

        Raises:
            RankFailed: another rank ends with an error, or is gone.
        """
        if self.alone:
            return [value]
        said = None if error is None else _sentence(error)
        found: list[Any] = [None] * self.count
        try:
            dist.all_gather_object(found, (said, value))
        except RuntimeError as lost:
            raise _gone() from lost
        failed = [(rank, text) for rank, (text, _) in enumerate(found) if text is not None]
        if error is not None:
            setattr(error, _TOLD, True)
        elif failed:
            rank, text = failed[0]
            raise RankFailed(f"Rank {rank} of {self.count} stopped: {text}")
        return [one for _, one in found]

    def made_by_first(self, make: Callable[[], T]) -> T:
        """What the first rank makes, for all.

        Raises:
            RankFailed: it could not.
        """
        if self.alone:
            return make()
        with self.telling():
            made = [make() if self.first else None]
        self.meet()
        try:
            dist.broadcast_object_list(made, src=0)
        except RuntimeError as lost:
            raise _gone() from lost
        return made[0]  # type: ignore[return-value]

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """An error inside the block is told to the others where they meet next, and passes."""
        try:
            yield
        except Exception as error:
            if not self.alone and not was_told(error):
                with contextlib.suppress(RankFailed):
                    self.meet(error=error)
            raise

    def summed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each tensor's sum over the ranks, which all have it in the same shape."""
        total = {name: tensors[name].contiguous().clone() for name in sorted(tensors)}
        try:
            for tensor in total.values():
                dist.all_reduce(tensor)
        except RuntimeError as lost:
            raise _gone() from lost
        return {name: total[name] for name in tensors}

    def align(self, network: object) -> None:
        """Weights of the first rank for all, where GPUs have rounded those of a trained network otherwise."""
        if self.alone or not isinstance(network, nn.Module):
            return
        with torch.no_grad():
            for tensor in [*network.parameters(), *network.buffers()]:
                if tensor.is_cuda:
                    dist.broadcast(tensor, src=0)


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of this run inside the block: of torch's process group, or of the one that torchrun asks for.

    An error in one rank ends the block in all.

    Raises:
        InputError: torchrun asks for ranks that cannot find each other.
        RankFailed: another rank has ended.
    """
    global _joined
    if _joined is not None:
        yield _joined
        return
    _begin()
    _joined = here()
    try:
        with _joined.telling():
            yield _joined
        _joined.meet()
    finally:
        _joined = None


def asked_for() -> tuple[int, int]:
    """This process's rank, and how many torchrun has started; (0, 1) without it."""
    try:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 0, 1


def here() -> Ranks:
    """Which rank this process is of torch's process group; alone without one."""
    if not dist.is_available() or not dist.is_initialized():
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


def was_told(error: BaseException | None) -> bool:
    """Whether all ranks know of an error, or of the one that it came from."""
    while error is not None:
        if isinstance(error, RankFailed) or getattr(error, _TOLD, False):
            return True
        error = error.__cause__
    return False


def _begin() -> None:
    """Begin the process group that torchrun asks for, until the process ends: there is no second one."""
    if not dist.is_available() or dist.is_initialized() or asked_for()[1] < 2:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0][:200]
        raise InputError(
            f"The ranks that torchrun asks for do not find each other ({reason}); start them with torchrun, or unset "
            "RANK and WORLD_SIZE."
        ) from error
    atexit.register(_end)


def _end() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _sentence(error: BaseException) -> str:
    if isinstance(error, DatastillError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _gone() -> RankFailed:
    return RankFailed("Another rank of this run has ended without a word; the same command with --resume goes on.")

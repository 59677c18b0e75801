"""Where units go: this process, a pool of processes, or the workers of a Ray cluster; read from what a caller says."""

from __future__ import annotations

import multiprocessing
import os
import re
from dataclasses import dataclass

from datastill.core.errors import InputError

#: Whether this process is a worker of Ray's, which runs a unit.
_in_ray = False


@dataclass(frozen=True)
class Workers:
    """How many units run at once, and where.

    Attributes:
        count: processes; of Ray, 0 is as many as the cluster has.
        ray: whether they are those of a Ray cluster.
    """

    count: int = 1
    ray: bool = False

    @classmethod
    def of(cls, asked: int | str | Workers) -> Workers:
        """From a number of processes, "ray", or "ray:4".

        Raises:
            InputError: it is none of these.
        """
        if isinstance(asked, Workers):
            return asked
        if isinstance(asked, str):
            found = re.fullmatch(r"ray(?::([1-9]\d{0,3}))?", asked)
            if found:
                return cls(int(found[1] or 0), ray=True)
        elif isinstance(asked, int) and not isinstance(asked, bool) and asked >= 1:
            return cls(asked)
        raise InputError(
            f'workers must be a whole number of at least 1, "ray", or "ray:N" for N at once on Ray, not {asked!r}.'
        )

    @property
    def several(self) -> bool:
        """Whether units may go to other processes."""
        return self.ray or self.count > 1

    @property
    def likely(self) -> int:
        """How many, as far as can be said before a cluster has been asked."""
        return self.count or os.cpu_count() or 1

    def go_apart(self, units: int) -> bool:
        """Whether so many units go to other processes; one alone stays here, unless it is to run on a cluster."""
        return units > 0 if self.ray else min(self.count, units) > 1


def check_workers(workers: int | str) -> None:
    """Refuse what names no workers."""
    Workers.of(workers)


def inside_worker() -> bool:
    """Whether this process runs a unit for another one."""
    return _in_ray or multiprocessing.parent_process() is not None


def mark_worker() -> None:
    """Remember that this process is a worker of Ray's."""
    global _in_ray
    _in_ray = True


def refuse_inside_worker() -> None:
    """Refuse to ask for workers inside a worker: every one would start others."""
    if inside_worker():
        raise InputError(
            "Several workers were asked for inside a worker: put the call of your script under "
            '`if __name__ == "__main__":`, since every worker imports the script.'
        )

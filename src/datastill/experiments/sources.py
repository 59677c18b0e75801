"""The real sets of a comparison: at hand in this process, loaded again by their source in a worker."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from datastill.core.errors import InputError
from datastill.data import load_real
from datastill.data.real import RealSet
from datastill.models import NetworkFactory, resolve_network


@dataclass(frozen=True)
class Reference:
    """How another process loads a real set, and how it knows that it is the same."""

    name: str
    source: str
    options: str  #: arguments of `load_real` as JSON
    fingerprint: str


class RealSets:
    """Real sets by label, in the order given. Pickled, it holds references only."""

    def __init__(self, sets: Mapping[str, RealSet]) -> None:
        self._here = dict(sets)
        self._networks: dict[str, NetworkFactory] = {}
        self.references = {
            label: Reference(real.name, real.source, json.dumps(dict(real.options)), real.fingerprint)
            for label, real in sets.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        return {"references": self.references, "_here": {}, "_networks": {}}

    def get(self, label: str) -> RealSet:
        """The real set of a label."""
        return self._here[label] if label in self._here else _loaded(self.references[label])

    def network(self, label: str, spec: Any) -> NetworkFactory:
        """The network that fits a real set; one factory for all cells, which knows its facts."""
        if label not in self._networks:
            real = self.get(label)
            self._networks[label] = resolve_network(spec, **real.network_shape)
        return self._networks[label]

    def labels(self) -> list[str]:
        """All labels."""
        return list(self.references)

    def check_references(self) -> None:
        """Make sure that a worker can load every set.

        Raises:
            InputError: one exists in this process alone.
        """
        for label, reference in self.references.items():
            if not reference.source or _load(reference).fingerprint != reference.fingerprint:
                raise InputError(
                    f"The real set {label!r} exists in this process alone, and workers must load it themselves; "
                    "give a path or a name that load_real takes, or workers=1."
                )


def real_sets(real: Any) -> RealSets:
    """The real sets that a caller means: one source, or a list of sources.

    Raises:
        InputError: a source cannot be loaded, has no test split, or is given twice.
    """
    given: Sequence[Any] = [real]
    if isinstance(real, list) and real and all(isinstance(one, str | Path | RealSet) for one in real):
        given = real
    found = [one if isinstance(one, RealSet) else load_real(one) for one in given]
    names = [one.name for one in found]
    labels = [one.name if names.count(one.name) == 1 else one.source or one.fingerprint for one in found]
    for label, one in zip(labels, found, strict=True):
        if labels.count(label) > 1:
            raise InputError(f"The real set {label!r} is given twice; name each data set once.")
        _ = one.known_test
    return RealSets(dict(zip(labels, found, strict=True)))


def _load(reference: Reference) -> RealSet:
    return load_real(reference.source, **json.loads(reference.options))


@lru_cache(maxsize=8)
def _loaded(reference: Reference) -> RealSet:
    """A real set in a worker, loaded once per process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the parent has loaded it, and has shown them
        real = _load(reference)
    if real.fingerprint != reference.fingerprint:
        raise InputError(f"The files of {reference.name} ({reference.source}) changed while they were in use.")
    return real

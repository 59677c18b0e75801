"""Import torchvision even where its compiled operators do not load.

A CPU-only torch beside the torchvision wheel of PyPI (built for CUDA) cannot load torchvision's extension,
and the import then fails with "operator torchvision::nms does not exist". Classification networks need none
of those operators, so their schemas are declared, without kernels, and the import is tried again.
"""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType

import torch

from datastill.core.errors import MissingExtra

_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
_ATTEMPTS = 32
# A library's schemas vanish when the object is collected.
_libraries: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """The `torchvision` package, with every submodule that its own import brings.

    Raises:
        MissingExtra: torchvision is not installed.
        RuntimeError: the import failed for another reason than the missing operators.
    """
    declared: set[str] = set()
    if "torchvision" not in sys.modules:
        _purge()  # what an import that failed earlier left behind can break this one
    for _ in range(_ATTEMPTS):
        try:
            return importlib.import_module("torchvision")
        except ModuleNotFoundError as error:
            raise MissingExtra("This needs torchvision, which is not installed: pip install torchvision.") from error
        except RuntimeError as error:
            found = _MISSING.search(str(error))
            if found is None or found[1] in declared:
                raise
            declared.add(found[1])
            _purge()
            _declare(found[1])
    raise RuntimeError("torchvision could not be imported: too many of its operators are missing.")


def _declare(operator: str) -> None:
    """Declare the schema of an operator that nothing here calls; a call says that no kernel exists."""
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    schema = f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor"
    library.define(schema)  # type: ignore[no-untyped-call]
    _libraries.append(library)


def _purge() -> None:
    """Forget the half-imported package, so that the next attempt runs it from the start."""
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]

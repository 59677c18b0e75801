"""Python files of the user's, imported by path."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from datastill.core.errors import InputError


def import_file(path: Path) -> ModuleType:
    """The module in a file, imported once per process under a name of its own.

    Raises:
        InputError: there is no such Python file. What the file itself raises is not caught.
    """
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path.")
    name = f"datastill_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module

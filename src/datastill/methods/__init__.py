"""One short file per published method. Importing this package imports no method: discovery walks the folder.

`datastill.methods` is both this package and the public function that lists the methods, so the module is callable.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datastill.core.registry import MethodInfo


class _CallableModule(ModuleType):
    def __call__(self) -> dict[str, MethodInfo]:
        """All methods by name."""
        from datastill.core.registry import methods

        return methods()


sys.modules[__name__].__class__ = _CallableModule

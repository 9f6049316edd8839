"""How methods and tasks are found: every module of the package is imported, its instances collected by name."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import ClassVar, Protocol, TypeVar


class Named(Protocol):
    name: ClassVar[str]


T = TypeVar("T", bound=Named)


def collect(package: ModuleType, kind: type[T]) -> dict[str, T]:
    """One instance of each concrete `kind` class defined in a module of `package`, by its name, in `order`.

    Raises RuntimeError where two declare one name.
    """
    found: dict[str, T] = {}
    for module_info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{module_info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, kind) and value.__module__ == module.__name__:
                if not getattr(value, "name", ""):
                    continue  # a base class
                if value.name in found:
                    raise RuntimeError(f"two classes are named {value.name!r} in {package.__name__}")
                found[value.name] = value()
    return dict(sorted(found.items(), key=lambda item: getattr(item[1], "order", 100)))

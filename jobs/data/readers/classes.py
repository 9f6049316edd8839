"""The names of numbered classes, as `datasets` writes them into the metadata of Parquet and Arrow files: 0 is "neg".

Files without it, and numbers that are no classes, stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Name = Callable[[Any], Any]  # a cell with numbers to the same cell with names

_SHOWN = 4  # names in a note


def class_names(metadata: dict[bytes, bytes] | None, notes: list[str]) -> dict[str, Name]:
    """For each column that holds classes what names them, from a file's schema metadata. Says so in `notes`."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        found = {column: _named(feature) for column, feature in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError):  # none, or of a form that no version has had so far
        return {}
    for column, naming in found.items():
        if naming:
            names = _names(features[column])
            more = " ..." if len(names) > _SHOWN else ""
            notes.append(
                f'The numbers in "{column}" are read as the names that the file has for them '
                f"({', '.join(names[:_SHOWN])}{more})."
            )
    return {column: naming for column, naming in found.items() if naming}


def _named(feature: Any) -> Name | None:
    """What names the classes of a feature, itself or within lists and objects; None where it has none."""
    if isinstance(feature, list):  # how older versions write a list
        return _in_list(_named(feature[0])) if len(feature) == 1 else None
    if not isinstance(feature, dict):
        return None
    kind = feature.get("_type")
    if kind == "ClassLabel" and feature.get("names"):
        return _class(tuple(map(str, feature["names"])))
    if kind in ("Sequence", "List", "LargeList"):
        inner = feature["feature"]
        if kind == "Sequence" and isinstance(inner, dict) and "_type" not in inner:
            return _in_object({key: _in_list(_named(each)) for key, each in inner.items()})  # it is a list of each
        return _in_list(_named(inner))
    if isinstance(kind, str):
        return None
    return _in_object({key: _named(each) for key, each in feature.items()})


def _class(names: tuple[str, ...]) -> Name:
    def name(cell: Any) -> Any:
        if type(cell) is not int:
            return cell
        if 0 <= cell < len(names):
            return names[cell]
        return None if cell == -1 else cell  # -1: not labelled

    return name


def _in_list(inner: Name | None) -> Name | None:
    if inner is None:
        return None
    return lambda cell: [inner(item) for item in cell] if isinstance(cell, list) else inner(cell)


def _in_object(inner: dict[str, Name | None]) -> Name | None:
    named = {key: naming for key, naming in inner.items() if naming}
    if not named:
        return None

    def name(cell: Any) -> Any:
        if not isinstance(cell, dict):
            return [name(item) for item in cell] if isinstance(cell, list) else cell
        return {key: named[key](item) if key in named else item for key, item in cell.items()}

    return name


def _names(feature: Any) -> list[str]:
    """The first class names that stand in a feature."""
    if isinstance(feature, dict):
        if feature.get("_type") == "ClassLabel":
            return [str(name) for name in feature["names"]]
        feature = list(feature.values())
    return next(filter(None, map(_names, feature)), []) if isinstance(feature, list) else []

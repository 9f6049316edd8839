"""JSON for rows: orjson where it can, the standard library where it will not.

The library decides what is valid: it takes NaN, half characters and whole numbers of any size, which orjson refuses or
rounds. (A whole number beyond 64 bits inside a list or an object becomes a float; in a column of its own it stays.)
"""

from __future__ import annotations

import json
from typing import Any

import orjson

_LARGE = 2.0**63


def loads(text: str) -> Any:
    """Raises ValueError (json.JSONDecodeError with its place) and RecursionError, as `json.loads` does."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)
    if type(value) is dict:
        for item in value.values():
            if type(item) is float and not -_LARGE < item < _LARGE:
                return json.loads(text)
    return value


def dumps(value: Any) -> str:
    """`value` as JSON text. What JSON has no form for, as Parquet may hold it, is written as words."""
    try:
        return orjson.dumps(value, _plain, orjson.OPT_PASSTHROUGH_DATETIME).decode()
    except TypeError:  # whole numbers beyond 64 bits, half characters
        return _ENCODER.encode(value)


def _plain(value: Any) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, default=_plain)

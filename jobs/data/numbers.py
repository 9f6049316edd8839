"""Numbers as people write them in tables: 4.5 and 1,234.5, or with a decimal comma 4,5 and 1.234,5.

Which of the two a column means shows only in all of its cells together; a single "1,234" may be either.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

Decimal = Literal["", ".", ","]  # what stands before the decimals; "": a point, and nothing between thousands

_SPACES = "\u00a0\u202f "  # people group thousands with them too
_FIRST = r"[1-9]\d{0,2}"  # what stands before thousands: 0,875 has none
_COMMA = re.compile(rf"[+-]?(?:\d+|{_FIRST}(?:\.\d{{3}})+|{_FIRST}(?:[{_SPACES}]\d{{3}})+)(?:,\d+)?")
_POINT = re.compile(rf"[+-]?{_FIRST}(?:,\d{{3}})+(?:\.\d+)?")  # what `float` refuses: with commas between thousands
_EITHER = re.compile(rf"[+-]?{_FIRST}(?:,\d{{3}})+")


def number(value: Any, decimal: Decimal = "") -> float | None:
    """The finite number that a cell holds; None where it holds none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, str):
        text = value.strip()
        if decimal == "," and _COMMA.fullmatch(text):
            value = re.sub(rf"[.{_SPACES}]", "", text).replace(",", ".")
        elif decimal == "." and _POINT.fullmatch(text):
            value = text.replace(",", "")
        elif decimal == "," and "." in text:
            return None  # a point that parts no thousands: the column does not mean what it was taken for
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def is_number(value: Any) -> bool:
    """Whether it is one in any of the ways."""
    return any(number(value, decimal) is not None for decimal in ("", ".", ","))


def decimal_of(values: Sequence[Any]) -> Decimal:
    """How a column writes its numbers: the way in which nearly all of its cells are some, "" where plain ones are.

    Where all that shows is "1,234", the comma parts thousands: of decimals there would be other than three somewhere.
    """
    texts = [value.strip() for value in values if isinstance(value, str)]
    written = [text for text in texts if "," in text and is_number(text)]
    if not written:
        return ""
    if all(_EITHER.fullmatch(text) for text in written):
        return "."
    shares = {way: sum(number(text, way) is not None for text in texts) for way in (".", ",")}
    return "," if shares[","] > shares["."] else "."

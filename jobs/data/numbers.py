"""Numbers as people write them in tables: 4.5 and 1,234.5, or with a decimal comma 4,5 and 1.234,5.

Which of the two a column means shows only in all of its cells together; a single "1,234" may be either. So does the
unit that may stand around them: 45,00 € and 45 EUR are one number, but 2 kg and 500 g are not to be mixed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

Decimal = Literal["", ".", ","]  # what stands before the decimals; "": a point, and nothing between thousands

_SPACES = "\u00a0\u202f "  # people group thousands with them too
_FIRST = r"[1-9]\d{0,2}"  # what stands before thousands: 0,875 has none
_COMMA = re.compile(rf"[+-]?(?:\d+|{_FIRST}(?:\.\d{{3}})+|{_FIRST}(?:[{_SPACES}]\d{{3}})+)(?:,\d+)?")
_POINT = re.compile(rf"[+-]?{_FIRST}(?:,\d{{3}})+(?:\.\d+)?")  # what `float` refuses: with commas between thousands
_EITHER = re.compile(rf"[+-]?{_FIRST}(?:,\d{{3}})+")
# Each with its other spellings.
_UNITS: dict[str, tuple[str, ...]] = {
    **{"€": ("eur", "euro", "euros"), "$": ("us$", "usd"), "£": ("gbp",), "¥": ("jpy",), "CHF": (), "%": ()},
    **{"kg": (), "g": (), "km": (), "m": (), "cm": (), "mm": (), "m²": ("qm", "m2"), "l": (), "°C": ()},
}
_UNIT_OF = {word: unit for unit, others in _UNITS.items() for word in (unit.lower(), *others)}
_WORDS = "|".join(re.escape(word) for word in sorted(_UNIT_OF, key=len, reverse=True))
_AROUND = re.compile(rf"(?P<before>{_WORDS})?\s*(?P<number>[+-]?\d[^a-z]*?)\s*(?P<after>{_WORDS})?", re.IGNORECASE)


def number(value: Any, decimal: Decimal = "", unit: str = "") -> float | None:
    """The finite number that a cell holds; None where it holds none. `unit`: what may stand before or after it."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, str):
        text = value.strip()
        if unit and (parted := _parted(text)) and parted[0] == unit:
            text = value = parted[1]
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


def _parted(text: str) -> tuple[str, str] | None:
    """(unit, the rest) of a text with a unit on one side."""
    found = _AROUND.fullmatch(text)
    if not found or bool(found["before"]) == bool(found["after"]):
        return None
    return _UNIT_OF[(found["before"] or found["after"]).lower()], found["number"]


def is_number(value: Any, unit: str = "") -> bool:
    """Whether it is one in any of the ways."""
    return any(number(value, decimal, unit) is not None for decimal in ("", ".", ","))


def unit_of(values: Sequence[Any]) -> str:
    """The unit that the most cells of a column write around their numbers, "" where none does."""
    parted = [found for value in values if isinstance(value, str) and (found := _parted(value.strip()))]
    units = Counter(unit for unit, rest in parted if is_number(rest))
    return units.most_common(1)[0][0] if units else ""


def decimal_of(values: Sequence[Any], unit: str = "") -> Decimal:
    """How a column writes its numbers: the way in which nearly all of its cells are some, "" where plain ones are.

    Where all that shows is "1,234", the comma parts thousands: of decimals there would be other than three somewhere.
    """
    texts = [value.strip() for value in values if isinstance(value, str)]
    if unit:
        texts = [parted[1] if (parted := _parted(text)) and parted[0] == unit else text for text in texts]
    written = [text for text in texts if "," in text and is_number(text)]
    if not written:
        return ""
    if all(_EITHER.fullmatch(text) for text in written):
        return "."
    shares = {way: sum(number(text, way) is not None for text in texts) for way in (".", ",")}
    return "," if shares[","] > shares["."] else "."

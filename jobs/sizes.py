"""Sizes in bytes that are held against each other, in words that show how they differ."""

from __future__ import annotations

_UNITS = (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9))  # beside what a machine has, terabytes tell nothing


def bytes_texts(*sizes: float) -> tuple[str, ...]:
    """One unit for all of them, the largest one's, and as many decimals as tell apart what differs, four at most:
    '1.13 GB' and '1.10 GB', '1.20 GB' and '0.50 GB'. A size above nothing seldom reads as nothing. As `sizes` in
    chart.js."""
    largest = max(map(abs, sizes))
    name, unit = next((each for each in _UNITS if largest < 999.5 * each[1]), _UNITS[-1])
    texts: list[str] = []
    for decimals in range(0 if unit == 1 or largest >= 99.95 * unit else 2, 5):
        texts = [f"{size / unit:.{decimals}f}" for size in (*sizes, 0)]
        if len(set(texts)) == len({*sizes, 0}):
            break
    return tuple(f"{text} {name}" for text in texts[:-1])

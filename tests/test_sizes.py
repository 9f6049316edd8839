"""Sizes held against each other: one unit, and decimals enough to see what differs."""

from __future__ import annotations

import pytest

from jobs.sizes import bytes_texts


@pytest.mark.parametrize(
    ("sizes", "texts"),
    [
        ((1.13e9, 1.1e9), ("1.13 GB", "1.10 GB")),
        ((1.2e9, 500e6), ("1.20 GB", "0.50 GB")),
        ((1.2504e9, 1.25e9), ("1.2504 GB", "1.2500 GB")),
        ((1.13e9, 1.130000001e9), ("1.1300 GB", "1.1300 GB")),  # a difference that no estimate knows
        ((160e9, 20e6), ("160.00 GB", "0.02 GB")),
        ((150e9, 150.2e9), ("150.0 GB", "150.2 GB")),
        ((1.1e9, 1.1e9), ("1.10 GB", "1.10 GB")),
        ((0, 500e6), ("0 MB", "500 MB")),
        ((0, 0), ("0 B", "0 B")),
        ((1.15e9, 1.1e9, 1.25e9), ("1.15 GB", "1.10 GB", "1.25 GB")),
    ],
)
def test_sizes_in_one_unit_with_decimals_enough_to_tell_them_apart(
    sizes: tuple[float, ...], texts: tuple[str, ...]
) -> None:
    assert bytes_texts(*sizes) == texts

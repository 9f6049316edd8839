"""How values read, and that what people type stays text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from app.components import (
    badge_html,
    bytes_text,
    count_text,
    duration_text,
    escape,
    figures_html,
    problems_html,
    progress_html,
    when_text,
)
from app.theme import PALETTE
from jobs.errors import UserError
from storage.states import RunState


def test_typed_text_is_neither_html_nor_a_template() -> None:
    for typed in ("<b>", "${alert(1)}", "{{value}}", '" onclick="x'):
        shown = escape(typed)
        assert not set(shown) & set('<>${}"'), shown
    assert "<b>" not in figures_html([("<b>", "<b>", "<b>")]) + problems_html("<b>") + badge_html("<b>")
    assert "<b>" not in progress_html(0.5, "<b>")


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (999, "999 B"), (1536, "1.5 kB"), (999_999, "1.0 MB"), (19_600_000_000, "19.6 GB"), (None, "–")],
)
def test_bytes_read_in_decimal_units(n: float | None, text: str) -> None:
    assert bytes_text(n) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0"), (9999, "9,999"), (12_345, "12.3 k"), (4_884_480, "4.9 M"), (134_515_008, "135 M"), (None, "–")],
)
def test_counts_read_short(n: float | None, text: str) -> None:
    assert count_text(n) == text


@pytest.mark.parametrize(
    ("s", "text"),
    [(0.4, "0 s"), (75, "1 min 15 s"), (120, "2 min"), (3600, "1 h"), (90_000, "25 h"), (200_000, "2 days 7 h")],
)
def test_durations_read_as_said(s: float, text: str) -> None:
    assert duration_text(s) == text


def test_when_is_said_by_how_long_ago() -> None:
    now = datetime.now(UTC)
    for ago, text in (
        (5, "just now"),
        (600, "10 min ago"),
        (7200, "2 h ago"),
        (90_000, "yesterday"),
        (260_000, "3 days ago"),
    ):
        assert when_text(now - timedelta(seconds=ago)) == text
    assert when_text(datetime(2024, 2, 3, tzinfo=UTC)) == "3 Feb 2024"


def test_every_state_has_a_badge() -> None:
    assert all(badge_html(state).count(str(state)) == 0 for state in RunState if state != RunState.QUEUED)
    assert "Waiting" in badge_html(RunState.QUEUED)


def test_all_problems_are_shown_together() -> None:
    shown = problems_html(UserError("One.", "Two."))
    assert "One." in shown
    assert "Two." in shown
    assert problems_html([]) == ""


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("text", "ground"),
    [
        (text, ground)
        for text in ("text", "muted", "accent")
        for ground in ("ground", "surface", "raised", "accent-soft")
    ]
    + [("on-accent", "accent"), ("on-accent", "accent-hover")]
    + [(kind, f"{kind}-soft") for kind in ("info", "warn", "bad")]
    + [("text", f"{kind}-soft") for kind in ("info", "warn", "bad")],
)
def test_text_can_be_read_on_its_ground(text: str, ground: str, mode: int) -> None:
    light, dark = sorted((_luminance(PALETTE[name][mode]) for name in (text, ground)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5

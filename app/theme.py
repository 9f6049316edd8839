"""The look: one palette for light and dark, Gradio's theme made of it, and what goes into every page's head.

The rules themselves are in static/app.css; they use the palette as CSS variables named --g-<name>.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import gradio as gr

STATIC = Path(__file__).parent / "static"

# name: (light, dark). Text on its ground holds at least 4.5:1 in both.
PALETTE: dict[str, tuple[str, str]] = {
    "ground": ("#f3f6f2", "#0e1311"),
    "surface": ("#ffffff", "#161c19"),
    "raised": ("#f7f9f6", "#1d2521"),
    "line": ("#dfe6df", "#2a342f"),
    "line-strong": ("#8a978e", "#5f6e66"),
    "text": ("#18211c", "#e7eeea"),
    "muted": ("#56635b", "#9fada5"),
    "accent": ("#24704a", "#6cc795"),
    "accent-hover": ("#1b5a3a", "#86d6a9"),
    "accent-soft": ("#e2f1e7", "#1b3327"),
    "on-accent": ("#ffffff", "#06140c"),
    "info": ("#24566f", "#8cc4e0"),
    "info-soft": ("#e4eff5", "#172a34"),
    "warn": ("#805300", "#e7b95c"),
    "warn-soft": ("#fbf1dc", "#33290f"),
    "bad": ("#a8322a", "#f29a90"),
    "bad-soft": ("#fbe9e6", "#3a1c19"),
    "curve-1": ("#24704a", "#6cc795"),
    "curve-2": ("#b4560f", "#f0a05c"),
    "curve-3": ("#3a5fa8", "#8fb0f0"),
    "curve-4": ("#8a4b9c", "#cf9bdf"),
    "curve-5": ("#7a6a00", "#e0cf5c"),
}
SHADOW = ("0 1px 2px rgba(24,33,28,.05), 0 4px 16px rgba(24,33,28,.05)", "0 1px 2px rgba(0,0,0,.4)")

_LEAF = gr.themes.Color(
    c50="#f0f8f3",
    c100="#e2f1e7",
    c200="#c3e2cf",
    c300="#98cdae",
    c400="#6cc795",
    c500="#3a9566",
    c600="#24704a",
    c700="#1b5a3a",
    c800="#17472f",
    c900="#123624",
    c950="#0a2015",
    name="leaf",
)
_STONE = gr.themes.Color(
    c50="#f7f9f6",
    c100="#f3f6f2",
    c200="#dfe6df",
    c300="#c4cec6",
    c400="#9fada5",
    c500="#738078",
    c600="#56635b",
    c700="#2a342f",
    c800="#1d2521",
    c900="#161c19",
    c950="#0e1311",
    name="stone",
)

# Gradio's variable -> palette name.
_COLOURS = {
    "body_background_fill": "ground",
    "body_text_color": "text",
    "body_text_color_subdued": "muted",
    "background_fill_primary": "surface",
    "background_fill_secondary": "raised",
    "border_color_primary": "line",
    "border_color_accent": "accent",
    "color_accent_soft": "accent-soft",
    "link_text_color": "accent",
    "link_text_color_hover": "accent-hover",
    "link_text_color_visited": "accent",
    "link_text_color_active": "accent-hover",
    "block_background_fill": "surface",
    "block_info_text_color": "muted",
    "block_label_background_fill": "surface",
    "block_label_text_color": "muted",
    "block_title_text_color": "text",
    "panel_background_fill": "surface",
    "code_background_fill": "raised",
    "input_background_fill": "surface",
    "input_background_fill_focus": "surface",
    "input_border_color": "line-strong",
    "input_border_color_focus": "accent",
    "input_placeholder_color": "muted",
    "checkbox_background_color": "surface",
    "checkbox_background_color_selected": "accent",
    "checkbox_border_color": "line-strong",
    "checkbox_border_color_selected": "accent",
    "checkbox_border_color_focus": "accent",
    "checkbox_label_background_fill": "raised",
    "checkbox_label_background_fill_hover": "accent-soft",
    "checkbox_label_background_fill_selected": "accent-soft",
    "checkbox_label_text_color_selected": "text",
    "button_primary_background_fill": "accent",
    "button_primary_background_fill_hover": "accent-hover",
    "button_primary_text_color": "on-accent",
    "button_secondary_background_fill": "surface",
    "button_secondary_background_fill_hover": "raised",
    "button_secondary_border_color": "line-strong",
    "button_secondary_border_color_hover": "muted",
    "button_secondary_text_color": "text",
    "button_cancel_background_fill": "surface",
    "button_cancel_background_fill_hover": "bad-soft",
    "button_cancel_border_color": "bad",
    "button_cancel_text_color": "bad",
    "slider_color": "accent",
    "loader_color": "accent",
    "stat_background_fill": "accent-soft",
    "table_border_color": "line",
    "table_even_background_fill": "surface",
    "table_odd_background_fill": "surface",
    "table_row_focus": "accent-soft",
    "error_background_fill": "bad-soft",
    "error_border_color": "bad",
    "error_text_color": "bad",
}


def theme() -> gr.themes.Base:
    """Gradio's theme in our palette: system fonts, no block borders, soft shadows come with cards."""
    base = gr.themes.Base(
        primary_hue=_LEAF,
        secondary_hue=_LEAF,
        neutral_hue=_STONE,
        radius_size=gr.themes.sizes.radius_md,
        font=[gr.themes.Font(name) for name in ("system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")],
        font_mono=[
            gr.themes.Font(name) for name in ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
        ],
    )
    values: dict[str, str] = {}
    for variable, colour in _COLOURS.items():
        values[variable], values[f"{variable}_dark"] = PALETTE[colour]
    values["color_accent"] = PALETTE["accent"][0]
    base.set(
        **values,
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_shadow_dark="none",
        block_label_border_width="0px",
        block_label_border_width_dark="0px",
        block_label_shadow="none",
        block_title_text_weight="550",
        block_title_text_size="*text_sm",
        block_radius="10px",
        block_padding="*spacing_md *spacing_lg",
        input_border_width="1px",
        input_border_width_dark="1px",
        input_radius="8px",
        input_shadow="none",
        input_shadow_dark="none",
        input_shadow_focus="0 0 0 3px color-mix(in srgb, var(--g-accent) 25%, transparent)",
        input_shadow_focus_dark="0 0 0 3px color-mix(in srgb, var(--g-accent) 30%, transparent)",
        button_border_width="1px",
        button_border_width_dark="1px",
        button_primary_border_color="transparent",
        button_primary_border_color_dark="transparent",
        button_large_radius="9px",
        button_medium_radius="9px",
        button_small_radius="8px",
        button_large_padding="10px 18px",
        button_large_text_size="*text_md",
        button_large_text_weight="550",
        button_medium_text_weight="550",
        button_primary_shadow="none",
        button_secondary_shadow="none",
        button_primary_shadow_hover="none",
        button_secondary_shadow_hover="none",
        checkbox_label_border_width="1px",
        checkbox_label_shadow="none",
        layout_gap="16px",
        form_gap_width="0px",
    )
    return base


@cache
def version(name: str) -> str:
    """A few digits of a static file's content: browsers keep the file until it changes."""
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:10]


def static_url(name: str) -> str:
    return f"/graft/{name}?v={version(name)}"


def head() -> str:
    """What every page's head gets: the palette, our stylesheet, the shell script. All from this server."""
    light, dark = (
        "".join(f"--g-{name}:{pair[mode]};" for name, pair in (PALETTE | {"shadow": SHADOW}).items()) for mode in (0, 1)
    )
    return (
        f"<style>:root{{{light}color-scheme:light}}.dark{{{dark}color-scheme:dark}}</style>"
        + "".join(f'<link rel="stylesheet" href="{static_url(sheet)}">' for sheet in ("app.css", "pages.css"))
        + f'<link rel="icon" type="image/svg+xml" href="{static_url("icon.svg")}">'
        # Inline: a component's js_on_load does not wait for a script with an address.
        + "".join(f"<script>{(STATIC / name).read_text(encoding='utf-8')}</script>" for name in ("queue.js", "app.js"))
    )
